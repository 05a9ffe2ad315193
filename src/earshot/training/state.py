"""A run that can be stopped at any step: connector, optimizer and step on disk, and metrics beside them."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from earshot.config import Recipe
from earshot.errors import CheckpointError
from earshot.storage import write_text, written_whole
from earshot.tables import to_table

Row = dict[str, int | float]
"""A line of metrics.jsonl: the step, and means over the steps since the line before."""
STATE, METRICS, ORIGIN = "state.safetensors", "metrics.jsonl", "origin.json"
_OPTIMIZER = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW keeps of a weight; its step is not the run's where a weight had no gradient at first."""


def _identity(recipe: Recipe) -> dict[str, Any]:
    """What must not change between a stop and going on, by dotted names.

    Where it lies, how often it saves and in how many parts it takes a batch do not change what a run learns.
    """

    def flat(table: dict[str, Any], at: str = "") -> dict[str, Any]:
        pairs: dict[str, Any] = {}
        for name, value in table.items():
            pairs |= flat(value, f"{at}{name}.") if isinstance(value, dict) else {at + name: value}
        return pairs

    free = ("out", "train.save_every", "train.n_accumulated")
    return {name: value for name, value in flat(to_table(recipe)).items() if name not in free}


def save_state(
    folder: Path, connector: nn.Module, optimizer: torch.optim.Optimizer, step: int, recipe: Recipe
) -> None:
    """Writes what is needed to go on from `step`, whole or not at all.

    Raises:
        CheckpointError: the disk is full or the place cannot be written to
    """
    tensors = {}
    for name, weight in connector.named_parameters():
        tensors[f"weight.{name}"] = weight.detach().cpu().contiguous()
        for part, value in optimizer.state.get(weight, {}).items():
            tensors[f"{part}.{name}"] = value.cpu().contiguous()
    with written_whole(folder / STATE) as temporary:
        save_file(tensors, temporary, metadata={"step": str(step), "recipe": json.dumps(_identity(recipe))})


def load_state(folder: Path, connector: nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe) -> int:
    """Puts connector and optimizer back where they were.

    Returns: the step to go on from; 0 for a new run

    Raises:
        CheckpointError: a damaged state, or one of another recipe
    """
    check_state(folder, recipe)
    path = folder / STATE
    if not path.exists():
        return 0
    tensors, step, _ = _read(path)
    try:
        with torch.no_grad():
            for name, weight in connector.named_parameters():
                weight.copy_(tensors[f"weight.{name}"])
                state = {
                    part: tensors[f"{part}.{name}"] for part in _OPTIMIZER if f"{part}.{name}" in tensors
                }
                if state:
                    optimizer.state[weight] = {part: value.to(weight.device) for part, value in state.items()}
    except (KeyError, RuntimeError) as error:
        raise _damaged(path, error) from error
    return step


def check_state(folder: Path, recipe: Recipe) -> None:
    """Refuses a folder whose run cannot be gone on with, before anything expensive is done for it.

    Raises:
        CheckpointError: a damaged state, or one of another recipe
    """
    if not (folder / STATE).exists():
        return
    _, _, before = _read(folder / STATE, with_tensors=False)
    now = json.loads(json.dumps(_identity(recipe)))
    names = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    if names:
        raise CheckpointError(
            f"{folder} holds a run of another recipe: {names[0]} was {before.get(names[0])!r} and is"
            f" {now.get(names[0])!r}; go on with the recipe it began with, or give another folder as out"
        )


def keep_origin(folder: Path, origin: dict[str, str], step: int) -> None:
    """Writes beside a new run what it learns from, and refuses to go on with one that learned from something else.

    Args:
        origin: fingerprints by name
        step: where the run stands; 0 is a new one

    Raises:
        CheckpointError: another encoder, LLM, tokenizer or speech than the run began with, or a full disk
    """
    path = folder / ORIGIN
    if step and path.exists():
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
    write_text(path, json.dumps(origin, indent=1) + "\n")


def begun_steps(folder: Path) -> int | None:
    """How many steps the run that lies in a folder is to have in all; none where no run was saved.

    Raises:
        CheckpointError: a damaged state
    """
    if not (folder / STATE).exists():
        return None
    _, _, recipe = _read(folder / STATE, with_tensors=False)
    return recipe["train.n_steps"]


def _read(path: Path, *, with_tensors: bool = True) -> tuple[dict[str, torch.Tensor], int, dict[str, Any]]:
    """Tensors, step and identity of a state."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in (file.keys() if with_tensors else ())}
        step, identity = int(metadata["step"]), json.loads(metadata["recipe"])
        if "train.n_steps" not in identity:
            raise ValueError("it has no recipe")
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise _damaged(path, error) from error
    return tensors, step, identity


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path} is damaged ({error}); remove it to begin the run again")


class MetricsLog:
    """metrics.jsonl of a run: a line for each logged step, without those that a resumed run takes again.

    Raises:
        CheckpointError: the disk is full or the place cannot be written to
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / METRICS
        kept = [row for row in read_metrics(folder) if row["step"] <= step]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))

    def write(self, row: Row) -> None:
        """Appends one line."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be written: {error.strerror}") from error


def read_metrics(folder: Path) -> list[Row]:
    """The logged steps of a run, up to the first line that was cut off, if one was.

    Raises:
        CheckpointError: metrics that cannot be read
    """
    path = folder / METRICS
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    rows: list[Row] = []
    for line in lines:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        if not isinstance(row, dict) or "step" not in row:
            break
        rows.append(row)
    return rows
