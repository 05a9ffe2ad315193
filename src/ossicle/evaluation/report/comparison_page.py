"""Several reports as one HTML page: their numbers, and the items that only one of two ears answers correctly."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ossicle.audio.waveform import AudioSource
from ossicle.errors import DataError
from ossicle.evaluation.compare_reports import (
    ComparisonRow,
    PairedDifference,
    build_rows,
    compute_corrupted_differences,
    compute_paired_difference,
    explain_no_difference,
    match_items,
)
from ossicle.evaluation.corruptions import Corruption
from ossicle.evaluation.item_result import ItemResult
from ossicle.evaluation.report.charts import DotFigure, LineFigure
from ossicle.evaluation.report.clips import Player, alternate_groups, build_player
from ossicle.evaluation.report.page import MAX_ERRORS, build_environment
from ossicle.evaluation.report.robustness import Series, build_figures
from ossicle.evaluation.report_data import Report
from ossicle.evaluation.score_table import ScoreTable
from ossicle.evaluation.statistics import Estimate
from ossicle.evaluation.suite import EMBEDDED_SUITES, load_suite

MAX_EARS = 6
"""With more ears, colors could not be told apart, and names next to a figure would overlap."""
N_CLIPS = 6
"""Clips of each kind, for each ear that is compared with the first one."""

Tables = tuple[ScoreTable, ...]


@dataclass(frozen=True, kw_only=True)
class NamedReport:
    """A report with the name of its ear on the page."""

    number: int
    path: str
    report: Report

    @property
    def name(self) -> str:
        """The name of the ear."""
        return f"Ear {self.number}"

    @property
    def color(self) -> str:
        """The name of the ear's color in the page's style."""
        return f"r{self.number}"


@dataclass(frozen=True, kw_only=True)
class Clip:
    """An item that only one of two ears answers correctly, with its sound."""

    first: ItemResult
    other: ItemResult
    sound: Player


@dataclass(frozen=True, kw_only=True)
class Disagreements:
    """The differences between an ear and the first one."""

    other: NamedReport
    difference: PairedDifference | None
    """None if they share no items with the same metric."""
    reason: str
    """The reason why there is no difference."""
    corrupted: tuple[tuple[str, PairedDifference], ...]
    """The differences under each corruption that both reports have, with its name."""
    counts: tuple[tuple[str, str, int], ...]
    """Label, color and number of the shared items that both, only one or neither of them answers correctly."""
    clips: tuple[Clip, ...]
    items: tuple[tuple[ItemResult, ItemResult], ...]
    """All items that only one of them answers correctly."""


def render_comparison(paths: Sequence[Path], reports: Sequence[Report]) -> str:
    """Returns the page of two or more reports; all others are compared with the first one.

    Raises:
        DataError: more than `MAX_EARS` reports
    """
    if len(reports) > MAX_EARS:
        raise DataError(
            f"{len(reports)} reports for one page; expected {MAX_EARS} at most: leave out some reports, or the page"
        )
    named = [
        NamedReport(number=number, path=str(path), report=report)
        for number, (path, report) in enumerate(zip(paths, reports, strict=True), 1)
    ]
    rows = build_rows(reports)
    series = _list_series(named, [row.tables for row in rows])
    sounds = _load_embedded_sounds(reports[0])
    return (
        build_environment()
        .get_template("comparison.html")
        .render(
            named=named,
            suites=list(dict.fromkeys(report.suite for report in reports)),
            series=[(name, color) for name, color, _ in series],
            groups=[
                (row, tables[0].metric, [(name, color, get(tables)) for name, color, get in series])
                for row in rows
                if not row.is_corrupted and (tables := _get_comparable_tables(row))
            ],
            rows=rows,
            figures=_build_robustness_figures(reports, series),
            disagreements=[_find_disagreements(named[0], other, sounds) for other in named[1:]],
            max_errors=MAX_ERRORS,
        )
    )


def _get_comparable_tables(row: ComparisonRow) -> Tables | None:
    """Returns a row's tables if all reports have one with the same metric."""
    tables = tuple(table for table in row.tables if table)
    return tables if len(tables) == len(row.tables) and len({table.metric for table in tables}) == 1 else None


