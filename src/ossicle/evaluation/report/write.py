"""A report on disk and in the terminal; it knows how to write whole files or none."""

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from ossicle.errors import CheckpointError
from ossicle.evaluation.report.page import (
    format_interval,
    format_number,
    format_percent,
    format_points,
    format_points_interval,
    list_tables,
    render_report,
)
from ossicle.evaluation.report_data import Report
from ossicle.evaluation.statistics import Estimate, Metric


@dataclass(frozen=True, kw_only=True)
class ReportPaths:
    """Where a report is."""

    json: Path
    html: Path


def write_report(
    report: Report, target: str | Path, *, losses: Sequence[Mapping[str, object]] | None = None
) -> ReportPaths:
    """Write a report for programs (JSON) and for people (HTML), whole or not at all.

    Args:
        target: a folder for report.json and report.html, or a path ending in .json for the page beside it.
        losses: lines of a run's metrics.jsonl, drawn as curves.

    Raises:
        CheckpointError: the files cannot be written, such as on a full disk; what was there still is.
    """
    target = Path(target)
    json_path = target if target.suffix == ".json" else target / "report.json"
    html_path = json_path.with_suffix(".html")
    texts = {
        html_path: render_report(report, losses=losses),
        json_path: json.dumps(report.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
    }
    try:
        _write_all(texts)
    except OSError as error:
        raise CheckpointError(
            f"report {json_path} cannot be written ({error.strerror or error});"
            " make room, or name a folder you may write to"
        ) from error
    return ReportPaths(json=json_path, html=html_path)


def _write_all(texts: Mapping[Path, str]) -> None:
    """Write every text beside its place and, when all are whole, put them there; no part is left behind."""
    beside = {path: path.with_name(f".{path.name}.{os.getpid()}.part") for path in texts}
    try:
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with beside[path].open("w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        for path in texts:
            beside[path].replace(path)
    finally:
        for part in beside.values():
            with contextlib.suppress(OSError):
                part.unlink()


def print_table(report: Report, console: Console) -> None:
    """Print the three numbers, overall and by group, with 95 % intervals."""
    table = RichTable(
        title=f"{escape(report.suite)}: {report.overall.n} spoken items",
        caption=_caption(report),
        caption_justify="left",
    )
    table.add_column("")
    table.add_column("n", justify="right", no_wrap=True)
    table.add_column("text ceiling", justify="right", no_wrap=True)
    table.add_column("cascade", justify="right", no_wrap=True)
    table.add_column("ear", justify="right", style="bold", no_wrap=True)
    table.add_column("ear - cascade", justify="right")
    table.add_column("WER", justify="right", no_wrap=True)
    for index, (name, row) in enumerate(list_tables(report)):
        scores = [format_cell(score, row.metric) for score in (row.text_ceiling, row.cascade, row.ear)]
        gain, ci95 = row.difference.value, row.difference.ci95
        difference = (
            f"{format_points(gain, row.metric)}\n[dim]{format_points_interval(ci95, row.metric)}[/dim]"
        )
        table.add_row(
            escape(name), str(row.n), *scores, difference, format_percent(row.wer), end_section=index == 0
        )
    console.print(table)


def format_cell(score: Estimate, metric: Metric) -> str:
    """A number above its interval, in a table of the terminal."""
    return f"{format_number(score.value, metric)}\n[dim not bold]{format_interval(score.ci95, metric)}[/dim not bold]"


def _caption(report: Report) -> str:
    kept = f"{report.overall.metric.title}, 95 % intervals."
    if report.overall.of_ceiling is not None:
        kept += f" The ear reaches {format_percent(report.overall.of_ceiling)} of the text ceiling."
    if report.n_own_targets:
        kept += f" {report.n_own_targets} items expect the LLM's own answer to the text: right by definition."
    return kept


def build_model_card_table(report: Report) -> str:
    """The three numbers as Markdown, for the model card."""
    lines = [
        f"Evaluated on the suite `{report.suite}`; {report.overall.metric.label} with 95 % intervals:\n",
        "| | n | text ceiling | cascade | ear |",
        "|---|---|---|---|---|",
    ]
    for name, row in list_tables(report):
        cells = [
            f"{format_number(score.value, row.metric)} ({format_interval(score.ci95, row.metric)})"
            for score in (row.text_ceiling, row.cascade, row.ear)
        ]
        lines.append(f"| {name} | {row.n} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
