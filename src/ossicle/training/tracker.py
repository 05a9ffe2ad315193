"""Metrics of a run to TensorBoard, trackio or Weights & Biases, in addition to metrics.jsonl.

None of these libraries is imported unless it is asked for.
"""

import contextlib
import hashlib
import importlib
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from ossicle.config import Recipe, TrainSettings
from ossicle.errors import ConfigError
from ossicle.settings_io import to_table
from ossicle.training.run_log import MetricsRow, TrainingProgress

TrackerName = Literal["tensorboard", "trackio", "wandb"]
PROJECT = "ossicle"
EVENTS_FOLDER = "tensorboard"
_MODULES = {
    "tensorboard": ("tensorboardX", "torch.utils.tensorboard"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}
"""Modules that serve, the first one that is installed."""


class TrackedProgress(TrainingProgress):
    """The progress of a run, whose lines of metrics go to a tracker too.

    Raises:
        ConfigError: the tracker's library is not installed
    """

    def __init__(self, console: Console | None, name: TrackerName, recipe: Recipe) -> None:
        super().__init__(console)
        self._name, self._recipe = name, recipe
        self._library = _import_library(name)
        self._writer: Any = None

    @contextlib.contextmanager
    def show_steps(self, step: int, elapsed_s: float, settings: TrainSettings) -> Generator[None]:
        """Keeps the tracker open while the block runs; a resumed run continues what it has written."""
        self._writer = _open_writer(self._name, self._library, self._recipe, step)
        try:
            with super().show_steps(step, elapsed_s, settings):
                yield
        finally:
            self._writer.close() if self._name == "tensorboard" else self._writer.finish()

    def log(self, row: MetricsRow) -> None:
        """Shows and tracks a line of metrics.jsonl."""
        super().log(row)
        step = int(row["step"])
        values: Mapping[str, float] = {name: value for name, value in row.items() if name != "step"}
        if self._name == "tensorboard":
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
        else:
            self._writer.log(values, step=step)


def _import_library(name: TrackerName) -> Any:
    for module in _MODULES[name]:
        with contextlib.suppress(ImportError):
            return importlib.import_module(module)
    package = _MODULES[name][0]
    raise ConfigError(
        f"--tracker is {name}, which needs {package}, but it is not installed: pip install {package}, or leave it out"
    )


def _open_writer(name: TrackerName, library: Any, recipe: Recipe, step: int) -> Any:
    folder = Path(recipe.out)
    if name == "tensorboard":
        return library.SummaryWriter(str(folder / EVENTS_FOLDER), purge_step=step + 1)
    options: dict[str, Any] = {
        "project": PROJECT,
        "name": folder.name,
        "config": to_table(recipe),
        "resume": "allow",
    }
    if name == "wandb":  # the same run for the same folder
        options |= {
            "id": hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:16],
            "dir": str(folder),
        }
    return library.init(**options)
