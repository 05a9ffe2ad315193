"""Timing the steps of a run."""

import torch
from support.training_runs import (
    assert_same_bits,
    copy_weights,
    run_train_step,
)

from ossicle.config import (
    Recipe,
)
from ossicle.training.run import Run, with_n_steps
from ossicle.training.setup import build_run
from ossicle.training.step_timing import count_steps_within


def test_timing_steps_changes_nothing(recipe: Recipe) -> None:
    run = build_run(recipe)
    for n_before in (0, 2):
        for step in range(n_before):
            run_train_step(run, step)
        before = copy_weights(run.ear), copy_optimizer_state(run)
        assert count_steps_within(run, 1e6) > count_steps_within(run, 0.0) == 1
        assert_same_bits(before[0], copy_weights(run.ear))
        assert_same_bits(before[1], copy_optimizer_state(run))
        assert all(weight.grad is None for weight in run.ear.connector.parameters())
    longer = with_n_steps(run, 33)
    assert longer.recipe.train.n_steps == 33
    assert longer.ear is run.ear


def copy_optimizer_state(run: Run) -> dict[str, torch.Tensor]:
    state = {"lr": torch.tensor([group["lr"] for group in run.optimizer.param_groups])}
    for name, weight in run.ear.connector.named_parameters():
        state |= {
            f"{name}.{part}": value.clone() for part, value in run.optimizer.state.get(weight, {}).items()
        }
    return state
