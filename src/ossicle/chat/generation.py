"""From prompts made of embeddings to answers, through transformers' own generate; it knows nothing of sound.

Answers are cut at their first end of sequence and limited row by row, so that none depends on its batch.
"""

import difflib
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

from ossicle.backbones.causal_lm import get_eos_ids, to_id_list
from ossicle.backbones.embeds_generation import generate_from_embeds
from ossicle.backbones.generation_defaults import list_own_defaults, with_own_defaults
from ossicle.backbones.llm_traits import find_traits
from ossicle.backbones.model_files import format_one_line
from ossicle.chat.incremental_text import IncrementalDetokenizer, count_until_eos, decode_answer
from ossicle.errors import ContextLengthError, RequestError

MAX_NEW_TOKENS = 256
"""Default limit on the length of an answer, in tokens."""
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
_CALLABLES = {"logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn"}
# These would change what is returned: one text for each conversation.
_EXCLUDED = {"num_return_sequences", "return_dict_in_generate", "transformers_version", "prefill_chunk_size"}


@dataclass(frozen=True)
class Prompt:
    """The input of the LLM, position by position."""

    embeds: Float[Tensor, "L D"]
    ids: Int[Tensor, " L"]
    """The ids that generate counts for penalties and stop strings; audio tokens count as the prompt's first id."""


@dataclass(frozen=True)
class _Batch:
    """Prompts padded on the left."""

    embeds: Float[Tensor, "B L D"]
    ids: Int[Tensor, "B L"]
    mask: Int[Tensor, "B L"]


def pad_left(prompts: Sequence[Prompt]) -> _Batch:
    """Returns prompts of different lengths as one batch, padded on the left.

    Padding repeats a prompt's first id, which penalties on repeated tokens count once anyway; the usual
    padding id would be one more token that is penalized.
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


def generate_answers(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], **options: Any
) -> list[str]:
    """Returns the LLM's answer to each prompt, greedy by default.

    Args:
        options: for transformers' `generate`, such as max_new_tokens, do_sample, temperature, stop_strings;
            one that only sampling has, such as a temperature above 0, turns sampling on

    Raises:
        RequestError: an option that generate does not know or use, or a prompt that exceeds the LLM's context
    """
    if not prompts:
        return []
    resolved = _resolve_options(llm, tokenizer, options)
    eos_ids = to_id_list(resolved["eos_token_id"])
    rows = _generate_all(llm, tokenizer, prompts, resolved)
    return [decode_answer(tokenizer, row, eos_ids) for row in rows]


def generate_answer_ids(
    llm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    streamer: BaseStreamer | None = None,
    **options: Any,
) -> list[list[int]]:
    """Returns the tokens of the same answers, including the end of sequence where the LLM came to an end.

    Args:
        streamer: is given the tokens of a single prompt's answer while they are generated

    Raises:
        RequestError: as `generate_answers`
    """
    if not prompts:
        return []
    resolved = _resolve_options(llm, tokenizer, options)
    eos_ids = to_id_list(resolved["eos_token_id"])
    rows = _generate_all(llm, tokenizer, prompts, resolved, streamer)
    return [row[: count_until_eos(row, eos_ids) + 1] for row in rows]


def stream_answer(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: Prompt, **options: Any
) -> Iterator[str]:
    """Returns the same answer in pieces while it is generated; joined, they equal the text of `generate_answers`.

    An iterator that is closed early ends the generation.

    Raises:
        RequestError: as `generate_answers`; errors that only generate itself finds come with the first piece
    """
    resolved = _resolve_options(llm, tokenizer, options)
    check_context(llm, len(prompt.ids), resolved.get("max_length"))
    own_n_beams = llm.generation_config.num_beams
    if "num_beams" not in options and isinstance(own_n_beams, int) and own_n_beams > 1:
        return iter(
            generate_answers(llm, tokenizer, [prompt], **options)
        )  # beams have no tokens before their end
    return _stream_pieces(llm, tokenizer, prompt, resolved)


def _stream_pieces(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: Prompt, resolved: dict[str, Any]
) -> Iterator[str]:
    streamer, is_closed = _TokenStreamer(), Event()

    def run() -> None:
        try:
            _generate(llm, tokenizer, [prompt], resolved, streamer=streamer, is_closed=is_closed)
            streamer.queue.put(None)
        except BaseException as error:
            streamer.queue.put(error)

    thread = Thread(target=run, daemon=True)
    thread.start()
    detokenizer = IncrementalDetokenizer(tokenizer, to_id_list(resolved["eos_token_id"]))
    try:
        while (token := streamer.queue.get()) is not None:
            if isinstance(token, BaseException):
                raise token
            if piece := detokenizer.add(token):
                yield piece
        if rest := detokenizer.flush():
            yield rest
    finally:
        is_closed.set()
        thread.join()


def _resolve_options(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, given: dict[str, Any]
) -> dict[str, Any]:
    """Returns the options for generate: greedy unless sampling is asked for, with the LLM's own end of sequence."""
    _check_options(given)
    options = {"max_new_tokens": MAX_NEW_TOKENS, **given}
    if "max_length" in given:  # max_new_tokens has precedence, as in transformers
        options["max_new_tokens" if "max_new_tokens" not in given else "max_length"] = None
    does_sample = options.setdefault(
        "do_sample", given.get("temperature") != 0 and any(given.get(name) is not None for name in _SAMPLING)
    )
    if not does_sample:  # greedy decoding must not get a model's own defaults for sampling
        options |= dict.fromkeys(_SAMPLING)
    if options.get("eos_token_id") is None:
        options["eos_token_id"] = get_eos_ids(llm, tokenizer) or None
    elif not to_id_list(options["eos_token_id"]):
        raise RequestError(
            f"eos_token_id is {options['eos_token_id']!r}, expected the id of a token, or several"
        )
    if eos_ids := to_id_list(
        options["eos_token_id"]
    ):  # the padding of a finished row is cut off with its end
        options["pad_token_id"] = eos_ids[0]
    elif options.get("pad_token_id") is None:
        candidates = (llm.generation_config.pad_token_id, tokenizer.pad_token_id, 0)
        options["pad_token_id"] = next(ids[0] for ids in map(to_id_list, candidates) if ids)
    return options


