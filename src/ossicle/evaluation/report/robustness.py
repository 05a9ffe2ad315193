"""The robustness section of a report page: the figures and the table of an evaluation under corruptions."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar, runtime_checkable

from ossicle.evaluation.corruptions import Corruption, CorruptionKind
from ossicle.evaluation.report.charts import (
    DotFigure,
    Line,
    LineFigure,
    Point,
    build_dot_figure,
    build_line_figure,
)
from ossicle.evaluation.statistics import Estimate, Metric


@runtime_checkable
class ScoreRow(Protocol):
    """The part of a `ScoreTable` that a row and the figures show."""

    @property
    def n(self) -> int:
        """The number of items."""
        ...

    @property
    def metric(self) -> Metric:
        """The metric of the numbers."""
        ...

    @property
    def text_ceiling(self) -> Estimate:
        """The number of the LLM that reads the text."""
        ...

    @property
    def cascade(self) -> Estimate:
        """The number of the LLM that reads the ASR model's transcript."""
        ...

    @property
    def ear(self) -> Estimate:
        """The number of the LLM that hears the sound."""
        ...

    @property
    def difference(self) -> Estimate:
        """Ear - cascade, in pairs."""
        ...

    @property
    def wer(self) -> float | None:
        """Word error rate of the cascade's transcripts."""
        ...


T = TypeVar("T")
"""The results under one corruption."""
Series = tuple[str, str, Callable[[T], Estimate]]
"""One system in all figures: its name, the name of its color, and how its number is read from the results."""

_SERIES: tuple[Series[ScoreRow], ...] = (
    ("Text", "ceiling", lambda table: table.text_ceiling),
    ("Cascade", "cascade", lambda table: table.cascade),
    ("Ear", "ear", lambda table: table.ear),
)

_FIGURE_TITLES: dict[CorruptionKind, tuple[str, str]] = {
    "babble": ("Babble", "speech over other voices, dB"),
    "white noise": ("White noise", "speech over noise, dB"),
    "speed": ("Speed", "times as fast and as high"),
}
"""For each kind with ordered levels: the titles of the figure and of its axis of levels."""


@dataclass(frozen=True, kw_only=True)
class RobustnessSection:
    """The content of the section."""

    figures: tuple[LineFigure | DotFigure, ...]
    rows: tuple[tuple[str, ScoreRow], ...]
    """The name and the numbers of each corruption."""


def build_robustness_section(results: Sequence[tuple[Corruption, ScoreRow]]) -> RobustnessSection:
    """Returns the figures, and a row for each corruption."""
    return RobustnessSection(
        figures=build_figures(results, _SERIES, results[0][1].metric) if results else (),
        rows=tuple((corruption.name, table) for corruption, table in results),
    )


def build_figures(
    results: Sequence[tuple[Corruption, T]], series: Sequence[Series[T]], metric: Metric
) -> tuple[LineFigure | DotFigure, ...]:
    """Returns a figure for each kind of corruption that has levels, and one for all others.

    The clean result, if there is one, is the first point of every figure.
    """
    clean = [result for result in results if result[0].kind == "clean"]
    build_lines = partial(_build_lines, series=series, scale=1.0 if metric.unit else 0.01)
    figures: list[LineFigure | DotFigure] = []
    for kind, (title, x_title) in _FIGURE_TITLES.items():
        if own := [result for result in results if result[0].kind == kind]:
            levels = [
                (_format_level(corruption), result)
                for corruption, result in _sort_levels(kind, [*clean, *own])
            ]
            figures.append(build_line_figure(title, x_title, build_lines(levels), metric))
    others = [result for result in results if result[0].kind not in {"clean", *_FIGURE_TITLES}]
    if others:
        names = dict.fromkeys(corruption.kind.split()[0] for corruption, _ in others)
        points = [(corruption.name, result) for corruption, result in [*clean, *others]]
        figures.append(build_dot_figure(" and ".join(names).capitalize(), build_lines(points), metric))
    return tuple(figures)


def _sort_levels(kind: CorruptionKind, results: Sequence[tuple[Corruption, T]]) -> list[tuple[Corruption, T]]:
    """Returns the results from the weakest to the strongest noise, or from the slowest to the fastest speech."""
    if kind == "speed":
        return sorted(results, key=lambda result: result[0].level or 1.0)
    by_level = sorted(results, key=lambda result: math.inf if result[0].level is None else result[0].level)
    return by_level[::-1]


def _format_level(corruption: Corruption) -> str:
    return "clean" if corruption.level is None else f"{corruption.level:g}"


def _build_lines(
    results: Sequence[tuple[str, T]], *, series: Sequence[Series[T]], scale: float
) -> list[Line]:
    return [
        Line(
            name=name,
            color=color,
            points=tuple(
                Point(
                    x=x, y=scale * estimate.value, low=scale * estimate.ci95[0], high=scale * estimate.ci95[1]
                )
                for x, estimate in ((x, get_estimate(result)) for x, result in results)
            ),
        )
        for name, color, get_estimate in series
    ]
