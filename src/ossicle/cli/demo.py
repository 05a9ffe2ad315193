"""ossicle demo."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from ossicle.cli.terminal import print_resume_command, program_name


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Distill the embedded LLM on this computer in a few minutes, evaluate the ear, and ask it a spoken question."""

    minutes: float = 4.0
    """Time for the distillation, in minutes."""
    out: Path = Path("runs/pocket")
    """Folder of the run. An unfinished run in it is resumed."""
    mic: bool = False
    """Ask your own question through the microphone at the end."""

    def run(self, command_line: str) -> int:
        """Runs the demo. If it is stopped, prints how to resume it."""
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
