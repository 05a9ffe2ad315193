"""Answers from prompts made of embeddings: transformers' own, whatever the options, batch and tokenizer.

And what the LLM makes of answers that are given to it, beside a plain pass over all ids.
"""

import logging
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from support.tiny_families import FAMILIES, tiny_llm
from support.tiny_models import tiny_llama
from support.tiny_tokenizers import tiny_tokenizer
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ossicle.backbones.causal_lm import embed
from ossicle.backbones.pretrained import load_llm
from ossicle.chat import choice_scoring, generation
from ossicle.chat.generation import Prompt
from ossicle.errors import RequestError

TEXTS = ("what is the capital of france?", "hello", "the cat sat on the mat. answer in spanish, please.")


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return tiny_tokenizer("llama")


@pytest.fixture
def llm(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """One of its own for each test, which may change its generation config."""
    return tiny_llama(tokenizer, seed=8)


def prompt_of(llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> Prompt:
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
    return Prompt(embed(llm, ids), ids)


def prompts_of(llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    return [prompt_of(llm, tokenizer, text) for text in TEXTS]


def own_answer(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: torch.Tensor, **options: Any
) -> str:
    """What transformers makes of the ids, alone."""
    settings = {"do_sample": False, "max_new_tokens": 10, "pad_token_id": 0, **options}
    made = llm.generate(  # ty: ignore[not-callable]
        input_ids=ids[None], attention_mask=torch.ones_like(ids[None]), tokenizer=tokenizer, **settings
    )
    return str(tokenizer.decode(made[0, len(ids) :], skip_special_tokens=True)).strip()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 2},
        {"stop_strings": ["a"]},
        {"num_beams": 2},
        {"min_new_tokens": 5},
        {"bad_words_ids": [[70]]},
        {"max_length": 24, "max_new_tokens": None},
    ],
    ids=str,
)
def test_answers_are_transformers_own_alone_and_in_a_batch(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: dict[str, Any]
) -> None:
    prompts = prompts_of(llm, tokenizer)
    own = [own_answer(llm, tokenizer, prompt.ids, **options) for prompt in prompts]
    given = {"max_new_tokens": 10, **options}
    if given["max_new_tokens"] is None:
        del given["max_new_tokens"]
    assert generation.generate_answers(llm, tokenizer, prompts, **given) == own
    assert [generation.generate_answers(llm, tokenizer, [prompt], **given)[0] for prompt in prompts] == own
    if "num_beams" not in options:
        assert "".join(generation.stream_answer(llm, tokenizer, prompts[0], **given)) == own[0]


