"""The engine on this computer: hears in batches, answers in a running batch that requests join and leave.

Scale is not its job. It computes in one thread, round after round: hear what waits, let newcomers in, one token for each
answer. An answer is the same alone and in company, as each draws its tokens by itself.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from torch import Tensor

from ossicle.chat.generation import IncrementalDetokenizer, Prompt, check_context, end_of
from ossicle.chat.messages import Conversation, parse_conversation
from ossicle.chat.sampling import SamplingSettings, TokenSampler
from ossicle.ear import Ear
from ossicle.errors import OssicleError
from ossicle.serving.audio_batcher import AudioBatcher
from ossicle.serving.continuous_batch import ContinuousBatch, supports_continuous_batching
from ossicle.serving.engine import ChatRequest, Sound
from ossicle.serving.generation import Completion, TextDelta
from ossicle.serving.metrics import Metrics
from ossicle.serving.responses import ChatResponse, Usage
from ossicle.serving.sampling_params import SamplingParams, read_sampling_params
from ossicle.serving.worker import LOG, Worker

MAX_ROWS = 32
"""Answers that are decoded side by side."""
_LETTERS_A_TOKEN = 16
"""No text has tokens as long as that on average."""


@dataclass(frozen=True, kw_only=True)
class StreamEvent:
    """What the worker tells a request: a piece of one of its answers, or why there will be none."""

    choice: int = 0
    piece: TextDelta | None = None
    usage: Usage | None = None
    """With the last piece of an answer."""
    error: Exception | None = None


@dataclass(eq=False, kw_only=True)
class _Job:
    """A request on its way through the worker."""

    messages: list[dict[str, Any]]
    tokens: list[Tensor]
    options: SamplingParams
    loop: asyncio.AbstractEventLoop
    news: asyncio.Queue[StreamEvent] = field(default_factory=asyncio.Queue)
    is_cancelled: bool = False

    def tell(self, news: StreamEvent) -> None:
        """From the worker's thread."""
        try:
            self.loop.call_soon_threadsafe(self.news.put_nowait, news)
        except RuntimeError:  # the loop is closed: nobody listens any more
            self.is_cancelled = True


@dataclass(eq=False, kw_only=True)
class _Row:
    """One answer of a job."""

    job: _Job
    choice: int
    prompt: Prompt
    n_audio: int
    answer: Completion
    begun_at: float | None = None


