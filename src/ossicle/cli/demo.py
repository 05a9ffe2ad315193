"""ossicle demo."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from tyro.conf import arg

from ossicle.cli.terminal import print_resume_command, program_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from ossicle.demo_task import DemoTask


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Distill an ear on this computer in a few minutes, evaluate it before and after, and ask it a question."""

    minutes: float | None = None
    """Minutes of training: 4, or 20 with --real. Preparation and evaluation come on top."""
    out: Path | None = None
    """Folder of the run: runs/pocket, or runs/real with --real. An unfinished run in it is resumed."""
    real: bool = False
    """Use real models, Whisper tiny.en and SmolLM2-135M-Instruct (downloaded: 0.4 GB), with your recordings."""
    speech: Annotated[str | None, arg(metavar="SOURCE")] = None
    """With --real: recordings with transcripts, as `data.source` takes them, such as mine.jsonl. The last rows (a fifth,
    240 at most) are for the evaluation; put other speakers there."""
    mic: bool = False
    """Ask your own question through the microphone at the end."""

    def run(self, command_line: str) -> int:
        """Runs the demo. If it is stopped, prints how to resume it."""
        from ossicle.demo import run_demo
        from ossicle.training.trainer import StopRequested

        console = Console()
        out = self.out or Path("runs/real" if self.real else "runs/pocket")
        try:
            run_demo(
                self._choose_task(out, console),
                console,
                out=out,
                program=program_name(),
                command=command_line,
                uses_microphone=self.mic,
            )
        except StopRequested as stop:
            return print_resume_command(stop, command_line)
        return 0

    def _choose_task(self, out: Path, console: Console) -> "Callable[[], DemoTask]":
        """Returns the function that builds the task.

        Raises:
            ConfigError: minutes out of range, or speech with the pocket models, or real models without any
        """
        from ossicle.console_progress import ConsoleProgress
        from ossicle.demo import check_minutes
        from ossicle.demo_task import build_pocket_task, build_real_task
        from ossicle.errors import ConfigError

        minutes = check_minutes((20.0 if self.real else 4.0) if self.minutes is None else self.minutes)
        if not self.real:
            if self.speech is not None:
                raise ConfigError(
                    f"--speech {self.speech} is for --real; the pocket models have their own speech"
                )
            return partial(build_pocket_task, out, minutes)
        if self.speech is None:
            raise ConfigError(
                "--real needs --speech: your recordings with their transcripts, such as a JSONL file with lines"
                ' {"audio": "a.wav", "text": "what is said"}'
            )
        return partial(build_real_task, out, minutes, self.speech, ConsoleProgress(console))
