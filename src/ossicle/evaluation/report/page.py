"""The report as one HTML page that needs no network, no script and nothing beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import jinja2

from ossicle.evaluation.corruptions import Corruption
from ossicle.evaluation.report import training_curves
from ossicle.evaluation.report.charts import NARROW_SPACE
from ossicle.evaluation.report.clips import build_player, choose_clips, compare_words
from ossicle.evaluation.report.error_analysis import find_hard_words, group_errors
from ossicle.evaluation.report.robustness import build_robustness_section
from ossicle.evaluation.report.training_curves import build_panels
from ossicle.evaluation.report_data import ASR_MODEL, Report
from ossicle.evaluation.score_table import ScoreTable
from ossicle.evaluation.statistics import Metric
from ossicle.html_page import load_templates

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


def render_report(report: Report, *, losses: Sequence[Mapping[str, object]] | None = None) -> str:
    """The page of a report.

    Args:
        losses: lines of a run's metrics.jsonl; without any, the page has no training section.
    """
    return (
        build_environment()
        .get_template("report.html")
        .render(
            report=report,
            overall=report.overall,
            headline=report.overall.metric.headline.format(
                format_number(report.overall.ear.value, report.overall.metric)
            ),
            recogniser=report.about.get(ASR_MODEL, "the speech encoder's own decoder"),
            rows=list_tables(report),
            agreement=_agreement(report),
            clips=[(item, build_player(item.audio)) for item in choose_clips(report.items)],
            n_errors=sum(not item.ear_correct for item in report.items),
            mistakes=group_errors(report.items),
            words=find_hard_words(report.items),
            max_errors=MAX_ERRORS,
            fidelity={way: vars(summary) for way, summary in report.fidelity.items()},
            conditions=build_robustness_section(_with_clean(report)),
            panels=build_panels(losses or []),
            plots=training_curves,
            compare_words=compare_words,
            mean_duration_s=sum(item.duration_s for item in report.items) / len(report.items),
            created=format_date(report.created),
        )
    )


def _with_clean(report: Report) -> list[tuple[Corruption, ScoreTable]]:
    """The conditions that a report has, the clean one before them; none if there are none."""
    changed = report.robustness
    return [(Corruption(kind="clean"), report.overall), *changed] if changed else []


def build_environment() -> jinja2.Environment:
    """The templates of evaluations' pages, with how numbers are written there."""
    environment = load_templates("ossicle.evaluation.report")
    environment.filters |= {
        "format_percent": format_percent,
        "format_number": format_number,
        "bar_length": compute_bar_length,
        "format_interval": format_interval,
        "format_points": format_points,
        "format_points_interval": format_points_interval,
        "zip": zip,
    }
    return environment


def list_tables(report: Report) -> list[tuple[str, ScoreTable]]:
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


def format_percent(share: float | None) -> str:
    """A share as "93.1 %"; a dash for one that does not exist."""
    return "–" if share is None else f"{100 * share:.1f}{NARROW_SPACE}%"


def format_number(value: float, metric: Metric) -> str:
    """A metric's number as people read it: "93.1 %", or as it stands, "24.7"."""
    return format_percent(value) if metric.unit == "%" else f"{value:.1f}"


def format_interval(ci95: tuple[float, float], metric: Metric) -> str:
    """Its interval as "91.0–94.8"."""
    scale = _scale(metric)
    return f"{scale * ci95[0]:.1f}–{scale * ci95[1]:.1f}"


def format_points(difference: float, metric: Metric) -> str:
    """A difference of two such numbers, of shares in percentage points, with its sign."""
    rounded = round(_scale(metric) * difference, 1)
    return f"{rounded:+.1f}".replace("-", MINUS) if rounded else "0.0"


def format_points_interval(ci95: tuple[float, float], metric: Metric) -> str:
    """An interval of differences as "−0.5 to +2.1"."""
    return f"{format_points(ci95[0], metric)} to {format_points(ci95[1], metric)}"


def _scale(metric: Metric) -> float:
    return 100.0 if metric.unit == "%" else 1.0


def compute_bar_length(value: float, metric: Metric) -> float:
    """How long a bar is for a number, in per cent of the longest one."""
    return min(100.0, max(0.0, _scale(metric) * value))


def format_date(created: str) -> str:
    """An ISO time as people read it; anything else as it stands."""
    try:
        date = datetime.fromisoformat(created)
    except ValueError:
        return created
    return f"{date.day} {date:%B %Y, %H:%M} UTC"
