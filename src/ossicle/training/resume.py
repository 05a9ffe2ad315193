"""A run that can be stopped at any moment: connector, optimizer and sample counter on disk.

A state is a folder of its own, `state/step-00000250`, that is written beside and renamed: the newest one is whole.
Ranks share out the writing, and any number of them can read it (torch.distributed.checkpoint, in safetensors).
"""

import contextlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException

from ossicle.atomic_io import write_text
from ossicle.config import Recipe
from ossicle.errors import CheckpointError
from ossicle.settings_io import to_table
from ossicle.training.distributed import Ranks

STATES, ORIGIN = "state", "origin.json"
_PROGRESS = "progress.json"
"""Written last into a state's folder: step, samples, recipe, and the sizes of the other files."""
_OPTIMIZER = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW keeps of a weight; its step is not the run's where a weight had no gradient at first."""
_NAME = re.compile(r"step-(\d+)")
# What torch and safetensors raise over a file that is damaged.
_UNREADABLE = (
    OSError,
    SafetensorError,
    CheckpointException,
    KeyError,
    ValueError,
    TypeError,
    RuntimeError,
    AssertionError,
)


@dataclass(frozen=True)
class TrainerState:
    """Where a run stands."""

    step: int = 0
    """Optimizer steps taken."""
    n_samples: int = 0
    """Samples that they took, skipped ones included: the place in the order of clips."""


def _identity(recipe: Recipe) -> dict[str, Any]:
    """What must not change between a stop and going on, by dotted names.

    Where it lies, how often it saves, in what parts and by how many hands it takes a batch, and what is looked up
    instead of computed, do not change what a run learns.
    """

    def flat(table: dict[str, Any], at: str = "") -> dict[str, Any]:
        pairs: dict[str, Any] = {}
        for name, value in table.items():
            pairs |= flat(value, f"{at}{name}.") if isinstance(value, dict) else {at + name: value}
        return pairs

    free = {"out", "train.save_every", "train.microbatch_gb", "train.frozen_placement", "data.n_workers"}
    free |= {"data.feature_cache", "data.teacher_cache", "data.max_invalid_ratio"}
    kept = {name: value for name, value in flat(to_table(recipe)).items() if name not in free}
    return {
        **kept,
        "data.feature_cache": "in use" if recipe.data.feature_cache else None,  # it rounds to bfloat16
        "data.source": [source.rpartition("/")[2] for source in recipe.data.source],  # it may have moved
    }


def save_state(
    folder: Path,
    connector: nn.Module,
    optimizer: torch.optim.Optimizer,
    standing: TrainerState,
    recipe: Recipe,
    ranks: Ranks = Ranks(),  # noqa: B008 (frozen)
) -> None:
    """Writes what is needed to go on from `standing`, whole or not at all, and removes what was saved before.

    All ranks call it together; the folder must be one that all of them see.

    Raises:
        CheckpointError: the disk is full or the place cannot be written to
    """
    target = folder / STATES / f"step-{standing.step:08}"
    temporary = target.with_name(f".{target.name}")
    try:
        with ranks.sync_errors(), _as_unwritten(target):
            if ranks.is_first:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
        with ranks.sync_errors(), _as_unwritten(target):
            _write(temporary, dict(_tensors(connector, optimizer)), ranks)
        with ranks.sync_errors(), _as_unwritten(target):
            if ranks.is_first:
                sizes = {path.name: path.stat().st_size for path in temporary.iterdir()}
                progress = {
                    "step": standing.step,
                    "n_samples": standing.n_samples,
                    "files": sizes,
                    "recipe": _identity(recipe),
                }
                with (temporary / _PROGRESS).open("w", encoding="utf-8") as file:
                    file.write(json.dumps(progress, indent=1) + "\n")
                    file.flush()
                    os.fsync(file.fileno())  # before the state that it replaces is removed
                shutil.rmtree(target, ignore_errors=True)  # of a run that was taken back
                temporary.rename(target)
    finally:
        if ranks.is_first:
            shutil.rmtree(temporary, ignore_errors=True)
    if ranks.is_first:
        for other in _states(folder):
            if other != target:
                shutil.rmtree(other, ignore_errors=True)


def _tensors(connector: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, torch.Tensor]]:
    for name, weight in connector.named_parameters():
        yield f"weight.{name}", weight.detach()
        for part, value in optimizer.state.get(weight, {}).items():
            yield f"{part}.{name}", value.reshape(-1) if part == "step" else value


def _write(folder: Path, tensors: dict[str, torch.Tensor], ranks: Ranks) -> None:
    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    with ranks.report_lost_ranks(), _alone_is_fine():
        dcp.save(tensors, storage_writer=writer, no_dist=not ranks.is_distributed)