def test_a_penalty_of_the_model_s_own_reaches_the_prompt(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """As Qwen's generation configs have it; without the prompt's ids only new tokens would be penalised."""
    prompts = prompts_of(llm, tokenizer)
    plain = generation.generate_answers(llm, tokenizer, prompts, max_new_tokens=10)
    llm.generation_config.repetition_penalty = 2.0
    own = [own_answer(llm, tokenizer, prompt.ids) for prompt in prompts]
    assert generation.generate_answers(llm, tokenizer, prompts, max_new_tokens=10) == own != plain


def first_ids(llm: PreTrainedModel, prompt: Prompt, n: int) -> list[int]:
    made = llm.generate(  # ty: ignore[not-callable]
        input_ids=prompt.ids[None],
        attention_mask=torch.ones_like(prompt.ids[None]),
        max_new_tokens=n,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return made[0, len(prompt.ids) :].tolist()


@pytest.mark.parametrize("pad_token_id", [None, 70])
def test_any_end_of_a_list_ends_an_answer_and_padding_is_never_read(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pad_token_id: int | None
) -> None:
    """70 is a word of the tokenizer, as the padding ids of some published models are."""
    prompts = prompts_of(llm, tokenizer)
    llm.generation_config.eos_token_id = [first_ids(llm, prompts[0], 4)[3], first_ids(llm, prompts[1], 9)[8]]
    llm.generation_config.pad_token_id = pad_token_id
    together = generation.generate_answers(llm, tokenizer, prompts, max_new_tokens=10)
    assert together == [
        generation.generate_answers(llm, tokenizer, [prompt], max_new_tokens=10)[0] for prompt in prompts
    ]
    before = str(tokenizer.decode(first_ids(llm, prompts[0], 3), skip_special_tokens=True)).strip()
    assert together[0] == before


def test_a_model_that_names_no_end_has_the_tokenizer_s(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    prompts = prompts_of(llm, tokenizer)
    own = generation.generate_answers(llm, tokenizer, prompts, max_new_tokens=10)
    llm.generation_config.eos_token_id = None
    assert generation.generate_answers(llm, tokenizer, prompts, max_new_tokens=10) == own


def test_greedy_is_greedy_and_silent_whatever_the_model_s_sampling_defaults(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = prompts_of(llm, tokenizer)
    own = [own_answer(llm, tokenizer, prompt.ids) for prompt in prompts]
    llm.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.6,
        top_p=0.9,
        top_k=5,
        min_p=0.1,
        typical_p=0.5,
        eos_token_id=tokenizer.eos_token_id,
    )
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        assert generation.generate_answers(llm, tokenizer, prompts, max_new_tokens=10) == own
        assert generation.generate_answers(llm, tokenizer, prompts, max_new_tokens=10, temperature=0) == own
    finally:
        logger.removeHandler(caplog.handler)
    assert not caplog.records


@pytest.mark.parametrize("options", [{"do_sample": True}, {"temperature": 5.0}, {"top_p": 0.99}])
def test_sampling_is_transformers_own(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: dict[str, Any]
) -> None:
    prompt = prompt_of(llm, tokenizer, TEXTS[0])
    torch.manual_seed(3)
    own = own_answer(llm, tokenizer, prompt.ids, **{**options, "do_sample": True})
    torch.manual_seed(3)
    assert generation.generate_answers(llm, tokenizer, [prompt], max_new_tokens=10, **options) == [own]
    assert own != own_answer(llm, tokenizer, prompt.ids)


def test_a_sampled_stream_is_an_answer(llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = prompt_of(llm, tokenizer, TEXTS[0])
    torch.manual_seed(3)
    own = generation.generate_answers(llm, tokenizer, [prompt], max_new_tokens=10, temperature=2.0)[0]
    torch.manual_seed(3)
    assert (
        "".join(generation.stream_answer(llm, tokenizer, prompt, max_new_tokens=10, temperature=2.0)) == own
    )


@pytest.mark.parametrize("family", ["mistral", "gemma", "phi3", "llama", "qwen2"])
def test_streamed_pieces_join_to_the_whole_for_every_kind_of_tokenizer(family: str) -> None:
    """Random answers are full of broken characters and stray spaces, which decoders join differently."""
    llm, tokenizer = tiny_llm(family)
    prompt = prompt_of(llm, tokenizer, "hello there")
    torch.manual_seed(5)
    own = generation.generate_answers(llm, tokenizer, [prompt], max_new_tokens=40, temperature=1.5)[0]
    torch.manual_seed(5)
    pieces = list(generation.stream_answer(llm, tokenizer, prompt, max_new_tokens=40, temperature=1.5))
    assert "".join(pieces) == own
    assert len(pieces) > 5
    assert all(pieces)


def test_a_stream_that_nobody_reads_any_more_ends(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    n_steps = 0

    def count(*args: Any) -> None:
        nonlocal n_steps
        n_steps += 1

    llm.generation_config.eos_token_id = 0
    handle = llm.register_forward_hook(count)
    pieces = generation.stream_answer(
        llm, tokenizer, prompt_of(llm, tokenizer, "hello"), max_new_tokens=200, bad_words_ids=[[0]]
    )
    next(pieces)
    pieces.close()  # ty: ignore[missing-attribute]
    handle.remove()
    assert 1 <= n_steps < 200


def test_no_prompts_no_answers(llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    assert generation.generate_answers(llm, tokenizer, []) == []


def test_answers_end_where_the_context_does_in_every_batch(tokenizer: PreTrainedTokenizerBase) -> None:
    llm = tiny_llama(tokenizer, max_position_embeddings=24)
    llm.generation_config.eos_token_id = 0
    prompts = prompts_of(llm, tokenizer)
    together = generation.generate_answers(llm, tokenizer, prompts[:2], bad_words_ids=[[0]])
    assert together == [
        generation.generate_answers(llm, tokenizer, [prompt], bad_words_ids=[[0]])[0]
        for prompt in prompts[:2]
    ]
    assert len(together[1]) > len(together[0])
    long = prompt_of(llm, tokenizer, TEXTS[2] * 4)
    with pytest.raises(RequestError, match=r"at most 24 \(the context of the LLM\)"):
        generation.generate_answers(llm, tokenizer, [prompts[1], long])
    with pytest.raises(RequestError, match=r"at most 24 \(the context of the LLM\)"):
        generation.stream_answer(llm, tokenizer, long)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 5}, "'max_tokens' is no option of an answer.*did you mean 'max_new_tokens'"),
        ({"voice": None}, "'voice' is no option"),
        ({"labels": 1}, "'labels' is no option"),
        ({"inputs_embeds": 1}, "'inputs_embeds' is no option"),
        ({"num_return_sequences": 2}, "'num_return_sequences' is no option"),
        ({"return_dict_in_generate": True}, "'return_dict_in_generate' is no option"),
        ({"output_scores": True}, "'output_scores' is no option"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0, expected a whole number of at least 1"),
        ({"max_new_tokens": -3}, "max_new_tokens is -3"),
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5"),
        ({"max_new_tokens": "many"}, "max_new_tokens is 'many'"),
        ({"max_new_tokens": True}, "max_new_tokens is True"),
        ({"max_length": 0}, "max_length is 0"),
        ({"max_length": 2}, r"it may have at most 2 \(max_length\)"),
        ({"do_sample": True, "temperature": 0.0}, "cannot generate with .*strictly positive"),
        ({"temperature": -1.0}, "cannot generate with .*strictly positive"),
        ({"temperature": "hot"}, "cannot generate with"),
    ],
    ids=str,
)
def test_options_that_cannot_be_are_one_clear_line(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: dict[str, Any], message: str
) -> None:
    prompt = prompt_of(llm, tokenizer, TEXTS[0])
    with pytest.raises(RequestError, match=message) as caught:
        generation.generate_answers(llm, tokenizer, [prompt], **options)
    assert "\n" not in str(caught.value)
    with pytest.raises(RequestError, match=message):
        list(generation.stream_answer(llm, tokenizer, prompt, **options))


def test_beams_cannot_be_streamed(llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(RequestError, match="beam"):
        list(generation.stream_answer(llm, tokenizer, prompt_of(llm, tokenizer, "hello"), num_beams=2))


# The tokens of an answer


def test_the_tokens_of_an_answer_are_those_of_its_text_and_its_end(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    prompts = prompts_of(llm, tokenizer)
    first = first_ids(llm, prompts[0], 4)
    llm.generation_config.eos_token_id = [first[3], 0]
    texts = generation.generate_answers(llm, tokenizer, prompts, max_new_tokens=10)
    ids = generation.generate_answer_ids(llm, tokenizer, prompts, max_new_tokens=10)
    assert ids[0] == first
    assert ids == [
        generation.generate_answer_ids(llm, tokenizer, [prompt], max_new_tokens=10)[0] for prompt in prompts
    ]
    for text, row in zip(texts, ids, strict=True):
        said = [token for token in row if token not in (first[3], 0)]
        assert text == str(tokenizer.decode(said, skip_special_tokens=True)).strip()
        assert row[:-1] == said[: len(row) - 1]
    assert generation.generate_answer_ids(llm, tokenizer, []) == []


def test_no_token_is_counted_as_said_beyond_the_context(tokenizer: PreTrainedTokenizerBase) -> None:
    """What fills a row up that ends where the context does is no end that the LLM came to."""
    llm = tiny_llama(tokenizer, max_position_embeddings=24)
    llm.generation_config.eos_token_id = 0
    prompts = prompts_of(llm, tokenizer)[:2]
    rows = generation.generate_answer_ids(llm, tokenizer, prompts, min_new_tokens=100)
    assert [len(row) for row in rows] == [24 - len(prompt.ids) for prompt in prompts]


# Along an answer that is given

ANSWERS = ([5, 9, 20], [], [7, 8, 9, 7, 8, 9, 7, 8, 9, 3], [4])


def language_llm(family: str, folder: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """As an ear has it: of a model that also sees, the LLM alone."""
    model, tokenizer = tiny_llm(family)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_llm(str(folder), None, torch.device("cpu"))


@pytest.mark.parametrize("family", FAMILIES)
def test_states_along_an_answer_are_those_of_a_plain_pass_alone_and_in_a_batch(
    family: str, tmp_path: Any
) -> None:
    llm, tokenizer = language_llm(family, tmp_path)
    prompts = [*prompts_of(llm, tokenizer), prompt_of(llm, tokenizer, "why?")]
    together = choice_scoring.compute_answer_states(llm, prompts, ANSWERS)
    reactions = choice_scoring.score_continuation(llm, prompts, ANSWERS)
    for prompt, ids, states, reaction in zip(prompts, ANSWERS, together, reactions, strict=True):
        alone = choice_scoring.compute_answer_states(llm, [prompt], [ids])[0]
        torch.testing.assert_close(states, alone, rtol=0, atol=1e-5)
        whole = torch.cat([prompt.ids, torch.tensor(ids, dtype=torch.long)])[None]
        with torch.no_grad():
            plain = llm(input_ids=whole, output_hidden_states=True)
        n, n_states = len(prompt.ids), max(len(ids), 1)
        predicting = slice(n - 1, n - 1 + n_states)
        torch.testing.assert_close(states, plain.hidden_states[-1][0, predicting], rtol=0, atol=1e-5)
        assert len(states) == n_states
        torch.testing.assert_close(reaction.states, states)
        torch.testing.assert_close(reaction.first_logits, plain.logits[0, n - 1], rtol=0, atol=1e-4)
        assert reaction.greedy_ids.tolist() == plain.logits[0, predicting].argmax(-1).tolist()


def test_along_its_own_greedy_answer_the_likeliest_tokens_are_the_answer(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    prompts = prompts_of(llm, tokenizer)
    own = generation.generate_answer_ids(llm, tokenizer, prompts, max_new_tokens=10)
    assert [
        reaction.greedy_ids.tolist() for reaction in choice_scoring.score_continuation(llm, prompts, own)
    ] == own


def test_no_logits_of_a_whole_prompt_are_ever_computed(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows: list[int] = []
    head: Any = llm.get_output_embeddings()
    handle = head.register_forward_hook(lambda module, given, logits: rows.append(logits[..., 0].numel()))
    prompts = prompts_of(llm, tokenizer)
    choice_scoring.score_continuation(llm, prompts, ANSWERS[:3])
    choice_scoring.choose(llm, tokenizer, prompts, ["the cat", "the cat sat", "why"])
    handle.remove()
    assert max(rows) == len(ANSWERS[2]) < sum(len(prompt.ids) for prompt in prompts)


def test_an_answer_that_leaves_the_context_cannot_be_followed(tokenizer: PreTrainedTokenizerBase) -> None:
    llm = tiny_llama(tokenizer, max_position_embeddings=24)
    prompt = prompt_of(llm, tokenizer, "hello")
    fits = 24 - len(prompt.ids)
    assert len(choice_scoring.compute_answer_states(llm, [prompt], [[5] * fits])[0]) == fits
    with pytest.raises(RequestError, match=r"at most 24 \(the context of the LLM\)"):
        choice_scoring.compute_answer_states(llm, [prompt], [[5] * (fits + 1)])
    assert choice_scoring.compute_answer_states(llm, [], []) == []


# Which of some words


def spellings(tokenizer: PreTrainedTokenizerBase, word: str) -> set[tuple[int, ...]]:
    """The ids of a word at the beginning of a text, after a space, and at the beginning of a line."""

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    line = ids("\n")
    assert ids(f"\n{word}")[: len(line)] == line
    return {ids(word), ids(f" {word}"), ids(f"\n{word}")[len(line) :]}


def probability(llm: PreTrainedModel, prompt: Prompt, ids: Sequence[int]) -> float:
    """That an answer begins with these ids: a plain pass over all of them, in float64."""
    whole = torch.cat([prompt.ids, torch.tensor(ids)])[None]
    with torch.no_grad():
        logits = llm(input_ids=whole).logits[0, len(prompt.ids) - 1 : -1].double()
    return float(logits.log_softmax(-1)[torch.arange(len(ids)), list(ids)].sum().exp())


EQUAL = ["sat", "mat"]
WORDS = ("yes", "no", "hello", "the cat", "spanish", "please", "why", "the cat sat", "Paris")


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "gemma", "phi3", "gpt2"])
def test_the_chosen_word_is_the_likeliest_beginning_however_it_is_spelt(family: str) -> None:
    llm, tokenizer = tiny_llm(family)
    prompts = [prompt_of(llm, tokenizer, text) for text in (*TEXTS, "why?", "The old man said: yes.")]
    spelt = {word: spellings(tokenizer, word) for word in WORDS}
    chosen = []
    for prompt in prompts:
        scores = {word: sum(probability(llm, prompt, ids) for ids in spelt[word]) for word in WORDS}
        # An answer that begins with "the cat sat" does not stop at "the cat".
        scores["the cat"] -= sum(
            probability(llm, prompt, ids)
            for ids in spelt["the cat sat"]
            if any(ids[: len(begun)] == begun for begun in spelt["the cat"])
        )
        chosen.append(max(range(len(WORDS)), key=lambda number: scores[WORDS[number]]))
    assert choice_scoring.choose(llm, tokenizer, prompts, WORDS) == chosen
    assert [choice_scoring.choose(llm, tokenizer, [prompt], WORDS)[0] for prompt in prompts] == chosen
    assert len(set(chosen)) > 1


def biased(llm: PreTrainedModel, *ids: Sequence[int]) -> None:
    """Makes each group of tokens e³ times as likely as the group before it, and all others next to impossible."""
    bias = torch.zeros(llm.config.vocab_size)
    for number, group in enumerate(ids):
        bias[list(group)] = 60.0 + 3 * number
    head: Any = llm.get_output_embeddings()
    head.weight.zero_()
    head.bias = torch.nn.Parameter(bias, requires_grad=False)


def test_a_word_that_another_begins_with_is_chosen_only_where_it_ends(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """By its tokens alone the shorter one would always be the likelier."""
    words = ["the cat", "the cat sat"]
    short, long = (tuple(tokenizer(word, add_special_tokens=False)["input_ids"]) for word in words)
    assert long[: len(short)] == short
    prompts = prompts_of(llm, tokenizer)[:1]
    biased(llm, short, long[len(short) :])
    assert choice_scoring.choose(llm, tokenizer, prompts, words) == [1]
    biased(llm, long[len(short) :], short)
    assert choice_scoring.choose(llm, tokenizer, prompts, words) == [0]


def test_of_equal_words_the_first_is_chosen(llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    head: Any = llm.get_output_embeddings()
    head.weight.zero_()
    prompts = prompts_of(llm, tokenizer)
    assert [sorted(map(len, spellings(tokenizer, word))) for word in EQUAL] == [[1, 2]] * 2
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
def test_words_that_cannot_be_chosen_from(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, choices: list[str], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        choice_scoring.choose(llm, tokenizer, prompts_of(llm, tokenizer), choices)
