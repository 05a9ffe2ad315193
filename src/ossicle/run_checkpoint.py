"""The ear of a run that is not finished: the weights of its newest saved state, with the settings of its recipe."""

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import OutOfMemoryError, Tensor

from ossicle.atomic_io import describe_unreadable, format_reason
from ossicle.errors import CheckpointError
from ossicle.text_encoding import read_text_file

STATES_FOLDER, PROGRESS_FILE, ORIGIN_FILE, RECIPE_FILE = (
    "state",
    "progress.json",
    "origin.json",
    "recipe.toml",
)
_BACKBONES = ("encoder", "decoder_vocabulary", "llm", "tokenizer")
"""Fingerprints in a run's origin that are an ear's, too."""
_WEIGHT = "weight."
_ATTEMPTS = 5
"""A training run removes its earlier state once the next one is saved."""


@dataclass(frozen=True, kw_only=True)
class UnfinishedRun:
    """What a run has learned so far."""

    step: int
    n_steps: int | None
    settings: dict[str, Any]
    """The tables base, prompt and connector of its recipe; a table that is all defaults is empty."""
    fingerprints: dict[str, str]
    weights: dict[str, Tensor]

    def describe(self, folder: Path) -> str:
        """Returns what is used, for people."""
        of = "" if self.n_steps is None else f" of {self.n_steps:,}"
        return f"{folder} has not finished training: this is its newest state, after step {self.step:,}{of}"


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run, finished or not."""
    return (folder / RECIPE_FILE).is_file() and (folder / ORIGIN_FILE).is_file()


def has_state(folder: Path) -> bool:
    """Whether a run has saved a state."""
    return is_run(folder) and bool(_list_states(folder))


def read_unfinished_run(folder: Path) -> UnfinishedRun:
    """Reads the newest state of a run.

    Raises:
        CheckpointError: no state yet, or a damaged one
    """
    for attempt in range(_ATTEMPTS):
        states = _list_states(folder)
        if not states:
            raise CheckpointError(
                f"{folder} is a run that has no finished ear and no saved state yet: wait for its first state (see"
                " train.save_every)"
            )
        try:
            return _read_state(folder, states[-1])
        except (OSError, MemoryError, ValueError, KeyError, TypeError, SafetensorError) as error:
            if attempt == _ATTEMPTS - 1 or _list_states(folder)[-1:] == states[-1:]:
                raise build_read_error(states[-1], error) from error
    raise AssertionError("the last attempt returns or raises")


def build_read_error(path: Path, error: BaseException) -> CheckpointError:
    """Returns the error for a state that cannot be read, which need not be its own fault."""
    if isinstance(error, OutOfMemoryError):  # the GPU's
        error = MemoryError(format_reason(error))
    return CheckpointError(
        describe_unreadable(path, error)
        or f"{path} is damaged ({format_reason(error)}); remove it to begin the run again"
    )


def _list_states(folder: Path) -> list[Path]:
    """Returns the complete states, oldest first."""
    return sorted(path.parent for path in (folder / STATES_FOLDER).glob(f"step-*/{PROGRESS_FILE}"))


def _read_state(folder: Path, state: Path) -> UnfinishedRun:
    recipe = tomllib.loads(read_text_file(folder / RECIPE_FILE))
    origin = json.loads((folder / ORIGIN_FILE).read_text(encoding="utf-8"))
    progress = json.loads((state / PROGRESS_FILE).read_text(encoding="utf-8"))
    weights: dict[str, Tensor] = {}
    for name in sorted(name for name in progress["files"] if name.endswith(".safetensors")):
        with safe_open(state / name, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(_WEIGHT)]  # noqa: SIM118, it is no dict
            weights |= {name.removeprefix(_WEIGHT): file.get_tensor(name) for name in names}
    train = recipe.get("train", {})
    return UnfinishedRun(
        step=int(progress["step"]),
        n_steps=None if "minutes" in train else train.get("n_steps"),
        settings={name: recipe.get(name, {}) for name in ("base", "prompt", "connector")},
        fingerprints={name: value for name, value in origin.items() if name in _BACKBONES},
        weights=weights,
    )
