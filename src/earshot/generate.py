"""From prompts made of embeddings to answers, through transformers' own generate; it knows nothing of sound.

Answers are cut at their first end of sequence and limited row by row, so that none depends on its batch.
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from earshot.errors import RequestError

MAX_NEW_TOKENS = 256
"""Longest answer, in tokens, unless the caller says otherwise."""
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
_CALLABLES = {"logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn"}
# They would change what comes back: one text for each conversation.
_NOT_OURS = {"num_return_sequences", "return_dict_in_generate", "transformers_version", "prefill_chunk_size"}


@dataclass(frozen=True)
class Prompt:
    """What the LLM is given, position by position."""

    embeds: Float[Tensor, "L D"]
    ids: Int[Tensor, " L"]
    """What generate counts as said, for penalties and stop strings; the prompt's first id where sound is."""


@dataclass(frozen=True)
class _Batch:
    """Prompts side by side, ending together."""

    embeds: Float[Tensor, "B L D"]
    ids: Int[Tensor, "B L"]
    mask: Int[Tensor, "B L"]


def pad_left(prompts: Sequence[Prompt]) -> _Batch:
    """Prompts of different lengths side by side, ending together.

    Padding repeats a prompt's first id, which penalties on repeated tokens count once anyway; the usual
    padding id would be one more token that is penalised.
    """
    longest = max(len(prompt.ids) for prompt in prompts)
    first = prompts[0].embeds
    embeds = first.new_zeros(len(prompts), longest, first.shape[1])
    ids = torch.stack([prompt.ids[0].expand(longest) for prompt in prompts]).clone()
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        start = longest - len(prompt.ids)
        embeds[row, start:], ids[row, start:], mask[row, start:] = prompt.embeds, prompt.ids, 1
    return _Batch(embeds, ids, mask)


def answer(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], **options: Any
) -> list[str]:
    """The LLM's answer to each prompt, greedy by default.

    Args:
        options: for transformers' `generate`, such as max_new_tokens, do_sample, temperature, stop_strings;
            one that only sampling has, such as a temperature above 0, asks for sampling

    Raises:
        RequestError: an option that generate does not know or use, or a prompt beyond the LLM's context
    """
    if not prompts:
        return []
    settled = _settled(llm, tokenizer, options)
    rows = _generate(llm, tokenizer, prompts, settled)
    return [_text(tokenizer, row, settled["eos_token_id"]) for row in rows]


def stream(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: Prompt, **options: Any
) -> Iterator[str]:
    """The same answer, piece by piece while it is made; joined, the pieces equal `answer`'s text.

    An iterator that is closed early ends the generation.

    Raises:
        RequestError: as `answer`; for what only generate itself finds out, when the first piece is asked for
    """
    settled = _settled(llm, tokenizer, options)
    _check_context(llm, [prompt], settled.get("max_length"))
    return _pieces(llm, tokenizer, prompt, settled)


def _pieces(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: Prompt, settled: dict[str, Any]
) -> Iterator[str]:
    streamer, is_closed = _Tokens(), Event()

    def run() -> None:
        try:
            _generate(llm, tokenizer, [prompt], settled, streamer=streamer, is_closed=is_closed)
            streamer.queue.put(None)
        except BaseException as error:
            streamer.queue.put(error)

    thread = Thread(target=run, daemon=True)
    thread.start()
    ids: list[int] = []
    sent = ""
    try:
        while (token := streamer.queue.get()) is not None:
            if isinstance(token, BaseException):
                raise token
            ids.append(token)
            # A character may take several tokens, and the next one may change how the last bytes are read.
            n_ready = len(ids)
            while n_ready and _is_byte(tokenizer, ids[n_ready - 1]):
                n_ready -= 1
            text = _text(tokenizer, ids[:n_ready], settled["eos_token_id"]).rstrip("�").rstrip()
            if len(text) > len(sent) and text.startswith(sent):
                yield text[len(sent) :]
                sent = text
        if rest := _text(tokenizer, ids, settled["eos_token_id"])[len(sent) :]:
            yield rest
    finally:
        is_closed.set()
        thread.join()


