"""Reports beside each other as one HTML page: their numbers, and the items on which ears part, with sound."""

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
    compute_paired_difference,
    explain_no_difference,
    match_items,
)
from ossicle.evaluation.corruptions import Corruption
from ossicle.evaluation.item_result import ItemResult
from ossicle.evaluation.report.charts import DotFigure, LineFigure
from ossicle.evaluation.report.clips import Player, build_player, spread_over_groups
from ossicle.evaluation.report.page import MAX_ERRORS, build_environment, format_date
from ossicle.evaluation.report.robustness import Series, build_figures
from ossicle.evaluation.report_data import Report
from ossicle.evaluation.score_table import ScoreTable
from ossicle.evaluation.statistics import Estimate
from ossicle.evaluation.suite import EMBEDDED_SUITES, load_suite

MAX_EARS = 6
"""More cannot be told apart by their colours, nor their names be kept from each other beside a figure."""
N_CLIPS = 6
"""Of each kind, for each ear that is put against the first."""

Tables = tuple[ScoreTable, ...]


@dataclass(frozen=True, kw_only=True)
class NamedReport:
    """A report with what the page calls its ear."""

    number: int
    path: str
    report: Report

    @property
    def name(self) -> str:
        """What it is called in words."""
        return f"Ear {self.number}"

    @property
    def color(self) -> str:
        """What its colour is called in the page's style."""
        return f"r{self.number}"


@dataclass(frozen=True, kw_only=True)
class Clip:
    """An item that one of two ears answers right, with its sound."""

    first: ItemResult
    other: ItemResult
    sound: Player


@dataclass(frozen=True, kw_only=True)
class Disagreements:
    """How an ear differs from the first one."""

    other: NamedReport
    gain: PairedDifference | None
    """None where they share no items that are marked alike."""
    without: str
    """Why there is no gain, if there is none."""
    parts: tuple[tuple[str, str, int], ...]
    """Label, colour and number of the shared items that both, either or neither answer right."""
    clips: tuple[Clip, ...]
    apart: tuple[tuple[ItemResult, ItemResult], ...]
    """All items that one of the two answers right."""


def render_comparison(paths: Sequence[Path], reports: Sequence[Report]) -> str:
    """The page of two or more reports; the first is what the others are compared with.

    Raises:
        DataError: more than `MOST_EARS` reports
    """
    if len(reports) > MAX_EARS:
        raise DataError(
            f"{len(reports)} reports for one page; expected {MAX_EARS} at most: leave some out, or do without the page"
        )
    named = [
        NamedReport(number=number, path=str(path), report=report)
        for number, (path, report) in enumerate(zip(paths, reports, strict=True), 1)
    ]
    parts = build_rows(reports)
    who = _who(named, [row.tables for row in parts])
    sounds = _sounds(reports[0])
    return (
        build_environment()
        .get_template("comparison.html")
        .render(
            named=named,
            suites=list(dict.fromkeys(report.suite for report in reports)),
            who=[(name, colour) for name, colour, _ in who],
            groups=[
                (row, tables[0].metric, [(name, colour, of(tables)) for name, colour, of in who])
                for row in parts
                if not row.is_corrupted and (tables := _whole(row))
            ],
            rows=parts,
            figures=_figures(reports, who),
            partings=[_parting(named[0], other, sounds) for other in named[1:]],
            max_errors=MAX_ERRORS,
            format_date=format_date,
        )
    )


def _whole(row: ComparisonRow) -> Tables | None:
    """A part's tables, if all reports have it and measure it alike."""
    tables = tuple(table for table in row.tables if table)
    return tables if len(tables) == len(row.tables) and len({table.metric for table in tables}) == 1 else None


def _who(named: Sequence[NamedReport], parts: Sequence[Sequence[ScoreTable | None]]) -> list[Series[Tables]]:
    """All that answer; what reads, and the cascade, once if it is the same beside each ear."""
    who: list[Series[Tables]] = []
    for label, colour in (("Text", "ceiling"), ("Cascade", "cascade")):
        same = all(len({_score(table, colour) for table in tables if table}) == 1 for tables in parts)
        for number in range(1 if same else len(named)):
            name = label if same else f"{label} {number + 1}"
            who.append((name, colour, lambda tables, n=number, c=colour: _score(tables[n], c)))
    for number, own in enumerate(named):
        who.append((own.name, own.color, lambda tables, n=number: tables[n].ear))
    return who


def _score(table: ScoreTable, colour: str) -> Estimate:
    return table.text_ceiling if colour == "ceiling" else table.cascade


def _figures(reports: Sequence[Report], who: Sequence[Series[Tables]]) -> tuple[LineFigure | DotFigure, ...]:
    """What noise, speed, ... do to all of them, under the conditions that all have, if all are of the same items."""
    if len({tuple((item.id, item.text) for item in report.items) for report in reports}) > 1:
        return ()
    changed = [dict(report.robustness) for report in reports]
    common = [condition for condition in changed[0] if all(condition in own for own in changed)]
    clean = tuple(report.overall for report in reports)
    if not common or len({table.metric for table in clean}) > 1:
        return ()
    sections = [(condition, tuple(own[condition] for own in changed)) for condition in common]
    return build_figures([(Corruption(kind="clean"), clean), *sections], who, clean[0].metric)


def _parting(first: NamedReport, other: NamedReport, sounds: Mapping[str, AudioSource]) -> Disagreements:
    pairs = match_items(first.report, other.report)
    right = [(own.ear_correct, theirs.ear_correct) for own, theirs in pairs]
    apart = [pair for pair, (one, two) in zip(pairs, right, strict=True) if one != two]
    theirs_of = {id(own): theirs for own, theirs in apart}
    clips = []
    for is_first in (False, True):
        kind = [own for own, _ in apart if own.ear_correct is is_first]
        for item in islice(spread_over_groups(kind), N_CLIPS):
            audio = sounds.get(item.id) if item.audio is None else item.audio
            clips.append(Clip(first=item, other=theirs_of[id(item)], sound=build_player(audio)))
    return Disagreements(
        other=other,
        gain=compute_paired_difference(first.report, other.report),
        without=explain_no_difference(first.report, other.report),
        parts=(
            ("Both right", "both", right.count((True, True))),
            (f"Only {other.name}", other.color, right.count((False, True))),
            (f"Only {first.name}", first.color, right.count((True, False))),
            ("Neither", "neither", right.count((False, False))),
        ),
        clips=tuple(clips),
        apart=tuple(apart),
    )


def _sounds(report: Report) -> Mapping[str, AudioSource]:
    """The sound of a suite that comes with ossicle, by items' ids: a report holds none that is no file."""
    if report.suite not in EMBEDDED_SUITES:
        return {}
    try:
        return {item.id: item.audio for item in load_suite(report.suite)}
    except DataError:  # an ossicle without it
        return {}
