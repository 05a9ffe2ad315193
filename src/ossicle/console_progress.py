"""Progress of a long command on a console: bars on a terminal, plain lines elsewhere."""

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

ProgressCallback = Callable[[str, int, int], None]
"""Receives the name of a stage, the number of its items that are done, and their total number."""
_STAGE_WIDTH = 20
"""Characters to which the names of stages are padded, so that their bars are aligned."""


class ConsoleProgress:
    """A `ProgressCallback` that shows each stage: a bar on a terminal, elsewhere one line when the stage is done.

    Without a console it shows nothing. Use it as a context manager, or call `close`: a terminal with bars on it has to
    be restored, also after an error.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(quiet=True)
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "ConsoleProgress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, stage: str, n_done: int, n: int, *, unit: str = "items") -> None:
        """Shows how much of a stage is done.

        The bar of a sub-stage, whose name has a colon in it, is removed when it is done: there may be dozens.
        """
        self.update_bar(stage, n_done, n)
        if n_done == n:
            if self.console.is_terminal and ": " in stage:
                self._hide_bar(stage)
            elif not self.console.is_terminal:
                self.console.print(f"{stage}: {n} {unit}", highlight=False)

    def update_bar(self, stage: str, n_done: int, n: int, *, note: str | None = None) -> None:
        """Draws the bar of a stage on a terminal; elsewhere it does nothing.

        Args:
            stage: empty for a bar without a name
            note: text between bar and time; None keeps the text that is there
        """
        if not self.console.is_terminal or self.console.quiet:
            return
        if self._bars is None:
            self._bars = self._new_bars()
            self._bars.start()
        if stage not in self._tasks:
            name = f"{stage:<{_STAGE_WIDTH}} " if stage else ""
            self._tasks[stage] = self._bars.add_task(name, total=n, completed=n_done, note="")
        fields: dict[str, Any] = {} if note is None else {"note": note}
        self._bars.update(self._tasks[stage], completed=n_done, total=n, **fields)

    def print_message(self, text: str) -> None:
        """Prints a line above the bars."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Stops drawing and restores the terminal; the next stage starts new bars."""
        if self._bars is not None:
            self._bars.stop()
        self._bars, self._tasks = None, {}

    def _hide_bar(self, stage: str) -> None:
        if self._bars is not None:
            self._bars.update(self._tasks[stage], visible=False)

    def _new_bars(self) -> Progress:
        return Progress(
            TextColumn("{task.description}{task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),  # takes the rest of the line
            TextColumn("{task.fields[note]}"),
            _TimeColumn(compact=True, elapsed_when_finished=True),
            console=self.console,
            expand=True,
        )


class _TimeColumn(TimeRemainingColumn):
    """The time that is left of a stage, such as "02:13 left"; the time it took when it is done."""

    def render(self, task: Task) -> Text:
        time = super().render(task)
        return time if task.finished else Text.assemble(time, " left")
