"""What an evaluation has found so far, on disk: the same command goes on where it was stopped."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ossicle.errors import CheckpointError


class Journal:
    """Findings by stage and item, a line each, appended as they come.

    A line that was cut short is as if it had never been written. Findings of another evaluation, which another
    fingerprint tells, are not taken for this one's: the file begins anew.

    Args:
        path: the file; without one nothing is kept
        fingerprint: all that the findings depend on

    Raises:
        CheckpointError: the file cannot be read or written
    """

    def __init__(self, path: Path | None, fingerprint: str) -> None:
        self.path, self._found = path, dict[tuple[str, str], Any]()
        if path is None:
            return
        try:
            lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
            whole = [json.loads(line) for line in lines[:-1]]  # the last one has no end yet
            if whole and whole[0] == {"fingerprint": fingerprint}:
                self._found = {(line["stage"], line["item"]): line["found"] for line in whole[1:]}
                path.write_text("".join(line + "\n" for line in lines[:-1]), encoding="utf-8")
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps({"fingerprint": fingerprint}) + "\n", encoding="utf-8")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path}, where answers are kept until the report is written, cannot be used ({error}); remove"
                " it, or give the report another place"
            ) from error

    def found(self, stage: str, items: Sequence[str]) -> Mapping[str, Any]:
        """What is known already, by the items' ids."""
        return {item: self._found[stage, item] for item in items if (stage, item) in self._found}

    def add(self, stage: str, found: Mapping[str, Any]) -> None:
        """Keeps what was just found.

        Raises:
            CheckpointError: the disk is full
        """
        if self.path is None:
            return
        lines = (
            json.dumps({"stage": stage, "item": item, "found": value}) + "\n" for item, value in found.items()
        )
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(lines))
        except OSError as error:
            raise CheckpointError(
                f"{self.path} cannot be written ({error.strerror}); make room, the same command goes on"
            ) from error
