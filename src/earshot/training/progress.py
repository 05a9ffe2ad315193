"""What a person sees of a run while it goes on."""

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

_TERMS = ("align", "end", "hidden", "kl")


class Progress:
    """Bars on a terminal, a line now and then where there is none; silent without a console."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(quiet=True)
        self.bars: Bars | None = None
        self.task = TaskID(0)
        self.last_printed = 0

    def _new_bars(self) -> Bars:
        return Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )

    def preparing(self, n_done: int, n: int) -> None:
        """So many clips are encoded."""
        if self.bars is None:
            self.bars = self._new_bars()
            self.bars.start()
            self.task = self.bars.add_task("encoding speech", total=n, note="")
        self.bars.update(self.task, completed=n_done)
        if n_done == n:
            self.bars.stop()
            self.bars = None
            if not self.console.is_terminal:
                self.console.print(f"{n} clips encoded")

    @contextlib.contextmanager
    def training(self, step: int, n_steps: int) -> Iterator[None]:
        """Shows the steps from `step` to `n_steps` while the block runs."""
        if step:
            self.console.print(f"going on from step {step} of {n_steps}")
        self.n_steps, self.last_printed = n_steps, step
        with self._new_bars() as self.bars:
            self.task = self.bars.add_task("distilling", total=n_steps, completed=step, note="")
            yield
        self.bars = None

    def step(self, row: dict[str, float]) -> None:
        """The metrics of the last steps."""
        terms = "  ".join(f"{name} {row[name]:.3f}" for name in _TERMS if name in row)
        note = f"loss {row['loss']:.3f}  {terms}  {row['clips_per_s']:.0f} clips/s"
        step = int(row["step"])
        if self.bars is not None:
            self.bars.update(self.task, completed=step, note=note)
        is_due = step - self.last_printed >= self.n_steps / 20 or step == self.n_steps
        if not self.console.is_terminal and is_due:
            self.last_printed = step
            self.console.print(f"step {step}/{self.n_steps}  {note}", soft_wrap=True)
