"""The engine on this machine: encodes sounds in batches, and decodes completions in a continuous batch.

It is for one machine and not built to scale. One thread computes, step by step: embed a batch of waiting sounds, add
waiting completions to the batch, decode one token of each.
"""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Any

from ossicle.backbones.causal_lm import get_input_embeddings
from ossicle.backbones.transcription import Transcript
from ossicle.chat.generation import check_context
from ossicle.chat.messages import Conversation, parse_conversation
from ossicle.chat.sampling import check_sampling_defaults
from ossicle.chat.template import ChatTemplate
from ossicle.ear import Ear
from ossicle.serving.audio_batcher import AudioBatcher
from ossicle.serving.continuous_batch import ContinuousBatch, supports_continuous_batching
from ossicle.serving.engine import ChatRequest, ChatResponse, Sound, TranscriptionOptions, Usage
from ossicle.serving.errors import ApiError
from ossicle.serving.grammar_check import check_grammar
from ossicle.serving.metrics import Metrics
from ossicle.serving.response_format import read_response_format
from ossicle.serving.sampling_params import SamplingParams, read_sampling_params
from ossicle.serving.scheduler import ScheduledRequest, Scheduler, StreamEvent
from ossicle.serving.single_sequence import SingleSequence, can_use_cache
from ossicle.serving.tool_params import AnswerReader, ToolParams, read_tool_params
from ossicle.serving.turn_listening import ListeningStage, TurnListener
from ossicle.serving.worker import Worker

MAX_BATCH_SIZE = 32
"""Completions that are decoded in one batch."""
_FORMS_OF_WORDS = ("query", "anchored", "autoregressive")
"""Connectors with an audio token for each token of the transcript."""
_MAX_CHARACTERS_PER_TOKEN = 16
"""No text has more on average."""


class LocalEngine:
    """Answers with the ear's own LLM.

    Args:
        max_batch_size: completions that are decoded in one batch; 1 for an LLM whose rows depend on each other or whose
            cache is not only keys and values

    Raises:
        CheckpointError: the LLM's own generation config cannot be used
    """

    def __init__(self, ear: Ear, metrics: Metrics, *, max_batch_size: int = MAX_BATCH_SIZE) -> None:
        self.ear = ear
        check_sampling_defaults(ear.llm)
        build_batch = partial(ContinuousBatch, ear.llm)
        if not supports_continuous_batching(ear.llm):
            max_batch_size = 1
            build_batch = partial(SingleSequence, ear.llm, uses_cache=can_use_cache(ear.llm))
        self._worker = Worker(())
        self._scheduler = Scheduler(ear, metrics, max_batch_size, build_batch)
        self.audio = AudioBatcher(ear, metrics, self._worker.wake, self._is_answering)
        self._listening = ListeningStage(ear, self._is_answering, self._worker.wake)
        self._worker.stages = (self.audio, self._scheduler, self._listening)
        self._worker.start()

    def _is_answering(self) -> bool:
        return bool(self._scheduler.running)

    async def complete(self, request: ChatRequest) -> dict[str, Any]:
        """Returns the whole answer."""
        scheduled, tools = await self._schedule(request)
        choices = _open_readers(scheduled, tools)
        usages: list[Usage] = []
        try:
            async for event in scheduled.read_events():
                assert event.delta is not None, "an error was raised"
                for _ in choices[event.choice].add(event.delta):
                    pass
                if event.usage:
                    usages.append(event.usage)
        finally:
            scheduled.is_canceled = True
        answers = [choice.answer for choice in choices]
        return ChatResponse(model=request.model).build_completion(answers, Usage.sum_choices(usages))

    async def stream(self, request: ChatRequest) -> AsyncIterator[dict[str, Any]]:
        """Returns the chunks of the answer, once its first token is there."""
        scheduled, tools = await self._schedule(request)
        events = scheduled.read_events()
        try:
            first = await anext(events)
        except BaseException:
            scheduled.is_canceled = True
            raise
        chunks = self._build_chunks(request, scheduled, tools, first, events)
        await anext(chunks)
        return chunks

    async def _build_chunks(
        self,
        request: ChatRequest,
        scheduled: ScheduledRequest,
        tools: ToolParams,
        event: StreamEvent,
        events: AsyncIterator[StreamEvent],
    ) -> AsyncIterator[dict[str, Any]]:
        response = ChatResponse(model=request.model)
        usages: list[Usage] = []
        choices = _open_readers(scheduled, tools)
        try:
            yield {}  # taken by `stream`: a generator must have started, or closing it would not run `finally`
            for choice in range(scheduled.params.n):
                yield response.build_chunk(choice, {"role": "assistant", "content": ""}, None)
            while True:
                assert event.delta is not None, "an error was raised"
                choice = choices[event.choice]
                for delta in choice.add(event.delta):
                    yield response.build_chunk(event.choice, delta, None, choice.take_logprobs())
                if event.delta.finish_reason:
                    rest = choice.take_logprobs() or None
                    yield response.build_chunk(event.choice, {}, choice.answer.finish_reason, rest)
                if event.usage:
                    usages.append(event.usage)
                try:
                    event = await anext(events)
                except StopAsyncIteration:
                    break
            if request.include_usage:
                yield response.build_usage_chunk(Usage.sum_choices(usages))
        finally:
            scheduled.is_canceled = True

    async def transcribe(self, sound: Sound, options: TranscriptionOptions) -> Transcript:
        """Returns the transcript of Whisper's own decoder."""
        return await self.audio.transcribe(sound, options)

    async def transcribe_audio_tokens(self, sound: Sound) -> str:
        """Returns the ear's own words, or those of Whisper's decoder where its audio tokens are not words."""
        if self.ear.settings.connector.form not in _FORMS_OF_WORDS:
            return (await self.transcribe(sound, TranscriptionOptions())).text
        return await self.audio.transcribe_audio_tokens(sound)

    def listen(self, publish: Callable[[str], None]) -> TurnListener:
        """Returns a listener, which tells words where audio tokens are words."""
        has_words = self.ear.settings.connector.form in _FORMS_OF_WORDS
        return self._listening.open(publish if has_words else None, rehear_s=None if has_words else math.inf)

    async def has_speech(self, sound: Sound) -> bool:
        """Whether somebody can be heard in a sound."""
        return await self.audio.has_speech(sound)

    async def close(self) -> None:
        """Ends the worker after its current step."""
        await asyncio.to_thread(self._worker.close)

    async def _schedule(self, request: ChatRequest) -> tuple[ScheduledRequest, ToolParams]:
        params = read_sampling_params(request.body)
        _check_token_ids(self.ear, params)
        tools = read_tool_params(request.body, self.ear.template.tool_format)
        conversation = parse_conversation(
            [_rename_developer(message) for message in request.body["messages"]], tools.tools
        )
        grammar = tools.build_grammar(read_response_format(request.body))
        if grammar is not None:
            await asyncio.to_thread(check_grammar, self._scheduler.grammars, grammar)
        _check_n_characters(self.ear, conversation)
        audio_tokens = await self.audio.embed(conversation.sounds)
        scheduled = ScheduledRequest(
            conversation=conversation,
            audio_tokens=audio_tokens,
            params=params,
            grammar=grammar,
            reads_markers=tools.format is not None,
            chat_template_kwargs=_read_template_variables(request.body, self.ear.template),
            loop=asyncio.get_running_loop(),
        )
        self._scheduler.submit(scheduled)
        self._worker.wake()
        return scheduled, tools


