"""Scores given answers by their likelihood under an LLM, in one pass and without generation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ossicle.backbones.causal_lm import compute_logits, embed
from ossicle.chat.generation import Prompt, check_context
from ossicle.errors import RequestError


@dataclass(frozen=True)
class ContinuationScores:
    """The LLM's predictions after a prompt, and after each token of a given answer."""

    states: Float[Tensor, "A D"]
    """Final hidden states, after the last norm, at the positions that predict the answer's tokens: the first is the
    prompt's last."""
    greedy_ids: Int[Tensor, " A"]
    """The likeliest token at each of these positions."""
    first_logits: Float[Tensor, " V"]
    """The logits of the answer's first token."""


@torch.inference_mode()
def compute_answer_states(
    llm: PreTrainedModel, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]]
) -> list[Float[Tensor, "_ D"]]:
    """Returns the LLM's final hidden states, after its last norm, that predict the tokens of given answers.

    The first is the prompt's last, the next that of the answer's first token, and so on: as many states as the answer
    has tokens, the last of which is not read; for an empty answer, the prompt's last alone. Rows are padded on the
    right, where a causal LM does not look, so that each gets the states that it gets alone.

    Args:
        answers: ids, for each prompt

    Raises:
        RequestError: a prompt with its answer exceeds the LLM's context
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
    output: Any = llm.base_model(
        inputs_embeds=pad_sequence(rows, batch_first=True),
        attention_mask=mask.long().to(rows[0].device),
        use_cache=False,
    )
    return [
        states[n - max(len(ids), 1) : n]
        for states, n, ids in zip(output.last_hidden_state, lengths, answers, strict=True)
    ]


@torch.inference_mode()
def score_continuation(
    llm: PreTrainedModel, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]]
) -> list[ContinuationScores]:
    """Returns what the LLM predicts after each prompt, and after each token of an answer that is given.

    Args:
        answers: ids, for each prompt; see `compute_answer_states`

    Raises:
        RequestError: a prompt with its answer exceeds the LLM's context
    """
    scores = []
    for states in compute_answer_states(llm, prompts, answers):
        logits = compute_logits(llm, states)  # (A, V), of one answer at a time
        scores.append(ContinuationScores(states, logits.argmax(-1), logits[0].clone()))
    return scores


@torch.inference_mode()
def choose(
    llm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    choices: Sequence[str],
) -> list[int]:
    """Returns, for each prompt, the number of the choice that the LLM most likely begins its answer with.

    Of equally likely choices the first is returned. The score of a choice is the sum of the log-probabilities of its
    tokens, whatever follows. It is not the mean over tokens: that is for sentences of different lengths, and would
    favor a word for being split into several tokens, of which all but the first are nearly certain. Every tokenization
    in which an answer may begin with the word counts (after a space, as sentencepiece writes it, or without), and
    tokens that continue into a longer choice count for that one alone.

    Args:
        choices: label words such as "happy" and "sad", in the case that the LLM is asked to answer in

    Raises:
        RequestError: no choices, an empty one, two that are alike, or a prompt that exceeds the LLM's context

    Source: label words ranked by likelihood, Brown et al., arXiv 2005.14165, section 2.4.
    """
    choice_of = _tokenize_choices(tokenizer, choices)
    if not prompts:
        return []
    scores = torch.full((len(choices), len(prompts)), -torch.inf, dtype=torch.float64)
    log_p = _compute_log_probabilities(llm, prompts, list(choice_of))
    for ids, score in _subtract_longer(log_p).items():
        scores[choice_of[ids]] = scores[choice_of[ids]].logaddexp(score)
    return [max(range(len(row)), key=row.__getitem__) for row in scores.T.tolist()]


def _tokenize_choices(
    tokenizer: PreTrainedTokenizerBase, choices: Sequence[str]
) -> dict[tuple[int, ...], int]:
    """Returns the ids that an answer may begin with, and the number of the choice that each stands for."""
    words = [choice.strip() for choice in choices]
    if not words:
        raise RequestError("choices is empty, expected one word or more, such as 'happy' and 'sad'")
    choice_of: dict[tuple[int, ...], int] = {}
    for number, word in enumerate(words):
        if not word:
            raise RequestError(f"choices[{number}] is {choices[number]!r}, expected a word")
        variants = (
            _tokenize(tokenizer, word),
            _tokenize(tokenizer, f" {word}"),
            _tokenize_at_line_start(tokenizer, word),
        )
        for ids in filter(None, variants):
            other = choice_of.setdefault(ids, number)
            if other != number:
                raise RequestError(
                    f"choices[{other}] and choices[{number}], {choices[other]!r} and {choices[number]!r}, are the same"
                    " tokens to the LLM, expected words that differ: leave one out"
                )
    return choice_of


def _tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _tokenize_at_line_start(tokenizer: PreTrainedTokenizerBase, word: str) -> tuple[int, ...]:
    """Returns a word's ids after a line break, where sentencepiece puts no space; none if it merges with the break."""
    line_break, both = _tokenize(tokenizer, "\n"), _tokenize(tokenizer, f"\n{word}")
    return both[len(line_break) :] if both[: len(line_break)] == line_break else ()


def _compute_log_probabilities(
    llm: PreTrainedModel, prompts: Sequence[Prompt], sequences: Sequence[tuple[int, ...]]
) -> dict[tuple[int, ...], Float[Tensor, " B"]]:
    """Returns the log-probability that an answer begins with each sequence of ids; shared beginnings are read once."""
    steps: dict[tuple[int, ...], Tensor] = {}  # of a sequence's last id, given those before it
    for ids in sorted(sequences, key=len, reverse=True):
        if ids in steps:
            continue
        states = torch.stack(compute_answer_states(llm, prompts, [ids] * len(prompts)))  # (B, A, D)
        for n in range(len(ids)):
            logits = compute_logits(llm, states[:, n]).float()  # (B, V), at one position at a time
            log_p = logits.log_softmax(-1).double().cpu()
            nexts = {other[: n + 1] for other in sequences if len(other) > n and other[:n] == ids[:n]}
            steps |= {start: log_p[:, start[n]] for start in nexts}
    return {ids: sum((steps[ids[: n + 1]] for n in range(1, len(ids))), steps[ids[:1]]) for ids in sequences}


def _subtract_longer(
    log_p: dict[tuple[int, ...], Float[Tensor, " B"]],
) -> dict[tuple[int, ...], Float[Tensor, " B"]]:
    """Returns the log-probabilities without the part that continues into a longer sequence: exclusive events."""
    longer: dict[tuple[int, ...], list[Tensor]] = {ids: [] for ids in log_p}
    for ids, own in log_p.items():
        starts = [other for other in log_p if len(other) < len(ids) and other == ids[: len(other)]]
        if starts:
            longer[max(starts, key=len)].append(own)
    exclusive = dict(log_p)
    for ids in filter(longer.get, log_p):
        ratio = (torch.stack(longer[ids]).logsumexp(0) - log_p[ids]).exp()
        exclusive[ids] = log_p[ids] + torch.log1p(-ratio.clamp(max=1))
    return exclusive
