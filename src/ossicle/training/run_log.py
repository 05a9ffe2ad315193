"""What is recorded and shown of a run: metrics.jsonl, skipped.jsonl, and the progress on a console."""

import contextlib
from collections.abc import Generator, Mapping
from pathlib import Path

from rich.console import Console

from ossicle.console_progress import ConsoleProgress
from ossicle.errors import DataError
from ossicle.jsonl_log import JsonlLog
from ossicle.training.distillation import TERMS

MetricsRow = dict[str, int | float]
"""The step, and means over the steps since the line before."""
METRICS_FILE = "metrics.jsonl"
SKIPPED_FILE = "skipped.jsonl"
_MIN_JUDGED_ROWS = 1_000
"""Rows over which the ratio of skipped ones is judged at least: one bad row among the first ten is no tenth."""
_N_REASONS_SHOWN = 3
_N_PRINTED_LINES = 20
"""Lines that a run prints in all where there is no terminal."""


class MetricsLog:
    """metrics.jsonl of a run: a line for each logged step, without those that a resumed run takes again.

    Raises:
        CheckpointError: the disk is full or the file cannot be written to
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._log = JsonlLog(folder / METRICS_FILE)
        self._log.rewrite(row for row in read_metrics(folder) if row["step"] <= step)

    def append(self, row: MetricsRow) -> None:
        """Appends one line."""
        self._log.append([row])


def read_metrics(folder: Path) -> list[MetricsRow]:
    """Returns the logged steps of a run, up to the first line that was cut off, if one was.

    Raises:
        CheckpointError: metrics that cannot be read
    """
    rows: list[MetricsRow] = []
    for row in JsonlLog(folder / METRICS_FILE).read(on_damage="stop"):
        if not isinstance(row, dict) or "step" not in row:
            break
        rows.append(row)
    return rows


class SkippedRows:
    """skipped.jsonl of a run: the rows that could not be used, each listed once with the reason.

    Args:
        n_rows: rows of all sources
        max_ratio: of the rows, that may be skipped
        step: at which the run resumes; rows that later steps skipped are removed, and counted when they are met again
    """

    def __init__(self, folder: Path, n_rows: int, max_ratio: float, step: int) -> None:
        self.path, self.n_rows, self.max_ratio = folder / SKIPPED_FILE, n_rows, max_ratio
        self._log = JsonlLog(self.path, ensure_ascii=False)
        self.reasons = _read_skipped(self._log, step)

    def __len__(self) -> int:
        return len(self.reasons)

    def add(self, rows: Mapping[str, str], step: int, *, writes: bool = True) -> None:
        """Lists rows, by name and reason, that are not listed yet.

        Args:
            step: that skipped them
            writes: whether this process writes the file

        Raises:
            CheckpointError: the disk is full or the file cannot be written to
        """
        new = {name: reason for name, reason in rows.items() if name not in self.reasons}
        self.reasons.update(new)
        if new and writes:
            self._log.append({"row": name, "reason": reason, "step": step} for name, reason in new.items())

    def check(self, n_read: int) -> None:
        """Checks that not too many of the rows read so far were skipped.

        Raises:
            DataError: more than the ratio that is allowed
        """
        n_judged = max(min(n_read, self.n_rows), min(self.n_rows, _MIN_JUDGED_ROWS))
        if len(self) > self.max_ratio * n_judged:
            reasons = "; ".join(list(self.reasons.values())[:_N_REASONS_SHOWN])
            raise DataError(
                f"{len(self)} of {n_judged} rows cannot be used, more than data.max_invalid_ratio ="
                f" {self.max_ratio:g} allows: {reasons}{'; ...' if len(self) > _N_REASONS_SHOWN else ''} (all of them"
                f" are in {self.path}); fix the rows and begin the run again, or allow a larger ratio"
            )


def _read_skipped(log: JsonlLog, step: int) -> dict[str, str]:
    """Returns the reasons listed up to a step, and removes all other lines from the file."""
    if not log.path.exists():
        return {}
    reasons: dict[str, str] = {}
    kept = []
    for row in log.read(on_damage="skip"):
        try:
            name, reason, row_step = str(row["row"]), str(row["reason"]), int(row["step"])
        except (ValueError, TypeError, KeyError):
            continue
        if row_step <= step:
            reasons[name] = reason
            kept.append({"row": name, "reason": reason, "step": row_step})
    log.rewrite(kept)
    return reasons


class TrainingProgress(ConsoleProgress):
    """The progress of a training run: one line that is updated on a terminal; a line now and then elsewhere.

    Subclass it to receive every step and every line of metrics of a run.
    """

    def __init__(self, console: Console | None = None) -> None:
        super().__init__(console)
        self._step = self._n_steps = self._last_printed = 0

    def update_encoding(self, n_done: int, n: int) -> None:
        """Shows how many of n clips are encoded."""
        self("encoding speech", n_done, n, unit="clips")
        if n_done == n:
            self.close()

    @contextlib.contextmanager
    def show_steps(self, step: int, n_steps: int) -> Generator[None]:
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
        """Shows a line of metrics.jsonl."""
        names = [name for name in TERMS if name in row]
        digits, gap = (3, "  ") if len(names) < len(TERMS) else (2, " ")  # all terms fit 80 columns
        terms = [f"{name} {row[name]:.{digits}f}" for name in names]
        speed = [f"{row['clips_per_s']:.0f} clips/s"]
        if "mfu" in row:
            speed.append(f"{row['mfu']:.0%} of peak")
        note = gap.join([*terms, *speed])
        self.update_bar("", self._step, self._n_steps, note=note)
        step = int(row["step"])
        is_due = step - self._last_printed >= self._n_steps / _N_PRINTED_LINES or step == self._n_steps
        if not self.console.is_terminal and is_due:
            self._last_printed = step
            loss = f"loss {row['loss']:.3f}" if "loss" in row else "no clip could be used"
            self.console.print(f"step {step}/{self._n_steps}  {loss}  {note}", soft_wrap=True)
