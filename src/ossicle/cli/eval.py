"""ossicle eval."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from tyro.conf import Positional, arg

from ossicle.cli.terminal import (
    EXIT_INTERRUPTED,
    BaseName,
    BitCount,
    DeviceName,
    DtypeName,
    EarName,
    print_message,
    program_name,
)

if TYPE_CHECKING:
    from ossicle.ear import Ear
    from ossicle.evaluation import EvaluationSettings, Suite

_DataSource = Annotated[str | None, arg(metavar="FOLDER|ID")]
_ModelName = Annotated[str | None, arg(metavar="NAME")]


@dataclass(frozen=True, kw_only=True)
class Eval:
    """Evaluate an ear next to its text ceiling and the cascade, and write a report with audio to play."""

    ear: Positional[EarName]
    """Folder of an ear or of a run, hub id of an ear, or pocket/ear for the embedded one."""
    encoder: BaseName = None
    """Where the ear's encoder lies, if the ear was moved or given away without it: a local folder or a hub id."""
    llm: BaseName = None
    """Where the ear's LLM lies: a local folder, a GGUF file or a hub id."""
    device: DeviceName = None
    """Where to compute: cpu or cuda. Without it, the first GPU if there is one."""
    dtype: DtypeName = None
    """Precision to compute in: float32, bfloat16 or float16. Without it, bfloat16 on a GPU and float32 on a CPU."""
    llm_bits: BitCount = 16
    """Bits of the weights of the LLM's layers. 8 and 4 take less memory; they need ossicle[quant]."""
    suite: Annotated[str, arg(metavar="NAME|FILE")]
    """Suite to evaluate on: "pocket", "pocket-manner", a public benchmark such as "voicebench" or "covost2/en_de"
    (docs/how-to/evaluation.md), a JSONL or parquet file with audio, text and, optionally, instruction, answer, group
    and id, or a local source of transcribed speech as data.source has it, whose transcripts the LLM answers."""
    data: _DataSource = None
    """Data of a public benchmark: a local folder as published, or another hub id. Without it, the benchmark's own hub
    id."""
    out: Annotated[Path, arg(metavar="REPORT.json")] = Path("report.json")
    """JSON report to write. An HTML page of the same name is written next to it."""
    robustness: bool = False
    """Evaluate cascade and ear under corruptions too: babble, white noise, other speeds, telephone, added silence."""
    asr: _ModelName = None
    """Another ASR model for the cascade: a Whisper by hub id or local folder, or an ear, which transcribes its own
    audio tokens. Without it, the ear's own Whisper."""
    judge: _ModelName = None
    """Judge for suites that need one: "offline", an LLM by hub id or folder, or an OpenAI-compatible URL with a model,
    such as https://host/v1#model."""
    batch_size: int = 16
    """Items that are answered in one batch."""

    def run(self, command_line: str) -> int:
        """Prints the table and writes the report. If it was stopped, the same command resumes it."""
        from ossicle import checkpoint
        from ossicle.evaluation import CORRUPTIONS, EvaluationSettings, open_suite
        from ossicle.evaluation.asr import AsrModel
        from ossicle.evaluation.evaluate import check_judge
        from ossicle.evaluation.report.write import find_json_path
        from ossicle.evaluation.scoring.judges import open_judge

        suite = open_suite(self.suite, self.data)
        judge = None if self.judge is None else open_judge(self.judge, device=self.device)
        report = find_json_path(self.out)
        check_judge(suite, judge)
        ear = checkpoint.load(
            self.ear,
            encoder=self.encoder,
            llm=self.llm,
            device=self.device,
            dtype=self.dtype,
            llm_bits=self.llm_bits,
            notify=print_message,
        )
        options = EvaluationSettings(
            batch_size=self.batch_size,
            corruptions=tuple(c for c in CORRUPTIONS if c.kind != "clean") if self.robustness else (),
            transcribe=None
            if self.asr is None
            else AsrModel(self.asr, ear, is_own=self.asr == self.ear, llm_bits=self.llm_bits),
            judge=judge,
            journal=report.with_name(f".{report.name}.answers"),
        )
        try:
            return self._evaluate(ear, suite, options, command_line)
        except KeyboardInterrupt:
            resume_command = command_line.replace("ossicle", program_name(), 1)
            print_message(f"stopped; all answers so far are kept; resume with: {resume_command}")
            return EXIT_INTERRUPTED

    def _evaluate(self, ear: "Ear", suite: "Suite", options: "EvaluationSettings", command_line: str) -> int:
        from ossicle.backbones.fingerprints import fingerprint_backbones, fingerprint_model
        from ossicle.console_progress import ConsoleProgress
        from ossicle.evaluation import evaluate, print_table, write_report
        from ossicle.evaluation.report_data import EAR, SUITE_DATA

        base, fingerprints = ear.settings.base, ear.fingerprints
        assert fingerprints is not None, "it was loaded"
        dtype, llm = str(ear.whisper.model.dtype), f"in {self.llm_bits} bits, not compared"
        if self.llm_bits == 16:  # of what was loaded: in float16 it was not compared
            fingerprints = fingerprint_backbones(ear.whisper, ear.llm, ear.tokenizer)
            llm = fingerprints["llm"]
        connector_fingerprint = fingerprint_model(ear.connector)
        about = {
            EAR: f"{self.ear} ({connector_fingerprint})",
            "LLM": f"{base.llm} ({llm})",
            "encoder": f"{base.encoder} ({fingerprints['encoder']})",
            **({} if self.data is None else {SUITE_DATA: self.data}),
        }
        with ConsoleProgress(Console(stderr=True)) as progress:
            report = evaluate(
                ear,
                suite,
                options,
                identity=f"{connector_fingerprint} {fingerprints} {ear.settings} {dtype} {self.llm_bits}",
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
