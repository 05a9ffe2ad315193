"""The figures and the table of an evaluation under several conditions, made ready for the page."""

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
    """What a figure and a row show of a table."""

    @property
    def n(self) -> int:
        """How many items it is about."""
        ...

    @property
    def metric(self) -> Metric:
        """What the numbers mean."""
        ...

    @property
    def text_ceiling(self) -> Estimate:
        """The LLM reads what is said."""
        ...

    @property
    def cascade(self) -> Estimate:
        """The LLM reads what speech recognition wrote."""
        ...

    @property
    def ear(self) -> Estimate:
        """The LLM hears."""
        ...

    @property
    def difference(self) -> Estimate:
        """Ear minus cascade, in pairs."""
        ...

    @property
    def wer(self) -> float | None:
        """Word error rate of the cascade's transcripts."""
        ...


Shown = TypeVar("Shown")
"""What is known under a condition."""
Series = tuple[str, str, Callable[[Shown], Estimate]]
"""One of those that answer: name, colour, number."""

_WHO: tuple[Series[ScoreRow], ...] = (
    ("Text", "ceiling", lambda table: table.text_ceiling),
    ("Cascade", "cascade", lambda table: table.cascade),
    ("Ear", "ear", lambda table: table.ear),
)

_FIGURES: dict[CorruptionKind, tuple[str, str]] = {
    "babble": ("Babble", "speech over other voices, dB"),
    "white noise": ("White noise", "speech over noise, dB"),
    "speed": ("Speed", "times as fast and as high"),
}
"""Kinds whose levels have an order: the titles of a figure and of its levels."""


@dataclass(frozen=True, kw_only=True)
class RobustnessSection:
    """What the page's section shows."""

    figures: tuple[LineFigure | DotFigure, ...]
    rows: tuple[tuple[str, ScoreRow], ...]
    """A condition's name and its numbers."""


def build_robustness_section(sections: Sequence[tuple[Corruption, ScoreRow]]) -> RobustnessSection:
    """The figures, and a row for every condition."""
    return RobustnessSection(
        figures=build_figures(sections, _WHO, sections[0][1].metric) if sections else (),
        rows=tuple((condition.name, table) for condition, table in sections),
    )


def build_figures(
    sections: Sequence[tuple[Corruption, Shown]], who: Sequence[Series[Shown]], metric: Metric
) -> tuple[LineFigure | DotFigure, ...]:
    """A figure for each kind of condition that has levels, and one for all that have none.

    A clean clip, where it was measured, is the beginning of every figure.
    """
    clean = [section for section in sections if section[0].kind == "clean"]
    lines = partial(_lines, who=who, scale=1.0 if metric.unit else 0.01)
    found: list[LineFigure | DotFigure] = []
    for kind, (title, x_title) in _FIGURES.items():
        if own := [section for section in sections if section[0].kind == kind]:
            levels = [(_level(condition), shown) for condition, shown in _ordered(kind, [*clean, *own])]
            found.append(build_line_figure(title, x_title, lines(levels), metric))
    rest = [section for section in sections if section[0].kind not in {"clean", *_FIGURES}]
    if rest:
        names = dict.fromkeys(condition.kind.split()[0] for condition, _ in rest)
        named = [(condition.name, shown) for condition, shown in [*clean, *rest]]
        found.append(build_dot_figure(" and ".join(names).capitalize(), lines(named), metric))
    return tuple(found)


def _ordered(
    kind: CorruptionKind, sections: Sequence[tuple[Corruption, Shown]]
) -> list[tuple[Corruption, Shown]]:
    """From the easiest to the hardest noise, and from the slowest to the fastest speech."""
    if kind == "speed":
        return sorted(sections, key=lambda section: section[0].level or 1.0)
    return sorted(sections, key=lambda section: math.inf if section[0].level is None else section[0].level)[
        ::-1
    ]


def _level(condition: Corruption) -> str:
    return "clean" if condition.level is None else f"{condition.level:g}"


def _lines(levels: Sequence[tuple[str, Shown]], *, who: Sequence[Series[Shown]], scale: float) -> list[Line]:
    return [
        Line(
            name=name,
            color=colour,
            points=tuple(
                Point(x=level, y=scale * score.value, low=scale * score.ci95[0], high=scale * score.ci95[1])
                for level, score in ((level, of(shown)) for level, shown in levels)
            ),
        )
        for name, colour, of in who
    ]
