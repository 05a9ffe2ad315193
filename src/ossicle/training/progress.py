"""What a person sees of a run while it goes on."""

import contextlib
from collections.abc import Generator

from rich.console import Console

from ossicle.console_progress import ConsoleProgress
from ossicle.training.distillation import TERMS
from ossicle.training.run_log import MetricsRow

_N_PRINTED = 20
"""Lines that a run prints in all where there is no terminal."""


class Progress(ConsoleProgress):
    """The progress of a training run: one line that stays, on a terminal; a line now and then elsewhere.

    Subclass it to receive every step and every line of metrics of a run.
    """

    def __init__(self, console: Console | None = None) -> None:
        super().__init__(console)
        self._step = self._n_steps = self._last_printed = 0

    def preparing(self, n_done: int, n: int) -> None:
        """Shows how many of n clips are encoded."""
        self("encoding speech", n_done, n, unit="clips")
        if n_done == n:
            self.close()

    @contextlib.contextmanager
    def training(self, step: int, n_steps: int) -> Generator[None]:
        """Shows the steps from `step` to `n_steps` while the block runs."""
        if 0 < step < n_steps:
            self.console.print(f"resuming at step {step} of {n_steps}")
        self._step, self._n_steps, self._last_printed = step, n_steps, step
        with self:
            self.update_bar("", step, n_steps)
            yield

    def advance(self, step: int) -> None:
        """Shows that the steps up to `step` are done."""
        self._step = step
        self.update_bar("", step, self._n_steps)

    def log(self, row: MetricsRow) -> None:
        """The metrics of the last steps, as metrics.jsonl holds them."""
        names = [name for name in TERMS if name in row]
        digits, gap = (3, "  ") if len(names) < len(TERMS) else (2, " ")  # all of them fit 80 columns
        terms = [f"{name} {row[name]:.{digits}f}" for name in names]
        speed = [f"{row['clips_per_s']:.0f} clips/s"]
        if "mfu" in row:
            speed.append(f"{row['mfu']:.0%} of peak")
        note = gap.join([*terms, *speed])
        self.update_bar("", self._step, self._n_steps, note=note)
        step = int(row["step"])
        is_due = step - self._last_printed >= self._n_steps / _N_PRINTED or step == self._n_steps
        if not self.console.is_terminal and is_due:
            self._last_printed = step
            loss = f"loss {row['loss']:.3f}" if "loss" in row else "no clip could be used"
            self.console.print(f"step {step}/{self._n_steps}  {loss}  {note}", soft_wrap=True)
