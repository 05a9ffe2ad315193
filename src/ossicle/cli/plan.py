"""ossicle plan."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from rich.table import Table
from rich.text import Text
from tyro.conf import Positional, arg

from ossicle.atomic_io import write_text
from ossicle.cli.terminal import RecipeFile
from ossicle.config import Recipe

if TYPE_CHECKING:
    from ossicle.plan import Estimate

_MAX_WIDTH = 100


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Estimate the cost of a run without loading any weights: operations, memory, disk and hours."""

    recipe: Positional[RecipeFile]
    """Recipe of the run. Flags after it override its settings, such as --train.batch-size 64."""
    settings: Annotated[Recipe, arg(name="")] = field(default_factory=lambda: Recipe(out="runs/..."))
    gpus: int = 1
    """Number of GPUs that train together."""
    clip_s: float = 5.0
    """Mean duration of a clip, in seconds."""
    tokens: float = 14.0
    """Mean number of tokens of a transcript."""
    longest_s: float | None = None
    """Duration of the longest clips, in seconds, for the memory estimate. Without it, three times the mean, or the
    encoder's window if clips are concatenated."""
    clips: int | None = None
    """Number of clips in the source. Without it, the count of a local source, or as many as the steps use."""
    utilization: float = 0.4
    """Ratio of a GPU's peak operations per second that is reached."""
    template_tokens: int | None = None
    """Number of tokens of the chat template around the user's content. Without it, the tokenizer is read if it is
    available."""
    json: Path | None = None
    """JSON file to write all numbers to."""

    def run(self, command_line: str) -> int:
        """Prints the estimate."""
        from ossicle.plan import Assumptions, estimate

        found = estimate(
            self.settings,
            Assumptions(
                n_gpus=self.gpus,
                clip_s=self.clip_s,
                n_tokens=self.tokens,
                longest_s=self.longest_s,
                n_clips=_count_local_clips(self.settings) if self.clips is None else self.clips,
                utilization=self.utilization,
                n_template_tokens=self.template_tokens,
            ),
        )
        if self.json is not None:
            write_text(self.json, json.dumps(found.to_json(), indent=1) + "\n")
        console = Console()
        print_estimate(
            found,
            self.settings,
            Console(width=min(_MAX_WIDTH, console.width) if console.is_terminal else _MAX_WIDTH),
        )
        return 0


def _count_local_clips(recipe: Recipe) -> int | None:
    """Returns the number of clips in a recipe's sources; None if not all of them are on this computer."""
    from ossicle.data.dataset import open_speech
    from ossicle.data.formats import is_local_source
    from ossicle.errors import OssicleError

    if not all(map(is_local_source, recipe.data.source)):
        return None
    try:
        return len(open_speech(recipe.data.source, recipe.data.n_clips))
    except OssicleError:  # training reports the error
        return None


def print_estimate(estimate: "Estimate", recipe: Recipe, console: Console) -> None:
    """Prints the estimate as tables of at most 100 columns, followed by its assumptions."""
    tables = {
        "Weights": _weights_table(estimate),
        "Operations": _operations_table(estimate),
        "Memory of each GPU at the peak of a step, for one of the longest clips": _memory_table(estimate),
        "Disk": _disk_table(estimate),
        "Time and fit": _gpus_table(estimate),
        "Assumed": _assumptions_table(estimate),
    }
    for number, (title, table) in enumerate(tables.items()):
        console.print(f"{chr(10) * (number > 0)}[bold]{title}", highlight=False)
        console.print(table)


def _build_table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=bool(number))
    return table


def _assumptions_table(estimate: "Estimate") -> Table:
    table = Table.grid(padding=(0, 1))
    for line in estimate.assumptions:
        table.add_row("-", Text(line))
    return table


def _weights_table(estimate: "Estimate") -> Table:
    table = _build_table("part", "millions")
    for name, count in estimate.weights.items():
        table.add_row(name, f"{count / 1e6:,.1f}")
    return table


def _operations_table(estimate: "Estimate") -> Table:
    table = _build_table("part", "GFLOP a clip", "PFLOP in the run", "% of the run")
    total = sum(estimate.run.values())
    for name, flops in estimate.clip.items():
        table.add_row(
            name, f"{flops / 1e9:,.2f}", _format_peta(estimate.run[name]), f"{estimate.run[name] / total:.1%}"
        )
    table.add_row("all", f"{sum(estimate.clip.values()) / 1e9:,.2f}", _format_peta(total), "100.0%")
    if estimate.run_live != total:
        table.add_row(
            "all, without caches", "", _format_peta(estimate.run_live), f"{estimate.run_live / total:.1%}"
        )
    return table


def _memory_table(estimate: "Estimate") -> Table:
    table = _build_table("part", "GB")
    for name, size in {**estimate.memory, "all": sum(estimate.memory.values())}.items():
        table.add_row(name, _format_giga(size))
    return table


def _disk_table(estimate: "Estimate") -> Table:
    table = _build_table("part", "GB")
    for name, size in estimate.disk.items():
        table.add_row(name, _format_giga(size))
    return table


def _gpus_table(estimate: "Estimate") -> Table:
    table = _build_table(
        "GPU", "GB", "mean clips a microbatch", "longest clips a microbatch", "hours", "GPU-hours"
    )
    for fit in estimate.gpus:
        table.add_row(
            fit.gpu,
            f"{fit.memory_bytes / 1e9:.0f}",
            f"{fit.n_mean:,}" if fit.n_mean else "none fits",
            f"{fit.n_longest:,}" if fit.n_longest else "none fits",
            _format_hours(fit.hours),
            _format_hours(fit.gpu_hours),
        )
    return table


def _format_peta(flops: float) -> str:
    return f"{flops / 1e15:,.0f}" if flops >= 1e17 else f"{flops / 1e15:,.3g}"


def _format_giga(size: float) -> str:
    return f"{size / 1e9:,.1f}" if size >= 1e8 else f"{size / 1e9:,.3f}"


def _format_hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:,.1f}" if hours >= 0.1 else f"{hours:.2g}"
