"""The report as one HTML page that needs no network, no script and nothing beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import jinja2

from earshot.evaluation import plots
from earshot.evaluation.clips import choose_clips, compared_words, player
from earshot.evaluation.plots import loss_panels
from earshot.evaluation.results import Report, Table
from earshot.pages import templates

MAX_ERRORS = 400
"""Errors listed on the page; report.json has them all."""

NARROW_SPACE = "\u202f"
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
    errors = [item for item in report.items if not item.ear_correct]
    return (
        _environment()
        .get_template("report_template.html")
        .render(
            report=report,
            overall=report.overall,
            rows=named_tables(report),
            agreement=_agreement(report),
            clips=[(item, player(item.audio)) for item in choose_clips(report.items)],
            errors=errors[:MAX_ERRORS],
            n_errors=len(errors),
            n_unknown=sum(not item.text_correct for item in errors),
            n_misheard=sum(item.text_correct and not item.cascade_correct for item in errors),
            n_own=sum(item.text_correct and item.cascade_correct for item in errors),
            panels=loss_panels(losses or []),
            plots=plots,
            compared_words=compared_words,
            mean_duration_s=sum(item.duration_s for item in report.items) / len(report.items),
            created=_date(report.created),
        )
    )


def _environment() -> jinja2.Environment:
    environment = templates("earshot.evaluation")
    environment.filters |= {
        "percent": percent,
        "interval": interval,
        "points": points,
        "points_interval": points_interval,
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


def interval(ci95: tuple[float, float]) -> str:
    """An interval of shares as "91.0–94.8"."""
    return f"{100 * ci95[0]:.1f}–{100 * ci95[1]:.1f}"


def points(difference: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    rounded = round(100 * difference, 1)
    return f"{rounded:+.1f}".replace("-", MINUS) if rounded else "0.0"


def points_interval(ci95: tuple[float, float]) -> str:
    """An interval of differences as "−0.5 to +2.1"."""
    return f"{points(ci95[0])} to {points(ci95[1])}"


def _date(created: str) -> str:
    """An ISO time as people read it; anything else as it stands."""
    try:
        date = datetime.fromisoformat(created)
    except ValueError:
        return created
    return f"{date.day} {date:%B %Y, %H:%M} UTC"
