"""Scores of given answers and choices, against a plain pass over all ids."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from support.tiny_families import FAMILIES, tiny_llm
from support.tiny_models import tiny_llama
from support.tiny_prompts import TEXTS, build_prompt, build_prompts
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ossicle.backbones.pretrained import load_llm
from ossicle.chat import choice_scoring, generation
from ossicle.chat.generation import Prompt
from ossicle.errors import RequestError

ANSWERS = ([5, 9, 20], [], [7, 8, 9, 7, 8, 9, 7, 8, 9, 3], [4])


def load_causal_lm(family: str, folder: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Returns the LLM as an ear loads it: of a vision-language model, the LLM alone."""
    model, tokenizer = tiny_llm(family)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_llm(str(folder), None, torch.device("cpu"))


@pytest.mark.parametrize("family", FAMILIES)
def test_answer_states_equal_those_of_a_plain_pass_alone_and_in_a_batch(family: str, tmp_path: Any) -> None:
    llm, tokenizer = load_causal_lm(family, tmp_path)
    prompts = [*build_prompts(llm, tokenizer), build_prompt(llm, tokenizer, "why?")]
    together = choice_scoring.compute_answer_states(llm, prompts, ANSWERS)
    scores = choice_scoring.score_continuation(llm, prompts, ANSWERS)
    for prompt, ids, states, score in zip(prompts, ANSWERS, together, scores, strict=True):
        alone = choice_scoring.compute_answer_states(llm, [prompt], [ids])[0]
        torch.testing.assert_close(states, alone, rtol=0, atol=1e-5)
        whole = torch.cat([prompt.ids, torch.tensor(ids, dtype=torch.long)])[None]
        with torch.no_grad():
            plain = llm(input_ids=whole, output_hidden_states=True)
        n, n_states = len(prompt.ids), max(len(ids), 1)
        predicting = slice(n - 1, n - 1 + n_states)
        torch.testing.assert_close(states, plain.hidden_states[-1][0, predicting], rtol=0, atol=1e-5)
        assert len(states) == n_states
        torch.testing.assert_close(score.states, states)
        torch.testing.assert_close(score.first_logits, plain.logits[0, n - 1], rtol=0, atol=1e-4)
        assert score.greedy_ids.tolist() == plain.logits[0, predicting].argmax(-1).tolist()


