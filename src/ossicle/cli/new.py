"""ossicle new."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from rich.console import Console
from tyro.conf import Positional, arg

from ossicle.cli.terminal import program_name
from ossicle.config import BaseSettings, ConnectorSettings
from ossicle.errors import ConfigError

ModelName = Annotated[str, arg(metavar="MODEL")]
_SLOTS_PER_SECOND = 25.0
"""More than anybody says, in whatever pieces: it ends what a recogniser would repeat for ever."""


@dataclass(frozen=True, kw_only=True)
class New:
    """An ear without training: the words that the encoder's recogniser and the LLM both know, as audio tokens."""

    out: Positional[Path]
    """Folder of the new ear."""
    llm: ModelName
    """A causal LM with a chat template: hub id, local folder, or pocket/llm."""
    encoder: ModelName
    """A Whisper: hub id, local folder, or pocket/whisper."""
    encoder_window: Literal["full", "sound"] = "full"
    """Whether the encoder is given its full window, as a published Whisper knows it, or the seconds there are: that is
    sooner, but a recogniser has to have learned it."""
    device: Annotated[str | None, arg(metavar="NAME")] = None
    """cpu or cuda; without it the first GPU if there is one."""

    def run(self, command_line: str) -> int:
        """Writes the ear, and says how much of the LLM's vocabulary it knows."""
        from ossicle import checkpoint
        from ossicle.backbones.causal_lm import get_input_embeddings
        from ossicle.backbones.pretrained import build_meta_whisper
        from ossicle.ear import Ear, EarSettings

        if self.out.exists() and not (self.out.is_dir() and not any(self.out.iterdir())):
            raise ConfigError(f"{self.out} is there already: give the new ear a folder of its own")
        base = BaseSettings(encoder=self.encoder, llm=self.llm, encoder_window=self.encoder_window)
        n_positions = build_meta_whisper(self.encoder, None).config.max_target_positions
        settings = ConnectorSettings(
            form="autoregressive", n_queries=n_positions, slots_per_second=_SLOTS_PER_SECOND
        )
        ear = Ear.new(EarSettings(base=base, connector=settings), self.device)
        vocabulary_head = ear.connector.vocabulary_head
        if vocabulary_head is None:
            raise ConfigError(
                f"{self.encoder} and {self.llm} have no token in common, so that an ear between them knows nothing"
                " before it is trained: use ossicle train"
            )
        checkpoint.save(ear, self.out)
        n_tokens = get_input_embeddings(ear.llm).num_embeddings
        out = shlex.quote(str(self.out))
        console = Console()
        console.out(
            f"The ear is in {self.out}. It knows {len(vocabulary_head.llm_embeddings):,} of the LLM's {n_tokens:,}"
            f" tokens by the words of {self.encoder}. Next:\n"
            f"  {program_name()} chat {out} question.wav\n  {program_name()} eval {out} --suite FILE.jsonl",
            highlight=False,
        )
        return 0
