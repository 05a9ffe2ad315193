"""An ear without weights, and items whose sounds it recognizes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ossicle.evaluation import EvaluationSettings, Item, Report, Suite, evaluate

TONE = (0.1 * np.sin(np.arange(1600) / 5)).astype(np.float32)
"""0.1 s of sound."""


def make_tone(number: int) -> np.ndarray:
    """Returns 0.1 s of sound with the number in its first sample."""
    return np.concatenate([[np.float32(number / 1000)], TONE[1:]])


def read_tone(sound: object) -> int:
    """Returns the number of a tone."""
    assert isinstance(sound, np.ndarray)
    return round(float(sound[0]) * 1000)


class FakeEar:
    """Answers "You said ...", in capitals if the instruction says so, and records the conversations.

    Args:
        spoken: the words of each tone
        heard: the words that the LLM hears instead
        written: the words of the transcripts instead
    """

    def __init__(
        self, spoken: list[str], *, heard: list[str] | None = None, written: list[str] | None = None
    ) -> None:
        self.spoken, self.heard, self.written = spoken, heard or spoken, written or spoken
        self.requests: list[tuple[str, list]] = []
        self.batch_sizes: list[int] = []

    def hear(self, source: list, /) -> list[torch.Tensor]:
        return [torch.zeros(len(self.spoken[read_tone(sound)].split()), 4) for sound in source]

    def transcribe(self, sources: list, /) -> list[str]:
        return [self.written[read_tone(sound)] for sound in sources]

    def read_batch(self, conversations: list, /, **generate_kwargs: object) -> list[str]:
        self.requests += [("read", conversation) for conversation in conversations]
        return [self._answer(conversation) for conversation in conversations]

    def chat_batch(self, conversations: list, /, **generate_kwargs: object) -> list[str]:
        self.requests += [("hear", conversation) for conversation in conversations]
        self.batch_sizes.append(len(conversations))
        return [self._answer(conversation) for conversation in conversations]

    def _answer(self, conversation: list) -> str:
        first, *rest = conversation[0]["content"]
        words = first["text"] if first["type"] == "text" else self.heard[read_tone(first["audio"])]
        answer = f"You said {words}."
        return answer.upper() if any("capital" in part["text"] for part in rest) else answer


def build_items(spoken: Sequence[str], **fields: Any) -> tuple[Item, ...]:
    """Returns an item for each text, whose sound is the tone of its position."""
    return tuple(
        Item(**dict[str, Any]({"id": str(i), "audio": make_tone(i), "text": text} | fields))
        for i, text in enumerate(spoken)
    )


def build_suite(spoken: Sequence[str], **fields: Any) -> Suite:
    """Returns the suite of such items."""
    return Suite(name="numbers", items=build_items(spoken, **fields))


def evaluate_items(
    ear: Any,
    items: Sequence[Item],
    *,
    batch_size: int = 16,
    progress: Any = None,
    reuse_from: Report | None = None,
    **generate_kwargs: Any,
) -> Report:
    """Returns the report of an ear on some items."""
    suite = Suite(name="numbers", items=tuple(items))
    settings = EvaluationSettings(batch_size=batch_size, generate_kwargs=generate_kwargs)
    return evaluate(ear, suite, settings, progress=progress, reuse_from=reuse_from)
