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
"""More tokens than any speech has. The cap stops a decoder that repeats itself without end."""


@dataclass(frozen=True, kw_only=True)
class New:
    """Build an ear without training. It knows the tokens that Whisper's vocabulary and the LLM's share."""

    out: Positional[Path]
    """Folder for the new ear."""
    llm: ModelName
    """A causal LM with a chat template: hub id, local folder, or pocket/llm for the embedded one."""
    encoder: ModelName
    """A Whisper: hub id, local folder, or pocket/whisper for the embedded one."""
    encoder_window: Literal["full", "sound"] = "full"
    """Input length of the encoder. full: always the whole window, as published Whispers were trained; sound: the clip's
    own duration, which is faster, but works only with a Whisper that was trained for it."""
    device: Annotated[str | None, arg(metavar="NAME")] = None
    """Device to run on, cpu or cuda. Without it, the first GPU if there is one."""

    def run(self, command_line: str) -> int:
        """Writes the ear and prints how many of the LLM's tokens it knows."""
        from ossicle import checkpoint
        from ossicle.backbones.causal_lm import get_input_embeddings
        from ossicle.backbones.pretrained import build_meta_whisper
        from ossicle.ear import Ear, EarSettings

        if self.out.exists() and not (self.out.is_dir() and not any(self.out.iterdir())):
            raise ConfigError(f"{self.out} exists already: give the new ear an empty or a new folder")
        base = BaseSettings(encoder=self.encoder, llm=self.llm, encoder_window=self.encoder_window)
        n_positions = build_meta_whisper(self.encoder, None).config.max_target_positions
        settings = ConnectorSettings(
            form="autoregressive", n_queries=n_positions, slots_per_second=_SLOTS_PER_SECOND
        )
        ear = Ear.new(EarSettings(base=base, connector=settings), self.device)
        vocabulary_head = ear.connector.vocabulary_head
        if vocabulary_head is None:
            raise ConfigError(
                f"{self.encoder} and {self.llm} have no token in common, so an ear for them knows nothing before it is"
                " trained: use ossicle train"
            )
        checkpoint.save(ear, self.out)
        n_tokens = get_input_embeddings(ear.llm).num_embeddings
        out = shlex.quote(str(self.out))
        console = Console()
        console.out(
            f"The ear is in {self.out}. It knows {len(vocabulary_head.llm_embeddings):,} of the LLM's {n_tokens:,}"
            f" tokens: those that {self.encoder} has too. Next:\n"
            f"  {program_name()} chat {out} question.wav\n  {program_name()} eval {out} --suite FILE.jsonl",
            highlight=False,
        )
        return 0
