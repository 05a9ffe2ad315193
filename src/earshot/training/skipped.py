"""Rows that could not be learned from: listed once each, counted, and too many of them refused."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from earshot.errors import CheckpointError, DataError
from earshot.storage import write_text

SKIPPED = "skipped.jsonl"
_FIRST_ROWS = 1_000
"""Rows over which a share is judged before so many were read: one bad row among the first ten is no tenth."""
_N_SHOWN = 3


class Skipped:
    """The rows that a run left out, in skipped.jsonl beside it.

    Args:
        n_rows: of the whole source
        max_share: of the rows, that may be left out
    """

    def __init__(self, folder: Path, n_rows: int, max_share: float) -> None:
        self.path, self.n_rows, self.max_share = folder / SKIPPED, n_rows, max_share
        self.reasons = _read(self.path)

    def __len__(self) -> int:
        return len(self.reasons)

    def note(self, rows: Mapping[str, str], *, writes: bool = True) -> None:
        """Lists rows, by name and reason, that are not listed yet.

        Args:
            writes: whether this process is the one that does

        Raises:
            CheckpointError: the disk is full or the place cannot be written to
        """
        new = {name: reason for name, reason in rows.items() if name not in self.reasons}
        self.reasons.update(new)
        if new and writes:
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.writelines(_lines(new.items()))
            except OSError as error:
                raise CheckpointError(f"{self.path} cannot be written: {error.strerror}") from error

    def check(self, n_read: int) -> None:
        """Refuses to go on when too many of the rows read so far were left out.

        Raises:
            DataError: more than the share that is allowed
        """
        n_judged = max(min(n_read, self.n_rows), min(self.n_rows, _FIRST_ROWS))
        if len(self) > self.max_share * n_judged:
            shown = "; ".join(list(self.reasons.values())[:_N_SHOWN])
            raise DataError(
                f"{len(self)} of {n_judged} rows cannot be used, more than data.max_bad_share ="
                f" {self.max_share:g} allows: {shown}{'; ...' if len(self) > _N_SHOWN else ''} (all of them are"
                f" in {self.path}); mend them, or allow a larger share"
            )

    def forget(self) -> None:
        """A new run begins with an empty list."""
        self.reasons = {}
        self.path.unlink(missing_ok=True)


def _lines(rows: Iterable[tuple[str, str]]) -> Iterable[str]:
    return (json.dumps({"row": name, "reason": reason}, ensure_ascii=False) + "\n" for name, reason in rows)


def _read(path: Path) -> dict[str, str]:
    """The rows listed so far; a last line that was cut off is taken away, as its row will be met again."""
    if not path.exists():
        return {}
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    reasons: dict[str, str] = {}
    is_whole = text.endswith("\n") or not text
    for line in text.splitlines():
        try:
            row = json.loads(line)
            reasons[str(row["row"])] = str(row["reason"])
        except (ValueError, TypeError, KeyError):
            is_whole = False
    if not is_whole:
        write_text(path, "".join(_lines(reasons.items())))
    return reasons
