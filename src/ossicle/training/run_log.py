"""What is recorded and shown of a run: metrics.jsonl, skipped.jsonl, and the progress on a console."""

import contextlib
from collections.abc import Generator, Mapping
from pathlib import Path

from rich.console import Console

from ossicle.config import TrainSettings
from ossicle.console_progress import ConsoleProgress
from ossicle.errors import DataError
from ossicle.jsonl_log import JsonlLog
from ossicle.training.distillation import TERMS
from ossicle.training.schedule import compute_scheduled_step, format_progress

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
        self._settings = TrainSettings()
        self._step, self._elapsed_s, self._last_printed = 0, 0.0, 0.0

    def update_encoding(self, n_done: int, n: int) -> None:
        """Shows how many of n clips are encoded."""
        self("encoding speech", n_done, n, unit="clips")
        if n_done == n:
            self.close()

    @contextlib.contextmanager
    def show_steps(self, step: int, elapsed_s: float, settings: TrainSettings) -> Generator[None]:
        """Shows the steps that are left, or in a run of so many minutes the time, while the block runs."""
        self._settings, self._step, self._elapsed_s = settings, step, elapsed_s
        self._last_printed = self._scheduled_step
        if step > 0 and not self._is_done:
            self.console.print(f"resuming at {format_progress(step, elapsed_s, settings)}")
        with self:
            self._update_steps()
            yield

    def advance(self, step: int, elapsed_s: float) -> None:
        """Shows that the steps up to `step` are done, after so many seconds of training."""
        self._step, self._elapsed_s = step, elapsed_s
        self._update_steps()

    def log(self, row: MetricsRow) -> None:
        """Shows a line of metrics.jsonl."""
        names = [name for name in TERMS if name in row]
        digits, gap = (3, "  ") if len(names) < len(TERMS) else (2, " ")  # all terms fit 80 columns
        terms = [f"{name} {row[name]:.{digits}f}" for name in names]
        speed = [f"{row['clips_per_s']:.0f} clips/s"]
        if "mfu" in row:
            speed.append(f"{row['mfu']:.0%} of peak")
        note = gap.join([*terms, *speed])
        self._update_steps(note)
        settings, scheduled_step = self._settings, self._scheduled_step
        is_due = scheduled_step - self._last_printed >= settings.n_steps / _N_PRINTED_LINES or self._is_done
        if not self.console.is_terminal and is_due:
            self._last_printed = scheduled_step
            loss = f"loss {row['loss']:.3f}" if "loss" in row else "no clip could be used"
            step = format_progress(self._step, self._elapsed_s, settings).replace(" of ", "/")
            self.console.print(f"{step}  {loss}  {note}", soft_wrap=True)

    @property
    def _scheduled_step(self) -> float:
        return compute_scheduled_step(self._step, self._elapsed_s, self._settings)

    @property
    def _is_done(self) -> bool:
        return self._scheduled_step >= self._settings.n_steps

    def _update_steps(self, note: str | None = None) -> None:
        """Draws the bar of the steps, or of the seconds."""
        if self._settings.minutes is None:
            self.update_bar("", self._step, self._settings.n_steps, note=note)
        else:
            self.update_bar("seconds", round(self._elapsed_s), round(60 * self._settings.minutes), note=note)
