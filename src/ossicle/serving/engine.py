"""What answers: the one interface behind which an engine runs on this computer or elsewhere."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float32
from numpy import ndarray


@dataclass(frozen=True, eq=False)
class Sound:
    """Sound that came with a request, decoded."""

    samples: Float32[ndarray, " N"]
    """At 16 kHz."""
    key: str
    """Hash of the file it was: the same file is heard once."""


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """A request for an answer whose sounds are decoded; its other fields are the engine's to check."""

    body: Mapping[str, Any]
    """As it was sent, but for the sounds: a part of type "audio" stands for each, its `audio` a `Sound`."""
    is_streamed: bool
    with_usage: bool
    """Whether the last piece of a stream says how many tokens there were."""


@runtime_checkable
class Engine(Protocol):
    """Answers requests in OpenAI's own objects; any number of them at once, from one event loop."""

    async def complete(self, request: ChatRequest) -> dict[str, Any]:
        """A `chat.completion`; cancelling it ends the work.

        Raises:
            OssicleError: a request that cannot be answered; `ApiError` where a status fits better than 400
        """
        ...

    async def stream(self, request: ChatRequest) -> AsyncIterator[dict[str, Any]]:
        """The `chat.completion.chunk`s of an answer, once it is clear that there will be one; closing it ends the work.

        Raises:
            OssicleError: as `complete`; from the iterator too, for what goes wrong on the way
        """
        ...

    async def transcribe(self, sound: Sound) -> str:
        """What the encoder's own decoder writes: the first half of the plain cascade.

        Raises:
            ApiError: too much is waiting
        """
        ...

    async def close(self) -> None:
        """Ends what runs; nothing is answered afterwards."""
        ...
