"""From prompts made of embeddings to answers, through transformers' own generate; it knows nothing of sound.

Answers are cut at their first end of sequence and limited row by row, so that none depends on its batch. What the LLM
makes of an answer that is given to it, and which of several it finds likeliest, is read off its states in one pass.
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
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from ossicle.backbones.causal_lm import compute_logits, embed
from ossicle.errors import RequestError

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
class ContinuationScores:
    """What the LLM makes of a prompt, and of an answer to it that is given."""

    states: Float[Tensor, "A D"]
    """Final hidden states, after the last norm, where the answer's tokens are predicted: first the prompt's last."""
    greedy_ids: Int[Tensor, " A"]
    """The token that the LLM would say there."""
    first_logits: Float[Tensor, " V"]
    """Of the answer's first token."""


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


def generate_answers(
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


def generate_answer_ids(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], **options: Any
) -> list[list[int]]:
    """The tokens of the same answers, with the one that ends it where the LLM came to an end.

    Raises:
        RequestError: as `answer`
    """
    if not prompts:
        return []
    settled = _settled(llm, tokenizer, options)
    rows = _generate(llm, tokenizer, prompts, settled)
    return [row[: _n_said(row, settled["eos_token_id"]) + 1] for row in rows]


def stream_answer(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: Prompt, **options: Any
) -> Iterator[str]:
    """The same answer, piece by piece while it is made; joined, the pieces equal `answer`'s text.

    An iterator that is closed early ends the generation.

    Raises:
        RequestError: as `answer`; for what only generate itself finds out, when the first piece is asked for
    """
    settled = _settled(llm, tokenizer, options)
    check_context(llm, len(prompt.ids), settled.get("max_length"))
    return _pieces(llm, tokenizer, prompt, settled)


@torch.inference_mode()
def compute_answer_states(
    llm: PreTrainedModel, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]]
) -> list[Float[Tensor, "_ D"]]:
    """The LLM's final hidden states, after its last norm, where the tokens of a given answer are predicted.

    The first is the prompt's last, the next that of the answer's first token, and so on: as many states as the answer
    has tokens, of which the last is not read; for an empty answer, the prompt's last alone. Rows are padded behind
    their end, where nobody looks, so that a causal LM gives each what it gives it alone.

    Args:
        answers: ids, for each prompt

    Raises:
        RequestError: a prompt with its answer goes beyond the LLM's context
    """
    if not prompts:
        return []
    rows = [
        torch.cat([prompt.embeds, embed(llm, list(ids[:-1])).to(prompt.embeds.dtype)])
        for prompt, ids in zip(prompts, answers, strict=True)
    ]
    lengths = [len(row) for row in rows]
    check_context(llm, max(lengths))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    read: Any = llm.base_model(
        inputs_embeds=pad_sequence(rows, batch_first=True),
        attention_mask=mask.long().to(rows[0].device),
        use_cache=False,
    )
    return [
        states[n - max(len(ids), 1) : n]
        for states, n, ids in zip(read.last_hidden_state, lengths, answers, strict=True)
    ]


@torch.inference_mode()
def score_continuation(
    llm: PreTrainedModel, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]]
) -> list[ContinuationScores]:
    """What the LLM would say after each prompt, and after each token of an answer that is given.

    Args:
        answers: ids, for each prompt; see `follow`

    Raises:
        RequestError: a prompt with its answer goes beyond the LLM's context
    """
    reactions = []
    for states in compute_answer_states(llm, prompts, answers):
        logits = compute_logits(llm, states)  # (A, V), of one answer at a time
        reactions.append(ContinuationScores(states, logits.argmax(-1), logits[0].clone()))
    return reactions