def _check_options(given: dict[str, Any]) -> None:
    known = {name for name in vars(GenerationConfig()) if not name.startswith(("_", "output_"))}
    for name in given:
        if name not in (known | _CALLABLES) - _EXCLUDED:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close and close[0] != name else "leave it out"
            raise RequestError(
                f"{name!r} is not an option of generation, expected one of transformers' generate such as"
                f" max_new_tokens or temperature: {hint}"
            )
    for name in ("max_new_tokens", "max_length"):
        value = given.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise RequestError(f"{name} is {value!r}, expected a whole number of at least 1")


def _generate_all(
    llm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    resolved: dict[str, Any],
    streamer: BaseStreamer | None = None,
) -> list[list[int]]:
    """Returns `_generate` in one batch, or one prompt at a time if the LLM computes a padded row in another way."""
    if len(prompts) == 1 or find_traits(llm).is_batchable:
        return _generate(llm, tokenizer, prompts, resolved, streamer=streamer)
    for prompt in prompts:
        check_context(llm, len(prompt.ids), resolved.get("max_length"))
    return [row for prompt in prompts for row in _generate(llm, tokenizer, [prompt], resolved)]


@torch.inference_mode()
def _generate(
    llm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    resolved: dict[str, Any],
    *,
    streamer: BaseStreamer | None = None,
    is_closed: Event | None = None,
) -> list[list[int]]:
    """Returns the new ids of each prompt's answer, including any padding behind its end."""
    lengths = [len(prompt.ids) for prompt in prompts]
    limit = check_context(llm, max(lengths), resolved.get("max_length"))
    if limit is not None and resolved["max_new_tokens"] is None:  # max_length, without the padding of a batch
        resolved = {**resolved, "max_length": None, "max_new_tokens": limit - min(lengths)}
    batch = pad_left(prompts)
    n_prompt = batch.ids.shape[1]
    row_limits = _RowLimits(n_prompt, batch.mask.sum(1), limit, is_closed or Event())
    criteria = StoppingCriteriaList([*(resolved.get("stopping_criteria") or ()), row_limits])
    try:
        ids = generate_from_embeds(
            with_own_defaults(llm),
            find_traits(llm).decoding,
            ids=batch.ids,
            embeds=batch.embeds,
            mask=batch.mask,
            tokenizer=tokenizer,
            streamer=streamer,
            **{**resolved, "stopping_criteria": criteria},
        )
    except Exception as error:  # an option of the request or of the LLM's own config may fail in any way
        used = {name: value for name, value in resolved.items() if value is not None}
        own = list_own_defaults(llm)
        where = f" and {own} of its own generation_config.json" if own else ""
        raise RequestError(
            f"the LLM cannot generate with {used}{where}: {format_one_line(error)}; change these options"
        ) from error
    rows = ids[:, n_prompt:].tolist()
    return rows if limit is None else [row[: limit - n] for row, n in zip(rows, lengths, strict=True)]


def check_context(llm: PreTrainedModel, longest: int, max_length: int | None = None) -> int | None:
    """Returns the limit on prompt and answer together, in tokens, or None; it leaves room for at least one token.

    Args:
        longest: tokens of the longest prompt

    Raises:
        ContextLengthError: the longest prompt leaves no room for an answer
    """
    context = getattr(llm.config.get_text_config(decoder=True), "max_position_embeddings", None)
    limit = min((bound for bound in (context, max_length) if bound is not None), default=None)
    if limit is not None and longest >= limit:
        raise ContextLengthError(
            f"the conversation takes {longest} tokens, but with its answer it may have at most {limit}"
            f" ({'max_length' if limit == max_length else 'the context of the LLM'}): send fewer or shorter turns"
        )
    return limit


class _RowLimits(StoppingCriteria):
    """Ends each row at the limit of the LLM's context, and all of them when the caller has closed the stream."""

    def __init__(
        self, n_prompt: int, n_unpadded: Int[Tensor, " B"], limit: int | None, is_closed: Event
    ) -> None:
        self.n_prompt, self.n_unpadded, self.limit, self.is_closed = n_prompt, n_unpadded, limit, is_closed

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Bool[Tensor, " N"]:
        """Whether each row is finished; with beams, a prompt has several rows."""
        if self.limit is None or self.is_closed.is_set():
            return torch.full((len(input_ids),), self.is_closed.is_set(), device=input_ids.device)
        n_unpadded = self.n_unpadded.repeat_interleave(len(input_ids) // len(self.n_unpadded))
        return n_unpadded + input_ids.shape[1] - self.n_prompt >= self.limit


class _TokenStreamer(BaseStreamer):
    """Puts new ids into a queue one by one; the last entry is None or the exception that ended generation."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[int | BaseException | None] = SimpleQueue()
        self.has_prompt = False

    def put(self, value: Tensor) -> None:
        """Takes the next id; the first call brings the prompt."""
        if self.has_prompt:
            self.queue.put(int(value.item()))
        self.has_prompt = True

    def end(self) -> None:
        """Does nothing: the generating thread itself puts the last entry."""
