"""LLMs that keep more than keys and values are run as they can be: answers never depend on the way or on the batch."""

from typing import Any

import pytest
import torch
from support.tiny_families import FAMILIES, tiny_llm
from support.tiny_hybrids import GEMMA4, HYBRIDS, tiny_hybrid
from support.tiny_prompts import build_prompts
from support.tiny_tokenizers import tiny_tokenizer
from transformers import PreTrainedModel

from ossicle.backbones.causal_lm import (
    CACHE_NAME,
    compute_logits,
    embed,
    extract_causal_lm,
    get_input_embeddings,
)
from ossicle.backbones.embeds_check import check_reads_embeddings
from ossicle.backbones.llm_traits import LlmTraits, find_traits
from ossicle.chat import generation
from ossicle.chat.generation import Prompt
from ossicle.errors import CheckpointError
from ossicle.serving.continuous_batch import supports_continuous_batching
from ossicle.serving.single_sequence import SingleSequence, can_use_cache

TRAITS = {
    "falcon_h1": LlmTraits("substitute", is_batchable=True),
    "openai-gpt": LlmTraits("substitute", is_batchable=True),
    "rwkv": LlmTraits("generate", is_batchable=False),
    "minimax": LlmTraits("generate", is_batchable=False),
}
N_NEW = 5


@torch.inference_mode()
def recompute(llm: Any, prompt: Prompt) -> list[int]:
    """Returns the greedy tokens by one forward without a cache for each, up to token 0."""
    embeds, tokens = prompt.embeds[None], list[int]()
    for _ in range(N_NEW):
        tokens.append(int(llm(inputs_embeds=embeds, use_cache=False).logits[0, -1].argmax()))
        embeds = torch.cat([embeds, embed(llm, [tokens[-1:]])], 1)
    return tokens[: tokens.index(0) + 1] if 0 in tokens else tokens


@pytest.mark.parametrize("family", HYBRIDS)
def test_hybrids_answer_as_a_forward_without_a_cache_does(family: str) -> None:
    llm, tokenizer = tiny_hybrid(family), tiny_tokenizer("qwen2")
    check_reads_embeddings(family, llm)
    assert find_traits(llm) == TRAITS.get(family, LlmTraits("generate", is_batchable=True))
    llm.generation_config.eos_token_id = [0]
    prompts = build_prompts(llm, tokenizer)
    expected = [recompute(llm, prompt) for prompt in prompts]
    options: dict[str, Any] = {"max_new_tokens": N_NEW}
    assert generation.generate_answer_ids(llm, tokenizer, prompts, **options) == expected
    text = generation.generate_answers(llm, tokenizer, prompts[:1], **options)[0]
    assert "".join(generation.stream_answer(llm, tokenizer, prompts[0], **options)) == text
    if family != "rwkv":  # whose states cannot be put in another order
        assert generation.generate_answers(llm, tokenizer, prompts[:1], num_beams=2, **options)


@pytest.mark.parametrize("family", HYBRIDS)
def test_hybrids_are_served_one_at_a_time(family: str) -> None:
    llm = tiny_hybrid(family)
    prompt = build_prompts(llm, tiny_tokenizer("qwen2"))[0]
    assert not supports_continuous_batching(llm)
    uses_cache = can_use_cache(llm)
    assert uses_cache == (family not in ("rwkv", "minimax", "openai-gpt"))
    batch = SingleSequence(llm, uses_cache=uses_cache)
    for _ in range(2):  # a row that was evicted leaves nothing behind
        tokens = [int(batch.add([prompt.embeds]).argmax())]
        while len(tokens) < N_NEW:
            tokens.append(int(batch.step(tokens[-1:]).argmax()))
        assert tokens == recompute(llm, prompt)
        assert len(batch) == 1
        batch.evict({0})
        assert len(batch) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_usual_families_generate_in_batches(family: str) -> None:
    llm = extract_causal_lm(tiny_llm(family)[0])
    assert find_traits(llm) == LlmTraits("generate", is_batchable=True)
    check_reads_embeddings(family, llm)


def test_an_llm_whose_cache_is_wrong_is_computed_again_for_each_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    llm, tokenizer = tiny_llm("llama")
    prompts = build_prompts(llm, tokenizer)
    expected = [recompute(llm, prompt) for prompt in prompts]
    forward = llm.base_model.forward

    def erase_cache(**inputs: Any) -> Any:
        cache = inputs.get(CACHE_NAME)
        for layer in cache.layers if cache and cache.get_seq_length() else ():
            layer.values = torch.zeros_like(layer.values)
        return forward(**inputs)

    monkeypatch.setattr(llm.base_model, "forward", erase_cache)
    assert find_traits(llm) == LlmTraits("recompute", is_batchable=False)
    llm.generation_config.eos_token_id = 0
    options: dict[str, Any] = {"max_new_tokens": N_NEW}
    assert generation.generate_answer_ids(llm, tokenizer, prompts, **options) == expected
    assert generation.generate_answers(llm, tokenizer, prompts, num_beams=2, **options)


def test_the_generation_config_of_an_llm_does_not_change_what_is_found() -> None:
    llm = tiny_llm("llama")[0]
    llm.generation_config.update(
        num_beams=3, min_new_tokens=9, cache_implementation="quantized", do_sample=True
    )
    assert find_traits(llm) == LlmTraits("generate", is_batchable=True)


def test_an_llm_that_looks_up_ids_by_equality_is_refused() -> None:
    with pytest.raises(CheckpointError, match="looks up which token an embedding is"):
        check_reads_embeddings("gemma4_text", tiny_hybrid("gemma4_text", GEMMA4))


@pytest.mark.parametrize("looks_up", ["nearest", "equal or none"])
def test_an_llm_that_looks_up_ids_silently_is_refused(looks_up: str, monkeypatch: pytest.MonkeyPatch) -> None:
    llm: PreTrainedModel = tiny_llm("llama")[0]
    table = get_input_embeddings(llm).weight
    per_id = torch.randn(table.shape, generator=torch.Generator().manual_seed(0))
    forward = llm.base_model.forward

    def add_by_id(**inputs: Any) -> Any:
        embeds = inputs.pop("inputs_embeds", None)
        if embeds is None:
            embeds = embed(llm, inputs.pop("input_ids"))
        inputs.pop("input_ids", None)
        distances = torch.cdist(embeds, table)
        ids = distances.argmin(-1)
        is_token = distances.amin(-1, keepdim=True) < (1e9 if looks_up == "nearest" else 1e-6)
        return forward(inputs_embeds=embeds + 0.5 * per_id[ids] * is_token, **inputs)

    monkeypatch.setattr(llm.base_model, "forward", add_by_id)
    with pytest.raises(CheckpointError, match="looks up which token an embedding is"):
        check_reads_embeddings("tiny", llm)


def test_logits_that_no_formula_gives_are_those_of_the_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = tiny_llm("llama")[0]
    original = type(llm).forward

    def scale(self: Any, **inputs: Any) -> Any:
        output = original(self, **inputs)
        output.logits = output.logits / 24
        return output

    states = llm.base_model(input_ids=torch.tensor([[1, 2, 3], [3, 2, 1]])).last_hidden_state
    expected = compute_logits(llm, states) / 24
    monkeypatch.setattr(type(llm), "forward", scale)
    check_reads_embeddings("tiny", llm)
    torch.testing.assert_close(compute_logits(llm, states), expected)
    torch.testing.assert_close(compute_logits(llm, states[:, -1]), expected[:, -1])
