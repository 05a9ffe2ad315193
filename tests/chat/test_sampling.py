"""The next token of an answer: seeds, top_p and the model's own generation config."""

from typing import Any

import torch
from support.tiny_families import tiny_llm

from ossicle.chat.sampling import SamplingSettings, TokenSampler


def sample_tokens(llm: Any, settings: SamplingSettings, n: int = 40) -> list[int]:
    sampler = TokenSampler(llm, settings, [3, 4])
    return [sampler.sample(torch.linspace(0, 3, 50)) for _ in range(n)]


def test_the_same_seed_samples_the_same_tokens_and_another_seed_others() -> None:
    llm, _ = tiny_llm("llama")
    settings = SamplingSettings(temperature=1.0, seed=3)
    first, same_seed = sample_tokens(llm, settings), sample_tokens(llm, settings)
    assert first == same_seed != sample_tokens(llm, SamplingSettings(temperature=1.0, seed=4))
    assert set(sample_tokens(llm, SamplingSettings())) == {49}


def test_a_temperature_that_is_too_small_to_divide_by_is_greedy() -> None:
    llm, _ = tiny_llm("llama")
    for temperature in (1e-39, 1e-300, 1e-6):
        assert set(sample_tokens(llm, SamplingSettings(temperature=temperature))) == {49}


def test_top_p_keeps_the_likeliest_tokens() -> None:
    llm, _ = tiny_llm("llama")
    probabilities = torch.linspace(0, 3, 50).softmax(0).flip(0)
    n_kept = int((probabilities.cumsum(0) < 0.2).sum()) + 1
    tokens = set(sample_tokens(llm, SamplingSettings(temperature=1.0, top_p=0.2), n=400))
    assert tokens == set(range(50 - n_kept, 50))
    assert set(sample_tokens(llm, SamplingSettings(temperature=1.0), n=400)) - tokens


def test_the_model_s_top_k_applies() -> None:
    llm, _ = tiny_llm("llama")
    llm.generation_config.top_k = 2
    assert set(sample_tokens(llm, SamplingSettings(temperature=5.0), n=100)) == {48, 49}


def test_top_k_and_min_p_keep_the_likeliest_tokens() -> None:
    llm, _ = tiny_llm("llama")
    assert set(sample_tokens(llm, SamplingSettings(temperature=5.0, top_k=3), n=200)) == {47, 48, 49}
    kept = {
        token for token in range(50) if torch.linspace(0, 3, 50)[token] >= 3 + torch.log(torch.tensor(0.9))
    }
    assert set(sample_tokens(llm, SamplingSettings(temperature=1.0, min_p=0.9), n=200)) == kept


def test_a_request_s_top_k_of_zero_lifts_the_model_s() -> None:
    llm, _ = tiny_llm("llama")
    llm.generation_config.top_k = 2
    assert len(set(sample_tokens(llm, SamplingSettings(temperature=5.0, top_k=0), n=200))) > 20


def test_penalties_count_the_answer_alone_but_for_repetition() -> None:
    llm, _ = tiny_llm("llama")
    logits = torch.zeros(50)
    logits[3], logits[9], logits[8] = 5.0, 4.5, 1.0  # 3 is in the prompt

    def answer(**settings: Any) -> list[int]:
        sampler = TokenSampler(llm, SamplingSettings(**settings), [3, 4])
        return [sampler.sample(logits) for _ in range(4)]

    assert answer() == [3, 3, 3, 3]
    assert answer(presence_penalty=1.0) == [3, 9, 3, 3]
    assert answer(frequency_penalty=1.0) == [3, 9, 3, 9]
    assert answer(repetition_penalty=1.5) == [9, 3, 3, 3]
    assert answer(logit_bias=((8, 100.0),)) == [8, 8, 8, 8]
    assert answer(logit_bias=((3, -100.0), (9, -100.0))) == [8, 8, 8, 8]
