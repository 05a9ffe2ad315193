"""The engine that answers with a stock vLLM: this machine encodes the sounds, vLLM generates.

It knows what is sent where, and no HTTP. vLLM interprets the fields of a request, and its responses are passed on
unchanged, but for the model's name.
"""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from threading import Lock
from typing import Any

import httpx2
from torch import Tensor

from ossicle.backbones.causal_lm import get_input_embeddings
from ossicle.backbones.embedding_table import open_embedding_table
from ossicle.backbones.transcription import Transcript
from ossicle.ear import Ear
from ossicle.errors import ConfigError
from ossicle.serving.audio_batcher import AudioBatcher
from ossicle.serving.engine import ChatRequest, Sound, TranscriptionOptions
from ossicle.serving.metrics import Metrics
from ossicle.serving.turn_listening import ListeningStage, TurnListener
from ossicle.serving.vllm.client import NOT_VLLM, ServerSentEvents, VllmClient, bad_gateway
from ossicle.serving.vllm.handshake import check_prompt_frame, resolve_model
from ossicle.serving.vllm.prompt import EmbedIds, PromptLayout, VllmPrompt, VllmTemplate
from ossicle.serving.worker import Worker

CHAT_COMPLETIONS = "/v1/chat/completions"


class VllmEngine:
    """Answers with the LLM of a vLLM that accepts prompt embeddings; it sends nothing before the first request.

    Args:
        ear: its LLM may be on the meta device
        url: of vLLM, or of a load balancer in front of several equal ones
        model: name of the LLM at vLLM
        api_key: the value of vLLM's --api-key
        transport: replaces the network

    Raises:
        ConfigError: not a URL, or an LLM for which vLLM drops embeddings
        CheckpointError: the LLM's input embeddings, for text next to a sound, cannot be read
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
                "vLLM builds gpt-oss prompts without its chat template and drops embeddings from them: serve this ear"
                " with --engine local"
            )
        self.model = model
        self._prompt = VllmPrompt(ear.template, load_input_embeddings(ear))
        self._lock = Lock()  # tokenizers are not thread-safe
        self._client = VllmClient(url, api_key=api_key, transport=transport)
        self._worker = Worker(())
        self.audio = AudioBatcher(ear, metrics, self._worker.wake)
        self._listening = ListeningStage(ear, lambda: False, self._worker.wake)
        self._worker.stages = (self.audio, self._listening)
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
        """Checks that a vLLM is up and serves the ear's LLM, as far as requests can show, and returns the engine.

        The engine opens its own connections, so that it may be used in another event loop than this one.

        Args:
            model: name of the LLM at vLLM; by default the first that vLLM lists

        Raises:
            ConfigError: as the constructor; or no vLLM at the URL, an unknown model, another LLM, or a vLLM that
                accepts no embeddings
            CheckpointError: as the constructor
        """
        client = VllmClient(url, api_key=api_key, transport=transport)
        try:
            name = await resolve_model(client, model)
            template = VllmTemplate(ear.template)
            await check_prompt_frame(client, name, template, get_input_embeddings(ear.llm).embedding_dim)
        finally:
            await client.close()
        return cls(ear, metrics, url=url, model=name, api_key=api_key, transport=transport)

    async def complete(self, request: ChatRequest) -> dict[str, Any]:
        """Returns the whole answer."""
        body = await self._build_body(request)
        return _rename_model(await self._client.post(CHAT_COMPLETIONS, body), request)

    async def stream(self, request: ChatRequest) -> AsyncIterator[dict[str, Any]]:
        """Returns the chunks of the answer, once the first one is there."""
        body = await self._build_body(request)
        chunks = VllmChunks(await self._client.stream(CHAT_COMPLETIONS, body), request)
        await chunks.wait_for_first()
        return chunks

    async def transcribe(self, sound: Sound, options: TranscriptionOptions) -> Transcript:
        """Returns the transcript of Whisper's own decoder."""
        return await self.audio.transcribe(sound, options)

    async def transcribe_audio_tokens(self, sound: Sound) -> str:
        """Returns the words of Whisper's own decoder: those of the audio tokens are in the LLM, which is elsewhere."""
        return (await self.transcribe(sound, TranscriptionOptions())).text

    def listen(self, publish: Callable[[str], None]) -> TurnListener:
        """Returns a listener, which tells no words."""
        is_drafted = self.audio.ear.settings.connector.form == "autoregressive"
        return self._listening.open(rehear_s=None if is_drafted else math.inf)

    async def has_speech(self, sound: Sound) -> bool:
        """Whether somebody can be heard in a sound."""
        return await self.audio.has_speech(sound)

    async def close(self) -> None:
        """Closes all connections to vLLM and ends the worker."""
        await self._client.close()
        await asyncio.to_thread(self._worker.close)

    async def _build_body(self, request: ChatRequest) -> bytes:
        """Returns the body for vLLM; megabytes of embeddings are encoded in a thread, not in the event loop."""
        layout = await asyncio.to_thread(self._lay_out, request.body)
        audio_tokens = await self.audio.embed(layout.sounds) if layout.sounds else []
        return await asyncio.to_thread(self._encode_body, request.body, layout, audio_tokens)

    def _lay_out(self, body: Mapping[str, Any]) -> PromptLayout:
        with self._lock:
            return self._prompt.lay_out(body["messages"])

    def _encode_body(
        self, body: Mapping[str, Any], layout: PromptLayout, audio_tokens: Sequence[Tensor]
    ) -> bytes:
        kwargs = body.get("chat_template_kwargs")
        pinned = self._prompt.template.pinned_kwargs
        changed = {
            "model": self.model,
            "messages": self._prompt.build_messages(layout, audio_tokens),
            "chat_template_kwargs": {**pinned, **(kwargs or {})}
            if isinstance(kwargs, dict | None)
            else kwargs,
        }
        return json.dumps({**body, **changed}).encode()


def load_input_embeddings(ear: Ear) -> EmbedIds:
    """Returns the LLM's input embeddings by id: from the LLM if it is loaded, else from its files.

    Raises:
        CheckpointError: an LLM on the meta device, in whose files the table is not found
    """
    if not get_input_embeddings(ear.llm).weight.is_meta:
        return lambda ids: ear.embed(ids)
    return open_embedding_table(ear.llm, ear.settings.base.llm, ear.settings.base.llm_revision)


class VllmChunks:
    """Iterates over the chunks of an answer; closing it ends vLLM's work."""

    def __init__(self, events: ServerSentEvents, request: ChatRequest) -> None:
        self._events, self._request = events, request
        self._first: dict[str, Any] | None = None

    async def wait_for_first(self) -> None:
        """Waits until the first chunk is there.

        Raises:
            ApiError: the answer has no chunk
        """
        self._first = await anext(self, None)
        if self._first is None:
            raise bad_gateway("vLLM's answer is empty: try again")

    def __aiter__(self) -> "VllmChunks":
        return self

    async def __anext__(self) -> dict[str, Any]:
        """Returns the next chunk.

        Raises:
            ApiError: the answer broke off, or vLLM sent an error
        """
        if self._first is not None:
            chunk, self._first = self._first, None
            return chunk
        event = await anext(self._events)
        try:
            return _rename_model(event, self._request)
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Closes the connection."""
        await self._events.aclose()


def _rename_model(response: dict[str, Any], request: ChatRequest) -> dict[str, Any]:
    """Returns vLLM's object with the model name of this server."""
    if not isinstance(response.get("choices"), list):
        raise bad_gateway(NOT_VLLM)
    return {**response, "model": request.body["model"]}