@torch.inference_mode()
def choose(
    llm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    choices: Sequence[str],
) -> list[int]:
    """For each prompt, which of some words the LLM is likeliest to begin its answer with; of equals the first.

    A word's score is the log-probability of its tokens in a row, what follows it left open. That is a sum, not a mean
    over tokens: a mean is for sentences of different lengths, and would favour a word for being written in several
    tokens, of which all but the first are nearly certain. Each way in which an answer may begin with the word counts
    (after a space, as sentencepiece writes it, or without), and tokens that go on to a longer one of the words count
    for that one alone.

    Args:
        choices: label words such as "happy" and "sad", in the case that the LLM is asked to answer in

    Raises:
        RequestError: no choices, an empty one, two that are alike, or a prompt beyond the LLM's context

    Source: label words ranked by likelihood, Brown et al., arXiv 2005.14165, section 2.4.
    """
    chosen_by = _spellings(tokenizer, choices)
    if not prompts:
        return []
    scores = torch.full((len(choices), len(prompts)), -torch.inf, dtype=torch.float64)
    for ids, score in _apart(_log_probabilities(llm, prompts, list(chosen_by))).items():
        scores[chosen_by[ids]] = scores[chosen_by[ids]].logaddexp(score)
    return [max(range(len(row)), key=row.__getitem__) for row in scores.T.tolist()]


def _spellings(tokenizer: PreTrainedTokenizerBase, choices: Sequence[str]) -> dict[tuple[int, ...], int]:
    """The ids that an answer may begin with, and which choice is then made."""
    words = [choice.strip() for choice in choices]
    if not words:
        raise RequestError(
            "there is nothing to choose from: give one word or more, such as 'happy' and 'sad'"
        )
    chosen_by: dict[tuple[int, ...], int] = {}
    for number, word in enumerate(words):
        if not word:
            raise RequestError(f"choices[{number}] is {choices[number]!r}, expected a word")
        own = _ids_of(tokenizer, word), _ids_of(tokenizer, f" {word}"), _ids_in_line(tokenizer, word)
        for ids in filter(None, own):
            other = chosen_by.setdefault(ids, number)
            if other != number:
                raise RequestError(
                    f"choices[{other}] and choices[{number}], {choices[other]!r} and {choices[number]!r}, are the same"
                    " tokens to the LLM, expected words that differ: leave one out"
                )
    return chosen_by


def _ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _ids_in_line(tokenizer: PreTrainedTokenizerBase, word: str) -> tuple[int, ...]:
    """A word's ids at the beginning of a line, where sentencepiece puts no space; none if it merges with the break."""
    before, both = _ids_of(tokenizer, "\n"), _ids_of(tokenizer, f"\n{word}")
    return both[len(before) :] if both[: len(before)] == before else ()


def _log_probabilities(
    llm: PreTrainedModel, prompts: Sequence[Prompt], spellings: Sequence[tuple[int, ...]]
) -> dict[tuple[int, ...], Float[Tensor, " B"]]:
    """Of each row of ids, that an answer begins with it; a beginning that several share is read once."""
    steps: dict[tuple[int, ...], Tensor] = {}  # of a row's last id, given those before it
    for ids in sorted(spellings, key=len, reverse=True):
        if ids in steps:
            continue
        states = torch.stack(compute_answer_states(llm, prompts, [ids] * len(prompts)))  # (B, A, D)
        for n in range(len(ids)):
            logits = compute_logits(llm, states[:, n]).float()  # (B, V), at one position at a time
            log_p = logits.log_softmax(-1).double().cpu()
            nexts = {other[: n + 1] for other in spellings if len(other) > n and other[:n] == ids[:n]}
            steps |= {begun: log_p[:, begun[n]] for begun in nexts}
    return {ids: sum((steps[ids[: n + 1]] for n in range(1, len(ids))), steps[ids[:1]]) for ids in spellings}


