"""Compares reports: the numbers of each, and the paired difference between two ears on the items that both have."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
    """The difference between one report's ear and the first report's ear, on the items that both have."""

    n: int
    metric: Metric
    difference: Estimate
    """By how much the ear's number is larger than the first one's, in pairs."""


@dataclass(frozen=True, kw_only=True)
class ComparisonRow:
    """The numbers of all reports for all items, one group, or one corruption."""

    name: str
    tables: tuple[ScoreTable | None, ...]
    """One table a report, or None where a report has none of this name."""
    is_corrupted: bool = False
    """Whether the sound of the items is corrupted, such as by noise."""


def build_rows(reports: Sequence[Report]) -> tuple[ComparisonRow, ...]:
    """Returns a row for every table that any report has, in the order in which they first appear."""
    clean = [dict(report.tables) for report in reports]
    corrupted = [_list_corrupted_tables(report) for report in reports]
    return tuple(
        ComparisonRow(
            name=name, tables=tuple(own.get(name) for own in tables), is_corrupted=tables is corrupted
        )
        for tables in (clean, corrupted)
        for name in dict.fromkeys(name for own in tables for name in own)
    )


def _list_corrupted_tables(report: Report) -> dict[str, ScoreTable]:
    return {f"in {corruption.name}": table for corruption, table in report.robustness}


def compute_paired_difference(first: Report, other: Report) -> PairedDifference | None:
    """Returns the paired difference of the ears; None if the reports share no items, or the metrics of these differ.

    If the number of both suites is the mean of their groups, it is the mean of the groups' differences.
    """
    pairs = match_items(first, other)
    by_groups = first.overall_of == other.overall_of == "groups"
    groups: dict[str | None, list[tuple[ItemResult, ItemResult]]] = {}
    for pair in pairs:
        groups.setdefault(pair[0].group if by_groups else None, []).append(pair)
    group_metrics = [
        {item.metric.name: item.metric for pair in group for item in pair} for group in groups.values()
    ]
    if not pairs or any(len(metrics) > 1 for metrics in group_metrics):
        return None
    scores = [
        ([theirs.scores["ear"] for _, theirs in group], [own.scores["ear"] for own, _ in group])
        for group in groups.values()
    ]
    metrics = [metric for metrics in group_metrics for metric in metrics.values()]
    if by_groups:
        difference = bootstrap_group_mean_difference(scores, metrics)
        return PairedDifference(n=len(pairs), metric=METRICS["mean"], difference=difference)
    difference = bootstrap_difference(metrics[0], *scores[0])
    return PairedDifference(n=len(pairs), metric=metrics[0], difference=difference)


def compute_corrupted_differences(first: Report, other: Report) -> tuple[tuple[str, PairedDifference], ...]:
    """Returns the paired difference of the ears under each corruption that both reports have, with its name."""
    first_results, other_results = (
        {
            result.corruption: replace(report, items=result.apply_to(report.items), corruption_results=())
            for result in report.corruption_results
        }
        for report in (first, other)
    )
    differences = {
        corruption.name: compute_paired_difference(result, other_results[corruption])
        for corruption, result in first_results.items()
        if corruption in other_results
    }
    return tuple((name, difference) for name, difference in differences.items() if difference)


def match_items(first: Report, other: Report) -> list[tuple[ItemResult, ItemResult]]:
    """Returns the results of both reports for the items that both have, in the first one's order."""

    def get_key(item: ItemResult) -> tuple[str, str, str | None]:
        return item.id, item.text, item.instruction

    by_key = {get_key(item): item for item in other.items}
    return [(item, by_key[get_key(item)]) for item in first.items if get_key(item) in by_key]


def explain_no_difference(first: Report, other: Report) -> str:
    """Returns the reason why `compute_paired_difference` is None."""
    n = len(match_items(first, other))
    return f"{n} items in common, which are scored by different metrics" if n else "no items in common"


def check_comparable(reports: Sequence[Report]) -> None:
    """Checks the number of reports.

    Raises:
        DataError: fewer than two reports
    """
    if len(reports) < 2:
        raise DataError(f"{len(reports)} report(s) given; expected two or more to compare")
