"""An append-only log of JSON lines that survives a torn last line; it knows nothing of what the records mean."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from ossicle.atomic_io import write_text
from ossicle.errors import CheckpointError

OnDamage = Literal["raise", "skip", "stop"]
"""How a line that is not JSON is treated: as an error, by leaving it out, or as the end of the log."""


class JsonlLog:
    """A file with one JSON record a line, to which records are appended as they come.

    A process that is killed while it writes leaves a last line without its end. Reading leaves that line out; `rewrite`
    removes it, and has to be called before the first `append` to a file that may have one.

    Args:
        path: the file, which need not exist
        ensure_ascii: escape every character that is not ASCII
    """

    def __init__(self, path: Path, *, ensure_ascii: bool = True) -> None:
        self.path, self.ensure_ascii = path, ensure_ascii

    def read(self, *, on_damage: OnDamage = "stop") -> list[Any]:
        """Returns the records in their order; none if there is no file. A torn last line is never an error.

        Args:
            on_damage: what to do with any other line that is not JSON

        Raises:
            CheckpointError: the file cannot be read, or is damaged and `on_damage` is "raise"
        """
        try:
            content = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error.strerror}") from error
        *lines, last = content.split(b"\n")
        records = []
        for number, line in enumerate(lines, start=1):
            try:
                records.append(json.loads(line.decode()))
            except ValueError as error:
                if on_damage == "raise":
                    raise CheckpointError(f"{self.path} is damaged at line {number} ({error})") from error
                if on_damage == "stop":
                    return records
        return records + _parse_torn(last)

    def append(self, records: Iterable[Any]) -> None:
        """Adds records at the end.

        Raises:
            CheckpointError: the disk is full, or the file cannot be written to
        """
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(self._to_text(records))
        except OSError as error:
            raise CheckpointError(
                f"{self.path} cannot be written: {error.strerror}; free some disk space and run the same command again"
            ) from error

    def rewrite(self, records: Iterable[Any]) -> None:
        """Replaces the whole content, unless the file already holds exactly that; it is written whole or not at all.

        Raises:
            CheckpointError: the disk is full, or the file cannot be written to
        """
        content = self._to_text(records).encode()
        try:
            is_current = self.path.is_file() and self.path.read_bytes() == content
        except OSError:
            is_current = False
        if not is_current:
            write_text(self.path, content.decode())

    def _to_text(self, records: Iterable[Any]) -> str:
        return "".join(json.dumps(record, ensure_ascii=self.ensure_ascii) + "\n" for record in records)


def _parse_torn(line: bytes) -> list[Any]:
    """Returns the record of a line without its end, if nothing but the end is missing."""
    try:
        return [json.loads(line.decode())]
    except ValueError:
        return []
