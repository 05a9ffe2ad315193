"""Answers that share a running batch: each is transformers' own, whoever joins and leaves, in every family."""

import random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_families import FAMILIES, tiny_llm
from torch import Tensor

from ossicle.backbones.causal_lm import CACHE_NAME, embed, get_eos_ids
from ossicle.chat.incremental_text import IncrementalDetokenizer, StopStringBuffer
from ossicle.chat.sampling import SamplingSettings, TokenSampler
from ossicle.errors import CheckpointError
from ossicle.serving.continuous_batch import ContinuousBatch, supports_continuous_batching
from ossicle.serving.generation import Completion


def ids_of(row: int) -> list[int]:
    rng = random.Random(row)
    return [rng.randrange(3, 60) for _ in range(rng.randrange(2, 20))]


def generated(llm: Any, ids: list[int], n: int) -> list[int]:
    """What transformers' generate says after some ids, alone."""
    prompt = torch.tensor(ids)[None]
    made = llm.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=n, do_sample=False, pad_token_id=0
    )
    return made[0, len(ids) :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_join_and_leave_say_what_they_say_alone(family: str) -> None:
    llm, _ = tiny_llm(family)
    llm.generation_config.eos_token_id = None
    rng = random.Random(family)
    batch, said = ContinuousBatch(llm), dict[int, list[int]]()
    running, newcomers, wanted = list[int](), list(range(7)), {row: 3 + 2 * row for row in range(7)}
    while running or newcomers:
        if running:
            for row, logits in zip(running, batch.step([said[row][-1] for row in running]), strict=True):
                said[row].append(int(logits.argmax()))
        joining = [newcomers.pop() for _ in range(min(len(newcomers), rng.randrange(3)))]
        if joining:
            firsts = batch.add([embed(llm, ids_of(row)) for row in joining])
            running += joining
            said |= {row: [int(logits.argmax())] for row, logits in zip(joining, firsts, strict=True)}
        is_finished = [len(said[row]) >= wanted[row] for row in running]
        batch.evict({index for index, finished in enumerate(is_finished) if finished})
        running = [row for row, finished in zip(running, is_finished, strict=True) if not finished]
    assert said == {row: generated(llm, ids_of(row), n) for row, n in wanted.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_join(family: str) -> None:
    assert supports_continuous_batching(tiny_llm(family)[0])


def test_rows_that_left_take_their_room_with_them() -> None:
    llm, _ = tiny_llm("llama")
    batch = ContinuousBatch(llm)
    batch.add([embed(llm, [5] * 30), embed(llm, [5] * 4)])
    assert batch.cache.get_seq_length() == 30
    batch.evict({0})
    assert (len(batch), batch.cache.get_seq_length()) == (1, 4)
    batch.evict({0})
    assert (len(batch), batch.cache.get_seq_length()) == (0, 0)
    assert len(batch.add([embed(llm, [5, 6])])) == 1


def test_an_llm_whose_rows_disturb_each_other_answers_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    llm, _ = tiny_llm("llama")
    own = llm.base_model.forward

    def mixed(**given: Any) -> Any:
        read = own(**given)
        read.last_hidden_state = read.last_hidden_state + read.last_hidden_state.mean(0, keepdim=True)
        return read

    monkeypatch.setattr(llm.base_model, "forward", mixed)
    assert not supports_continuous_batching(llm)


def test_an_llm_that_forgets_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    llm, _ = tiny_llm("llama")
    own = llm.base_model.forward

    def forgetful(**given: Any) -> Any:
        cache = given.get(CACHE_NAME)
        for layer in cache.layers if cache else ():
            layer.values = torch.zeros_like(layer.values)
        return own(**given)

    monkeypatch.setattr(llm.base_model, "forward", forgetful)
    with pytest.raises(CheckpointError, match="serve it with vLLM"):
        supports_continuous_batching(llm)


# Drawing


def draws(llm: Any, sampling: SamplingSettings, n: int = 40) -> list[int]:
    drawing = TokenSampler(llm, sampling, [3, 4])
    return [drawing.sample(torch.linspace(0, 3, 50)) for _ in range(n)]


def test_the_same_seed_draws_the_same_and_another_seed_another() -> None:
    llm, _ = tiny_llm("llama")
    hot = SamplingSettings(temperature=1.0, seed=3)
    assert draws(llm, hot) == draws(llm, hot) != draws(llm, SamplingSettings(temperature=1.0, seed=4))
    assert set(draws(llm, SamplingSettings())) == {49}


def test_top_p_leaves_the_likeliest() -> None:
    llm, _ = tiny_llm("llama")
    probabilities = torch.linspace(0, 3, 50).softmax(0).flip(0)
    n_kept = int((probabilities.cumsum(0) < 0.2).sum()) + 1
    drawn = set(draws(llm, SamplingSettings(temperature=1.0, top_p=0.2), n=400))
    assert drawn == set(range(50 - n_kept, 50))
    assert set(draws(llm, SamplingSettings(temperature=1.0), n=400)) - drawn


def test_what_the_model_says_of_itself_counts() -> None:
    llm, _ = tiny_llm("llama")
    llm.generation_config.top_k = 2
    assert set(draws(llm, SamplingSettings(temperature=5.0), n=100)) == {48, 49}
    llm.generation_config.repetition_penalty = 1.5
    prompt = ids_of(3)
    llm.generation_config.eos_token_id = None
    batch, drawing = ContinuousBatch(llm), TokenSampler(llm, SamplingSettings(), prompt)
    logits = batch.add([embed(llm, prompt)])
    said = [drawing.sample(logits[0])]
    while len(said) < 8:
        said.append(drawing.sample(batch.step([said[-1]])[0]))
    made: Any = llm.generate(  # ty: ignore[not-callable]
        torch.tensor([prompt]), max_new_tokens=8, do_sample=False, top_k=None, pad_token_id=0
    )
    assert said == made[0, len(prompt) :].tolist()


# Text


@given(
    pieces=st.lists(st.text("ab\n", max_size=4), max_size=8),
    stop=st.lists(st.text("ab\n", min_size=1, max_size=3), max_size=2),
)
def test_text_is_told_up_to_the_first_stop_however_it_comes(pieces: list[str], stop: list[str]) -> None:
    told = StopStringBuffer(stop)
    found = "".join(map(told.add, pieces)) + told.flush()
    whole = "".join(pieces)
    # A stop string that a longer text would have held before this one ended is what is met first.
    ends = [n for n in range(len(whole) + 1) if any(whole[:n].endswith(one) for one in stop)]
    cuts = [whole.find(one) for one in stop if one in whole]
    assert told.is_stopped == bool(ends)
    assert found == whole if not cuts else found in {whole[:cut] for cut in cuts}
    assert not any(one in found for one in stop)


def one_hot(token: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(token), 1000).float()


def say(ids: list[int], *, stop: list[str], n_room: int = 99) -> tuple[str, str | None, int]:
    llm, tokenizer = tiny_llm("qwen2")
    eos_ids = get_eos_ids(llm, tokenizer)
    answer = Completion(
        TokenSampler(llm, SamplingSettings(), []),
        IncrementalDetokenizer(tokenizer, eos_ids),
        frozenset(eos_ids),
        stop,
        n_room,
    )
    text = ""
    for token in ids:
        piece = answer.append_token(one_hot(token))
        text += piece.text
        if piece.finish_reason:
            return text, piece.finish_reason, answer.n_tokens
    return text, None, answer.n_tokens


def test_an_answer_ends_with_the_llm_with_a_stop_string_or_where_there_is_no_room() -> None:
    llm, tokenizer = tiny_llm("qwen2")
    text = "the cat sat on the mat."
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    [end] = get_eos_ids(llm, tokenizer)
    assert say([*ids, end, *ids], stop=[]) == (text, "stop", len(ids) + 1)
    assert say([*ids, end], stop=["at on"])[:2] == ("the cat s", "stop")
    assert say(ids, stop=[], n_room=len(ids)) == (text, "length", len(ids))
    assert say([*ids, end], stop=["mat.!"])[:2] == (text, "stop")  # begun, never finished
    assert say(ids, stop=[])[1] is None