class LocalEngine:
    """Answers with the ear's own LLM.

    Args:
        max_rows: answers that are decoded side by side

    Raises:
        CheckpointError: an LLM that cannot go on from its keys and values
    """

    def __init__(self, ear: Ear, metrics: Metrics, *, max_rows: int = MAX_ROWS) -> None:
        self.ear = ear
        rows = max_rows if supports_continuous_batching(ear.llm) else 1
        self._worker = Worker(())
        self.audio = AudioBatcher(ear, metrics, self._worker.wake)
        self._scheduler = Scheduler(ear, metrics, rows)
        self._worker.stages = (self.audio, self._scheduler)
        self._worker.start()

    async def complete(self, request: ChatRequest) -> dict[str, Any]:
        """The whole answer."""
        job = await self._begin(request)
        texts = ["" for _ in range(job.options.n)]
        endings, usages = dict[int, str](), list[Usage]()
        try:
            async for news in _until_all_ended(job):
                assert news.piece is not None, "an error was raised"
                texts[news.choice] += news.piece.text
                if news.piece.finish_reason:
                    endings[news.choice] = news.piece.finish_reason
                if news.usage:
                    usages.append(news.usage)
        finally:
            job.is_cancelled = True
        whole = [(text, endings[choice]) for choice, text in enumerate(texts)]
        return ChatResponse(model=_model(request)).completion(whole, Usage.sum_choices(usages))

    async def stream(self, request: ChatRequest) -> AsyncIterator[dict[str, Any]]:
        """The answer in pieces, from the moment that its first token is there."""
        job = await self._begin(request)
        news = _until_all_ended(job)
        try:
            first = await anext(news)
        except BaseException:
            job.is_cancelled = True
            raise
        chunks = self._chunks(request, job, first, news)
        await anext(chunks)
        return chunks

    async def _chunks(
        self, request: ChatRequest, job: _Job, first: StreamEvent, news: AsyncIterator[StreamEvent]
    ) -> AsyncIterator[dict[str, Any]]:
        reply = ChatResponse(model=_model(request))
        usages: list[Usage] = []
        try:
            yield {}  # for `stream` alone: closing a generator that has not begun would not end the work
            for choice in range(job.options.n):
                yield reply.chunk(choice, {"role": "assistant", "content": ""}, None)
            while True:
                assert first.piece is not None, "an error was raised"
                if first.piece.text:
                    yield reply.chunk(first.choice, {"content": first.piece.text}, None)
                if first.piece.finish_reason:
                    yield reply.chunk(first.choice, {}, first.piece.finish_reason)
                if first.usage:
                    usages.append(first.usage)
                try:
                    first = await anext(news)
                except StopAsyncIteration:
                    break
            if request.with_usage:
                yield reply.usage(Usage.sum_choices(usages))
        finally:
            job.is_cancelled = True

    async def transcribe(self, sound: Sound) -> str:
        """What the encoder's own decoder writes."""
        return await self.audio.transcribe(sound)

    async def close(self) -> None:
        """Ends after the token that is being made."""
        await asyncio.to_thread(self._worker.close)

    async def _begin(self, request: ChatRequest) -> _Job:
        options = read_sampling_params(request.body)
        messages = [_local(message) for message in request.body["messages"]]
        conversation = parse_conversation(messages)
        _check_letters(self.ear, conversation)
        tokens = await self.audio.embed(conversation.sounds)
        job = _Job(messages=messages, tokens=tokens, options=options, loop=asyncio.get_running_loop())
        self._scheduler.submit(job)
        self._worker.wake()
        return job


