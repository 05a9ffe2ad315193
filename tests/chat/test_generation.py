"""Answers to prompts made of embeddings: equal to transformers' own, for all options, batches and tokenizers."""

import logging
from typing import Any

import pytest
import torch
from support.tiny_models import tiny_llama
from support.tiny_prompts import TEXTS, build_prompt, build_prompts
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ossicle.chat import generation
from ossicle.chat.generation import Prompt
from ossicle.errors import RequestError


def generate_with_transformers(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: torch.Tensor, **options: Any
) -> str:
    """Returns transformers' answer to the ids alone."""
    settings = {"do_sample": False, "max_new_tokens": 10, "pad_token_id": 0, **options}
    output = llm.generate(  # ty: ignore[not-callable]
        input_ids=ids[None], attention_mask=torch.ones_like(ids[None]), tokenizer=tokenizer, **settings
    )
    return str(tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True)).strip()


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
def test_answers_equal_those_of_transformers_alone_and_in_a_batch(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: dict[str, Any]
) -> None:
    prompts = build_prompts(llm, tokenizer)
    expected = [generate_with_transformers(llm, tokenizer, prompt.ids, **options) for prompt in prompts]
    given = {"max_new_tokens": 10, **options}
    if given["max_new_tokens"] is None:
        del given["max_new_tokens"]
    assert generation.generate_answers(llm, tokenizer, prompts, **given) == expected
    assert [
        generation.generate_answers(llm, tokenizer, [prompt], **given)[0] for prompt in prompts
    ] == expected
    if "num_beams" not in options:
        assert "".join(generation.stream_answer(llm, tokenizer, prompts[0], **given)) == expected[0]


