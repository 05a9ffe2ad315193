"""ossicle chat."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Console
from tyro.conf import Positional, arg

from ossicle.cli.terminal import (
    BaseName,
    BitCount,
    DeviceName,
    DtypeName,
    EarName,
    NumberOption,
    print_message,
)
from ossicle.config import parse_template_variables
from ossicle.errors import AudioError, ConfigError, NoSpeechError

if TYPE_CHECKING:
    from ossicle.audio.microphone import Microphone
    from ossicle.ear import Ear

AudioFile = Annotated[Path | None, arg(metavar="[AUDIO]")]
TextOption = Annotated[str | None, arg(metavar="TEXT")]


@dataclass(frozen=True, kw_only=True)
class Chat:
    """Answer an audio file, or have a conversation through the microphone."""

    ear: Positional[EarName]
    """Folder of an ear or of a run, hub id of an ear, or pocket/ear for the embedded one."""
    audio: Positional[AudioFile] = None
    """Audio file to answer: wav, flac, mp3, ogg, opus, webm or m4a."""
    mic: bool = False
    """Talk through the microphone, turn after turn, in place of a file. Ctrl-D or Ctrl-C ends the conversation."""
    text: TextOption = None
    """Text that goes with the audio of each turn, such as "Answer in Spanish"."""
    encoder: BaseName = None
    """Where the ear's encoder lies, if the ear was moved or given away without it: a local folder or a hub id."""
    llm: BaseName = None
    """Where the ear's LLM lies: a local folder, a GGUF file or a hub id."""
    device: DeviceName = None
    """Where to compute: cpu or cuda. Without it, the first GPU if there is one."""
    dtype: DtypeName = None
    """Precision to compute in: float32, bfloat16 or float16. Without it, bfloat16 on a GPU and float32 on a CPU."""
    llm_bits: BitCount = 16
    """Bits of the weights of the LLM's layers. 8 and 4 take less memory; they need ossicle[quant]."""
    system: TextOption = None
    """System prompt, in place of the ear's own."""
    template_variable: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE")] = ()
    """Variables of the chat template, such as enable_thinking=false for LLMs that think before they answer."""
    max_new_tokens: Annotated[int | None, arg(metavar="N")] = None
    """Longest answer, in tokens. Without it, 256."""
    temperature: NumberOption = None
    """Sample the answer at this temperature. Without it, decoding is greedy."""
    top_p: NumberOption = None
    """Sample from the smallest set of most likely tokens whose probabilities sum to this."""
    seed: int = 0
    """Seed of the sampling."""

    def run(self, command_line: str) -> int:
        """Prints each answer while it is generated."""
        if (self.audio is None) != self.mic:
            raise ConfigError("ossicle chat takes one audio file or --mic: give exactly one of them")
        from ossicle import checkpoint
        from ossicle.audio.microphone import Microphone
        from ossicle.audio.speech import load_speech

        options = self.build_generation_options()
        # Audio and microphone come before the models, so that their errors are reported without delay.
        audio = load_speech(self.audio) if self.audio else None
        microphone = Microphone() if self.mic else None
        ear = checkpoint.load(
            self.ear,
            encoder=self.encoder,
            llm=self.llm,
            device=self.device,
            dtype=self.dtype,
            llm_bits=self.llm_bits,
            notify=print_message,
        )
        messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        if microphone:
            self.run_conversation(ear, microphone, messages, options)
        else:
            print_answer(ear, [*messages, self.build_user_message(audio)], options)
        return 0

    def run_conversation(
        self, ear: "Ear", microphone: "Microphone", messages: list[dict[str, Any]], options: dict[str, Any]
    ) -> None:
        """Records, hears and answers turns, each with all earlier turns as context. A silent turn is recorded again."""
        n_turns = 0
        while True:
            listener = ear.listen()
            try:
                microphone.record(Console(stderr=True), listener.feed)
            except AudioError as error:
                if n_turns == 0 or microphone.is_over:
                    raise
                print_message(str(error))
                continue
            if microphone.is_over and n_turns:
                return
            question = self.build_user_message(listener)
            try:
                answer = print_answer(ear, [*messages, question], options)
            except NoSpeechError as error:
                print_message(str(error))
                continue
            messages += [question, {"role": "assistant", "content": answer}]
            n_turns += 1

    def build_user_message(self, audio: Any) -> dict[str, Any]:
        """Returns the user message of a turn: its audio and the text of --text."""
        content: list[dict[str, Any]] = [{"type": "audio", "audio": audio}]
        if self.text is not None:
            content.append({"type": "text", "text": self.text})
        return {"role": "user", "content": content}

    def build_generation_options(self) -> dict[str, Any]:
        """Returns the keyword arguments of `Ear.stream`, and seeds the sampling.

        Raises:
            ConfigError: a flag is out of range
        """
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ConfigError(f"--max-new-tokens is {self.max_new_tokens}, expected at least 1")
        if self.temperature is not None and not 0 <= self.temperature < math.inf:
            raise ConfigError(f"--temperature is {self.temperature:g}, expected 0 (greedy) or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(f"--top-p is {self.top_p:g}, expected more than 0 and at most 1")
        flags = {name: getattr(self, name) for name in ("max_new_tokens", "temperature", "top_p")}
        options = {name: value for name, value in flags.items() if value is not None}
        if self.template_variable:
            options["chat_template_kwargs"] = parse_template_variables(self.template_variable)
        if {"temperature", "top_p"} & options.keys():
            import torch

            torch.manual_seed(self.seed)
        return options


def print_answer(ear: "Ear", messages: list[dict[str, Any]], options: dict[str, Any]) -> str:
    """Prints an answer while it is generated. Returns the whole answer."""
    console, pieces = Console(), []
    for piece in ear.stream(messages, **options):
        console.out(piece, end="", highlight=False)
        pieces.append(piece)
    console.out("")
    return "".join(pieces)
