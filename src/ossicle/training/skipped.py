"""Rows that could not be learned from: listed once each, counted, and too many of them refused."""

from collections.abc import Mapping
from pathlib import Path

from ossicle.errors import DataError
from ossicle.jsonl_log import JsonlLog

SKIPPED = "skipped.jsonl"
_FIRST_ROWS = 1_000
"""Rows over which a share is judged before so many were read: one bad row among the first ten is no tenth."""
_N_SHOWN = 3


class SkippedRows:
    """The rows that a run left out, in skipped.jsonl beside it.

    Args:
        n_rows: of the whole source
        max_share: of the rows, that may be left out
        step: where the run stands; rows of later steps are met again, and counted then
    """

    def __init__(self, folder: Path, n_rows: int, max_share: float, step: int) -> None:
        self.path, self.n_rows, self.max_share = folder / SKIPPED, n_rows, max_share
        self._log = JsonlLog(self.path, ensure_ascii=False)
        self.reasons = _read(self._log, step)

    def __len__(self) -> int:
        return len(self.reasons)

    def add(self, rows: Mapping[str, str], step: int, *, writes: bool = True) -> None:
        """Lists rows, by name and reason, that are not listed yet.

        Args:
            step: that left them out
            writes: whether this process is the one that does

        Raises:
            CheckpointError: the disk is full or the place cannot be written to
        """
        new = {name: reason for name, reason in rows.items() if name not in self.reasons}
        self.reasons.update(new)
        if new and writes:
            self._log.append({"row": name, "reason": reason, "step": step} for name, reason in new.items())

    def check(self, n_read: int) -> None:
        """Refuses to go on when too many of the rows read so far were left out.

        Raises:
            DataError: more than the share that is allowed
        """
        n_judged = max(min(n_read, self.n_rows), min(self.n_rows, _FIRST_ROWS))
        if len(self) > self.max_share * n_judged:
            shown = "; ".join(list(self.reasons.values())[:_N_SHOWN])
            raise DataError(
                f"{len(self)} of {n_judged} rows cannot be used, more than data.max_invalid_ratio ="
                f" {self.max_share:g} allows: {shown}{'; ...' if len(self) > _N_SHOWN else ''} (all of them are"
                f" in {self.path}); mend them and begin anew, or allow a larger share"
            )


def _read(log: JsonlLog, step: int) -> dict[str, str]:
    """The rows listed up to a step; others, and a last line that was cut off, are taken away."""
    if not log.path.exists():
        return {}
    reasons: dict[str, str] = {}
    kept = []
    for row in log.read(on_damage="skip"):
        try:
            name, reason, found = str(row["row"]), str(row["reason"]), int(row["step"])
        except (ValueError, TypeError, KeyError):
            continue
        if found <= step:
            reasons[name] = reason
            kept.append({"row": name, "reason": reason, "step": found})
    log.rewrite(kept)
    return reasons