def _apart(
    log_p: dict[tuple[int, ...], Float[Tensor, " B"]],
) -> dict[tuple[int, ...], Float[Tensor, " B"]]:
    """The same, without what goes on to a longer row among them, so that no two can be the case at once."""
    longer: dict[tuple[int, ...], list[Tensor]] = {ids: [] for ids in log_p}
    for ids, own in log_p.items():
        begun = [other for other in log_p if len(other) < len(ids) and other == ids[: len(other)]]
        if begun:
            longer[max(begun, key=len)].append(own)
    apart = dict(log_p)
    for ids in filter(longer.get, log_p):
        share = (torch.stack(longer[ids]).logsumexp(0) - log_p[ids]).exp()
        apart[ids] = log_p[ids] + torch.log1p(-share.clamp(max=1))
    return apart


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
    wording = IncrementalDetokenizer(tokenizer, settled["eos_token_id"])
    try:
        while (token := streamer.queue.get()) is not None:
            if isinstance(token, BaseException):
                raise token
            if piece := wording.add(token):
                yield piece
        if rest := wording.flush():
            yield rest
    finally:
        is_closed.set()
        thread.join()


class IncrementalDetokenizer:
    """An answer's words while its tokens come: the pieces, joined, are the text of `answer`.

    A character may take several tokens, and the next one may change how the last bytes are read: a piece holds what no
    further token can change.

    Args:
        end: ids that end an answer
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end: int | list[int] | None) -> None:
        self.tokenizer, self.end = tokenizer, end
        self.ids: list[int] = []
        self._told = ""

    def add(self, token: int) -> str:
        """What can be told now that another token is there; nothing, where it is not settled yet."""
        self.ids.append(token)
        n_ready = len(self.ids)
        while n_ready and _is_byte(self.tokenizer, self.ids[n_ready - 1]):
            n_ready -= 1
        text = _text(self.tokenizer, self.ids[:n_ready], self.end).rstrip("�").rstrip()
        if len(text) <= len(self._told) or not text.startswith(self._told):
            return ""
        piece, self._told = text[len(self._told) :], text
        return piece

    def flush(self) -> str:
        """What is left to tell when no token follows."""
        return _text(self.tokenizer, self.ids, self.end)[len(self._told) :]


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
        options["eos_token_id"] = end_of(llm, tokenizer)
    end = options["eos_token_id"]
    if end is not None:  # whatever fills up a finished row is cut off with its end
        options["pad_token_id"] = end[0] if isinstance(end, list) else end
    elif options.get("pad_token_id") is None:
        own, other = llm.generation_config.pad_token_id, tokenizer.pad_token_id
        options["pad_token_id"] = own if own is not None else other if other is not None else 0
    return options


def end_of(llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int | list[int] | None:
    """The ids that end an answer, as the model's own config says or else its tokenizer."""
    own = llm.generation_config.eos_token_id
    return tokenizer.eos_token_id if own is None else own


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
    lengths = [len(prompt.ids) for prompt in prompts]
    limit = check_context(llm, max(lengths), settled.get("max_length"))
    if limit is not None and settled["max_new_tokens"] is None:  # max_length, without the padding of a batch
        settled = {**settled, "max_length": None, "max_new_tokens": limit - min(lengths)}
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
    rows = ids[:, n_prompt:].tolist()
    return rows if limit is None else [row[: limit - n] for row, n in zip(rows, lengths, strict=True)]


def check_context(llm: PreTrainedModel, longest: int, max_length: int | None = None) -> int | None:
    """The longest sequence of prompt and answer, if there is one, which leaves the longest prompt room for a token.

    Raises:
        RequestError: it leaves none
    """
    context = getattr(llm.config.get_text_config(decoder=True), "max_position_embeddings", None)
    limit = min((bound for bound in (context, max_length) if bound is not None), default=None)
    if limit is not None and longest >= limit:
        raise RequestError(
            f"the conversation takes {longest} tokens, but with its answer it may have at most {limit}"
            f" ({'max_length' if limit == max_length else 'the context of the LLM'}): send fewer or shorter turns"
        )
    return limit


def _text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], end: int | list[int] | None) -> str:
    """The words of an answer up to its end, without control tokens and outer white space."""
    return str(tokenizer.decode(list(ids[: _n_said(ids, end)]), skip_special_tokens=True)).strip()


def _n_said(ids: Sequence[int], end: int | list[int] | None) -> int:
    """How many tokens stand before the first end."""
    ends = set(end) if isinstance(end, list) else {end}
    return next((i for i, token in enumerate(ids) if token in ends), len(ids))


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
