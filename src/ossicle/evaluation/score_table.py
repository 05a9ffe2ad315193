"""The three numbers of some items, and how they differ; all of it follows from the items' marks."""

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
    """What the numbers mean."""
    text_ceiling: Estimate
    cascade: Estimate
    ear: Estimate
    wer: float
    """Word error rate of the cascade's transcripts."""
    difference: Estimate
    """Ear - cascade, paired: an item that both answer alike adds nothing to its width."""
    kept: float | None
    """Share of the items answered right in text that the ear answers right too; None if there are none."""

    @property
    def of_ceiling(self) -> float | None:
        """The ear's number per number of the text ceiling; None if the ceiling is 0 or less is better."""
        ceiling = self.text_ceiling.value
        return self.ear.value / ceiling if ceiling and not self.metric.is_error else None

    def to_json(self) -> dict[str, Any]:
        """The table as `report.json` has it."""
        return {
            "metric": self.metric.name,
            "n": self.n,
            "text_ceiling": asdict(self.text_ceiling),
            "cascade": asdict(self.cascade) | {"wer": self.wer},
            "ear": asdict(self.ear) | {"of_ceiling": self.of_ceiling, "kept": self.kept},
            "difference": asdict(self.difference),
        }


def build_score_table(items: Sequence[ItemResult]) -> ScoreTable:
    """The three numbers of at least one item, all marked in one way.

    A text ceiling whose every target is the LLM's own answer is 1 by definition, not by measurement, and has
    no interval to speak of.

    Raises:
        DataError: items whose marks mean different things, which add up to nothing
    """
    metrics = {item.metric.name: item.metric for item in items}
    if len(metrics) > 1:
        raise DataError(
            f"items {items[0].id!r} and others are measured by {' and '.join(sorted(metrics))}, which have no common"
            " number; give each kind a group of its own and take the mean of the groups"
        )
    (metric,) = metrics.values()
    text, cascade, ear = ([item.scores[way] for item in items] for way in SYSTEMS)
    is_defined = all(item.is_own_target for item in items)
    return ScoreTable(
        n=len(items),
        metric=metric,
        text_ceiling=Estimate(value=1.0, ci95=(1.0, 1.0)) if is_defined else bootstrap_score(metric, text),
        cascade=bootstrap_score(metric, cascade),
        ear=bootstrap_score(metric, ear),
        wer=_wer(items),
        difference=bootstrap_difference(metric, ear, cascade),
        kept=_kept(items),
    )


def build_group_mean_table(groups: Sequence[Sequence[ItemResult]]) -> ScoreTable:
    """The means of the groups' numbers, whatever each is measured by: every group weighs the same."""
    metrics = [group[0].metric for group in groups]
    by_way = {way: [[item.scores[way] for item in group] for group in groups] for way in SYSTEMS}
    items = [item for group in groups for item in group]
    pairs = list(zip(by_way["ear"], by_way["cascade"], strict=True))
    return ScoreTable(
        n=len(items),
        metric=METRICS["mean"],
        text_ceiling=bootstrap_group_mean(by_way["text"], metrics),
        cascade=bootstrap_group_mean(by_way["cascade"], metrics),
        ear=bootstrap_group_mean(by_way["ear"], metrics),
        wer=_wer(items),
        difference=bootstrap_group_mean_difference(pairs, metrics),
        kept=_kept(items),
    )


def _wer(items: Sequence[ItemResult]) -> float:
    return compute_word_error_rate([item.text for item in items], [item.transcript for item in items])


def _kept(items: Sequence[ItemResult]) -> float | None:
    right_in_text = [item.ear_correct for item in items if item.text_correct]
    return sum(right_in_text) / len(right_in_text) if right_in_text else None
