"""The worker's decoding stage: one token per step for every completion of a continuous batch.

Waiting completions are added before a step and finished ones evicted after it. A completion is the same alone and in a
batch, as each samples its own tokens.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any

from torch import Tensor

from ossicle.backbones.causal_lm import get_eos_ids, get_input_embeddings
from ossicle.chat.generation import Prompt, check_context
from ossicle.chat.grammar import AnswerGrammar, GrammarCompiler
from ossicle.chat.incremental_text import IncrementalDetokenizer
from ossicle.chat.messages import Conversation
from ossicle.chat.sampling import TokenSampler
from ossicle.chat.token_logprobs import TokenContents
from ossicle.chat.tool_calls import MARKERS
from ossicle.ear import Ear
from ossicle.errors import OssicleError
from ossicle.serving.continuous_batch import ContinuousBatch
from ossicle.serving.engine import Usage
from ossicle.serving.generation import Completion, TextDelta
from ossicle.serving.metrics import Metrics
from ossicle.serving.sampling_params import SamplingParams
from ossicle.serving.single_sequence import SingleSequence
from ossicle.serving.worker import LOG

_SEED_MASK = (1 << 63) - 1


@dataclass(frozen=True, kw_only=True)
class StreamEvent:
    """Text of one completion of a request, or the error that ends the request."""

    choice: int = 0
    delta: TextDelta | None = None
    usage: Usage | None = None
    """With the last text of a completion."""
    error: Exception | None = None


@dataclass(eq=False, kw_only=True)
class ScheduledRequest:
    """A request on its way through the scheduler, and the queue of its events."""

    conversation: Conversation
    audio_tokens: list[Tensor]
    """The audio tokens of each sound of the conversation."""
    params: SamplingParams
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables of the chat template."""
    grammar: AnswerGrammar | None = None
    """The shape of the answer."""
    reads_markers: bool = False
    """Whether the tokens that set calls of functions off are text, even where they are special."""
    loop: asyncio.AbstractEventLoop
    """The event loop in which the events are read."""
    is_canceled: bool = False
    _events: asyncio.Queue[StreamEvent] = field(default_factory=asyncio.Queue)

    def publish(self, event: StreamEvent) -> None:
        """Queues an event; called from the worker's thread."""
        try:
            self.loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the loop is closed, so that no one reads the event
            self.is_canceled = True

    async def read_events(self) -> AsyncIterator[StreamEvent]:
        """Yields the events until every completion is finished.

        Raises:
            Exception: the error that ended the request
        """
        n_unfinished = self.params.n
        while n_unfinished:
            event = await self._events.get()
            if event.error is not None:
                raise event.error
            if event.delta is not None and event.delta.finish_reason:
                n_unfinished -= 1
            yield event


@dataclass(eq=False, kw_only=True)
class _Sequence:
    """One completion of a request: a row of the batch while it is decoded."""

    request: ScheduledRequest
    choice: int
    prompt: Prompt
    n_audio_tokens: int
    completion: Completion
    first_token_at: float | None = None


