"""Reports beside each other: the numbers of each, and how ears differ on the items that they share."""

from collections.abc import Sequence
from dataclasses import dataclass

from earshot.errors import DataError
from earshot.evaluation.answered import Answered
from earshot.evaluation.marks import Metric, Score, difference
from earshot.evaluation.results import Report
from earshot.evaluation.table import Table


@dataclass(frozen=True, kw_only=True)
class Against:
    """One report's ear against that of the first report, on the items that both have."""

    n: int
    metric: Metric
    difference: Score
    """Paired: how much larger the ear's number is than the first one's."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """The numbers of one part of all reports: all items, a group or a condition."""

    name: str
    tables: tuple[Table | None, ...]
    """A report's own, or None where it has no such part."""
    is_changed: bool = False
    """Whether it is about items in noise or otherwise changed."""


def rows(reports: Sequence[Report]) -> tuple[Row, ...]:
    """All parts that any of the reports has, in the order in which they come up."""
    parts, changed = [_parts(report) for report in reports], [_changed(report) for report in reports]
    return tuple(
        Row(name=name, tables=tuple(part.get(name) for part in own), is_changed=own is changed)
        for own in (parts, changed)
        for name in dict.fromkeys(name for part in own for name in part)
    )


def _parts(report: Report) -> dict[str, Table]:
    found = {"All items": report.overall}
    if len(report.groups) > 1:
        found |= report.groups
    if report.instructions:
        found["With a text instruction"] = report.instructions
    return found


def _changed(report: Report) -> dict[str, Table]:
    return {f"in {condition.name}": table for condition, table in report.robustness}


def against(first: Report, other: Report) -> Against | None:
    """How the ears differ, in pairs; None where the reports share no items, or these are marked differently."""
    pairs = shared(first, other)
    metrics = {item.metric.name: item.metric for pair in pairs for item in pair}
    if len(metrics) != 1:
        return None
    (metric,) = metrics.values()
    gain = difference(metric, [own.marks["ear"] for _, own in pairs], [own.marks["ear"] for own, _ in pairs])
    return Against(n=len(pairs), metric=metric, difference=gain)


def shared(first: Report, other: Report) -> list[tuple[Answered, Answered]]:
    """The items that both have, in the first one's order, as each answered them."""

    def key(item: Answered) -> tuple[str, str, str | None]:
        return item.id, item.text, item.instruction

    by_key = {key(item): item for item in other.items}
    return [(item, by_key[key(item)]) for item in first.items if key(item) in by_key]


def check_comparable(reports: Sequence[Report]) -> None:
    """Refuse what cannot be put side by side.

    Raises:
        DataError: fewer than two reports
    """
    if len(reports) < 2:
        raise DataError(f"{len(reports)} report(s) given; expected two or more to put beside each other")
