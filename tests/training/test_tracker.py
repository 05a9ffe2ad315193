"""Metrics of a run in TensorBoard, trackio and Weights & Biases, each by a stand-in of its library."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from ossicle.config import Recipe, TrainSettings
from ossicle.errors import ConfigError
from ossicle.training import tracker
from ossicle.training.tracker import TrackedProgress

ROWS: list[dict[str, int | float]] = [
    {"step": 10, "loss": 2.0, "clips_per_s": 5.0},
    {"step": 20, "loss": 1.5, "clips_per_s": 6.0},
]


class Writer:
    """What all three libraries write to."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.args, self.options = args, options
        self.values: list[tuple[int, str, float]] = []
        self.is_closed = False

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.values.append((step, name, value))

    def log(self, values: dict[str, float], step: int) -> None:
        self.values += [(step, name, value) for name, value in values.items()]

    def close(self) -> None:
        self.is_closed = True

    finish = close


def track(name: Any, monkeypatch: pytest.MonkeyPatch, folder: Path, *, step: int = 0) -> Writer:
    writers: list[Writer] = []

    def open_writer(*args: Any, **options: Any) -> Writer:
        writers.append(Writer(*args, **options))
        return writers[-1]

    library = SimpleNamespace(SummaryWriter=open_writer, init=open_writer)
    monkeypatch.setitem(sys.modules, tracker._MODULES[name][0], library)
    progress = TrackedProgress(Console(quiet=True), name, Recipe(out=str(folder)))
    with progress.show_steps(step, 0.0, TrainSettings(n_steps=20)):
        for row in ROWS:
            progress.log(row)
    (writer,) = writers
    return writer


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb"])
def test_every_line_of_metrics_is_tracked(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    writer = track(name, monkeypatch, tmp_path / "run")
    assert writer.values == [(row["step"], key, row[key]) for row in ROWS for key in ("loss", "clips_per_s")]
    assert writer.is_closed


def test_a_resumed_run_continues_what_it_wrote(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    writer = track("tensorboard", monkeypatch, tmp_path, step=10)
    assert writer.args == (str(tmp_path / "tensorboard"),)
    assert writer.options == {"purge_step": 11}
    ids = {track("wandb", monkeypatch, tmp_path, step=step).options["id"] for step in (0, 10)}
    assert len(ids) == 1
    options = track("trackio", monkeypatch, tmp_path).options
    assert (options["project"], options["name"], options["resume"]) == ("ossicle", tmp_path.name, "allow")
    assert options["config"]["train"]["n_steps"] == Recipe(out="x").train.n_steps


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("tensorboardX", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        ConfigError, match="--tracker is tensorboard, which needs tensorboardX, but it is not"
    ):
        TrackedProgress(None, "tensorboard", Recipe(out="run"))


def test_no_library_is_imported_unless_it_is_asked_for() -> None:
    code = (
        "import sys, ossicle.training.tracker, ossicle.training.trainer\n"
        "assert not {'tensorboardX', 'tensorboard', 'trackio', 'wandb'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