@contextlib.contextmanager
def _alone_is_fine() -> Generator[None]:
    """Keeps torch from warning that there are no other ranks, which it is told of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


@contextlib.contextmanager
def _as_unwritten(target: Path) -> Generator[None]:
    """Turns what a full disk or a forbidden place raises into a CheckpointError."""
    try:
        yield
    except (OSError, SafetensorError, CheckpointException) as error:
        raise CheckpointError(
            f"{target} cannot be written: {_reason(error)}; what was saved before is unharmed: make room, or give"
            " another place as out"
        ) from error


def load_state(
    folder: Path,
    connector: nn.Module,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    ranks: Ranks = Ranks(),  # noqa: B008 (frozen)
) -> TrainerState:
    """Puts connector and optimizer back where they were, for however many ranks.

    Returns: where to go on from; the beginning, for a new run

    Raises:
        CheckpointError: a damaged state, or one of another recipe
    """
    with ranks.sync_errors():
        check_state(folder, recipe)
        path = _newest(folder)
        progress = None if path is None else _progress(path)
    ranks.check_equal(progress, str(folder / STATES))
    if path is None or progress is None:
        return TrainerState()
    try:
        reader = dcp.HuggingFaceStorageReader(str(path))
        there = reader.read_metadata().state_dict_metadata
        with torch.no_grad():
            for name, weight in connector.named_parameters():
                parts = [part for part in _OPTIMIZER if f"{part}.{name}" in there]
                if parts:
                    optimizer.state[weight] = _moments(weight, parts)
        tensors = dict(_tensors(connector, optimizer))
        with ranks.report_lost_ranks(), _alone_is_fine():
            dcp.load(tensors, storage_reader=reader, no_dist=not ranks.is_distributed)
        for state in optimizer.state.values():
            state["step"] = state["step"].reshape(())
    except _UNREADABLE as error:
        raise _damaged(path, error) from error
    return TrainerState(step=progress["step"], n_samples=progress["n_samples"])


def _moments(weight: torch.Tensor, parts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Room for what the optimizer keeps of a weight; all of it beside the weight, as fused kernels want even steps."""
    return {
        part: weight.new_zeros(1, dtype=torch.float32) if part == "step" else torch.zeros_like(weight)
        for part in parts
    }


def check_state(folder: Path, recipe: Recipe) -> None:
    """Refuses a folder whose run cannot be gone on with, before anything expensive is done for it.

    Raises:
        CheckpointError: a damaged state, or one of another recipe
    """
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; a run is a folder: give another name as out")
    path = _newest(folder)
    if path is None:
        return
    before, now = _progress(path)["recipe"], json.loads(json.dumps(_identity(recipe)))
    names = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    if names:
        raise CheckpointError(
            f"{folder} holds a run of another recipe: {names[0]} was {before.get(names[0])!r} and is"
            f" {now.get(names[0])!r}; go on with the recipe it began with, or give another folder as out"
        )


def write_origin(folder: Path, origin: dict[str, str]) -> None:
    """Writes beside a run what it learns from.

    Args:
        origin: fingerprints by name

    Raises:
        CheckpointError: it learned from something else before, or a full disk
    """
    check_origin(folder, origin)
    write_text(folder / ORIGIN, json.dumps(origin, indent=1) + "\n")


def check_origin(folder: Path, origin: dict[str, str]) -> None:
    """Refuses to go on with a run that learned from something else, before anything expensive is done for it.

    Raises:
        CheckpointError: another encoder, LLM, tokenizer or speech than the run began with
    """
    path = folder / ORIGIN
    if _newest(folder) is not None and path.exists():
        try:
            before = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise _damaged(path, error) from error
        changed = [name for name in origin if before.get(name) != origin[name]]
        if changed:
            raise CheckpointError(
                f"{folder} holds a run that began with another {changed[0]}: its fingerprint was"
                f" {before.get(changed[0])} and is {origin[changed[0]]}; bring back the one it began with,"
                " or give another folder as out"
            )


def _states(folder: Path) -> list[Path]:
    """The states of a run, oldest first."""
    found = [path for path in (folder / STATES).glob("step-*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def _newest(folder: Path) -> Path | None:
    states = _states(folder)
    return states[-1] if states else None


def _progress(path: Path) -> dict[str, Any]:
    """Step, samples and recipe of a state whose files are as long as they were."""
    try:
        progress = json.loads((path / _PROGRESS).read_text(encoding="utf-8"))
        for name, size in progress["files"].items():
            if (path / name).stat().st_size != size:
                raise ValueError(f"{name} is not as long as it was")
        if not (isinstance(progress["step"], int) and isinstance(progress["n_samples"], int)):
            raise ValueError("its step is no number")
        progress["recipe"]["train.n_steps"]
    except _UNREADABLE as error:
        raise _damaged(path, error) from error
    return progress


def _reason(error: BaseException) -> str:
    if isinstance(error, CheckpointException) and error.failures:  # torch wraps what a rank met
        error = next(iter(error.failures.values()))[0]
    return (error.strerror if isinstance(error, OSError) else None) or str(error).strip().split("\n", 1)[0]


def _damaged(path: Path, error: BaseException) -> CheckpointError:
    return CheckpointError(f"{path} is damaged ({_reason(error)}); remove it to begin the run again")
