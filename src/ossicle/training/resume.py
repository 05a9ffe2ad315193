"""The saved state of a run, which can be stopped at any moment: connector, optimizer and sample counter on disk.

A state is a folder of its own, `state/step-00000250`, that is written under another name and then renamed: the newest
one is complete. Ranks divide the writing among them, and any number of ranks can read it (torch.distributed.checkpoint,
in safetensors).
"""

import contextlib
import json
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

from ossicle.atomic_io import format_reason, fsync_text, raise_as_checkpoint_error, replace_folder, write_text
from ossicle.config import Recipe
from ossicle.errors import CheckpointError
from ossicle.run_checkpoint import ORIGIN_FILE, PROGRESS_FILE, STATES_FOLDER, build_read_error
from ossicle.settings_io import to_table
from ossicle.training.distributed import Ranks

_OPTIMIZER_KEYS = ("step", "exp_avg", "exp_avg_sq")
"""AdamW's state of a weight; its step is not the run's where a weight had no gradient at first."""
_STATE_NAME = re.compile(r"step-(\d+)")
_READ_ERRORS = (
    OSError,
    SafetensorError,
    CheckpointException,
    KeyError,
    ValueError,
    TypeError,
    RuntimeError,
    MemoryError,
    AssertionError,
)
"""Errors that torch and safetensors raise for a damaged file."""
_NOT_IDENTITY = {
    "out",
    "train.save_every",
    "train.microbatch_gb",
    "train.frozen_placement",
    "data.n_workers",
    "data.feature_cache",
    "data.teacher_cache",
    "data.max_invalid_ratio",
}
"""Settings that do not change what a run learns: where it is stored, how often it is saved, how a batch is divided, and
what is looked up instead of computed."""


@dataclass(frozen=True)
class TrainerState:
    """The position of a run between two steps."""

    step: int = 0
    """Optimizer steps taken."""
    n_samples: int = 0
    """Samples that those steps took, skipped ones included: the position in the order of clips."""
    elapsed_s: float = 0.0
    """Seconds that those steps took."""