def _settled(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, given: dict[str, Any]
) -> dict[str, Any]:
    """What generate is told: greedy unless sampling is asked for, ended as the model's own config says."""
    known = {name for name in vars(GenerationConfig()) if not name.startswith(("_", "output_"))}
    for name in given:
        if name not in (known | _CALLABLES) - _NOT_OURS:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close and close[0] != name else "leave it out"
            raise RequestError(
                f"{name!r} is no option of an answer, expected one of transformers' generate such as"
                f" max_new_tokens or temperature: {hint}"
            )
    for name in ("max_new_tokens", "max_length"):
        value = given.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise RequestError(f"{name} is {value!r}, expected a whole number of at least 1")
    options = {"max_new_tokens": MAX_NEW_TOKENS, **given}
    if "max_length" in given:  # beside max_new_tokens it has no say, as in transformers
        options["max_new_tokens" if "max_new_tokens" not in given else "max_length"] = None
    samples = options.setdefault(
        "do_sample", given.get("temperature") != 0 and any(given.get(name) is not None for name in _SAMPLING)
    )
    if not samples:  # a model's own defaults for sampling are none of greedy decoding's business
        options |= dict.fromkeys(_SAMPLING)
    if options.get("eos_token_id") is None:
        own = llm.generation_config.eos_token_id
        options["eos_token_id"] = tokenizer.eos_token_id if own is None else own
    end = options["eos_token_id"]
    if end is not None:  # whatever fills up a finished row is cut off with its end
        options["pad_token_id"] = end[0] if isinstance(end, list) else end
    elif options.get("pad_token_id") is None:
        own, other = llm.generation_config.pad_token_id, tokenizer.pad_token_id
        options["pad_token_id"] = own if own is not None else other if other is not None else 0
    return options


@torch.inference_mode()
def _generate(
    llm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    settled: dict[str, Any],
    *,
    streamer: BaseStreamer | None = None,
    is_closed: Event | None = None,
) -> list[list[int]]:
    """The new ids of each prompt's answer, with whatever fills the row up behind its end."""
    limit = _check_context(llm, prompts, settled.get("max_length"))
    if limit is not None and settled["max_new_tokens"] is None:  # max_length, without the padding of a batch
        shortest = min(len(prompt.ids) for prompt in prompts)
        settled = {**settled, "max_length": None, "max_new_tokens": limit - shortest}
    batch = pad_left(prompts)
    n_prompt = batch.ids.shape[1]
    bounds = _Bounds(n_prompt, batch.mask.sum(1), limit, is_closed or Event())
    criteria = StoppingCriteriaList([*(settled.get("stopping_criteria") or ()), bounds])
    try:
        ids = llm.generate(  # ty: ignore[not-callable]
            input_ids=batch.ids,
            inputs_embeds=batch.embeds,
            attention_mask=batch.mask,
            tokenizer=tokenizer,
            streamer=streamer,
            **{**settled, "stopping_criteria": criteria},
        )
    except (ValueError, TypeError, NotImplementedError) as error:
        given = {name: value for name, value in settled.items() if value is not None}
        raise RequestError(
            f"the LLM cannot generate with {given}: {' '.join(str(error).split())}; change these options"
        ) from error
    return ids[:, n_prompt:].tolist()


def _check_context(llm: PreTrainedModel, prompts: Sequence[Prompt], max_length: int | None) -> int | None:
    """The longest sequence of prompt and answer, if there is one, which leaves every prompt room for an answer."""
    context = getattr(llm.config.get_text_config(decoder=True), "max_position_embeddings", None)
    limit = min((bound for bound in (context, max_length) if bound is not None), default=None)
    longest = max(len(prompt.ids) for prompt in prompts)
    if limit is not None and longest >= limit:
        raise RequestError(
            f"the conversation takes {longest} tokens, but with its answer it may have at most {limit}"
            f" ({'max_length' if limit == max_length else 'the context of the LLM'}): send fewer or shorter turns"
        )
    return limit


def _text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], end: int | list[int] | None) -> str:
    """The words of an answer up to its end, without control tokens and outer white space."""
    ends = set(end) if isinstance(end, list) else {end}
    n = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    return str(tokenizer.decode(list(ids[:n]), skip_special_tokens=True)).strip()


def _is_byte(tokenizer: PreTrainedTokenizerBase, token: int) -> bool:
    """Whether a token is one of sentencepiece's bytes, which stand for characters it has no token for."""
    return re.fullmatch("<0x[0-9A-F]{2}>", str(tokenizer.convert_ids_to_tokens(token))) is not None


class _Bounds(StoppingCriteria):
    """Ends each row where the LLM's context does, and all of them when nobody listens any more."""

    def __init__(self, n_prompt: int, n_own: Int[Tensor, " B"], limit: int | None, is_closed: Event) -> None:
        self.n_prompt, self.n_own, self.limit, self.is_closed = n_prompt, n_own, limit, is_closed

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Bool[Tensor, " N"]:
        """Whether each row is finished; with beams, a prompt has several rows."""
        if self.limit is None or self.is_closed.is_set():
            return torch.full((len(input_ids),), self.is_closed.is_set(), device=input_ids.device)
        n_own = self.n_own.repeat_interleave(len(input_ids) // len(self.n_own))
        return n_own + input_ids.shape[1] - self.n_prompt >= self.limit


class _Tokens(BaseStreamer):
    """Hands new ids over one by one as they are made; then None, or the exception that ended it."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[int | BaseException | None] = SimpleQueue()
        self.is_begun = False

    def put(self, value: Tensor) -> None:
        """Takes the next id; what comes first is the prompt."""
        if self.is_begun:
            self.queue.put(int(value.item()))
        self.is_begun = True

    def end(self) -> None:
        """Nothing to do: the thread that generates says when it is over."""