def _open_readers(scheduled: ScheduledRequest, tools: ToolParams) -> list[AnswerReader]:
    has_logprobs = scheduled.params.n_likeliest is not None
    names = {tool["function"]["name"] for tool in scheduled.conversation.tools}
    return [
        AnswerReader(tools.format, tools.max_calls, names, has_logprobs=has_logprobs)
        for _ in range(scheduled.params.n)
    ]


def _read_template_variables(body: Mapping[str, Any], template: ChatTemplate) -> Any:
    """Returns the variables that a request gives the chat template.

    Raises:
        ApiError: an effort of reasoning for which the template has no variable
    """
    given, effort = body.get("chat_template_kwargs"), body.get("reasoning_effort")
    if effort is None:
        return given
    variables = template.find_effort_variables(effort)
    if variables is None:
        raise ApiError(
            "Parameter 'reasoning_effort' is not supported with this value: the LLM's chat template has no variable for"
            " it; leave it out",
            param="reasoning_effort",
            code="unsupported_parameter",
        )
    return {**variables, **given} if isinstance(given, dict) else given or variables


def _check_n_characters(ear: Ear, conversation: Conversation) -> None:
    """Refuses a text far beyond the context before it is tokenized, which would delay all other requests.

    Raises:
        RequestError: more characters than the context can have
    """
    n_characters = sum(
        len(part) for turn in conversation.turns for part in turn.content if isinstance(part, str)
    )
    n_characters += sum(len(json.dumps(call.arguments)) for turn in conversation.turns for call in turn.calls)
    n_characters += len(json.dumps(conversation.tools)) if conversation.tools else 0
    check_context(ear.llm, n_characters // _MAX_CHARACTERS_PER_TOKEN)


def _check_token_ids(ear: Ear, params: SamplingParams) -> None:
    """Refuses a bias of tokens that the LLM does not have.

    Raises:
        ApiError: there is one
    """
    n_tokens = get_input_embeddings(ear.llm).num_embeddings
    highest = max((token for token, _ in params.sampling.logit_bias), default=0)
    if highest >= n_tokens:
        raise ApiError(
            f"logit_bias names the token {highest}, but the LLM has {n_tokens}", param="logit_bias"
        )


def _rename_developer(message: Any) -> Any:
    """Returns a message with the role "system" for "developer", which is OpenAI's newer name for it."""
    if isinstance(message, Mapping) and message.get("role") == "developer":
        return {**message, "role": "system"}
    return message
