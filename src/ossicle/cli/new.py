"""ossicle new."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from tyro.conf import Positional, arg

from ossicle.cli.terminal import check_is_new, program_name
from ossicle.config import BaseSettings, ConnectorSettings, WindowKind, check_silence_margin
from ossicle.errors import ConfigError

if TYPE_CHECKING:
    from ossicle.ear import Ear

ModelName = Annotated[str, arg(metavar="MODEL")]


@dataclass(frozen=True, kw_only=True)
class New:
    """Build an ear without training: a new one, which knows the tokens that Whisper's vocabulary and the LLM's share, or
    a trained one carried over to another LLM.
    """

    out: Positional[Path]
    """Folder for the new ear."""
    llm: ModelName
    """A causal LM with a chat template: hub id, local folder, GGUF file, or pocket/llm for the embedded one."""
    encoder: Annotated[str | None, arg(metavar="MODEL")] = None
    """A Whisper: hub id, local folder (also one in CTranslate2's form), or pocket/whisper for the embedded one. With
    --from, the ear's own, here at another location."""
    source: Annotated[str | None, arg(name="from", metavar="EAR")] = None
    """A trained ear of form autoregressive for another LLM: its folder, that of its run, its hub id, or
    pocket/ear. What it has learned is kept; the layers that touch the LLM are refitted on the words that all
    vocabularies share."""
    encoder_window: WindowKind | None = None
    """Input length of the encoder. full (default): always the whole window, as published Whispers were trained: the ear
    writes what Whisper writes; sound+silence: the clip's own duration in front of silence that was encoded once, much
    faster for short sounds; refused for a Whisper that hears other words so. sound: the clip's own duration alone, which
    works only with a Whisper that was trained for it. With --from, it is that of the ear."""
    silence_margin_s: float | None = None
    """Silence that is encoded with each clip, in front of the stored one of the window sound+silence: more of it (0 s by
    default) is slower and nearer to the whole window. With --from, it is that of the ear."""
    device: Annotated[str | None, arg(metavar="NAME")] = None
    """Device to run on, cpu or cuda. Without it, the first GPU if there is one."""

    def run(self, command_line: str) -> int:
        """Writes the ear and prints how many of the LLM's tokens it knows."""
        check_is_new(self.out)
        if self.source is not None:
            self._transfer(self.source)
        elif self.encoder is not None:
            self._build(self.encoder)
        else:
            raise ConfigError("expected --encoder and a Whisper for a new ear, or --from and a trained ear")
        return 0

    def _build(self, encoder: str) -> None:
        from ossicle import checkpoint
        from ossicle.backbones.pretrained import build_meta_whisper
        from ossicle.ear import Ear, EarSettings

        margin_s = self.silence_margin_s
        base = BaseSettings(
            encoder=encoder,
            llm=self.llm,
            encoder_window=self.encoder_window or "full",
            silence_margin_s=BaseSettings.silence_margin_s if margin_s is None else margin_s,
        )
        check_silence_margin(base)
        n_positions = build_meta_whisper(encoder, None).config.max_target_positions
        settings = ConnectorSettings(form="autoregressive", n_queries=n_positions)
        ear = Ear.new(EarSettings(base=base, connector=settings), self.device)
        if ear.connector.vocabulary_head is None:
            raise ConfigError(
                f"{encoder} and {self.llm} have no token in common, so an ear for them knows nothing before it is"
                " trained: use ossicle train"
            )
        self._check_window(ear)
        checkpoint.save(ear, self.out)
        self._print_result(ear, f"The ear is in {self.out}.")

    def _check_window(self, ear: "Ear") -> None:
        """Raises ConfigError if the ear's Whisper hears other words with stored silence."""
        from ossicle.backbones.silence_check import MAX_DIVERGENCE, measure_divergence

        if ear.silence is None:
            return
        divergence = measure_divergence(ear.whisper, ear.silence, ear.window)
        if not divergence <= MAX_DIVERGENCE:  # or it is not a number
            raise ConfigError(
                f"{ear.settings.base.encoder} hears other words with stored silence than with its whole window (they"
                f" diverge by {divergence:.2f} nats, expected at most {MAX_DIVERGENCE:g}): use --encoder-window full"
            )

    def _transfer(self, source: str) -> None:
        from ossicle import checkpoint
        from ossicle.transfer import build_transfer_card, transfer_ear

        own = {"--encoder-window": self.encoder_window, "--silence-margin-s": self.silence_margin_s}
        for option, value in own.items():
            if value is not None:
                raise ConfigError(f"{option} {value} is not for --from: the window is that of {source}")
        transferred = transfer_ear(source, self.llm, encoder=self.encoder, device=self.device)
        checkpoint.save(transferred.ear, self.out, card=build_transfer_card(transferred))
        self._print_result(
            transferred.ear,
            f"The ear is in {self.out}: what {source} learned for {transferred.source_llm}, refitted in"
            f" {transferred.seconds:.1f} s on the {transferred.n_shared:,} tokens that all three vocabularies share.",
        )

    def _print_result(self, ear: "Ear", first: str) -> None:
        from ossicle.backbones.causal_lm import get_input_embeddings

        assert ear.connector.vocabulary_head is not None
        n_known = len(ear.connector.vocabulary_head.llm_embeddings)
        n_tokens = get_input_embeddings(ear.llm).num_embeddings
        out = shlex.quote(str(self.out))
        Console().out(
            f"{first} It knows {n_known:,} of the LLM's {n_tokens:,} tokens: those that"
            f" {ear.settings.base.encoder} has too. Next:\n"
            f"  {program_name()} chat {out} question.wav\n  {program_name()} eval {out} --suite FILE.jsonl",
            highlight=False,
        )
