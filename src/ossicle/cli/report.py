"""ossicle report."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.console import Console
from tyro.conf import Positional, arg


@dataclass(frozen=True, kw_only=True)
class Report:
    """Draw the training curves of one or several runs side by side, also of a run that is not finished."""

    runs: Positional[Annotated[tuple[Path, ...], arg(metavar="RUN")]]
    """Folders of runs."""
    out: Annotated[Path, arg(metavar="PAGE.html")] = Path("curves.html")
    """HTML page to write."""

    def run(self, command_line: str) -> int:
        """Writes the page and prints where it is."""
        from ossicle.atomic_io import write_text
        from ossicle.errors import ConfigError
        from ossicle.evaluation.report.curves_page import render_curves
        from ossicle.training.run_log import METRICS_FILE, read_metrics

        if not self.runs:
            raise ConfigError("no run is named: ossicle report RUN [RUN ...]")
        if self.out.is_dir():
            raise ConfigError(f"--out is {self.out}, which is a folder; expected the path of a page to write")
        metrics = [read_metrics(folder) for folder in self.runs]
        for folder, rows in zip(self.runs, metrics, strict=True):
            if not folder.exists():
                raise ConfigError(f"No such folder: {folder}; expected that of a run of ossicle train")
            if not rows:
                raise ConfigError(
                    f"{folder} has no {METRICS_FILE} with a logged step; expected the folder of a run of ossicle train"
                )
        write_text(self.out, render_curves([str(folder) for folder in self.runs], metrics))
        Console().out(str(self.out), highlight=False)
        return 0
