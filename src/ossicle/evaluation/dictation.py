"""An ear in an evaluation of what it writes down, in place of what its LLM answers."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ossicle.audio.waveform import AudioSource
from ossicle.ear import Ear
from ossicle.evaluation.audio_model import Message


@dataclass(frozen=True)
class Dictation:
    """An `AudioModel` whose answers are the words themselves: those read, or those nearest to the ear's audio tokens.

    With items of the rule "wer", text ceiling, cascade and ear are word error rates: none, Whisper's and the ear's.
    """

    ear: Ear

    def hear(self, source: list[AudioSource], /) -> list[Float[Tensor, "Q D"]]:
        """Returns the audio tokens of each sound."""
        return self.ear.hear(source)

    def transcribe(self, sources: list[AudioSource], /) -> list[str]:
        """Returns the transcript of each sound by the encoder's own decoder."""
        return self.ear.transcribe(sources)

    def read_batch(self, conversations: list[list[Message]], /, **_: Any) -> list[str]:
        """Returns the texts."""
        return [conversation[-1]["content"][0]["text"] for conversation in conversations]

    def chat_batch(self, conversations: list[list[Message]], /, **_: Any) -> list[str]:
        """Returns what the ear writes down of the sounds."""
        return self.ear.transcribe_audio_tokens(
            [conversation[-1]["content"][0]["audio"] for conversation in conversations]
        )
