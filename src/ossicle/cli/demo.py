"""ossicle demo."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from ossicle.cli.terminal import print_resume_command, program_name


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Distil the embedded LLM in a few minutes on this computer, evaluate it, and ask it something aloud."""

    minutes: float = 4.0
    """How long to distil."""
    out: Path = Path("runs/pocket")
    """Folder of the run; an unfinished run in it goes on."""
    mic: bool = False
    """Ask the question at the end through the microphone."""

    def run(self, command_line: str) -> int:
        """Goes through the demo, or says how to go on with it."""
        from ossicle.demo import run_demo
        from ossicle.training.trainer import StopRequested

        console = Console()
        try:
            run_demo(
                self.out,
                self.minutes,
                console,
                program=program_name(),
                command=command_line,
                uses_microphone=self.mic,
            )
        except StopRequested as stop:
            return print_resume_command(stop, command_line)
        return 0
