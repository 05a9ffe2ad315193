"""A run that can be stopped at any step: connector, optimizer and step on disk, and the metrics beside them."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from earshot.config import Recipe, to_table
from earshot.errors import CheckpointError
from earshot.storage import write_text, written_whole

STATE, METRICS = "state.safetensors", "metrics.jsonl"
_MOMENTS = ("exp_avg", "exp_avg_sq")


def _identity(recipe: Recipe) -> str:
    """What must not change between a stop and going on; where the run lies and how often it saves may."""
    same = replace(recipe, out="", train=replace(recipe.train, save_every=1))
    return json.dumps(to_table(same), sort_keys=True)


def save_state(folder: Path, connector: nn.Module, optimizer: torch.optim.AdamW, step: int, recipe: Recipe) -> None:
    """Writes what is needed to go on from `step`, whole or not at all.

    Raises:
        CheckpointError: the disk is full or the place cannot be written to
    """
    tensors = {}
    for name, weight in connector.named_parameters():
        tensors[f"weight.{name}"] = weight.detach().cpu().contiguous()
        for moment in _MOMENTS:
            if moment in optimizer.state[weight]:
                tensors[f"{moment}.{name}"] = optimizer.state[weight][moment].cpu().contiguous()
    with written_whole(folder / STATE) as temporary:
        save_file(tensors, temporary, metadata={"step": str(step), "recipe": _identity(recipe)})


def load_state(folder: Path, connector: nn.Module, optimizer: torch.optim.AdamW, recipe: Recipe) -> int:
    """Puts connector and optimizer back where they were and gives the step to go on from; 0 for a new run.

    Raises:
        CheckpointError: a damaged state, or one of another recipe
    """
    path = folder / STATE
    if not path.exists():
        return 0
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        step, identity = int(metadata["step"]), metadata["recipe"]
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); remove it to begin the run again") from error
    if identity != _identity(recipe):
        raise CheckpointError(
            f"{folder} holds a run of another recipe ({_difference(identity, _identity(recipe))}); go on with the"
            " recipe it began with, or give another folder with --out"
        )
    with torch.no_grad():
        for name, weight in connector.named_parameters():
            weight.copy_(tensors[f"weight.{name}"])
            if f"exp_avg.{name}" in tensors:
                moments = {moment: tensors[f"{moment}.{name}"].to(weight.device) for moment in _MOMENTS}
                optimizer.state[weight] = {"step": torch.tensor(float(step)), **moments}
    return step


def _difference(then: str, now: str) -> str:
    """The first setting in which two recipes differ, for a message."""

    def flat(table: dict, at: str = "") -> dict[str, object]:
        pairs: dict[str, object] = {}
        for name, value in table.items():
            pairs |= flat(value, f"{at}{name}.") if isinstance(value, dict) else {at + name: value}
        return pairs

    before, after = flat(json.loads(then)), flat(json.loads(now))
    name = next(name for name in sorted({*before, *after}) if before.get(name) != after.get(name))
    return f"{name} was {before.get(name)!r} and is {after.get(name)!r}"


class MetricsLog:
    """metrics.jsonl of a run: a line for each logged step, later ones dropped when a run goes on from an earlier."""

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / METRICS
        kept = [row for row in read_metrics(folder) if row["step"] <= step]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))

    def write(self, row: dict[str, float]) -> None:
        """Appends one line."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be written: {error.strerror}") from error


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The logged steps of a run; a last line that was cut off is left out."""
    path = folder / METRICS
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