def _list_series(
    named: Sequence[NamedReport], rows: Sequence[Sequence[ScoreTable | None]]
) -> list[Series[Tables]]:
    """Returns all systems; text ceiling and cascade are listed once if they are the same in all reports."""
    series: list[Series[Tables]] = []
    for label, color in (("Text", "ceiling"), ("Cascade", "cascade")):
        is_same = all(len({_get_estimate(table, color) for table in tables if table}) == 1 for tables in rows)
        for index in range(1 if is_same else len(named)):
            name = label if is_same else f"{label} {index + 1}"
            series.append((name, color, lambda tables, i=index, c=color: _get_estimate(tables[i], c)))
    for index, ear in enumerate(named):
        series.append((ear.name, ear.color, lambda tables, i=index: tables[i].ear))
    return series


def _get_estimate(table: ScoreTable, color: str) -> Estimate:
    return table.text_ceiling if color == "ceiling" else table.cascade


def _build_robustness_figures(
    reports: Sequence[Report], series: Sequence[Series[Tables]]
) -> tuple[LineFigure | DotFigure, ...]:
    """Returns the figures of the corruptions that all reports have; none if the reports are about different items."""
    if len({tuple((item.id, item.text) for item in report.items) for report in reports}) > 1:
        return ()
    tables = [dict(report.robustness) for report in reports]
    common = [corruption for corruption in tables[0] if all(corruption in own for own in tables)]
    clean = tuple(report.overall for report in reports)
    if not common or len({table.metric for table in clean}) > 1:
        return ()
    results = [(corruption, tuple(own[corruption] for own in tables)) for corruption in common]
    return build_figures([(Corruption(kind="clean"), clean), *results], series, clean[0].metric)


def _find_disagreements(
    first: NamedReport, other: NamedReport, sounds: Mapping[str, AudioSource]
) -> Disagreements:
    pairs = match_items(first.report, other.report)
    flags = [(own.ear_correct, theirs.ear_correct) for own, theirs in pairs]
    disagreeing = [pair for pair, (one, two) in zip(pairs, flags, strict=True) if one != two]
    return Disagreements(
        other=other,
        difference=compute_paired_difference(first.report, other.report),
        reason=explain_no_difference(first.report, other.report),
        corrupted=compute_corrupted_differences(first.report, other.report),
        counts=(
            ("Both right", "both", flags.count((True, True))),
            (f"Only {other.name}", other.color, flags.count((False, True))),
            (f"Only {first.name}", first.color, flags.count((True, False))),
            ("Neither", "neither", flags.count((False, False))),
        ),
        clips=_choose_clips(disagreeing, sounds),
        items=tuple(disagreeing),
    )


def _choose_clips(
    pairs: Sequence[tuple[ItemResult, ItemResult]], sounds: Mapping[str, AudioSource]
) -> tuple[Clip, ...]:
    """Returns up to `N_CLIPS` items that only the other ear answers correctly, and as many that only the first does."""
    others = {id(own): theirs for own, theirs in pairs}
    clips = []
    for is_first in (False, True):
        candidates = [own for own, _ in pairs if own.ear_correct is is_first]
        for item in islice(alternate_groups(candidates), N_CLIPS):
            audio = sounds.get(item.id) if item.audio is None else item.audio
            clips.append(Clip(first=item, other=others[id(item)], sound=build_player(audio)))
    return tuple(clips)


def _load_embedded_sounds(report: Report) -> Mapping[str, AudioSource]:
    """Returns the sounds of an embedded suite by the items' ids, because a report stores only paths of sound."""
    if report.suite not in EMBEDDED_SUITES:
        return {}
    try:
        return {item.id: item.audio for item in load_suite(report.suite)}
    except DataError:  # this installation comes without the suite
        return {}
