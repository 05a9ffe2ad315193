"""The parts of an ear that an evaluation uses, and the messages that it is sent."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from ossicle.audio.waveform import AudioSource
from ossicle.evaluation.suite import Item

Message = dict[str, Any]


@runtime_checkable
class AudioModel(Protocol):
    """A model that can be evaluated, such as an ear; its answers are greedy."""

    def hear(self, source: list[AudioSource], /) -> list[Float[Tensor, "Q D"]]:
        """Returns the audio tokens of each sound."""
        ...

    def transcribe(self, sources: list[AudioSource], /) -> list[str]:
        """Returns the transcript of each sound by the encoder's own ASR decoder."""
        ...

    def read_batch(self, conversations: list[list[Message]], /, **generate_kwargs: Any) -> list[str]:
        """Returns the LLM's answers to conversations of text."""
        ...

    def chat_batch(self, conversations: list[list[Message]], /, **generate_kwargs: Any) -> list[str]:
        """Returns the LLM's answers to conversations with sound."""
        ...


@runtime_checkable
class ChoiceModel(Protocol):
    """A model that can also choose its answer from a few words."""

    def choose_batch(self, conversations: list[list[Message]], choices: Sequence[str], /) -> list[int]:
        """Returns, for each conversation, the index of the most likely start of the LLM's answer."""
        ...


def build_user_turn(
    item: Item, *, text: str | None = None, sound: AudioSource | None = None
) -> list[Message]:
    """Returns the user's turn for an item: its sound or another one, or a text instead, then its instruction.

    All three systems get their turns from here, so that they differ in nothing but the sound.
    """
    if text is None:
        spoken = {"type": "audio", "audio": item.audio if sound is None else sound}
    else:
        spoken = {"type": "text", "text": text}
    instruction = [] if item.instruction is None else [{"type": "text", "text": item.instruction}]
    return [{"role": "user", "content": [spoken, *instruction]}]


def has_words(conversation: list[Message]) -> bool:
    """Whether any text of the last message has characters other than white space."""
    return any(part["text"].strip() for part in conversation[-1]["content"])
