"""ossicle eval."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from tyro.conf import Positional, arg

from ossicle.cli.terminal import EXIT_INTERRUPTED, EarName, print_message, program_name

if TYPE_CHECKING:
    from ossicle.ear import Ear
    from ossicle.evaluation import EvaluationSettings, Suite

_DataSource = Annotated[str | None, arg(metavar="FOLDER|ID")]
_ModelName = Annotated[str | None, arg(metavar="NAME")]


@dataclass(frozen=True, kw_only=True)
class Eval:
    """Measure an ear beside its text ceiling and the cascade; write a report with sound you can play."""

    ear: Positional[EarName]
    """An ear's folder or a run's, or pocket/ear for the embedded one."""
    suite: Annotated[str, arg(metavar="NAME|FILE")]
    """"pocket", "pocket-manner", a public benchmark such as "voicebench" or "covost2/en_de" (docs/evaluation.md), or a
    JSONL or parquet file of audio, text and, optionally, instruction, answer, group, id."""
    data: _DataSource = None
    """Where a public benchmark's data lies: a local folder as published, or another hub id."""
    out: Annotated[Path, arg(metavar="REPORT.json")] = Path("report.json")
    """Where the report goes; the page to look at goes beside it, as .html."""
    robustness: bool = False
    """Cascade and ear once more in babble, in white noise, faster and slower, by telephone, with silence around."""
    asr: _ModelName = None
    """Another speech recogniser for the cascade: a Whisper by hub id or local folder, or an ear, which writes down
    what it hears."""
    judge: _ModelName = None
    """For answers that have to be judged: "offline", an LLM by hub id or folder, or an OpenAI-compatible address with
    its model, https://host/v1#model."""
    batch_size: int = 16
    """Items at a time."""

    def run(self, command_line: str) -> int:
        """Prints the table and writes the report; the same command goes on where it was stopped."""
        from ossicle import checkpoint
        from ossicle.evaluation import CORRUPTIONS, EvaluationSettings, open_suite
        from ossicle.evaluation.asr import AsrModel
        from ossicle.evaluation.evaluate import check_judge
        from ossicle.evaluation.scoring.judges import open_judge

        suite = open_suite(self.suite, self.data)
        judge = None if self.judge is None else open_judge(self.judge)
        check_judge(suite, judge)
        ear = checkpoint.load(self.ear)
        options = EvaluationSettings(
            batch_size=self.batch_size,
            corruptions=tuple(c for c in CORRUPTIONS if c.kind != "clean") if self.robustness else (),
            transcribe=None if self.asr is None else AsrModel(self.asr, ear),
            judge=judge,
            journal=self.out.with_name(f".{self.out.name}.answers"),
        )
        try:
            return self._evaluate(ear, suite, options, command_line)
        except KeyboardInterrupt:
            resume_command = command_line.replace("ossicle", program_name(), 1)
            print_message(f"stopped; all answers so far are kept, resume with: {resume_command}")
            return EXIT_INTERRUPTED

    def _evaluate(self, ear: "Ear", suite: "Suite", options: "EvaluationSettings", command_line: str) -> int:
        from ossicle import checkpoint
        from ossicle.console_progress import ConsoleProgress
        from ossicle.evaluation import evaluate, print_table, write_report

        base = ear.settings.base
        fingerprints = checkpoint.fingerprint_backbones(ear.whisper, ear.llm, ear.tokenizer)
        connector_fingerprint = checkpoint.fingerprint_model(ear.connector)
        about = {
            "ear": f"{self.ear} ({connector_fingerprint})",
            "LLM": f"{base.llm} ({fingerprints['llm']})",
            "encoder": f"{base.encoder} ({fingerprints['encoder']})",
        }
        with ConsoleProgress(Console(stderr=True)) as progress:
            report = evaluate(
                ear,
                suite,
                options,
                identity=f"{connector_fingerprint} {fingerprints}",
                progress=progress,
                about=about,
                command=command_line,
            )
        console = Console()
        written = write_report(report, self.out)
        if options.journal is not None:
            options.journal.unlink(missing_ok=True)
        print_table(report, console)
        console.out(f"{written.json}\n{written.html}", highlight=False)
        return 0
