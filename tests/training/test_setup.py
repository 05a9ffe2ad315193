"""Building a run: the ear that it starts from, and the terminal after an interruption."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.training_runs import (
    assert_same_bits,
    change_settings,
    compute_step_loss,
    copy_weights,
)

from ossicle.config import (
    Recipe,
)
from ossicle.errors import CheckpointError
from ossicle.training import trainer
from ossicle.training.run_log import (
    TrainingProgress,
)
from ossicle.training.setup import build_run


def test_a_run_starts_from_a_trained_ear(recipe: Recipe, tmp_path: Path) -> None:
    trained = trainer.train(recipe)
    again = change_settings(recipe, train={"start": recipe.out, "seed": 7})
    run = build_run(replace(again, out=str(tmp_path / "again")))
    assert_same_bits(copy_weights(run.ear), copy_weights(trained))
    assert compute_step_loss(run, 0) < compute_step_loss(
        build_run(change_settings(again, train={"start": None})), 0
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"connector": {"form": "anchored"}}, "has another connector"),
        ({"connector": {"n_layers": 1}}, "has another connector"),
        ({"train": {"start": "nowhere"}}, "No such folder: nowhere"),
    ],
)
def test_a_run_starts_only_from_an_ear_of_the_same_kind(
    recipe: Recipe, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    trainer.train(change_settings(recipe, train={"n_steps": 1}))
    again = change_settings(change_settings(recipe, train={"start": recipe.out}), **change)
    with pytest.raises(CheckpointError, match=message):
        build_run(replace(again, out=str(tmp_path / "again")))


def test_the_terminal_is_restored_when_encoding_is_interrupted(recipe: Recipe) -> None:
    class Interrupted(TrainingProgress):
        closed = False

        def update_encoding(self, n_done: int, n: int) -> None:
            raise KeyboardInterrupt

        def close(self) -> None:
            self.closed = True

    progress = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        build_run(recipe, progress)
    assert progress.closed
