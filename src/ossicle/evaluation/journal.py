"""The answers of an evaluation on disk, so that the same command resumes where it was stopped."""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ossicle.errors import CheckpointError
from ossicle.jsonl_log import JsonlLog

_FORMAT = 3
"""The format of the file. Format 1 had no number, 2 no evaluation in each record."""


class Journal:
    """Results by stage and item, appended to a file as they come.

    Results of another evaluation, which has another fingerprint, are discarded.

    Args:
        path: the file; without one nothing is kept
        fingerprint: identifies all that the results depend on

    Raises:
        CheckpointError: the file cannot be read or written
    """

    def __init__(self, path: Path | None, fingerprint: str) -> None:
        self._log = None if path is None else JsonlLog(path)
        self._results = dict[tuple[str, str], Any]()
        self._id = blake2b(fingerprint.encode(), digest_size=6).hexdigest()
        if self._log is None:
            return
        header = {"format": _FORMAT, "fingerprint": fingerprint}
        try:
            records = self._log.read(on_damage="raise")
            if records[:1] != [header]:
                records = [header]
            self._results = {
                (record["stage"], record["item"]): record["result"]
                for record in records[1:]
                if record["of"] == self._id  # another process may have written, too
            }
        except (CheckpointError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path}, which keeps the answers until the report is written, cannot be used ({error}); remove it,"
                " or write the report to another path"
            ) from error
        self._log.rewrite(records)

    def get_results(self, stage: str, items: Sequence[str]) -> Mapping[str, Any]:
        """Returns the results that are already known, by the items' ids."""
        return {item: self._results[stage, item] for item in items if (stage, item) in self._results}

    def add(self, stage: str, results: Mapping[str, Any]) -> None:
        """Appends new results.

        Raises:
            CheckpointError: the disk is full
        """
        if self._log is not None:
            self._log.append(
                {"of": self._id, "stage": stage, "item": item, "result": result}
                for item, result in results.items()
            )
