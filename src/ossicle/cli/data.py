"""ossicle data: inspects sources of speech, and packs them."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from tyro.conf import Positional, arg, subcommand

from ossicle.cli.terminal import format_bytes, print_message

if TYPE_CHECKING:
    from ossicle.data.inspect import DatasetSummary, Histogram

Sources = Annotated[tuple[str, ...], arg(metavar="SOURCE")]
_HISTOGRAM_WIDTH = 40
_MAX_SHOWN_INVALID_ROWS = 10


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Show counts, hours, durations, invalid rows and examples of a source."""

    source: Positional[Sources]
    """Files, folders or datasets, written as in data.source of a recipe."""
    decode: int = 1_000
    """Number of rows, evenly spaced, whose audio is decoded; the hours are measured on them. 0: none."""
    n_clips: int | None = None
    """Number of rows to use, from the start. Without it, all rows."""
    html: Annotated[Path | None, arg(metavar="PAGE.html")] = None
    """HTML page to write, with the same numbers and with audio to play."""

    def run(self, command_line: str) -> int:
        """Prints the summary; invalid rows make the command fail only if none that was read is usable."""
        from ossicle.atomic_io import write_text
        from ossicle.data.dataset import open_speech
        from ossicle.data.inspect import inspect_dataset
        from ossicle.data.inspect_html import render_page
        from ossicle.errors import ConfigError

        if self.decode < 0:
            raise ConfigError(f"--decode is {self.decode}, expected zero or more")
        if self.html and self.html.is_dir():
            raise ConfigError(
                f"--html is {self.html}, which is a folder; expected the path of a page to write"
            )
        dataset = open_speech(self.source, self.n_clips)
        with _build_progress_bar() as bar:
            task = bar.add_task("decoding", total=None)
            summary = inspect_dataset(
                dataset,
                n_decoded=self.decode,
                progress=lambda done, n: bar.update(task, completed=done, total=n),
            )
        console = Console()
        for source, layout in zip(self.source, summary.layouts, strict=False):  # fewer, with --n-clips
            console.print(Text(f"{source}: {layout}", style="dim"), soft_wrap=True)
        _print_summary(summary, console)
        if self.html:
            write_text(self.html, render_page(summary, " + ".join(self.source)))
            console.out(str(self.html), highlight=False)
        if not summary.has_usable_row:
            print_message("no row that was read can be used")
        return 0 if summary.has_usable_row else 1


@dataclass(frozen=True, kw_only=True)
class Pack:
    """Write sources into a folder of shards that is fast to read in any order; invalid rows are listed and skipped.

    If the command is killed, the same command resumes where it stopped.
    """

    source: Positional[Sources]
    """Files, folders or datasets, written as in data.source of a recipe."""
    out: Annotated[Path, arg(metavar="DIR")]
    """Folder to write; use it as a source afterwards."""
    pcm: bool = False
    """Store samples (16 kHz, int16), so that training need not decode. It takes more disk space."""
    max_invalid_ratio: float = 0.01
    """Highest ratio of rows that may be skipped as invalid; above it the command stops."""
    n_clips: int | None = None
    """Number of rows to use, from the start. Without it, all rows."""
    n_workers: int = 2
    """Worker processes that decode. 0: the main process does it."""

    def run(self, command_line: str) -> int:
        """Packs the sources and prints how much was written."""
        from ossicle.data.dataset import open_speech
        from ossicle.data.pack import SKIPPED_FILE, estimate_pcm_bytes, pack
        from ossicle.errors import ConfigError

        if self.n_workers < 0 or not 0 <= self.max_invalid_ratio <= 1:
            raise ConfigError(
                f"--n-workers is {self.n_workers} and --max-invalid-ratio {self.max_invalid_ratio}; expected zero or"
                " more, and a ratio between 0 and 1"
            )
        dataset = open_speech(self.source, self.n_clips)
        if self.pcm:
            _print_disk_space(estimate_pcm_bytes(dataset), self.out)
        with _build_progress_bar() as bar:
            task = bar.add_task("packing", total=len(dataset))
            summary = pack(
                dataset,
                self.out,
                pcm=self.pcm,
                max_invalid_ratio=self.max_invalid_ratio,
                n_workers=self.n_workers,
                progress=lambda done: bar.update(task, completed=done),
            )
        Console().out(
            f"{summary.folder}: {summary.n_rows:,} clips, {summary.duration_s / 3600:,.2f} hours,"
            f" {format_bytes(summary.n_bytes)}; {summary.n_skipped:,} skipped"
            + (f" (listed in {summary.folder / SKIPPED_FILE})" if summary.n_skipped else ""),
            highlight=False,
        )
        return 0


@dataclass(frozen=True, kw_only=True)
class Data:
    """Inspect sources of speech, and pack them for fast reading."""

    command: Annotated[Inspect, subcommand("inspect")] | Annotated[Pack, subcommand("pack")]

    def run(self, command_line: str) -> int:
        """Runs the subcommand."""
        return self.command.run(command_line)


def _build_progress_bar() -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )


def _print_summary(summary: "DatasetSummary", console: Console) -> None:
    from ossicle.data.inspect import compute_histogram
    from ossicle.data.inspect_html import describe_coverage, list_totals

    totals = "   ".join(f"[bold]{value}[/] {label}" for value, label in list_totals(summary))
    console.print(totals, highlight=False)
    console.print(Text(describe_coverage(summary), style="dim"))
    _print_histogram("seconds", compute_histogram(summary.durations_s), console)
    _print_histogram("characters", compute_histogram(summary.n_characters), console)
    if summary.examples:
        table = Table("example", "seconds", "transcript", box=None)
        for example in summary.examples:
            table.add_row(Text(example.name), f"{example.duration_s:.1f}", Text(example.text))
        console.print()
        console.print(table)
    if summary.invalid_rows:
        table = Table("invalid rows", "reason", box=None)
        for reason, n in summary.reason_counts.items():
            table.add_row(f"{n:,}", Text(reason))
        console.print()
        console.print(table)
        console.print()
        for row in summary.invalid_rows[:_MAX_SHOWN_INVALID_ROWS]:
            console.print(Text(f"{row.name}: {row.reason}", style="dim"))
        n_more = len(summary.invalid_rows) - _MAX_SHOWN_INVALID_ROWS
        if n_more > 0:
            console.print(Text(f"and {n_more:,} more", style="dim"))


def _print_histogram(title: str, histogram: "Histogram", console: Console) -> None:
    from ossicle.data.inspect_html import format_bin_edge

    if not histogram.counts:
        return
    console.print()
    edges = [format_bin_edge(histogram, index) for index in range(len(histogram.counts))]
    max_count, edge_width = max(histogram.counts), max(map(len, edges))
    console.print(Text(title))
    for edge, count in zip(edges, histogram.counts, strict=True):
        bar = "█" * round(_HISTOGRAM_WIDTH * count / max_count) or ("▏" if count else "")
        console.print(Text(f"{edge:>{edge_width}} {bar} {count:,}"))


def _print_disk_space(n_bytes_needed: int, folder: Path) -> None:
    """Prints the disk space that the samples will need, before they are written."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    n_bytes_free = shutil.disk_usage(existing).free
    warning = "" if n_bytes_needed < n_bytes_free else ", which is not enough"
    print_message(
        f"samples will take about {format_bytes(n_bytes_needed)} by the estimated durations;"
        f" {format_bytes(n_bytes_free)} are free{warning}"
    )
