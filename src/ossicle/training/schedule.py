"""The schedule of a run, which follows its steps or its time, and the learning rate at each position in it."""

import math

from ossicle.config import TrainSettings


def compute_scheduled_step(step: int, elapsed_s: float, settings: TrainSettings) -> float:
    """Returns the position in the schedule, from 0 to `n_steps`, where the run ends.

    It is the step itself; in a run of so many minutes, it is as far from 0 to `n_steps` as the time has passed, so that
    a slow computer takes fewer steps of the same schedule.

    Args:
        step: optimizer steps taken
        elapsed_s: seconds of training, those before the run was stopped and resumed included
    """
    if settings.minutes is None:
        return float(step)
    timed = settings.n_steps * elapsed_s / (60 * settings.minutes)
    return float(min(max(step, timed), settings.n_steps))


def format_progress(step: int, elapsed_s: float, settings: TrainSettings) -> str:
    """Returns the steps taken and their number, or the time and the run's minutes, for a message."""
    if settings.minutes is None:
        return f"step {step} of {settings.n_steps}"
    return f"step {step} ({elapsed_s / 60:.1f} of {settings.minutes:g} minutes)"


def compute_lr_factor(scheduled_step: float, settings: TrainSettings) -> float:
    """Returns the learning rate as a factor of its peak: linear warm-up, then half a cosine to the final ratio."""
    n_warmup_steps = max(1, round(settings.warmup_ratio * settings.n_steps))
    if scheduled_step < n_warmup_steps:
        return min((scheduled_step + 1) / n_warmup_steps, 1.0)
    progress = min((scheduled_step - n_warmup_steps) / max(1, settings.n_steps - n_warmup_steps), 1.0)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return settings.final_lr_ratio + (1 - settings.final_lr_ratio) * cosine
