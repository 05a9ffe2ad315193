"""The three numbers of some items, and their differences; all of them follow from the items' scores."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ossicle.errors import DataError
from ossicle.evaluation.item_result import SYSTEMS, ItemResult
from ossicle.evaluation.statistics import (
    METRICS,
    Estimate,
    Metric,
    bootstrap_difference,
    bootstrap_group_mean,
    bootstrap_group_mean_difference,
    bootstrap_score,
)
from ossicle.evaluation.text_normalization import compute_word_error_rate


@dataclass(frozen=True, kw_only=True)
class ScoreTable:
    """The three numbers of some items."""

    n: int
    metric: Metric
    """The metric of all three."""
    text_ceiling: Estimate
    cascade: Estimate
    ear: Estimate
    wer: float
    """Word error rate of the cascade's transcripts."""
    difference: Estimate
    """Ear - cascade, paired: an item that both answer alike adds nothing to the interval's width."""
    kept: float | None
    """Ratio of the items answered correctly from the text that the ear answers correctly; None without any."""

    @property
    def of_ceiling(self) -> float | None:
        """The ear's number divided by the text ceiling; None if the ceiling is 0 or the metric is an error."""
        ceiling = self.text_ceiling.value
        return self.ear.value / ceiling if ceiling and not self.metric.is_error else None

    def to_json(self) -> dict[str, Any]:
        """Returns the table as `report.json` stores it."""
        return {
            "metric": self.metric.name,
            "n": self.n,
            "text_ceiling": asdict(self.text_ceiling),
            "cascade": asdict(self.cascade) | {"wer": self.wer},
            "ear": asdict(self.ear) | {"of_ceiling": self.of_ceiling, "kept": self.kept},
            "difference": asdict(self.difference),
        }


def build_score_table(items: Sequence[ItemResult]) -> ScoreTable:
    """Returns the three numbers of at least one item; all items need the same metric.

    If every target is the LLM's own answer, the text ceiling is 1 by definition, not by measurement, and its interval
    has no width.

    Raises:
        DataError: the items have different metrics, which cannot be combined
    """
    metrics = {item.metric.name: item.metric for item in items}
    if len(metrics) > 1:
        raise DataError(
            f"items {items[0].id!r} and others are measured by {' and '.join(sorted(metrics))}, which cannot be"
            " combined into one number; give the items of each metric a group of their own and use the mean of the"
            " groups"
        )
    (metric,) = metrics.values()
    text, cascade, ear = ([item.scores[system] for item in items] for system in SYSTEMS)
    is_defined = all(item.is_own_target for item in items)
    return ScoreTable(
        n=len(items),
        metric=metric,
        text_ceiling=Estimate(value=1.0, ci95=(1.0, 1.0)) if is_defined else bootstrap_score(metric, text),
        cascade=bootstrap_score(metric, cascade),
        ear=bootstrap_score(metric, ear),
        wer=_compute_wer(items),
        difference=bootstrap_difference(metric, ear, cascade),
        kept=_compute_kept_ratio(items),
    )


def build_group_mean_table(groups: Sequence[Sequence[ItemResult]]) -> ScoreTable:
    """Returns the means of the groups' numbers, whatever their metrics; every group has the same weight."""
    metrics = [group[0].metric for group in groups]
    by_system = {system: [[item.scores[system] for item in group] for group in groups] for system in SYSTEMS}
    items = [item for group in groups for item in group]
    pairs = list(zip(by_system["ear"], by_system["cascade"], strict=True))
    return ScoreTable(
        n=len(items),
        metric=METRICS["mean"],
        text_ceiling=bootstrap_group_mean(by_system["text"], metrics),
        cascade=bootstrap_group_mean(by_system["cascade"], metrics),
        ear=bootstrap_group_mean(by_system["ear"], metrics),
        wer=_compute_wer(items),
        difference=bootstrap_group_mean_difference(pairs, metrics),
        kept=_compute_kept_ratio(items),
    )


def _compute_wer(items: Sequence[ItemResult]) -> float:
    return compute_word_error_rate([item.text for item in items], [item.transcript for item in items])


def _compute_kept_ratio(items: Sequence[ItemResult]) -> float | None:
    flags = [item.ear_correct for item in items if item.text_correct]
    return sum(flags) / len(flags) if flags else None
