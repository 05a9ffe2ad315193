"""earshot compare."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable
from tyro.conf import Positional, arg

if TYPE_CHECKING:
    from earshot.evaluation.beside import Row


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Put the reports of several ears side by side, and say how they differ on the items that they share."""

    reports: Positional[Annotated[tuple[Path, ...], arg(metavar="REPORT.json")]]
    """Reports that `earshot eval` wrote, two or more; the first is what the others are compared with."""

    def run(self, typed: str) -> int:
        """Prints a table with a row for each part and each report."""
        from earshot.evaluation import read_report
        from earshot.evaluation.beside import against, check_comparable, rows
        from earshot.evaluation.page import points, points_interval

        reports = [read_report(path) for path in self.reports]
        check_comparable(reports)
        console = Console()
        _print_rows(self.reports, rows(reports), console)
        for path, report in zip(self.reports[1:], reports[1:], strict=True):
            found = against(reports[0], report)
            if found is None:
                said = "no items in common that are marked alike"
            else:
                gain = found.difference
                said = (
                    f"ear {points(gain.value, found.metric)} ({points_interval(gain.ci95, found.metric)}),"
                    f" {found.metric.label}, paired over {found.n} items"
                )
            console.out(f"{path} against {self.reports[0]}: {said}", highlight=False)
        return 0


def _print_rows(paths: Sequence[Path], rows: Sequence["Row"], console: Console) -> None:
    from earshot.evaluation.page import interval, number, points, points_interval

    table = RichTable()
    for name in ("", "report", "n", "text ceiling", "cascade", "ear", "ear - cascade"):
        table.add_column(name, justify="left" if name in ("", "report") else "right")
    for row in rows:
        for place, (path, own) in enumerate(zip(paths, row.tables, strict=True)):
            name = escape(row.name) if place == 0 else ""
            is_last = place == len(paths) - 1
            if own is None:
                table.add_row(name, escape(str(path)), *["–"] * 5, end_section=is_last)
                continue
            cells = [
                f"{number(score.value, own.metric)} [dim]{interval(score.ci95, own.metric)}[/dim]"
                for score in (own.text_ceiling, own.cascade, own.ear)
            ]
            gain = own.difference
            cells.append(
                f"{points(gain.value, own.metric)} [dim]{points_interval(gain.ci95, own.metric)}[/dim]"
            )
            table.add_row(name, escape(str(path)), str(own.n), *cells, end_section=is_last)
    console.print(table, highlight=False)
