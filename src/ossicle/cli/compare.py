"""ossicle compare."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable
from tyro.conf import Positional, arg

if TYPE_CHECKING:
    from ossicle.evaluation.compare_reports import ComparisonRow

_MIN_WIDTH = 80
"""Columns of the table at least: numbers are never cut off; a narrower terminal wraps the lines."""


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Compare reports of several ears: scores side by side, and paired differences on the items that they share."""

    reports: Positional[Annotated[tuple[Path, ...], arg(metavar="REPORT.json")]]
    """Two or more reports of `ossicle eval`. The others are compared with the first one."""

    out: Annotated[Path | None, arg(metavar="PAGE.html")] = None
    """HTML page to write: scores, plots, and the items on which the ears disagree, with their audio."""

    def run(self, command_line: str) -> int:
        """Prints a table with a row for each part and report, and writes the page if --out is given."""
        from ossicle.atomic_io import write_text
        from ossicle.errors import ConfigError
        from ossicle.evaluation import read_report
        from ossicle.evaluation.compare_reports import (
            build_rows,
            check_comparable,
            compute_paired_difference,
            explain_no_difference,
        )
        from ossicle.evaluation.report.formatting import format_points, format_points_interval

        if self.out is not None and self.out.resolve() in [path.resolve() for path in self.reports]:
            raise ConfigError(f"--out {self.out} is one of the reports; give the page another name")
        reports = [read_report(path) for path in self.reports]
        check_comparable(reports)
        page = ""
        if self.out is not None:  # before anything is printed, as it may raise
            from ossicle.evaluation.report.comparison_page import render_comparison

            page = render_comparison(self.reports, reports)
        console = Console()
        console.width = max(console.width, _MIN_WIDTH)
        _print_table(build_rows(reports), console)
        for number, path in enumerate(self.reports, 1):
            console.out(f"{number}: {path}", highlight=False)
        for number, report in enumerate(reports[1:], 2):
            difference = compute_paired_difference(reports[0], report)
            if difference is None:
                text = explain_no_difference(reports[0], report)
            else:
                gain, metric = difference.difference, difference.metric
                better = " (lower is better)" if metric.is_error else ""
                text = (
                    f"ear {format_points(gain.value, metric)} ({format_points_interval(gain.ci95, metric)}),"
                    f" {metric.label}{better}, paired over {difference.n} items"
                )
            console.out(f"{number} compared with 1: {text}", highlight=False)
        if self.out is not None:
            write_text(self.out, page)
            console.out(f"{self.out}  (with plots and audio)", highlight=False)
        return 0


def _print_table(rows: Sequence["ComparisonRow"], console: Console) -> None:
    from ossicle.evaluation.report.formatting import format_points, format_points_interval
    from ossicle.evaluation.report.write import format_cell

    table = RichTable()
    for name in ("", "#", "n", "text ceiling", "cascade", "ear", "ear - cascade"):
        table.add_column(name, justify="left" if not name else "right", no_wrap=bool(name), overflow="fold")
    for row in rows:
        for position, scores in enumerate(row.tables):
            name, number = escape(row.name) if position == 0 else "", str(position + 1)
            is_last = position == len(row.tables) - 1
            if scores is None:
                table.add_row(name, number, *["–"] * 5, end_section=is_last)
                continue
            cells = [
                format_cell(score, scores.metric)
                for score in (scores.text_ceiling, scores.cascade, scores.ear)
            ]
            gain, metric = scores.difference, scores.metric
            cells.append(
                f"{format_points(gain.value, metric)}\n[dim]{format_points_interval(gain.ci95, metric)}[/dim]"
            )
            table.add_row(name, number, str(scores.n), *cells, end_section=is_last)
    console.print(table, highlight=False)