def test_the_greedy_ids_along_the_greedy_answer_are_the_answer(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    prompts = build_prompts(llm, tokenizer)
    own = generation.generate_answer_ids(llm, tokenizer, prompts, max_new_tokens=10)
    assert [
        score.greedy_ids.tolist() for score in choice_scoring.score_continuation(llm, prompts, own)
    ] == own


def test_logits_are_computed_at_the_positions_of_answers_only(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows: list[int] = []
    head: Any = llm.get_output_embeddings()
    handle = head.register_forward_hook(lambda module, given, logits: rows.append(logits[..., 0].numel()))
    prompts = build_prompts(llm, tokenizer)
    choice_scoring.score_continuation(llm, prompts, ANSWERS[:3])
    choice_scoring.choose(llm, tokenizer, prompts, ["the cat", "the cat sat", "why"])
    handle.remove()
    assert max(rows) == len(ANSWERS[2]) < sum(len(prompt.ids) for prompt in prompts)


def test_an_answer_beyond_the_context_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    llm = tiny_llama(tokenizer, max_position_embeddings=24)
    prompt = build_prompt(llm, tokenizer, "hello")
    fits = 24 - len(prompt.ids)
    assert len(choice_scoring.compute_answer_states(llm, [prompt], [[5] * fits])[0]) == fits
    with pytest.raises(RequestError, match=r"at most 24 \(the context of the LLM\)"):
        choice_scoring.compute_answer_states(llm, [prompt], [[5] * (fits + 1)])
    assert choice_scoring.compute_answer_states(llm, [], []) == []


# Choices


def tokenize_variants(tokenizer: PreTrainedTokenizerBase, word: str) -> set[tuple[int, ...]]:
    """Returns the ids of a word at the beginning of a text, after a space, and at the beginning of a line."""

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    line = ids("\n")
    assert ids(f"\n{word}")[: len(line)] == line
    return {ids(word), ids(f" {word}"), ids(f"\n{word}")[len(line) :]}


def compute_probability(llm: PreTrainedModel, prompt: Prompt, ids: Sequence[int]) -> float:
    """Returns the probability that an answer begins with these ids, by a plain pass over all of them in float64."""
    whole = torch.cat([prompt.ids, torch.tensor(ids)])[None]
    with torch.no_grad():
        logits = llm(input_ids=whole).logits[0, len(prompt.ids) - 1 : -1].double()
    return float(logits.log_softmax(-1)[torch.arange(len(ids)), list(ids)].sum().exp())


EQUAL = ["sat", "mat"]
WORDS = ("yes", "no", "hello", "the cat", "spanish", "please", "why", "the cat sat", "Paris")


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "gemma", "phi3", "gpt2"])
def test_the_chosen_word_is_the_likeliest_beginning_in_any_tokenization(family: str) -> None:
    llm, tokenizer = tiny_llm(family)
    prompts = [build_prompt(llm, tokenizer, text) for text in (*TEXTS, "why?", "The old man said: yes.")]
    variants = {word: tokenize_variants(tokenizer, word) for word in WORDS}
    chosen = []
    for prompt in prompts:
        scores = {
            word: sum(compute_probability(llm, prompt, ids) for ids in variants[word]) for word in WORDS
        }
        # An answer that begins with "the cat sat" does not stop at "the cat".
        scores["the cat"] -= sum(
            compute_probability(llm, prompt, ids)
            for ids in variants["the cat sat"]
            if any(ids[: len(begun)] == begun for begun in variants["the cat"])
        )
        chosen.append(max(range(len(WORDS)), key=lambda number: scores[WORDS[number]]))
    assert choice_scoring.choose(llm, tokenizer, prompts, WORDS) == chosen
    assert [choice_scoring.choose(llm, tokenizer, [prompt], WORDS)[0] for prompt in prompts] == chosen
    assert len(set(chosen)) > 1


def set_bias(llm: PreTrainedModel, *ids: Sequence[int]) -> None:
    """Makes each group of tokens e³ times as likely as the group before it, and all others nearly impossible."""
    bias = torch.zeros(llm.config.vocab_size)
    for number, group in enumerate(ids):
        bias[list(group)] = 60.0 + 3 * number
    head: Any = llm.get_output_embeddings()
    head.weight.zero_()
    head.bias = torch.nn.Parameter(bias, requires_grad=False)


def test_a_choice_that_is_the_beginning_of_another_counts_only_where_it_ends(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """By its tokens alone the shorter one would always be likelier."""
    words = ["the cat", "the cat sat"]
    short, long = (tuple(tokenizer(word, add_special_tokens=False)["input_ids"]) for word in words)
    assert long[: len(short)] == short
    prompts = build_prompts(llm, tokenizer)[:1]
    set_bias(llm, short, long[len(short) :])
    assert choice_scoring.choose(llm, tokenizer, prompts, words) == [1]
    set_bias(llm, long[len(short) :], short)
    assert choice_scoring.choose(llm, tokenizer, prompts, words) == [0]


def test_the_first_of_equally_likely_choices_is_chosen(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    head: Any = llm.get_output_embeddings()
    head.weight.zero_()
    prompts = build_prompts(llm, tokenizer)
    assert [sorted(map(len, tokenize_variants(tokenizer, word))) for word in EQUAL] == [[1, 2]] * 2
    assert choice_scoring.choose(llm, tokenizer, prompts, EQUAL) == [0, 0, 0]
    assert choice_scoring.choose(llm, tokenizer, prompts, EQUAL[::-1]) == [0, 0, 0]
    assert choice_scoring.choose(llm, tokenizer, [], EQUAL) == []


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ([], "choices is empty, expected one word or more"),
        (["happy", " "], r"choices\[1\] is ' ', expected a word"),
        (["happy", "sad", " happy"], r"choices\[0\] and choices\[2\], 'happy' and ' happy', are the same"),
    ],
)
def test_invalid_choices_are_refused(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, choices: list[str], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        choice_scoring.choose(llm, tokenizer, build_prompts(llm, tokenizer), choices)
