"""Reports beside each other: the numbers of each, and how ears differ on the items that they share."""

from collections.abc import Sequence
from dataclasses import dataclass

from ossicle.errors import DataError
from ossicle.evaluation.item_result import ItemResult
from ossicle.evaluation.report_data import Report
from ossicle.evaluation.score_table import ScoreTable
from ossicle.evaluation.statistics import (
    METRICS,
    Estimate,
    Metric,
    bootstrap_difference,
    bootstrap_group_mean_difference,
)


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """One report's ear against that of the first report, on the items that both have."""

    n: int
    metric: Metric
    difference: Estimate
    """Paired: how much larger the ear's number is than the first one's."""


@dataclass(frozen=True, kw_only=True)
class ComparisonRow:
    """The numbers of one part of all reports: all items, a group or a condition."""

    name: str
    tables: tuple[ScoreTable | None, ...]
    """A report's own, or None where it has no such part."""
    is_corrupted: bool = False
    """Whether it is about items in noise or otherwise changed."""


def build_rows(reports: Sequence[Report]) -> tuple[ComparisonRow, ...]:
    """All parts that any of the reports has, in the order in which they come up."""
    parts, changed = [_parts(report) for report in reports], [_changed(report) for report in reports]
    return tuple(
        ComparisonRow(name=name, tables=tuple(part.get(name) for part in own), is_corrupted=own is changed)
        for own in (parts, changed)
        for name in dict.fromkeys(name for part in own for name in part)
    )


def _parts(report: Report) -> dict[str, ScoreTable]:
    found = {"All items": report.overall}
    if len(report.groups) > 1:
        found |= report.groups
    if report.instructions:
        found["With a text instruction"] = report.instructions
    return found


def _changed(report: Report) -> dict[str, ScoreTable]:
    return {f"in {condition.name}": table for condition, table in report.robustness}


def compute_paired_difference(first: Report, other: Report) -> PairedDifference | None:
    """How the ears differ, in pairs; None where the reports share no items, or these are marked differently.

    Of suites whose number is the mean of their groups', it is the mean of the groups' differences.
    """
    pairs = match_items(first, other)
    by_groups = first.overall_of == other.overall_of == "groups"
    groups: dict[str | None, list[tuple[ItemResult, ItemResult]]] = {}
    for pair in pairs:
        groups.setdefault(pair[0].group if by_groups else None, []).append(pair)
    metrics = [
        {item.metric.name: item.metric for pair in group for item in pair} for group in groups.values()
    ]
    if not pairs or any(len(found) > 1 for found in metrics):
        return None
    marks = [
        ([theirs.scores["ear"] for _, theirs in group], [own.scores["ear"] for own, _ in group])
        for group in groups.values()
    ]
    of_groups = [metric for found in metrics for metric in found.values()]
    if by_groups:
        return PairedDifference(
            n=len(pairs), metric=METRICS["mean"], difference=bootstrap_group_mean_difference(marks, of_groups)
        )
    return PairedDifference(
        n=len(pairs), metric=of_groups[0], difference=bootstrap_difference(of_groups[0], *marks[0])
    )


def match_items(first: Report, other: Report) -> list[tuple[ItemResult, ItemResult]]:
    """The items that both have, in the first one's order, as each answered them."""

    def key(item: ItemResult) -> tuple[str, str, str | None]:
        return item.id, item.text, item.instruction

    by_key = {key(item): item for item in other.items}
    return [(item, by_key[key(item)]) for item in first.items if key(item) in by_key]


def explain_no_difference(first: Report, other: Report) -> str:
    """Why there is no difference to tell of."""
    n = len(match_items(first, other))
    return f"{n} items in common, which are not marked alike" if n else "no items in common"


def check_comparable(reports: Sequence[Report]) -> None:
    """Refuse what cannot be put side by side.

    Raises:
        DataError: fewer than two reports
    """
    if len(reports) < 2:
        raise DataError(f"{len(reports)} report(s) given; expected two or more to put beside each other")