class Scheduler:
    """The stage of the worker that decodes.

    Args:
        max_batch_size: completions that are decoded in one batch
        build_batch: returns an empty batch
    """

    def __init__(
        self,
        ear: Ear,
        metrics: Metrics,
        max_batch_size: int,
        build_batch: Callable[[], ContinuousBatch | SingleSequence],
    ) -> None:
        self.ear, self.metrics, self.max_batch_size = ear, metrics, max_batch_size
        self.build_batch, self.batch = build_batch, build_batch()
        self.submitted: deque[ScheduledRequest] = deque()
        self.waiting: deque[_Sequence] = deque()
        self.running: list[_Sequence] = []
        """In the order of the batch's rows."""
        self._lock = Lock()
        self._eos_ids = frozenset(get_eos_ids(ear.llm, ear.tokenizer))
        self._contents = TokenContents(ear.tokenizer)
        n_vocab = get_input_embeddings(ear.llm).num_embeddings
        self.grammars = GrammarCompiler(ear.tokenizer, n_vocab, sorted(self._eos_ids))
        added = ear.tokenizer.added_tokens_decoder.items()
        self._markers = {
            index: token.content for index, token in added if token.special and token.content in MARKERS
        }
        """Special tokens that set calls of functions off, and their texts."""

    def submit(self, request: ScheduledRequest) -> None:
        """Queues a request; safe from any thread."""
        with self._lock:
            self.submitted.append(request)

    def step(self) -> bool:
        """Decodes one token of every running completion and returns whether there were any."""
        self._prepare_submitted()
        self._evict_canceled()
        n_added = min(len(self.waiting), self.max_batch_size - len(self.running))
        added = [self.waiting.popleft() for _ in range(n_added)]
        self.metrics.waiting.set(len(self.waiting))
        if not (added or self.running):
            return False
        try:
            self._decode(added)
        except Exception as error:
            self._fail([*self.running, *added], error)
        return True

    def _prepare_submitted(self) -> None:
        """Builds the prompts of new requests; the tokenizer is used in this thread alone."""
        with self._lock:
            requests, self.submitted = self.submitted, deque()
        for request in requests:
            try:
                self.waiting += self._build_sequences(request)
            except Exception as error:
                if not isinstance(error, OssicleError):
                    LOG.exception("the prompt of a request could not be built")
                request.publish(StreamEvent(error=error))

    def _build_sequences(self, request: ScheduledRequest) -> list[_Sequence]:
        ear, n_audio_tokens = self.ear, sum(map(len, request.audio_tokens))
        check_context(ear.llm, n_audio_tokens)  # before the text around the sounds is tokenized
        template = ear.template.with_variables(request.chat_template_kwargs)
        prompt = ear.build_prompt(template.render(request.conversation), request.audio_tokens)
        n_prompt = len(prompt.ids)
        context = check_context(ear.llm, n_prompt)
        max_tokens = request.params.max_tokens
        if context is not None:
            max_tokens = min(max_tokens, context - n_prompt)
        prompt_ids = prompt.ids.tolist()
        return [
            _Sequence(
                request=request,
                choice=choice,
                prompt=prompt,
                n_audio_tokens=n_audio_tokens,
                completion=self._start_completion(request, choice, prompt_ids, max_tokens),
            )
            for choice in range(request.params.n)
        ]

    def _start_completion(
        self, request: ScheduledRequest, choice: int, prompt_ids: list[int], max_tokens: int
    ) -> Completion:
        params = request.params
        constraint = self.grammars.compile(request.grammar) if request.grammar else None
        sampling = replace(params.sampling, seed=params.sampling.seed + choice & _SEED_MASK)
        return Completion(
            TokenSampler(self.ear.llm, sampling, prompt_ids, constraint),
            IncrementalDetokenizer(self.ear.tokenizer, self._eos_ids),
            self._eos_ids,
            params.stop,
            max_tokens,
            self._markers if request.reads_markers else {},
            None if params.n_likeliest is None else self._contents,
            params.n_likeliest or 0,
        )

    def _evict_canceled(self) -> None:
        self.waiting = deque(sequence for sequence in self.waiting if not sequence.request.is_canceled)
        self._evict([sequence.request.is_canceled for sequence in self.running])

    def _evict(self, is_evicted: list[bool]) -> None:
        self.batch.evict({row for row, evicted in enumerate(is_evicted) if evicted})
        self.running = [
            sequence for sequence, evicted in zip(self.running, is_evicted, strict=True) if not evicted
        ]

    def _decode(self, added: list[_Sequence]) -> None:
        """Decodes the next token of all running completions and the first token of the added ones."""
        is_finished: list[bool] = []
        if self.running:
            logits = self.batch.step([sequence.completion.last_token for sequence in self.running])
            is_finished += map(self._append_token, self.running, logits)
        if added:
            is_finished += self._add(added)
        self.metrics.decode_batch_size.observe(len(self.running))
        self._evict(is_finished)

    def _add(self, added: list[_Sequence]) -> list[bool]:
        """Decodes the first token of completions; one that cannot be, such as for lack of memory, fails alone.

        Returns: whether each of those that were added is finished
        """
        try:
            logits = self.batch.add([sequence.prompt.embeds for sequence in added])
        except Exception as error:
            if len(added) > 1:
                return [is_finished for sequence in added for is_finished in self._add([sequence])]
            if not self.running:
                self.batch = self.build_batch()
            self._drop(added, error)
            return []
        self.running += added
        return list(map(self._append_token, added, logits))

    def _append_token(self, sequence: _Sequence, logits: Tensor) -> bool:
        """Samples a token, publishes its text and returns whether the completion is finished."""
        try:
            delta = sequence.completion.append_token(logits)
        except Exception as error:  # of its own settings or text: the others go on
            self._drop([sequence], error)
            return True
        now = time.monotonic()
        sequence.first_token_at = sequence.first_token_at or now
        usage = None
        if delta.finish_reason:
            usage = Usage(
                prompt_tokens=len(sequence.prompt.ids),
                audio_tokens=sequence.n_audio_tokens,
                completion_tokens=sequence.completion.n_tokens,
            )
            self._count(usage, now - sequence.first_token_at)
        if delta.text or delta.finish_reason:
            sequence.request.publish(StreamEvent(choice=sequence.choice, delta=delta, usage=usage))
        return delta.finish_reason is not None

    def _count(self, usage: Usage, duration_s: float) -> None:
        self.metrics.tokens.labels("output").inc(usage.completion_tokens)
        self.metrics.tokens.labels("text").inc(usage.prompt_tokens - usage.audio_tokens)
        self.metrics.tokens.labels("audio").inc(usage.audio_tokens)
        if duration_s:
            self.metrics.output_tokens_per_s.observe((usage.completion_tokens - 1) / duration_s)

    def _fail(self, sequences: list[_Sequence], error: Exception) -> None:
        self._drop(sequences, error)
        self.running, self.batch = [], self.build_batch()

    def _drop(self, sequences: list[_Sequence], error: Exception) -> None:
        """Ends requests with an error."""
        LOG.error("decoding failed; %d completions are dropped", len(sequences), exc_info=error)
        for sequence in sequences:
            sequence.request.publish(StreamEvent(error=error))
            sequence.request.is_canceled = True
