"""The learning rate at each position of the schedule, and schedules that follow the time."""

import pytest
from torch.testing import assert_close

from ossicle.config import TrainSettings
from ossicle.training.schedule import compute_lr_factor, compute_scheduled_step, format_progress


def test_the_learning_rate_rises_and_falls_as_configured() -> None:
    settings = TrainSettings(n_steps=100, warmup_ratio=0.1, final_lr_ratio=0.2)
    factors = [compute_lr_factor(float(step), settings) for step in range(101)]
    assert_close(factors[:10], [0.1 * step for step in range(1, 11)])
    assert factors[10] == 1.0
    assert factors[55] == pytest.approx(0.6)
    assert factors[100] == pytest.approx(0.2)
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert compute_lr_factor(0.0, TrainSettings(n_steps=1, warmup_ratio=1.0)) == 1.0


def test_a_schedule_by_time_ends_with_its_minutes_or_its_steps() -> None:
    settings = TrainSettings(n_steps=100, minutes=2.0, warmup_ratio=0.1)
    assert compute_scheduled_step(0, 0.0, settings) == 0
    assert compute_scheduled_step(3, 30.0, settings) == 25  # slower than the steps
    assert compute_scheduled_step(40, 30.0, settings) == 40  # faster: n_steps may end it before the time
    assert compute_scheduled_step(3, 500.0, settings) == compute_scheduled_step(100, 1.0, settings) == 100
    assert compute_scheduled_step(7, 500.0, TrainSettings(n_steps=100)) == 7
    assert compute_lr_factor(9.5, settings) == 1.0
    factors = [compute_lr_factor(position / 4, settings) for position in range(40, 401)]
    assert factors == sorted(factors, reverse=True)
    assert format_progress(3, 30.0, settings) == "step 3 (0.5 of 2 minutes)"
