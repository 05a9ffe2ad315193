"""earshot eval."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.console import Console
from tyro.conf import Positional, arg

from earshot.cli.terminal import EarName


@dataclass(frozen=True, kw_only=True)
class Eval:
    """Measure an ear beside its text ceiling and the cascade; write a report with sound you can play."""

    ear: Positional[EarName]
    """An ear's folder or a run's, or pocket/ear for the embedded one."""
    suite: Annotated[str, arg(metavar="NAME|FILE")]
    """"pocket", or a JSONL or parquet file of audio, text and, optionally, instruction, answer, group, id."""
    out: Annotated[Path, arg(metavar="REPORT.json")] = Path("report.json")
    """Where the report goes; the page to look at goes beside it, as .html."""
    batch_size: int = 16
    """Items at a time."""

    def run(self, typed: str) -> int:
        """Prints the table and writes the report."""
        from earshot import checkpoint
        from earshot.evaluation import evaluate, load_suite, print_table, shown, write_report

        items = load_suite(self.suite)
        ear = checkpoint.load(self.ear)
        base = ear.settings.base
        about = {"ear": self.ear, "LLM": base.llm, "encoder": base.encoder}
        with shown(Console(stderr=True)) as progress:
            report = evaluate(
                ear,
                items,
                name=self.suite,
                batch_size=self.batch_size,
                progress=progress,
                about=about,
                command=typed,
            )
        console = Console()
        written = write_report(report, self.out)
        print_table(report, console)
        console.out(f"{written.json}\n{written.html}", highlight=False)
        return 0
