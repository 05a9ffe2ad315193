"""ossicle teacher."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tyro.conf import Positional, arg

from ossicle.cli.terminal import RecipeFile, format_bytes, print_resume_command
from ossicle.config import Recipe

if TYPE_CHECKING:
    from ossicle.training.cache.precompute_teacher import TeacherPrecompute
    from ossicle.training.distributed import Ranks

_N_PROGRESS_LINES = 20
"""Progress lines in total where there is no terminal."""


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """Precompute the teacher states of all transcripts into data.teacher_cache. If stopped, repeat to resume."""

    recipe: Positional[RecipeFile]
    """Recipe of the run. Flags after it override its settings, such as --data.teacher-cache FOLDER."""
    settings: Annotated[Recipe, arg(name="")] = field(default_factory=lambda: Recipe(out="runs/..."))

    def run(self, command_line: str) -> int:
        """Fills the cache. If it is stopped, prints how to resume it."""
        from ossicle.training.cache.precompute_teacher import plan_teacher_precompute
        from ossicle.training.distributed import join_process_group

        try:
            with join_process_group() as ranks:
                console = Console(quiet=not ranks.is_first)
                with ranks.sync_errors():
                    precompute = plan_teacher_precompute(self.settings)
                _print_summary(precompute, console)
                if precompute.write_plan.n_missing:
                    _precompute(precompute, ranks, console)
        except KeyboardInterrupt:
            stop = KeyboardInterrupt("stopped; all finished shards are kept; resume with")
            return print_resume_command(stop, command_line)
        return 0


def _print_summary(precompute: "TeacherPrecompute", console: Console) -> None:
    transcripts, plan = precompute.transcripts, precompute.write_plan
    skipped = f", {transcripts.n_skipped} rows are invalid" if transcripts.n_skipped else ""
    console.out(f"{len(transcripts)} transcripts in {transcripts.n_rows} rows{skipped}", highlight=False)
    if plan.n_missing:
        size = format_bytes(plan.n_bytes)
        console.out(
            f"{plan.n_missing} of them are missing in {plan.folder}; they take {size} of disk",
            highlight=False,
        )
    else:
        console.out(f"all of them are in {plan.folder}: nothing to do", highlight=False)


def _precompute(precompute: "TeacherPrecompute", ranks: "Ranks", console: Console) -> None:
    n_printed = 0

    def print_progress(n_done: int, n: int) -> None:
        nonlocal n_printed
        bar.update(task, completed=n_done)
        if not console.is_terminal and n_done * _N_PROGRESS_LINES // n > n_printed:
            n_printed = n_done * _N_PROGRESS_LINES // n
            console.out(f"{n_done}/{n} transcripts done", highlight=False)

    columns = (
        TextColumn("teacher states"),
        MofNCompleteColumn(),
        BarColumn(bar_width=None),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, expand=True) as bar:
        task = bar.add_task("", total=precompute.write_plan.n_missing)
        cache = precompute.run(ranks, print_progress)
    console.out(
        f"{precompute.write_plan.folder} has the teacher states of {len(cache)} transcripts", highlight=False
    )
