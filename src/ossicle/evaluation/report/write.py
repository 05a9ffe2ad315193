"""Writes a report to disk, to the terminal, and as Markdown for a model card."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ossicle.atomic_io import write_texts
from ossicle.evaluation.report.formatting import (
    format_interval,
    format_number,
    format_percent,
    format_points,
    format_points_interval,
)
from ossicle.evaluation.report.page import render_report
from ossicle.evaluation.report_data import Report
from ossicle.evaluation.statistics import Estimate, Metric


@dataclass(frozen=True, kw_only=True)
class ReportPaths:
    """The files of a report."""

    json: Path
    html: Path


def write_report(
    report: Report, target: str | Path, *, metrics: Sequence[Mapping[str, object]] | None = None
) -> ReportPaths:
    """Writes a report for programs (JSON) and for people (HTML): both files, or none.

    Args:
        target: a folder for report.json and report.html, or a path that ends in .json; the page gets the same name.
        metrics: lines of a run's metrics.jsonl, drawn as curves.

    Raises:
        CheckpointError: the files cannot be written, such as on a full disk; earlier files are unchanged.
    """
    json_path = find_json_path(Path(target))
    html_path = json_path.with_suffix(".html")
    html = render_report(report, metrics=metrics)
    stored = json.dumps(report.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    # Names of files need not be UTF-8.
    texts = {html_path: html, json_path: stored}
    write_texts({path: text.encode("utf-8", "replace").decode() for path, text in texts.items()})
    return ReportPaths(json=json_path, html=html_path)


def find_json_path(target: Path) -> Path:
    """Returns the path of a report for programs, which is given itself or by its folder."""
    return target if target.suffix == ".json" else target / "report.json"


def print_table(report: Report, console: Console) -> None:
    """Prints the three numbers, overall and by group, with 95 % intervals."""
    table = Table(
        title=f"{escape(report.suite)}: {report.overall.n} spoken items",
        caption=_build_caption(report),
        caption_justify="left",
    )
    table.add_column("")
    table.add_column("n", justify="right", no_wrap=True)
    table.add_column("text ceiling", justify="right", no_wrap=True)
    table.add_column("cascade", justify="right", no_wrap=True)
    table.add_column("ear", justify="right", style="bold", no_wrap=True)
    table.add_column("ear - cascade", justify="right")
    table.add_column("WER", justify="right", no_wrap=True)
    for index, (name, row) in enumerate(report.tables):
        estimates = [
            format_cell(estimate, row.metric) for estimate in (row.text_ceiling, row.cascade, row.ear)
        ]
        gain, ci95 = row.difference.value, row.difference.ci95
        difference = (
            f"{format_points(gain, row.metric)}\n[dim]{format_points_interval(ci95, row.metric)}[/dim]"
        )
        cells = [escape(name), str(row.n), *estimates, difference, format_percent(row.wer)]
        table.add_row(*cells, end_section=index == 0)
    console.print(table)


def format_cell(estimate: Estimate, metric: Metric) -> str:
    """Returns a cell of a terminal table: a number above its interval."""
    interval = format_interval(estimate.ci95, metric)
    return f"{format_number(estimate.value, metric)}\n[dim not bold]{interval}[/dim not bold]"


def _build_caption(report: Report) -> str:
    caption = f"{report.overall.metric.title}, 95 % intervals."
    if report.overall.of_ceiling is not None:
        caption += f" The ear reaches {format_percent(report.overall.of_ceiling)} of the text ceiling."
    if report.n_own_targets:
        caption += (
            f" {report.n_own_targets} items expect the LLM's own answer to the text: right by definition."
        )
    return caption


def build_model_card_table(report: Report) -> str:
    """Returns the three numbers as a Markdown table for the model card."""
    lines = [
        f"Evaluated on the suite `{report.suite}`; {report.overall.metric.label} with 95 % intervals:\n",
        "| | n | text ceiling | cascade | ear |",
        "|---|---|---|---|---|",
    ]
    for name, row in report.tables:
        cells = [
            f"{format_number(estimate.value, row.metric)} ({format_interval(estimate.ci95, row.metric)})"
            for estimate in (row.text_ceiling, row.cascade, row.ear)
        ]
        lines.append(f"| {name} | {row.n} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