def test_the_repetition_penalty_of_the_generation_config_counts_the_prompt(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """As in Qwen's generation configs; without the prompt's ids only new tokens would be penalized."""
    prompts = build_prompts(llm, tokenizer)
    plain = generation.generate_answers(llm, tokenizer, prompts, max_new_tokens=10)
    llm.generation_config.repetition_penalty = 2.0
    expected = [generate_with_transformers(llm, tokenizer, prompt.ids) for prompt in prompts]
    assert generation.generate_answers(llm, tokenizer, prompts, max_new_tokens=10) == expected != plain


def generate_first_ids(llm: PreTrainedModel, prompt: Prompt, n: int) -> list[int]:
    output = llm.generate(  # ty: ignore[not-callable]
        input_ids=prompt.ids[None],
        attention_mask=torch.ones_like(prompt.ids[None]),
        max_new_tokens=n,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return output[0, len(prompt.ids) :].tolist()


@pytest.mark.parametrize("pad_token_id", [None, 70])
def test_each_of_several_eos_ids_ends_an_answer_and_padding_is_never_decoded(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pad_token_id: int | None
) -> None:
    """70 is a word of the tokenizer, as the padding ids of some published models are."""
    prompts = build_prompts(llm, tokenizer)
    llm.generation_config.eos_token_id = [
        generate_first_ids(llm, prompts[0], 4)[3],
        generate_first_ids(llm, prompts[1], 9)[8],
    ]
    llm.generation_config.pad_token_id = pad_token_id
    together = generation.generate_answers(llm, tokenizer, prompts, max_new_tokens=10)
    assert together == [
        generation.generate_answers(llm, tokenizer, [prompt], max_new_tokens=10)[0] for prompt in prompts
    ]
    before = str(tokenizer.decode(generate_first_ids(llm, prompts[0], 3), skip_special_tokens=True)).strip()
    assert together[0] == before


def test_a_model_without_eos_id_uses_the_tokenizers(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    prompts = build_prompts(llm, tokenizer)
    expected = generation.generate_answers(llm, tokenizer, prompts, max_new_tokens=10)
    llm.generation_config.eos_token_id = None
    assert generation.generate_answers(llm, tokenizer, prompts, max_new_tokens=10) == expected


def test_greedy_decoding_ignores_the_sampling_defaults_of_the_model_and_logs_nothing(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = build_prompts(llm, tokenizer)
    expected = [generate_with_transformers(llm, tokenizer, prompt.ids) for prompt in prompts]
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
        assert generation.generate_answers(llm, tokenizer, prompts, max_new_tokens=10) == expected
        assert (
            generation.generate_answers(llm, tokenizer, prompts, max_new_tokens=10, temperature=0) == expected
        )
    finally:
        logger.removeHandler(caplog.handler)
    assert not caplog.records


@pytest.mark.parametrize("options", [{"do_sample": True}, {"temperature": 5.0}, {"top_p": 0.99}])
def test_sampled_answers_equal_those_of_transformers(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: dict[str, Any]
) -> None:
    prompt = build_prompt(llm, tokenizer, TEXTS[0])
    torch.manual_seed(3)
    expected = generate_with_transformers(llm, tokenizer, prompt.ids, **{**options, "do_sample": True})
    torch.manual_seed(3)
    assert generation.generate_answers(llm, tokenizer, [prompt], max_new_tokens=10, **options) == [expected]
    assert expected != generate_with_transformers(llm, tokenizer, prompt.ids)


def test_a_sampled_stream_equals_the_answer(llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = build_prompt(llm, tokenizer, TEXTS[0])
    torch.manual_seed(3)
    expected = generation.generate_answers(llm, tokenizer, [prompt], max_new_tokens=10, temperature=2.0)[0]
    torch.manual_seed(3)
    assert (
        "".join(generation.stream_answer(llm, tokenizer, prompt, max_new_tokens=10, temperature=2.0))
        == expected
    )


def test_closing_a_stream_ends_its_generation(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    n_steps = 0

    def count(*args: Any) -> None:
        nonlocal n_steps
        n_steps += 1

    llm.generation_config.eos_token_id = 0
    handle = llm.register_forward_hook(count)
    pieces = generation.stream_answer(
        llm, tokenizer, build_prompt(llm, tokenizer, "hello"), max_new_tokens=200, bad_words_ids=[[0]]
    )
    next(pieces)
    pieces.close()  # ty: ignore[missing-attribute]
    handle.remove()
    assert 1 <= n_steps < 200


def test_no_prompts_give_no_answers(llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    assert generation.generate_answers(llm, tokenizer, []) == []


def test_answers_end_with_the_context_in_every_batch(tokenizer: PreTrainedTokenizerBase) -> None:
    llm = tiny_llama(tokenizer, max_position_embeddings=24)
    llm.generation_config.eos_token_id = 0
    prompts = build_prompts(llm, tokenizer)
    together = generation.generate_answers(llm, tokenizer, prompts[:2], bad_words_ids=[[0]])
    assert together == [
        generation.generate_answers(llm, tokenizer, [prompt], bad_words_ids=[[0]])[0]
        for prompt in prompts[:2]
    ]
    assert len(together[1]) > len(together[0])
    long = build_prompt(llm, tokenizer, TEXTS[2] * 4)
    with pytest.raises(RequestError, match=r"at most 24 \(the context of the LLM\)"):
        generation.generate_answers(llm, tokenizer, [prompts[1], long])
    with pytest.raises(RequestError, match=r"at most 24 \(the context of the LLM\)"):
        generation.stream_answer(llm, tokenizer, long)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 5}, "'max_tokens' is not an option of generation.*did you mean 'max_new_tokens'"),
        ({"voice": None}, "'voice' is not an option"),
        ({"labels": 1}, "'labels' is not an option"),
        ({"inputs_embeds": 1}, "'inputs_embeds' is not an option"),
        ({"num_return_sequences": 2}, "'num_return_sequences' is not an option"),
        ({"return_dict_in_generate": True}, "'return_dict_in_generate' is not an option"),
        ({"output_scores": True}, "'output_scores' is not an option"),
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
def test_invalid_options_raise_an_error_of_one_line(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: dict[str, Any], message: str
) -> None:
    prompt = build_prompt(llm, tokenizer, TEXTS[0])
    with pytest.raises(RequestError, match=message) as caught:
        generation.generate_answers(llm, tokenizer, [prompt], **options)
    assert "\n" not in str(caught.value)
    with pytest.raises(RequestError, match=message):
        list(generation.stream_answer(llm, tokenizer, prompt, **options))


def test_beams_cannot_be_streamed(llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(RequestError, match="beam"):
        list(generation.stream_answer(llm, tokenizer, build_prompt(llm, tokenizer, "hello"), num_beams=2))


def test_answer_ids_are_the_tokens_of_the_text_and_its_end(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    prompts = build_prompts(llm, tokenizer)
    first = generate_first_ids(llm, prompts[0], 4)
    llm.generation_config.eos_token_id = [first[3], 0]
    texts = generation.generate_answers(llm, tokenizer, prompts, max_new_tokens=10)
    ids = generation.generate_answer_ids(llm, tokenizer, prompts, max_new_tokens=10)
    assert ids[0] == first
    assert ids == [
        generation.generate_answer_ids(llm, tokenizer, [prompt], max_new_tokens=10)[0] for prompt in prompts
    ]
    for text, row in zip(texts, ids, strict=True):
        text_ids = [token for token in row if token not in (first[3], 0)]
        assert text == str(tokenizer.decode(text_ids, skip_special_tokens=True)).strip()
        assert row[:-1] == text_ids[: len(row) - 1]
    assert generation.generate_answer_ids(llm, tokenizer, []) == []


def test_answer_ids_hold_no_padding_beyond_the_context(tokenizer: PreTrainedTokenizerBase) -> None:
    """The padding of a row that ends with the context is no end of sequence."""
    llm = tiny_llama(tokenizer, max_position_embeddings=24)
    llm.generation_config.eos_token_id = 0
    prompts = build_prompts(llm, tokenizer)[:2]
    rows = generation.generate_answer_ids(llm, tokenizer, prompts, min_new_tokens=100)
    assert [len(row) for row in rows] == [24 - len(prompt.ids) for prompt in prompts]


@pytest.mark.parametrize(
    "own",
    [
        {"return_dict_in_generate": True, "output_scores": True, "output_logits": True},
        {"output_hidden_states": True, "output_attentions": True},
        {"num_return_sequences": 3, "num_beams": 3},
        {"num_return_sequences": 2, "do_sample": True},
        {"eos_token_id": []},
        {"eos_token_id": ["</s>"]},
        {"eos_token_id": -1, "pad_token_id": -1},
        {"eos_token_id": 2.5, "pad_token_id": []},
        {"cache_implementation": "quantized", "cache_config": {"backend": "quanto", "nbits": 4}},
        {"cache_implementation": "offloaded"},
        {"cache_implementation": "offloaded_static"},
        {"cache_implementation": "static"},
        {"use_cache": False},
        {"prompt_lookup_num_tokens": 3},
        {"assistant_early_exit": 1},
        {"prefill_chunk_size": 2},
        {"token_healing": True},
        {"compile_config": {"dynamic": True}},
        {"max_length": 3, "min_length": 1},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"temperature": 0.0, "top_k": 0, "do_sample": True},
        {"transformers_version": "9.9.9", "some_field": [1]},
    ],
    ids=str,
)
def test_whatever_the_own_generation_config_says_an_answer_is_given(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, own: dict[str, Any]
) -> None:
    prompts = build_prompts(llm, tokenizer)
    beams = {"num_beams": own["num_beams"]} if "num_beams" in own else {}
    expected = generation.generate_answers(llm, tokenizer, prompts, max_new_tokens=6, **beams)
    for name, value in own.items():
        setattr(llm.generation_config, name, value)
    assert generation.generate_answers(llm, tokenizer, prompts, max_new_tokens=6) == expected
    assert "".join(generation.stream_answer(llm, tokenizer, prompts[0], max_new_tokens=6)) == expected[0]


@pytest.mark.parametrize(
    "own",
    [
        {"num_beam_groups": 2, "num_beams": 2, "diversity_penalty": 1.0},
        {"dola_layers": "high"},
        {"force_words_ids": [[5]], "num_beams": 2},
        {"repetition_penalty": "much"},
        {"repetition_penalty": -1.0},
        {"num_beams": "three"},
        {"sequence_bias": 3},
        {"min_length": "a"},
        {"max_time": "soon"},
    ],
    ids=str,
)
def test_an_own_generation_config_that_cannot_be_used_is_named_in_one_line(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, own: dict[str, Any]
) -> None:
    for name, value in own.items():
        setattr(llm.generation_config, name, value)
    with pytest.raises(RequestError, match="its own generation_config") as caught:
        generation.generate_answers(llm, tokenizer, build_prompts(llm, tokenizer), max_new_tokens=6)
    assert "\n" not in str(caught.value)
    assert next(iter(own)) in str(caught.value)
