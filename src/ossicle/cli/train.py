"""ossicle train."""

import os
import shlex
from dataclasses import dataclass, field
from typing import Annotated, Literal

from rich.console import Console
from tyro.conf import Positional, arg

from ossicle.cli.terminal import RecipeFile, print_resume_command, program_name
from ossicle.config import Recipe


@dataclass(frozen=True, kw_only=True)
class Train:
    """Distill an ear. If training was stopped, the same command resumes it."""

    recipe: Positional[RecipeFile]
    """Recipe of the run. Flags after it override its settings, such as --train.n-steps 100."""
    tracker: Literal["tensorboard", "trackio", "wandb"] | None = None
    """Where the metrics go in addition to metrics.jsonl: event files in the run's folder (tensorboard), or the project
    ossicle (trackio, wandb). Each needs its own package."""
    settings: Annotated[Recipe, arg(name="")] = field(default_factory=lambda: Recipe(out="runs/..."))

    def run(self, command_line: str) -> int:
        """Trains until the last step. If it is stopped, prints how to resume it."""
        from ossicle.training.run_log import TrainingProgress
        from ossicle.training.tracker import TrackedProgress
        from ossicle.training.trainer import StopRequested, train

        is_first = (
            os.environ.get("RANK", "0") == "0"
        )  # of the processes of torchrun, only the first one prints
        console = Console(quiet=not is_first)
        progress = TrainingProgress(console)
        if self.tracker and is_first:
            progress = TrackedProgress(console, self.tracker, self.settings)
        try:
            train(self.settings, progress)
        except StopRequested as stop:
            return print_resume_command(stop, command_line)
        out = shlex.quote(self.settings.out)
        console.print(f"The ear is in {self.settings.out}. Next:", highlight=False, markup=False)
        console.out(
            f"  {program_name()} eval {out} --suite FILE.jsonl\n  {program_name()} chat {out} question.wav",
            highlight=False,
        )
        return 0