def _check_letters(ear: Ear, conversation: Conversation) -> None:
    """Refuses what is beyond the context by far before it is cut into tokens, which would hold up all other answers.

    Raises:
        RequestError: more letters than the LLM has tokens for
    """
    n_letters = sum(
        len(part) for turn in conversation.turns for part in turn.content if isinstance(part, str)
    )
    check_context(ear.llm, n_letters // _LETTERS_A_TOKEN)


def _local(message: Any) -> Any:
    """A message in the conversation's own words: a developer is who was called the system before."""
    if isinstance(message, Mapping) and message.get("role") == "developer":
        return {**message, "role": "system"}
    return message


def _model(request: ChatRequest) -> str:
    return str(request.body["model"])


async def _until_all_ended(job: _Job) -> AsyncIterator[StreamEvent]:
    n_open = job.options.n
    while n_open:
        news = await job.news.get()
        if news.error is not None:
            raise news.error
        if news.piece is not None and news.piece.finish_reason:
            n_open -= 1
        yield news


class Scheduler:
    """A stage of the worker that answers: newcomers in, one token for each, those that have ended out."""

    def __init__(self, ear: Ear, meters: Metrics, max_rows: int) -> None:
        self.ear, self.meters, self.max_rows = ear, meters, max_rows
        self.batch = ContinuousBatch(ear.llm)
        self.rows: list[_Row] = []
        """As they lie in the batch."""
        self.waiting: deque[_Row] = deque()
        self.jobs: deque[_Job] = deque()
        self._lock = Lock()
        end = end_of(ear.llm, ear.tokenizer)
        self.end = end
        self.ends = frozenset() if end is None else frozenset(end if isinstance(end, list) else [end])

    def submit(self, job: _Job) -> None:
        """Lets a request wait; from any thread."""
        with self._lock:
            self.jobs.append(job)

    def work(self) -> bool:
        """One token for every answer."""
        self._read_jobs()
        self._drop_cancelled()
        newcomers = [
            self.waiting.popleft() for _ in range(min(len(self.waiting), self.max_rows - len(self.rows)))
        ]
        self.meters.waiting.set(len(self.waiting))
        if not (newcomers or self.rows):
            return False
        try:
            self._round(newcomers)
        except Exception as error:
            self._fail([*self.rows, *newcomers], error)
        return True

    def _read_jobs(self) -> None:
        """Lays out what the LLM is given; tokenizers are used in this thread alone."""
        with self._lock:
            jobs, self.jobs = self.jobs, deque()
        for job in jobs:
            try:
                self.waiting += self._rows_of(job)
            except Exception as error:
                if not isinstance(error, OssicleError):
                    LOG.exception("a request could not be read")
                job.tell(StreamEvent(error=error))

    def _rows_of(self, job: _Job) -> list[_Row]:
        ear, options = self.ear, job.options
        check_context(ear.llm, sum(map(len, job.tokens)))  # before the text around them is looked for
        prompt = ear.prompt(ear.template.render(job.messages), job.tokens)
        n_prompt = len(prompt.ids)
        limit = check_context(ear.llm, n_prompt)
        n_room = options.max_tokens if limit is None else min(options.max_tokens, limit - n_prompt)
        ids = prompt.ids.tolist()
        rows = []
        for choice in range(options.n):
            sampling = SamplingSettings(
                temperature=options.sampling.temperature,
                top_p=options.sampling.top_p,
                seed=options.sampling.seed + choice & (1 << 63) - 1,
            )
            answer = Completion(
                TokenSampler(ear.llm, sampling, ids),
                IncrementalDetokenizer(ear.tokenizer, self.end),
                self.ends,
                options.stop,
                n_room,
            )
            n_audio = sum(map(len, job.tokens))
            rows.append(_Row(job=job, choice=choice, prompt=prompt, n_audio=n_audio, answer=answer))
        return rows

    def _drop_cancelled(self) -> None:
        self.waiting = deque(row for row in self.waiting if not row.job.is_cancelled)
        self._keep([not row.job.is_cancelled for row in self.rows])

    def _keep(self, is_kept: list[bool]) -> None:
        if not all(is_kept):
            numbers = [number for number, kept in enumerate(is_kept) if kept]
            self.batch.keep(numbers)
            self.rows = [self.rows[number] for number in numbers]

    def _round(self, newcomers: list[_Row]) -> None:
        """A token for all that are on their way, and the first one for the newcomers."""
        is_open: list[bool] = []
        if self.rows:
            logits = self.batch.step([row.answer.last_token for row in self.rows])
            is_open += [self._grow(row, scores) for row, scores in zip(self.rows, logits, strict=True)]
        if newcomers:
            logits = self.batch.add([row.prompt.embeds for row in newcomers])
            self.rows += newcomers
            is_open += [self._grow(row, scores) for row, scores in zip(newcomers, logits, strict=True)]
        self.meters.decode_batch_size.observe(len(self.rows))
        self._keep(is_open)

    def _grow(self, row: _Row, logits: Tensor) -> bool:
        """The next token of an answer, told to its request; whether there may be more."""
        piece = row.answer.append_token(logits)
        now = time.monotonic()
        row.begun_at = row.begun_at or now
        usage = None
        if piece.finish_reason:
            usage = Usage(
                prompt_tokens=len(row.prompt.ids),
                audio_tokens=row.n_audio,
                completion_tokens=row.answer.n_tokens,
            )
            self._count(row, usage, now - row.begun_at)
        if piece.text or piece.finish_reason:
            row.job.tell(StreamEvent(choice=row.choice, piece=piece, usage=usage))
        return piece.finish_reason is None

    def _count(self, row: _Row, usage: Usage, seconds: float) -> None:
        self.meters.tokens.labels("output").inc(usage.completion_tokens)
        self.meters.tokens.labels("text").inc(usage.prompt_tokens - usage.audio_tokens)
        self.meters.tokens.labels("audio").inc(usage.audio_tokens)
        if seconds:
            self.meters.output_tokens_per_s.observe((usage.completion_tokens - 1) / seconds)

    def _fail(self, rows: list[_Row], error: Exception) -> None:
        LOG.exception("a round of the running batch failed; its answers are given up")
        for row in rows:
            row.job.tell(StreamEvent(error=error))
            row.job.is_cancelled = True
        self.rows, self.batch = [], ContinuousBatch(self.ear.llm)
