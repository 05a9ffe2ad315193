"""The engine elsewhere: this computer hears, a stock vLLM answers; it knows what is sent where, and no HTTP.

What a request's fields mean is for vLLM to say, and its objects are handed on as they are, but for the model's name.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from threading import Lock
from typing import Any

import httpx2
from torch import Tensor

from ossicle.backbones.causal_lm import get_input_embeddings
from ossicle.ear import Ear
from ossicle.errors import ConfigError
from ossicle.serving.audio_batcher import AudioBatcher
from ossicle.serving.engine import ChatRequest, Sound
from ossicle.serving.metrics import Metrics
from ossicle.serving.vllm.client import ServerSentEvents, VllmClient, bad_gateway
from ossicle.serving.vllm.handshake import check_prompt_frame, resolve_model
from ossicle.serving.vllm.input_embeddings import input_embeddings
from ossicle.serving.vllm.prompt import PromptLayout, VllmPrompt, VllmTemplate
from ossicle.serving.worker import Worker

CHAT = "/v1/chat/completions"


class VllmEngine:
    """Answers with the LLM of a vLLM that takes prompt embeddings; nothing is sent before there is a request.

    Args:
        ear: an outline of its LLM does
        url: of vLLM, or of a load balancer before several that are alike
        model: the LLM's name there
        api_key: what vLLM was given as --api-key
        transport: takes the place of the network

    Raises:
        ConfigError: no such address, or an LLM for which vLLM drops embeddings
        CheckpointError: the LLM's input embeddings, for words beside a sound, cannot be read
    """

    def __init__(
        self,
        ear: Ear,
        metrics: Metrics,
        *,
        url: str,
        model: str,
        api_key: str | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        if ear.llm.config.model_type == "gpt_oss":
            raise ConfigError(
                "vLLM lays out conversations for gpt-oss without its chat template, and drops embeddings from them:"
                " serve this ear with --engine local"
            )
        self.model = model
        self._prompt = VllmPrompt(ear.template, input_embeddings(ear))
        self._lock = Lock()  # tokenizers are not made for two threads
        self._upstream = VllmClient(url, api_key=api_key, transport=transport)
        self._worker = Worker(())
        self.audio = AudioBatcher(ear, metrics, self._worker.wake)
        self._worker.stages = (self.audio,)
        self._worker.start()

    @classmethod
    async def connect(
        cls,
        ear: Ear,
        metrics: Metrics,
        *,
        url: str,
        model: str | None = None,
        api_key: str | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> "VllmEngine":
        """An engine for a vLLM that is up and reads as the ear's LLM does, as far as it can be asked.

        The engine has connections of its own: it may answer in another event loop than the one that made it.

        Args:
            model: the LLM's name there; by default the first that is listed

        Raises:
            ConfigError: as the engine; nothing there, no such model, another LLM, or a vLLM that takes no embeddings
            CheckpointError: as the engine
        """
        upstream = VllmClient(url, api_key=api_key, transport=transport)
        try:
            name = await resolve_model(upstream, model)
            template = VllmTemplate(ear.template)
            await check_prompt_frame(upstream, name, template, get_input_embeddings(ear.llm).embedding_dim)
        finally:
            await upstream.close()
        return cls(ear, metrics, url=url, model=name, api_key=api_key, transport=transport)

    async def complete(self, request: ChatRequest) -> dict[str, Any]:
        """The whole answer."""
        return _ours(await self._upstream.post(CHAT, await self._body(request)), request)

    async def stream(self, request: ChatRequest) -> AsyncIterator[dict[str, Any]]:
        """The answer in pieces, from the moment that the first one is there."""
        chunks = Chunks(await self._upstream.stream(CHAT, await self._body(request)), request)
        await chunks.begin()
        return chunks

    async def transcribe(self, sound: Sound) -> str:
        """What the encoder's own decoder writes."""
        return await self.audio.transcribe(sound)

    async def close(self) -> None:
        """Ends all connections to vLLM, and hears no more."""
        await self._upstream.close()
        await asyncio.to_thread(self._worker.close)

    async def _body(self, request: ChatRequest) -> bytes:
        """What vLLM is sent; megabytes of sound are written beside the event loop."""
        layout = await asyncio.to_thread(self._lay_out, request.body)
        heard = await self.audio.embed(layout.sounds) if layout.sounds else []
        return await asyncio.to_thread(self._write, request.body, layout, heard)

    def _lay_out(self, body: Mapping[str, Any]) -> PromptLayout:
        with self._lock:
            return self._prompt.lay_out(body["messages"])

    def _write(self, body: Mapping[str, Any], layout: PromptLayout, heard: Sequence[Tensor]) -> bytes:
        given = body.get("chat_template_kwargs")
        pinned = self._prompt.template.pinned_kwargs
        changed = {
            "model": self.model,
            "messages": self._prompt.build_messages(layout, heard),
            "chat_template_kwargs": {**pinned, **(given or {})} if isinstance(given, dict | None) else given,
        }
        return json.dumps({**body, **changed}).encode()


class Chunks:
    """The pieces of an answer; closing them ends vLLM's work."""

    def __init__(self, events: ServerSentEvents, request: ChatRequest) -> None:
        self._events, self._request = events, request
        self._first: dict[str, Any] | None = None

    async def begin(self) -> None:
        """Waits until the first piece is there.

        Raises:
            ApiError: there will be none
        """
        self._first = await anext(self, None)
        if self._first is None:
            raise bad_gateway("vLLM's answer is empty: try again")

    def __aiter__(self) -> "Chunks":
        return self

    async def __anext__(self) -> dict[str, Any]:
        """The next piece.

        Raises:
            ApiError: the answer broke off, or vLLM tells of an error
        """
        if self._first is not None:
            chunk, self._first = self._first, None
            return chunk
        event = await anext(self._events)
        try:
            return _ours(event, self._request)
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Closes the connection."""
        await self._events.aclose()


def _ours(answer: dict[str, Any], request: ChatRequest) -> dict[str, Any]:
    """vLLM's object under the name that the model has here."""
    if not isinstance(answer.get("choices"), list):
        raise bad_gateway("what answers in vLLM's place does not speak its language")
    return {**answer, "model": request.body["model"]}
