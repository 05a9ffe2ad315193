"""ossicle data: look into sources of speech, and pack them."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from tyro.conf import Positional, arg, subcommand

from ossicle.cli.terminal import print_message

if TYPE_CHECKING:
    from ossicle.data.inspect import Bins, Survey

Sources = Annotated[tuple[str, ...], arg(metavar="SOURCE")]
_HISTOGRAM_WIDTH = 40
_MAX_SHOWN_INVALID_ROWS = 10


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Show counts, hours, lengths, bad rows and examples of a source."""

    source: Positional[Sources]
    """Files, folders or data sets, as data.source names them in a recipe."""
    decode: int = 1_000
    """Rows, spread evenly, whose sound is read and decoded; hours are measured on them. 0: none."""
    n_clips: int | None = None
    """Only the first so many rows."""
    html: Annotated[Path | None, arg(metavar="PAGE.html")] = None
    """Writes a page with the same, and sound to play."""

    def run(self, command_line: str) -> int:
        """Prints what was found; bad rows are no failure of this command."""
        from ossicle.atomic_io import write_text
        from ossicle.data.inspect import survey
        from ossicle.data.inspect_html import render
        from ossicle.data.open_source import open_speech
        from ossicle.errors import ConfigError

        if self.decode < 0:
            raise ConfigError(f"--decode is {self.decode}, expected zero or more")
        if self.html and self.html.is_dir():
            raise ConfigError(
                f"--html is {self.html}, which is a folder; expected the name of a page to write"
            )
        speech = open_speech(self.source, self.n_clips)
        with _build_progress_bar() as bar:
            task = bar.add_task("decoding", total=None)
            found = survey(
                speech,
                n_decoded=self.decode,
                progress=lambda done, n: bar.update(task, completed=done, total=n),
            )
        console = Console()
        _print(found, console)
        if self.html:
            write_text(self.html, render(found, " + ".join(self.source)))
            console.out(str(self.html), highlight=False)
        return 0


@dataclass(frozen=True, kw_only=True)
class Pack:
    """Write sources into a folder of shards that is read fast, in any order; what cannot be used is listed.

    Killed at any moment, the same command goes on where it was.
    """

    source: Positional[Sources]
    """Files, folders or data sets, as data.source names them in a recipe."""
    out: Annotated[Path, arg(metavar="DIR")]
    """The folder; it is a source then."""
    pcm: bool = False
    """Stores samples (16 kHz, int16), so that training decodes nothing; more disk."""
    max_invalid_ratio: float = 0.01
    """Share of rows that may be left out; more stop it."""
    n_clips: int | None = None
    """Only the first so many rows."""
    n_workers: int = 2
    """Processes that decode; 0 does it in this one."""

    def run(self, command_line: str) -> int:
        """Packs, and says how much of what."""
        from ossicle.data.open_source import open_speech
        from ossicle.data.pack import SKIPPED, pack, pcm_bytes
        from ossicle.errors import ConfigError

        if self.n_workers < 0 or not 0 <= self.max_invalid_ratio <= 1:
            raise ConfigError(
                f"--n-workers is {self.n_workers} and --max-invalid-ratio {self.max_invalid_ratio}; expected zero or"
                " more, and a ratio between 0 and 1"
            )
        speech = open_speech(self.source, self.n_clips)
        if self.pcm:
            _print_disk_space(pcm_bytes(speech), self.out)
        with _build_progress_bar() as bar:
            task = bar.add_task("packing", total=len(speech))
            packed = pack(
                speech,
                self.out,
                pcm=self.pcm,
                max_invalid_ratio=self.max_invalid_ratio,
                n_workers=self.n_workers,
                progress=lambda done: bar.update(task, completed=done),
            )
        Console().out(
            f"{packed.folder}: {packed.n_rows:,} clips, {packed.duration_s / 3600:,.2f} hours,"
            f" {_format_size(packed.n_bytes)}; {packed.n_skipped:,} left out"
            + (f" ({packed.folder / SKIPPED})" if packed.n_skipped else ""),
            highlight=False,
        )
        return 0


@dataclass(frozen=True, kw_only=True)
class Data:
    """Look into sources of speech, and pack them for fast reading."""

    command: Annotated[Inspect, subcommand("inspect")] | Annotated[Pack, subcommand("pack")]

    def run(self, command_line: str) -> int:
        """Does what is asked for."""
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


def _print(found: "Survey", console: Console) -> None:
    from ossicle.data.inspect import histogram
    from ossicle.data.inspect_html import basis, facts

    console.print("   ".join(f"[bold]{value}[/] {label}" for value, label in facts(found)), highlight=False)
    console.print(Text(basis(found), style="dim"))
    _print_histogram("seconds", histogram(found.seconds), console)
    _print_histogram("characters", histogram(found.characters), console)
    if found.examples:
        table = Table("example", "seconds", "transcript", box=None)
        for example in found.examples:
            table.add_row(Text(example.name), f"{example.duration_s:.1f}", Text(example.text))
        console.print()
        console.print(table)
    if found.bad:
        table = Table("bad rows", "reason", box=None)
        for kind, n in found.kinds.items():
            table.add_row(f"{n:,}", Text(kind))
        console.print()
        console.print(table)
        console.print()
        for row in found.bad[:_MAX_SHOWN_INVALID_ROWS]:
            console.print(Text(f"{row.name}: {row.reason}", style="dim"))
        if len(found.bad) > _MAX_SHOWN_INVALID_ROWS:
            console.print(Text(f"and {len(found.bad) - _MAX_SHOWN_INVALID_ROWS:,} more", style="dim"))


def _print_histogram(title: str, bins: "Bins", console: Console) -> None:
    from ossicle.data.inspect_html import edge

    if not bins.counts:
        return
    console.print()
    max_count, width = max(bins.counts), max(len(edge(bins, place)) for place in range(len(bins.counts)))
    console.print(Text(title))
    for index, count in enumerate(bins.counts):
        bar = "█" * round(_HISTOGRAM_WIDTH * count / max_count) or ("▏" if count else "")
        console.print(Text(f"{edge(bins, index):>{width}} {bar} {count:,}"))


def _print_disk_space(n_bytes: int, folder: Path) -> None:
    """How much disk the samples will need, before they are written."""
    parent = folder.absolute()
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    scarce = "" if n_bytes < free else ", and that is not enough"
    print_message(
        f"about {_format_size(n_bytes)} of samples by the estimated lengths; {_format_size(free)} are free{scarce}"
    )


def _format_size(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:,.2f} GiB" if n_bytes >= 2**29 else f"{n_bytes / 2**20:,.1f} MiB"
