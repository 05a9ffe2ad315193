"""What some steps came to, over all ranks: the line of metrics that a person and a plot read."""

import time

import torch

from ossicle.training.optimizer import lr_factor
from ossicle.training.run import Run
from ossicle.training.run_log import MetricsRow
from ossicle.training.train_step import StepResult


class MetricAverager:
    """What the steps since the last line of metrics came to."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._begin()

    def _begin(self) -> None:
        self.taken: list[StepResult] = []
        self.started = time.monotonic()

    def add(self, taken: StepResult) -> None:
        """One more step."""
        self.taken.append(taken)

    def compute_row(self, step: int) -> MetricsRow:
        """Means over those steps, of which `step` is the last, and how fast they were; a new tally begins.

        All ranks ask for it together.
        """
        taken_s = time.monotonic() - self.started
        steps = [one.terms for one in self.taken if one.terms]
        names = list(dict.fromkeys(name for terms in steps for name in terms))
        means = [
            torch.stack([terms[name] for terms in steps if name in terms]).mean().item() for name in names
        ]
        means = dict(zip(names, self.run.ranks.all_reduce(means), strict=True))
        if "grad_norm" in means:  # the same on all of them
            means["grad_norm"] /= self.run.ranks.n_ranks
        lr = self.run.recipe.train.peak_lr * lr_factor(step - 1, self.run.recipe.train)
        n_clips, audio_s, flops = (
            sum(getattr(one, name) for one in self.taken) for name in ("n_clips", "audio_s", "flops")
        )
        row: MetricsRow = {
            "step": step,
            **means,
            "lr": lr,
            "clips_per_s": n_clips / taken_s,
            "audio_h_per_h": audio_s / taken_s,
        }
        row["tflops"] = flops / taken_s / self.run.ranks.n_ranks / 1e12  # of one device
        if self.run.peak_flops:
            row["mfu"] = row["tflops"] * 1e12 / self.run.peak_flops
        self._begin()
        return row
