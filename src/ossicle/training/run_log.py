"""metrics.jsonl of a run: what was measured, step by step."""

import json
from pathlib import Path

from ossicle.atomic_io import write_text
from ossicle.errors import CheckpointError

Row = dict[str, int | float]
"""A line: the step, and means over the steps since the line before."""
METRICS = "metrics.jsonl"


class MetricsLog:
    """metrics.jsonl of a run: a line for each logged step, without those that a resumed run takes again.

    Raises:
        CheckpointError: the disk is full or the place cannot be written to
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / METRICS
        kept = [row for row in read_metrics(folder) if row["step"] <= step]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))

    def write(self, row: Row) -> None:
        """Appends one line."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be written: {error.strerror}") from error


def read_metrics(folder: Path) -> list[Row]:
    """The logged steps of a run, up to the first line that was cut off, if one was.

    Raises:
        CheckpointError: metrics that cannot be read
    """
    path = folder / METRICS
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    rows: list[Row] = []
    for line in lines:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        if not isinstance(row, dict) or "step" not in row:
            break
        rows.append(row)
    return rows
