"""OpenAI's objects, as an engine on this computer answers with them."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Usage:
    """How many tokens an answer took."""

    prompt_tokens: int
    """Of the whole conversation, audio tokens included."""
    audio_tokens: int
    completion_tokens: int

    @classmethod
    def sum_choices(cls, usages: Sequence["Usage"]) -> "Usage":
        """Of several answers to one conversation, which was read once."""
        first = usages[0]
        said = sum(usage.completion_tokens for usage in usages)
        return cls(prompt_tokens=first.prompt_tokens, audio_tokens=first.audio_tokens, completion_tokens=said)

    def to_json(self) -> dict[str, Any]:
        """As the protocol has it."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"audio_tokens": self.audio_tokens, "cached_tokens": 0},
        }


@dataclass(frozen=True, kw_only=True)
class ChatResponse:
    """One answer, or several to the same request, under one name."""

    model: str
    identity: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def completion(self, answers: Sequence[tuple[str, str]], usage: Usage) -> dict[str, Any]:
        """A `chat.completion` of texts and why each ended."""
        choices = [
            {
                "index": number,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
                "finish_reason": ending,
            }
            for number, (text, ending) in enumerate(answers)
        ]
        return self._object("chat.completion", choices) | {"usage": usage.to_json()}

    def chunk(self, choice: int, delta: dict[str, Any], ending: str | None) -> dict[str, Any]:
        """A `chat.completion.chunk` of one answer."""
        told = {"index": choice, "delta": delta, "logprobs": None, "finish_reason": ending}
        return self._object("chat.completion.chunk", [told])

    def usage(self, usage: Usage) -> dict[str, Any]:
        """The last chunk of a stream that was to tell its tokens."""
        return self._object("chat.completion.chunk", []) | {"usage": usage.to_json()}

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.identity,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }
