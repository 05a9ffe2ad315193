"""The report as one HTML page that needs no network, no script and nothing beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import jinja2

from ossicle.evaluation.corruptions import Condition
from ossicle.evaluation.report import training_curves
from ossicle.evaluation.report.charts import NARROW_SPACE
from ossicle.evaluation.report.clips import choose_clips, compared_words, player
from ossicle.evaluation.report.error_analysis import hard_words, kinds
from ossicle.evaluation.report.robustness import robustness_section
from ossicle.evaluation.report.training_curves import loss_panels
from ossicle.evaluation.report_data import RECOGNISER, Report
from ossicle.evaluation.score_table import Table
from ossicle.evaluation.statistics import Metric
from ossicle.html_page import templates

MAX_ERRORS = 400
"""Errors of a kind listed on the page; report.json has them all."""

MINUS = "\u2212"


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How many items the ear and the cascade answer right, by who does."""

    both: int
    only_ear: int
    only_cascade: int
    neither: int


def render(report: Report, *, losses: Sequence[Mapping[str, object]] | None = None) -> str:
    """The page of a report.

    Args:
        losses: lines of a run's metrics.jsonl; without any, the page has no training section.
    """
    return (
        environment()
        .get_template("report.html")
        .render(
            report=report,
            overall=report.overall,
            headline=report.overall.metric.headline.format(
                number(report.overall.ear.value, report.overall.metric)
            ),
            recogniser=report.about.get(RECOGNISER, "the speech encoder's own decoder"),
            rows=named_tables(report),
            agreement=_agreement(report),
            clips=[(item, player(item.audio)) for item in choose_clips(report.items)],
            n_errors=sum(not item.ear_correct for item in report.items),
            mistakes=kinds(report.items),
            words=hard_words(report.items),
            max_errors=MAX_ERRORS,
            fidelity={way: vars(summary) for way, summary in report.fidelity.items()},
            conditions=robustness_section(_with_clean(report)),
            panels=loss_panels(losses or []),
            plots=training_curves,
            compared_words=compared_words,
            mean_duration_s=sum(item.duration_s for item in report.items) / len(report.items),
            created=when(report.created),
        )
    )


def _with_clean(report: Report) -> list[tuple[Condition, Table]]:
    """The conditions that a report has, the clean one before them; none if there are none."""
    changed = report.robustness
    return [(Condition(kind="clean"), report.overall), *changed] if changed else []


def environment() -> jinja2.Environment:
    """The templates of evaluations' pages, with how numbers are written there."""
    environment = templates("ossicle.evaluation.report")
    environment.filters |= {
        "percent": percent,
        "number": number,
        "length_of": length,
        "interval": interval,
        "points": points,
        "points_interval": points_interval,
        "zip": zip,
    }
    return environment


def named_tables(report: Report) -> list[tuple[str, Table]]:
    """A report's tables in the order they are shown: all items, each group, those with a text instruction."""
    groups = report.groups if len(report.groups) > 1 else {}
    rows = [("All items", report.overall), *groups.items()]
    if report.instructions:
        rows.append(("With a text instruction", report.instructions))
    return rows


def _agreement(report: Report) -> Agreement:
    pairs = [(item.ear_correct, item.cascade_correct) for item in report.items]
    return Agreement(
        both=pairs.count((True, True)),
        only_ear=pairs.count((True, False)),
        only_cascade=pairs.count((False, True)),
        neither=pairs.count((False, False)),
    )


def percent(share: float | None) -> str:
    """A share as "93.1 %"; a dash for one that does not exist."""
    return "–" if share is None else f"{100 * share:.1f}{NARROW_SPACE}%"


def number(value: float, metric: Metric) -> str:
    """A metric's number as people read it: "93.1 %", or as it stands, "24.7"."""
    return percent(value) if metric.unit == "%" else f"{value:.1f}"


def interval(ci95: tuple[float, float], metric: Metric) -> str:
    """Its interval as "91.0–94.8"."""
    scale = _scale(metric)
    return f"{scale * ci95[0]:.1f}–{scale * ci95[1]:.1f}"


def points(difference: float, metric: Metric) -> str:
    """A difference of two such numbers, of shares in percentage points, with its sign."""
    rounded = round(_scale(metric) * difference, 1)
    return f"{rounded:+.1f}".replace("-", MINUS) if rounded else "0.0"


def points_interval(ci95: tuple[float, float], metric: Metric) -> str:
    """An interval of differences as "−0.5 to +2.1"."""
    return f"{points(ci95[0], metric)} to {points(ci95[1], metric)}"


def _scale(metric: Metric) -> float:
    return 100.0 if metric.unit == "%" else 1.0


def length(value: float, metric: Metric) -> float:
    """How long a bar is for a number, in per cent of the longest one."""
    return min(100.0, max(0.0, _scale(metric) * value))


def when(created: str) -> str:
    """An ISO time as people read it; anything else as it stands."""
    try:
        date = datetime.fromisoformat(created)
    except ValueError:
        return created
    return f"{date.day} {date:%B %Y, %H:%M} UTC"
