"""ossicle export: writes an ear as another project's checkpoint."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from rich.console import Console
from tyro.conf import Positional, arg

from ossicle.cli.terminal import EarName, check_is_new


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write an ear as another project's checkpoint."""

    form: Positional[Literal["whisper"]]
    """whisper: an ordinary Whisper for transformers and CTranslate2, from a trained ear of form autoregressive. What it
    learned then serves people who only transcribe."""
    ear: Positional[EarName]
    """Folder of an ear or of a run, or pocket/ear for the embedded one."""
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """Folder to write."""

    def run(self, command_line: str) -> int:
        """Writes the checkpoint and prints where it is."""
        check_is_new(self.out)
        from ossicle import checkpoint
        from ossicle.exchange.whisper import export_whisper

        export_whisper(checkpoint.load(self.ear, device="cpu", with_llm=False), self.out)
        Console().out(f"The Whisper is in {self.out}.", highlight=False)
        return 0
