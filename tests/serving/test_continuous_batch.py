"""Rows of a continuous batch give transformers' own tokens, in every family and whatever is added or evicted."""

import random
from typing import Any

import pytest
import torch
from support.tiny_families import FAMILIES, tiny_llm

from ossicle.backbones.causal_lm import CACHE_NAME, embed
from ossicle.chat.sampling import SamplingSettings, TokenSampler
from ossicle.serving.continuous_batch import ContinuousBatch, supports_continuous_batching
from ossicle.serving.single_sequence import SingleSequence, can_use_cache


def draw_prompt_ids(seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(3, 60) for _ in range(rng.randrange(2, 20))]


def generate_alone(llm: Any, ids: list[int], n: int) -> list[int]:
    """Returns the tokens of transformers' generate for one prompt."""
    prompt = torch.tensor(ids)[None]
    output = llm.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=n, do_sample=False, pad_token_id=0
    )
    return output[0, len(ids) :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_are_added_and_evicted_give_the_same_tokens_as_alone(family: str) -> None:
    llm, _ = tiny_llm(family)
    llm.generation_config.eos_token_id = None
    rng = random.Random(family)
    batch, tokens = ContinuousBatch(llm), dict[int, list[int]]()
    running, waiting, n_tokens = list[int](), list(range(7)), {row: 3 + 2 * row for row in range(7)}
    while running or waiting:
        if running:
            for row, logits in zip(running, batch.step([tokens[row][-1] for row in running]), strict=True):
                tokens[row].append(int(logits.argmax()))
        added = [waiting.pop() for _ in range(min(len(waiting), rng.randrange(3)))]
        if added:
            first_logits = batch.add([embed(llm, draw_prompt_ids(row)) for row in added])
            running += added
            tokens |= {row: [int(logits.argmax())] for row, logits in zip(added, first_logits, strict=True)}
        is_finished = [len(tokens[row]) >= n_tokens[row] for row in running]
        batch.evict({index for index, finished in enumerate(is_finished) if finished})
        running = [row for row, finished in zip(running, is_finished, strict=True) if not finished]
    assert tokens == {row: generate_alone(llm, draw_prompt_ids(row), n) for row, n in n_tokens.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_supports_continuous_batching(family: str) -> None:
    assert supports_continuous_batching(tiny_llm(family)[0])


def test_evicting_a_row_frees_its_padding() -> None:
    llm, _ = tiny_llm("llama")
    batch = ContinuousBatch(llm)
    batch.add([embed(llm, [5] * 30), embed(llm, [5] * 4)])
    assert batch.cache.get_seq_length() == 30
    batch.evict({0})
    assert (len(batch), batch.cache.get_seq_length()) == (1, 4)
    batch.evict({0})
    assert (len(batch), batch.cache.get_seq_length()) == (0, 0)
    assert len(batch.add([embed(llm, [5, 6])])) == 1


def test_an_llm_whose_rows_depend_on_each_other_does_not_support_it(monkeypatch: pytest.MonkeyPatch) -> None:
    llm, _ = tiny_llm("llama")
    forward = llm.base_model.forward

    def mix_rows(**inputs: Any) -> Any:
        output = forward(**inputs)
        output.last_hidden_state = output.last_hidden_state + output.last_hidden_state.mean(0, keepdim=True)
        return output

    monkeypatch.setattr(llm.base_model, "forward", mix_rows)
    assert not supports_continuous_batching(llm)


def test_an_llm_whose_cache_is_wrong_is_served_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    llm, _ = tiny_llm("llama")
    forward = llm.base_model.forward

    def erase_cache(**inputs: Any) -> Any:
        cache = inputs.get(CACHE_NAME)
        for layer in cache.layers if cache else ():
            layer.values = torch.zeros_like(layer.values)
        return forward(**inputs)

    monkeypatch.setattr(llm.base_model, "forward", erase_cache)
    assert not supports_continuous_batching(llm)
    assert not can_use_cache(llm)
    batch, prompt = SingleSequence(llm, uses_cache=False), draw_prompt_ids(3)
    tokens = [int(batch.add([embed(llm, prompt)]).argmax())]
    while len(tokens) < 5:
        tokens.append(int(batch.step(tokens[-1:]).argmax()))
    monkeypatch.undo()
    assert tokens == generate_alone(llm, prompt, 5)


def test_the_model_s_repetition_penalty_applies_as_in_generate() -> None:
    llm, _ = tiny_llm("llama")
    llm.generation_config.top_k = 2
    llm.generation_config.repetition_penalty = 1.5
    llm.generation_config.eos_token_id = None
    prompt = draw_prompt_ids(3)
    batch, sampler = ContinuousBatch(llm), TokenSampler(llm, SamplingSettings(), prompt)
    logits = batch.add([embed(llm, prompt)])
    tokens = [sampler.sample(logits[0])]
    while len(tokens) < 8:
        tokens.append(sampler.sample(batch.step([tokens[-1]])[0]))
    output: Any = llm.generate(  # ty: ignore[not-callable]
        torch.tensor([prompt]), max_new_tokens=8, do_sample=False, top_k=None, pad_token_id=0
    )
    assert tokens == output[0, len(prompt) :].tolist()
