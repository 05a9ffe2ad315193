"""The report as one HTML page that needs no network, no script and no other file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jinja2

from ossicle.evaluation.corruptions import Corruption
from ossicle.evaluation.report import training_curves
from ossicle.evaluation.report.clips import build_player, choose_clips, compare_words
from ossicle.evaluation.report.error_analysis import find_hard_words, group_errors
from ossicle.evaluation.report.formatting import (
    compute_bar_length,
    format_date,
    format_interval,
    format_number,
    format_percent,
    format_points,
    format_points_interval,
)
from ossicle.evaluation.report.robustness import build_robustness_section
from ossicle.evaluation.report.training_curves import build_panels, count_few_steps
from ossicle.evaluation.report_data import ASR_MODEL, Report
from ossicle.evaluation.score_table import ScoreTable
from ossicle.html_page import load_templates

MAX_ERRORS = 400
"""Errors of each kind that the page lists; report.json has all of them."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How many items the ear and the cascade answer correctly."""

    both: int
    only_ear: int
    only_cascade: int
    neither: int


def render_report(report: Report, *, metrics: Sequence[Mapping[str, object]] | None = None) -> str:
    """Returns the page of a report.

    Args:
        metrics: lines of a run's metrics.jsonl; without them the page has no training section.
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
            asr_model=report.about.get(ASR_MODEL, "the speech encoder's own decoder"),
            tables=report.tables,
            agreement=_count_agreement(report),
            clips=[(item, build_player(item.audio)) for item in choose_clips(report.items)],
            n_errors=sum(not item.ear_correct for item in report.items),
            error_groups=group_errors(report.items),
            hard_words=find_hard_words(report.items),
            max_errors=MAX_ERRORS,
            fidelity={system: vars(summary) for system, summary in report.fidelity.items()},
            robustness_section=build_robustness_section(_list_robustness_tables(report)),
            panels=build_panels(metrics or []),
            few_steps=count_few_steps(metrics or []),
            panel_layout=training_curves,
            compare_words=compare_words,
            mean_duration_s=sum(item.duration_s for item in report.items) / len(report.items),
            created=format_date(report.created),
        )
    )


def build_environment() -> jinja2.Environment:
    """Returns the templates of evaluation pages, with filters that format numbers."""
    environment = load_templates("ossicle.evaluation.report")
    environment.filters |= {
        "format_percent": format_percent,
        "format_number": format_number,
        "format_interval": format_interval,
        "format_points": format_points,
        "format_points_interval": format_points_interval,
        "format_date": format_date,
        "bar_length": compute_bar_length,
        "zip": zip,
    }
    return environment


def _list_robustness_tables(report: Report) -> list[tuple[Corruption, ScoreTable]]:
    """Returns the tables under each corruption of a report, after the clean one; none if it has no corruptions."""
    corrupted = report.robustness
    return [(Corruption(kind="clean"), report.overall), *corrupted] if corrupted else []


def _count_agreement(report: Report) -> Agreement:
    pairs = [(item.ear_correct, item.cascade_correct) for item in report.items]
    return Agreement(
        both=pairs.count((True, True)),
        only_ear=pairs.count((True, False)),
        only_cascade=pairs.count((False, True)),
        neither=pairs.count((False, False)),
    )
