"""metrics.jsonl of a run: what was measured, step by step."""

from pathlib import Path

from ossicle.jsonl_log import JsonlLog

MetricsRow = dict[str, int | float]
"""A line: the step, and means over the steps since the line before."""
METRICS = "metrics.jsonl"


class MetricsLog:
    """metrics.jsonl of a run: a line for each logged step, without those that a resumed run takes again.

    Raises:
        CheckpointError: the disk is full or the file cannot be written to
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._log = JsonlLog(folder / METRICS)
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
    for row in JsonlLog(folder / METRICS).read(on_damage="stop"):
        if not isinstance(row, dict) or "step" not in row:
            break
        rows.append(row)
    return rows
