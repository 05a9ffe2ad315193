"""What training adds to an ear: its numbers before and after on the same items, clean, corrupted, and all corrupted."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ossicle.evaluation.item_result import ItemResult
from ossicle.evaluation.report_data import Report
from ossicle.evaluation.statistics import (
    Estimate,
    ItemScore,
    Metric,
    bootstrap_difference,
    bootstrap_score,
)


@dataclass(frozen=True, kw_only=True)
class Gain:
    """The numbers before and after training, under one corruption or the mean of several."""

    name: str
    metric: Metric
    cascade: Estimate
    before: Estimate
    after: Estimate
    difference: Estimate
    """After - before, in pairs."""

    @property
    def is_clear(self) -> bool:
        """Whether the ear has become better by more than chance explains."""
        low, high = self.difference.ci95
        return high < 0 if self.metric.is_error else low > 0


def compute_gains(before: Report, after: Report) -> list[Gain]:
    """Returns the gain on clean sound, under each corruption, and under all corruptions together.

    The last one has the narrowest interval, as every item is averaged over all corruptions before items are resampled.

    Args:
        after: on the same items and corruptions as `before`
    """
    parts = {"clean": (before.items, after.items)}
    for own, other in zip(before.corruption_results, after.corruption_results, strict=True):
        parts[own.corruption.name] = (own.apply_to(before.items), other.apply_to(after.items))
    gains = [_compute_gain(name, [pair]) for name, pair in parts.items()]
    corrupted = list(parts.values())[1:]
    return [*gains, _compute_gain("all of these noises", corrupted)] if len(corrupted) > 1 else gains


def _compute_gain(name: str, pairs: Sequence[tuple[Sequence[ItemResult], Sequence[ItemResult]]]) -> Gain:
    """Returns the gain on items that were heard once or several times, before and after."""
    metric = pairs[0][0][0].metric
    cascade = _average_scores([before for before, _ in pairs], "cascade")
    before = _average_scores([before for before, _ in pairs], "ear")
    after = _average_scores([after for _, after in pairs], "ear")
    return Gain(
        name=name,
        metric=metric,
        cascade=bootstrap_score(metric, cascade),
        before=bootstrap_score(metric, before),
        after=bootstrap_score(metric, after),
        difference=bootstrap_difference(metric, after, before),
    )


def _average_scores(versions: Sequence[Sequence[ItemResult]], system: str) -> list[ItemScore]:
    """Returns the mean score of each item over its versions."""
    return [
        tuple(np.mean([item.scores[system] for item in items], axis=0).tolist())
        for items in zip(*versions, strict=True)
    ]
