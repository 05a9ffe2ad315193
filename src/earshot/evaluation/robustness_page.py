"""The figures and the table of an evaluation under several conditions, made ready for the page."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from earshot.evaluation.conditions import Condition, Kind
from earshot.evaluation.lines import DotFigure, Line, LineFigure, Point, dot_figure, line_figure
from earshot.evaluation.marks import Metric, Score


@runtime_checkable
class Numbers(Protocol):
    """What a figure and a row show of a table: shares from 0 to 1."""

    @property
    def n(self) -> int:
        """How many items it is about."""
        ...

    @property
    def metric(self) -> Metric:
        """What the numbers mean."""
        ...

    @property
    def text_ceiling(self) -> Score:
        """The LLM reads what is said."""
        ...

    @property
    def cascade(self) -> Score:
        """The LLM reads what speech recognition wrote."""
        ...

    @property
    def ear(self) -> Score:
        """The LLM hears."""
        ...

    @property
    def difference(self) -> Score:
        """Ear minus cascade, in pairs."""
        ...

    @property
    def wer(self) -> float | None:
        """Word error rate of the cascade's transcripts."""
        ...


_WHO: tuple[tuple[str, str, Callable[[Numbers], Score]], ...] = (
    ("Text", "ceiling", lambda table: table.text_ceiling),
    ("Cascade", "cascade", lambda table: table.cascade),
    ("Ear", "ear", lambda table: table.ear),
)
"""Who answers: name, colour, number."""

_FIGURES: dict[Kind, tuple[str, str]] = {
    "babble": ("Babble", "speech over other voices, dB"),
    "white noise": ("White noise", "speech over noise, dB"),
    "speed": ("Speed", "times as fast and as high"),
}
"""Kinds whose levels have an order: the titles of a figure and of its levels."""


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """What the page's section shows."""

    figures: tuple[LineFigure | DotFigure, ...]
    rows: tuple[tuple[str, Numbers], ...]
    """A condition's name and its numbers."""


def robustness_section(sections: Sequence[tuple[Condition, Numbers]]) -> Robustness:
    """A figure for each kind that has levels, one for all that have none, and a row for every condition.

    A clean clip, where it was measured, is the beginning of every figure.
    """
    clean = [section for section in sections if section[0].kind == "clean"]
    figures: list[LineFigure | DotFigure] = []
    for kind, (title, x_title) in _FIGURES.items():
        if own := [section for section in sections if section[0].kind == kind]:
            levels = [(_level(condition), table) for condition, table in _ordered(kind, [*clean, *own])]
            figures.append(line_figure(title, x_title, _lines(levels)))
    rest = [section for section in sections if section[0].kind not in {"clean", *_FIGURES}]
    if rest:
        names = dict.fromkeys(condition.kind.split()[0] for condition, _ in rest)
        named = [(condition.name, table) for condition, table in [*clean, *rest]]
        figures.append(dot_figure(" and ".join(names).capitalize(), _lines(named)))
    return Robustness(
        figures=tuple(figures), rows=tuple((condition.name, table) for condition, table in sections)
    )


def _ordered(kind: Kind, sections: Sequence[tuple[Condition, Numbers]]) -> list[tuple[Condition, Numbers]]:
    """From the easiest to the hardest noise, and from the slowest to the fastest speech."""
    if kind == "speed":
        return sorted(sections, key=lambda section: section[0].level or 1.0)
    return sorted(sections, key=lambda section: math.inf if section[0].level is None else section[0].level)[
        ::-1
    ]


def _level(condition: Condition) -> str:
    return "clean" if condition.level is None else f"{condition.level:g}"


def _lines(levels: Sequence[tuple[str, Numbers]]) -> list[Line]:
    return [
        Line(
            name=name,
            colour=colour,
            points=tuple(
                Point(x=level, y=score.value, low=score.ci95[0], high=score.ci95[1])
                for level, score in ((level, of(table)) for level, table in levels)
            ),
        )
        for name, colour, of in _WHO
    ]