def _build_identity(recipe: Recipe) -> dict[str, Any]:
    """Returns the settings that must not change between a stop and a resumption, by dotted names."""

    def flatten(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        pairs: dict[str, Any] = {}
        for name, value in table.items():
            pairs |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        return pairs

    settings = flatten(to_table(recipe))
    return {
        **{name: value for name, value in settings.items() if name not in _NOT_IDENTITY},
        "data.feature_cache": "in use" if recipe.data.feature_cache else None,  # it rounds to bfloat16
        "data.source": [source.rpartition("/")[2] for source in recipe.data.source],  # it may have moved
    }


def save_state(
    folder: Path,
    connector: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: TrainerState,
    recipe: Recipe,
    ranks: Ranks = Ranks(),  # noqa: B008 (frozen)
) -> None:
    """Saves what is needed to resume from `state`, whole or not at all, and removes the earlier states.

    All ranks call it together; the folder must be one that all of them see.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written to
    """
    path = folder / STATES_FOLDER / f"step-{state.step:08}"
    temporary = path.with_name(f".{path.name}")
    try:
        with ranks.sync_errors(), _raise_write_errors(path):
            if ranks.is_first:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
        with ranks.sync_errors(), _raise_write_errors(path):
            _write_tensors(temporary, dict(_iterate_tensors(connector, optimizer)), ranks)
        with ranks.sync_errors(), _raise_write_errors(path):
            if ranks.is_first:
                _write_progress(temporary, state, recipe)
                replace_folder(temporary, path)  # an earlier one is of a run that was taken back
    finally:
        if ranks.is_first:
            shutil.rmtree(temporary, ignore_errors=True)
    if ranks.is_first:
        for other in _list_states(folder):
            if other != path:
                shutil.rmtree(other, ignore_errors=True)


def _iterate_tensors(
    connector: nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[tuple[str, torch.Tensor]]:
    for name, weight in connector.named_parameters():
        yield f"weight.{name}", weight.detach()
        for key, value in optimizer.state.get(weight, {}).items():
            yield f"{key}.{name}", value.reshape(-1) if key == "step" else value


def _write_tensors(folder: Path, tensors: dict[str, torch.Tensor], ranks: Ranks) -> None:
    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    with ranks.report_lost_ranks(), _ignore_single_process_warning():
        dcp.save(tensors, storage_writer=writer, no_dist=not ranks.is_distributed)


def _write_progress(folder: Path, state: TrainerState, recipe: Recipe) -> None:
    """Writes the file that completes a state, to the disk itself: the state before it is removed next."""
    progress = {
        "step": state.step,
        "n_samples": state.n_samples,
        "elapsed_s": state.elapsed_s,
        "files": {path.name: path.stat().st_size for path in folder.iterdir()},
        "recipe": _build_identity(recipe),
    }
    fsync_text(folder / PROGRESS_FILE, json.dumps(progress, indent=1) + "\n")


@contextlib.contextmanager
def _ignore_single_process_warning() -> Generator[None]:
    """Keeps torch from warning that it is not distributed, which `no_dist` has said."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


@contextlib.contextmanager
def _raise_write_errors(path: Path) -> Generator[None]:
    """Turns what a full disk or a missing permission raises into a CheckpointError, torch's wrapping of it included."""
    advice = "the state saved before is unharmed: free some disk space, or give another folder as out"
    with raise_as_checkpoint_error(path, advice):
        try:
            yield
        except CheckpointException as error:
            raise OSError(None, format_reason(_unwrap(error))) from error


def load_state(
    folder: Path,
    connector: nn.Module,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    ranks: Ranks = Ranks(),  # noqa: B008 (frozen)
) -> TrainerState:
    """Loads the newest state into connector and optimizer, on any number of ranks.

    Returns: the position to resume from; step 0 for a new run

    Raises:
        CheckpointError: a damaged state, or one of another recipe
    """
    with ranks.sync_errors():
        check_state(folder, recipe)
        path = _find_newest_state(folder)
        progress = None if path is None else _read_progress(path)
    ranks.check_equal(progress, str(folder / STATES_FOLDER))
    if path is None or progress is None:
        return TrainerState()
    try:
        reader = dcp.HuggingFaceStorageReader(str(path))
        stored = reader.read_metadata().state_dict_metadata
        with torch.no_grad():
            for name, weight in connector.named_parameters():
                keys = [key for key in _OPTIMIZER_KEYS if f"{key}.{name}" in stored]
                if keys:
                    optimizer.state[weight] = _allocate_moments(weight, keys)
        tensors = dict(_iterate_tensors(connector, optimizer))
        with ranks.report_lost_ranks(), _ignore_single_process_warning():
            dcp.load(tensors, storage_reader=reader, no_dist=not ranks.is_distributed)
        for moments in optimizer.state.values():
            moments["step"] = moments["step"].reshape(())
    except _READ_ERRORS as error:
        raise build_read_error(path, _unwrap(error)) from error
    return TrainerState(
        step=progress["step"], n_samples=progress["n_samples"], elapsed_s=progress["elapsed_s"]
    )


def _allocate_moments(weight: torch.Tensor, keys: Sequence[str]) -> dict[str, torch.Tensor]:
    """Allocates the optimizer's tensors for a weight, all on the weight's device: fused AdamW wants its step there."""
    return {
        key: weight.new_zeros(1, dtype=torch.float32) if key == "step" else torch.zeros_like(weight)
        for key in keys
    }


def check_state(folder: Path, recipe: Recipe) -> None:
    """Checks, before anything expensive is done, that a folder holds no run or one that this recipe can resume.

    Raises:
        CheckpointError: a damaged state, or one of another recipe
    """
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file, expected the folder of a run; give another name as out")
    path = _find_newest_state(folder)
    if path is None:
        return
    stored, given = _read_progress(path)["recipe"], json.loads(json.dumps(_build_identity(recipe)))
    names = [name for name in sorted({*stored, *given}) if stored.get(name) != given.get(name)]
    if names:
        raise CheckpointError(
            f"{folder} holds a run of another recipe: {names[0]} was {stored.get(names[0])!r} and is"
            f" {given.get(names[0])!r}; resume with the recipe that the run began with, or give another folder as out"
        )


def write_origin(folder: Path, origin: dict[str, str]) -> None:
    """Writes the fingerprints of what a run learns from into its folder.

    Args:
        origin: fingerprints by name

    Raises:
        CheckpointError: the run learned from something else before, or the disk is full
    """
    check_origin(folder, origin)
    write_text(folder / ORIGIN_FILE, json.dumps(origin, indent=1) + "\n")


def check_origin(folder: Path, origin: dict[str, str]) -> None:
    """Checks, before anything expensive is done, that a saved run learned from the same models and speech.

    Raises:
        CheckpointError: another encoder, LLM, tokenizer, speech or ear to start from than the run began with
    """
    path = folder / ORIGIN_FILE
    if _find_newest_state(folder) is None or not path.exists():
        return
    try:
        stored = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise build_read_error(path, error) from error
    changed = [name for name in origin if stored.get(name, origin[name]) != origin[name]]
    if changed:
        raise CheckpointError(
            f"{folder} holds a run that began with another {changed[0]}: its fingerprint was"
            f" {stored.get(changed[0])} and is {origin[changed[0]]}; bring back the one that the run began with,"
            " or give another folder as out"
        )


def _list_states(folder: Path) -> list[Path]:
    """Returns the states of a run, oldest first."""
    paths = [path for path in (folder / STATES_FOLDER).glob("step-*") if _STATE_NAME.fullmatch(path.name)]
    return sorted(paths, key=lambda path: int(path.name.removeprefix("step-")))


def _find_newest_state(folder: Path) -> Path | None:
    paths = _list_states(folder)
    return paths[-1] if paths else None


def _read_progress(path: Path) -> dict[str, Any]:
    """Reads step, samples, time and recipe of a state, and checks the sizes of its files."""
    try:
        progress = json.loads((path / PROGRESS_FILE).read_text(encoding="utf-8"))
        for name, size in progress["files"].items():
            if (path / name).stat().st_size != size:
                raise ValueError(f"{name} has another size than when it was written")
        if not (isinstance(progress["step"], int) and isinstance(progress["n_samples"], int)):
            raise ValueError("its step is not a number")
        progress["elapsed_s"] = float(progress.get("elapsed_s", 0.0))  # not in older states
        progress["recipe"]["train.n_steps"]
    except _READ_ERRORS as error:
        raise build_read_error(path, error) from error
    return progress


def _unwrap(error: BaseException) -> BaseException:
    """Returns what a rank raised: torch wraps it."""
    if isinstance(error, CheckpointException) and error.failures:
        return next(iter(error.failures.values()))[0]
    return error
