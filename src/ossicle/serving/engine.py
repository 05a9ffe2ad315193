"""The interface of an engine, local or remote, and the OpenAI objects that go in and come out."""

import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float32
from numpy import ndarray

from ossicle.audio.waveform import SAMPLE_RATE
from ossicle.backbones.transcription import Transcript
from ossicle.backbones.whisper_prompt import Task
from ossicle.chat.token_logprobs import TokenLogprob
from ossicle.serving.turn_listening import TurnListener


@dataclass(frozen=True, eq=False)
class Sound:
    """A decoded sound of a request."""

    samples: Float32[ndarray, " N"]
    """At 16 kHz."""
    key: str
    """Hash of the file, so that the same file is encoded once."""
    listener: TurnListener | None = None
    """What heard it while it was spoken."""

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.samples) / SAMPLE_RATE


@dataclass(frozen=True, kw_only=True)
class TranscriptionOptions:
    """How a sound is transcribed; sounds that differ in the language alone can share a batch."""

    language: str | None = None
    """Its code or name; None to detect it."""
    prompt: str = ""
    """A text whose style and spelling the transcript continues."""
    temperature: float = 0.0
    task: Task = "transcribe"
    has_timestamps: bool = False
    """Whether its segments are between Whisper's own timestamps; else they are windows."""


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """A chat request whose sounds are decoded; the engine checks its other fields."""

    body: Mapping[str, Any]
    """The body as it was sent, but each `input_audio` part is now of type "audio", and its `audio` is a `Sound`."""
    is_streamed: bool
    include_usage: bool
    """Whether the last chunk of a stream has the token counts."""

    @property
    def model(self) -> str:
        """The model name that the client sent."""
        return str(self.body["model"])

    @property
    def sounds(self) -> list[Sound]:
        """The sounds of all messages, in order."""
        contents = [message.get("content") for message in self.body["messages"] if isinstance(message, dict)]
        parts = [part for content in contents if isinstance(content, list) for part in content]
        sounds = [part.get("audio") for part in parts if isinstance(part, dict)]
        return [sound for sound in sounds if isinstance(sound, Sound)]


@runtime_checkable
class Engine(Protocol):
    """Answers requests in OpenAI's own objects, any number of them concurrently, from one event loop."""

    async def complete(self, request: ChatRequest) -> dict[str, Any]:
        """Returns a `chat.completion`; canceling the call ends the work.

        Raises:
            OssicleError: the request cannot be answered; `ApiError` where another status than 400 fits
        """
        ...

    async def stream(self, request: ChatRequest) -> AsyncIterator[dict[str, Any]]:
        """Returns the `chat.completion.chunk`s of an answer; closing the iterator ends the work.

        It returns once the first chunk is there, so that most errors are raised before the response starts.

        Raises:
            OssicleError: as `complete`; the iterator raises what fails later
        """
        ...

    async def transcribe(self, sound: Sound, options: TranscriptionOptions) -> Transcript:
        """Returns the transcript of Whisper's own decoder: the first half of a cascade.

        Raises:
            ApiError: a language, a prompt or a task that the Whisper does not take
        """
        ...

    async def transcribe_audio_tokens(self, sound: Sound) -> str:
        """Returns the words that the LLM hears in a sound, as far as the ear can tell them.

        Raises:
            OssicleError: a sound that cannot be embedded
        """
        ...

    def listen(self, publish: Callable[[str], None]) -> TurnListener | None:
        """Returns a listener for a sound that is still being spoken; None where nothing is gained by it.

        Args:
            publish: told the words that were heard so far, in any thread, if the engine can tell them
        """
        ...

    async def has_speech(self, sound: Sound) -> bool:
        """Whether somebody can be heard in a sound.

        Raises:
            OssicleError: a sound that cannot be embedded
        """
        ...

    async def close(self) -> None:
        """Ends all work; the engine answers nothing afterwards."""
        ...


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Token counts of a completion."""

    prompt_tokens: int
    """Tokens of the whole conversation, audio tokens included."""
    audio_tokens: int
    completion_tokens: int

    @classmethod
    def sum_choices(cls, usages: Sequence["Usage"]) -> "Usage":
        """Returns the counts of several completions of one prompt; the prompt is counted once."""
        first = usages[0]
        n_completion = sum(usage.completion_tokens for usage in usages)
        return cls(
            prompt_tokens=first.prompt_tokens, audio_tokens=first.audio_tokens, completion_tokens=n_completion
        )

    def to_json(self) -> dict[str, Any]:
        """Returns OpenAI's `usage` object."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"audio_tokens": self.audio_tokens, "cached_tokens": 0},
        }


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A whole answer."""

    text: str
    tool_calls: Sequence[Mapping[str, Any]] = ()
    """In OpenAI's form."""
    finish_reason: str
    logprobs: Sequence[TokenLogprob] | None = None
    """Of its tokens, if they are asked for."""

    def to_message(self) -> dict[str, Any]:
        """Returns OpenAI's message."""
        message = {"role": "assistant", "content": self.text, "refusal": None}
        if self.tool_calls:
            message |= {"content": self.text or None, "tool_calls": list(self.tool_calls)}
        return message


@dataclass(frozen=True, kw_only=True)
class ChatResponse:
    """Builds the response objects of one request, which share an id."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    """Unix time."""

    def build_completion(self, answers: Sequence["Answer"], usage: Usage) -> dict[str, Any]:
        """Returns a `chat.completion`."""
        choices = [
            {
                "index": index,
                "message": answer.to_message(),
                "logprobs": format_logprobs(answer.logprobs),
                "finish_reason": answer.finish_reason,
            }
            for index, answer in enumerate(answers)
        ]
        return self._build("chat.completion", choices) | {"usage": usage.to_json()}

    def build_chunk(
        self,
        index: int,
        delta: dict[str, Any],
        finish_reason: str | None,
        logprobs: Sequence[TokenLogprob] | None = None,
    ) -> dict[str, Any]:
        """Returns a `chat.completion.chunk` of one choice."""
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": format_logprobs(logprobs),
            "finish_reason": finish_reason,
        }
        return self._build("chat.completion.chunk", [choice])

    def build_usage_chunk(self, usage: Usage) -> dict[str, Any]:
        """Returns the last chunk of a stream that includes the usage."""
        return self._build("chat.completion.chunk", []) | {"usage": usage.to_json()}

    def _build(self, object_type: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": object_type,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


def format_logprobs(logprobs: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
    """Returns OpenAI's object for the probabilities of tokens."""
    if logprobs is None:
        return None
    content = [
        {**_format_logprob(one), "top_logprobs": list(map(_format_logprob, one.likeliest))}
        for one in logprobs
    ]
    return {"content": content, "refusal": None}


def _format_logprob(one: TokenLogprob) -> dict[str, Any]:
    return {
        "token": one.content.decode(errors="replace"),
        "bytes": list(one.content),
        "logprob": one.logprob,
    }
