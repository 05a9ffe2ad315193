"""ossicle import and ossicle export: other projects' checkpoints as ears, and ears as theirs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from rich.console import Console
from tyro.conf import Positional, arg

from ossicle.cli.terminal import EarName, check_is_new

ModelName = Annotated[str | None, arg(metavar="MODEL")]


@dataclass(frozen=True, kw_only=True)
class Import:
    """Make an ear of another project's checkpoint."""

    form: Positional[Literal["diva"]]
    """diva: the published DiVA, as an ear of form diva."""
    source: Annotated[Positional[str], arg(metavar="SOURCE")]
    """Its folder or hub id. Weights are read from safetensors only."""
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """Folder for the ear."""
    encoder: ModelName = None
    """Another location of the Whisper that its config names."""
    llm: ModelName = None
    """Another location of the LLM that its config names."""

    def run(self, command_line: str) -> int:
        """Writes the ear and prints where it is."""
        check_is_new(self.out)
        from ossicle import checkpoint
        from ossicle.exchange.diva import import_diva

        checkpoint.save(import_diva(self.source, encoder=self.encoder, llm=self.llm, device="cpu"), self.out)
        Console().out(f"The ear is in {self.out}.", highlight=False)
        return 0


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write an ear as another project's checkpoint."""

    form: Positional[Literal["whisper", "diva"]]
    """whisper: an ordinary Whisper for transformers and CTranslate2, from a trained ear of form autoregressive. What it
    learned then serves people who only transcribe. diva: the published DiVA's layout, from an ear of form diva."""
    ear: Positional[EarName]
    """Folder of an ear or of a run, hub id of an ear, or pocket/ear for the embedded one."""
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """Folder to write."""

    def run(self, command_line: str) -> int:
        """Writes the checkpoint and prints where it is."""
        check_is_new(self.out)
        from ossicle import checkpoint
        from ossicle.exchange.diva import export_diva
        from ossicle.exchange.whisper import export_whisper

        ear = checkpoint.load(self.ear, device="cpu", with_llm=False)
        (export_diva if self.form == "diva" else export_whisper)(ear, self.out)
        name = {"diva": "DiVA", "whisper": "Whisper"}[self.form]
        Console().out(f"The {name} is in {self.out}.", highlight=False)
        return 0
