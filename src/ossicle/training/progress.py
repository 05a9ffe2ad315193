"""What a person sees of a run while it goes on."""

import contextlib
from collections.abc import Generator

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Column

from ossicle.training.run_log import Row

_TERMS = ("align", "token_ce", "end", "asr", "hidden", "kl")
_N_PRINTED = 20
"""Lines that a run prints in all where there is no terminal."""


class Progress:
    """One line that stays, on a terminal; a line now and then elsewhere; nothing without a console.

    Subclass it to be told of a run: every step, and every line of metrics.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(quiet=True)
        self._bar: Bar | None = None
        self._task = TaskID(0)
        self._n_steps = self._last_printed = 0

    def say(self, text: str) -> None:
        """Something that a person should know before it happens."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def preparing(self, n_done: int, n: int) -> None:
        """So many of n clips are encoded."""
        if self._bar is None:
            self._bar = self._new_bar("encoding speech ", 0, n)
            self._bar.start()
        self._bar.update(self._task, completed=n_done)
        if n_done == n:
            self.close()
            if not self.console.is_terminal:
                self.console.print(f"{n} clips encoded")

    def close(self) -> None:
        """Gives the terminal back, also when what was shown has not come to its end."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    @contextlib.contextmanager
    def training(self, step: int, n_steps: int) -> Generator[None]:
        """Shows the steps from `step` to `n_steps` while the block runs."""
        if 0 < step < n_steps:
            self.console.print(f"going on from step {step} of {n_steps}")
        self._n_steps, self._last_printed = n_steps, step
        with self._new_bar("", step, n_steps) as self._bar:
            yield
        self._bar = None

    def advance(self, step: int) -> None:
        """So many steps are done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def log(self, row: Row) -> None:
        """The metrics of the last steps, as metrics.jsonl holds them."""
        names = [name for name in _TERMS if name in row]
        digits, gap = (3, "  ") if len(names) < len(_TERMS) else (2, " ")  # all of them fit 80 columns
        terms = [f"{name} {row[name]:.{digits}f}" for name in names]
        speed = [f"{row['clips_per_s']:.0f} clips/s"]
        if "mfu" in row:
            speed.append(f"{row['mfu']:.0%} of peak")
        note = gap.join([*terms, *speed])
        if self._bar is not None:
            self._bar.update(self._task, note=note)
        step = int(row["step"])
        is_due = step - self._last_printed >= self._n_steps / _N_PRINTED or step == self._n_steps
        if not self.console.is_terminal and is_due:
            self._last_printed = step
            loss = f"loss {row['loss']:.3f}" if "loss" in row else "no clip could be used"
            self.console.print(f"step {step}/{self._n_steps}  {loss}  {note}", soft_wrap=True)

    def _new_bar(self, what: str, done: int, n: int) -> Bar:
        bar = Bar(
            TextColumn("{task.description}{task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),  # what the rest leaves of the line
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("left"),
            console=self.console,
            disable=not self.console.is_terminal,
            expand=True,
        )
        self._task = bar.add_task(what, total=n, completed=done, note="")
        return bar
