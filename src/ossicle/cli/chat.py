"""ossicle chat."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Console
from tyro.conf import Positional, arg

from ossicle.cli.terminal import EarName, NumberOption, print_message
from ossicle.errors import AudioError, ConfigError

if TYPE_CHECKING:
    from ossicle.audio.microphone import Microphone
    from ossicle.ear import Ear

AudioFile = Annotated[Path | None, arg(metavar="[AUDIO]")]
TextOption = Annotated[str | None, arg(metavar="TEXT")]


@dataclass(frozen=True, kw_only=True)
class Chat:
    """Answer one spoken turn, or talk through the microphone."""

    ear: Positional[EarName]
    """An ear's folder or a run's, or pocket/ear for the embedded one."""
    audio: Positional[AudioFile] = None
    """What is said: wav, flac, mp3, ogg, opus, webm or m4a."""
    mic: bool = False
    """Talk through the microphone in place of a file, turn after turn; Ctrl-D or Ctrl-C ends it."""
    text: TextOption = None
    """Text beside each sound, such as "Answer in Spanish."."""
    system: TextOption = None
    """System prompt, in place of the ear's own."""
    max_new_tokens: Annotated[int | None, arg(metavar="N")] = None
    """Longest answer, in tokens."""
    temperature: NumberOption = None
    """Sample the answer at this temperature; greedy without."""
    top_p: NumberOption = None
    """Sample from the likeliest tokens that hold this share of the probability."""
    seed: int = 0
    """Of the sampling."""

    def run(self, command_line: str) -> int:
        """Prints answers while they are made."""
        if (self.audio is None) != self.mic:
            raise ConfigError("ossicle chat takes one sound: name a file, or speak with --mic")
        from ossicle import checkpoint
        from ossicle.audio.microphone import Microphone
        from ossicle.audio.waveform import load_audio

        options = self.build_generation_options()
        # Bad sound and a missing microphone are told before the models are loaded.
        audio = load_audio(self.audio) if self.audio else None
        microphone = Microphone() if self.mic else None
        ear = checkpoint.load(self.ear)
        messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        if microphone:
            self.run_conversation(ear, microphone, messages, options)
        else:
            print_answer(ear, [*messages, self.build_user_message(audio)], options)
        return 0

    def run_conversation(
        self, ear: "Ear", microphone: "Microphone", messages: list[dict[str, Any]], options: dict[str, Any]
    ) -> None:
        """Turn after turn, each answered with all before it in mind; a turn that cannot be heard is said again."""
        n_turns = 0
        while True:
            try:
                sound = microphone.record(Console(stderr=True))
            except AudioError as error:
                if n_turns == 0 or microphone.is_over:
                    raise
                print_message(str(error))
                continue
            if microphone.is_over and n_turns:
                return
            messages.append(self.build_user_message(sound))
            messages.append({"role": "assistant", "content": print_answer(ear, messages, options)})
            n_turns += 1

    def build_user_message(self, sound: Any) -> dict[str, Any]:
        """What is asked with a sound."""
        content: list[dict[str, Any]] = [{"type": "audio", "audio": sound}]
        if self.text is not None:
            content.append({"type": "text", "text": self.text})
        return {"role": "user", "content": content}

    def build_generation_options(self) -> dict[str, Any]:
        """What `generate` is told."""
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ConfigError(f"--max-new-tokens is {self.max_new_tokens}, expected at least 1")
        if self.temperature is not None and not 0 <= self.temperature < math.inf:
            raise ConfigError(f"--temperature is {self.temperature:g}, expected 0 (greedy) or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(f"--top-p is {self.top_p:g}, expected more than 0 and at most 1")
        given = {name: getattr(self, name) for name in ("max_new_tokens", "temperature", "top_p")}
        options = {name: value for name, value in given.items() if value is not None}
        if {"temperature", "top_p"} & options.keys():
            import torch

            torch.manual_seed(self.seed)
        return options


def print_answer(ear: "Ear", messages: list[dict[str, Any]], options: dict[str, Any]) -> str:
    """Prints an answer while it is made; gives it whole."""
    console, pieces = Console(), []
    for piece in ear.stream(messages, **options):
        console.out(piece, end="", highlight=False)
        pieces.append(piece)
    console.out("")
    return "".join(pieces)
