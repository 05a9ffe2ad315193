"""The packed forward (shared prefix, several texts per row, gathered last layer) equals the plain forward."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_families import FAMILIES, tiny_llm
from support.tiny_models import tiny_llama
from torch import Tensor

from ossicle.backbones.causal_lm import CACHE_NAME, embed, extract_causal_lm, get_layers
from ossicle.backbones.packed_forward import ROW_LENGTH, PackedLlm, PrefixCache, build_layout

PREFIX = list(range(3, 12))
LENGTHS = (5, 9, 3, 17, 30, 8, 8, 12, 40, 1)
N_LAST = (2, 3, 1, 5, 2, 8, 1, 4, 7, 1)
RTOL = 1e-5
"""Relative to the norm: float32 sums in another order."""
GATHERS = {family: family != "gpt2" for family in FAMILIES}
"""GPT-2 reshapes the states of its last layer to the shape of its inputs."""


def build_packed_llm(llm: Any, window: int | None = 128) -> PackedLlm:
    """Returns an LLM behind the prefix; a sliding window gets the given width."""
    llm = extract_causal_lm(llm)
    if getattr(llm.config, "sliding_window", None):
        llm.config.sliding_window = window
    return PackedLlm(llm, PREFIX)


def build_embeddings(llm: Any) -> Tensor:
    torch.manual_seed(0)
    table = embed(llm, torch.randint(0, 40, (200,))).clone()
    return (table + 0.1 * torch.randn_like(table)).requires_grad_()


def build_texts() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 200, n) for n in LENGTHS]


def compute_states_and_gradient(forward: Callable[..., Tensor], table: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the requested states, and the gradient of a loss that depends on all of them."""
    states = forward(table, build_texts(), N_LAST)
    requested = torch.cat([states[row, -n:] for row, n in enumerate(N_LAST)])
    torch.manual_seed(1)
    loss = (requested * torch.randn_like(requested)).sum()
    (gradient,) = torch.autograd.grad(loss, table)
    return requested.detach(), gradient


def assert_same(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= RTOL * other.norm()


@pytest.mark.parametrize("gathers", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_states_and_gradients_equal_those_of_the_plain_forward(family: str, gathers: bool) -> None:
    packed = build_packed_llm(tiny_llm(family)[0])
    assert packed.prefix_cache is not None
    assert packed.gathers_last_layer == GATHERS[family]
    table = build_embeddings(packed.llm)
    plain = compute_states_and_gradient(
        lambda *args: packed.forward(*args, None, gathers_last_layer=False), table
    )
    if gathers <= packed.gathers_last_layer:
        assert_same(
            compute_states_and_gradient(
                lambda *args: packed.forward(*args, packed.prefix_cache, gathers_last_layer=gathers), table
            ),
            plain,
        )
    assert_same(compute_states_and_gradient(packed.compute_last_states, table), plain)


def test_the_plain_forward_equals_the_llm() -> None:
    packed = build_packed_llm(tiny_llama())
    table, texts = build_embeddings(packed.llm), build_texts()
    states = packed.forward(table, texts, N_LAST, None, gathers_last_layer=False)
    for row, (text, n) in enumerate(zip(texts, N_LAST, strict=True)):
        whole = torch.cat([embed(packed.llm, PREFIX), table[text]])[None]
        own = packed.llm.base_model(inputs_embeds=whole).last_hidden_state
        torch.testing.assert_close(states[row, -n:], own[0, -n:])


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3"])
def test_a_narrow_sliding_window_is_respected(family: str) -> None:
    """If the LLM attends to eight positions only, the prefix is read with each text."""
    packed = build_packed_llm(tiny_llm(family)[0], window=8)
    assert packed.prefix_cache is None
    table, texts = build_embeddings(packed.llm), build_texts()
    states = packed.compute_last_states(table, texts, N_LAST)
    for row, (text, n) in enumerate(zip(texts, N_LAST, strict=True)):
        whole = torch.cat([embed(packed.llm, PREFIX), table[text]])[None]
        own = packed.llm.base_model(inputs_embeds=whole).last_hidden_state
        torch.testing.assert_close(states[row, -n:], own[0, -n:])


def test_a_text_beyond_the_window_gets_the_plain_forward() -> None:
    packed = build_packed_llm(tiny_llm("mistral")[0], window=ROW_LENGTH + len(PREFIX))
    assert packed.prefix_cache is not None
    table = build_embeddings(packed.llm)
    text = np.arange(ROW_LENGTH + 20)
    states = packed.compute_last_states(table, [text], [3])
    whole = torch.cat([embed(packed.llm, PREFIX), table[text]])[None]
    torch.testing.assert_close(states, packed.llm.base_model(inputs_embeds=whole).last_hidden_state[:, -3:])


def test_an_llm_that_ignores_the_cache_gets_the_plain_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = build_packed_llm(tiny_llama())
    own = type(packed.llm.base_model).forward

    def ignore_cache(self: Any, position_ids: Any = None, **given: Any) -> Any:
        given.pop(CACHE_NAME, None)
        return own(self, **given)

    expected = compute_states_and_gradient(
        lambda *args: packed.forward(*args, None, gathers_last_layer=False), build_embeddings(packed.llm)
    )
    monkeypatch.setattr(type(packed.llm.base_model), "forward", ignore_cache)
    assert packed.prefix_cache is None
    assert not packed.gathers_last_layer
    assert_same(
        compute_states_and_gradient(packed.compute_last_states, build_embeddings(packed.llm)), expected
    )


def test_without_a_prefix_there_is_nothing_to_share() -> None:
    packed = PackedLlm(tiny_llama(), [])
    assert packed.prefix_cache is None
    table, texts = build_embeddings(packed.llm), build_texts()
    states = packed.compute_last_states(table, texts, N_LAST)
    own = packed.llm.base_model(inputs_embeds=table[texts[3]][None]).last_hidden_state
    torch.testing.assert_close(states[3, -5:], own[0, -5:])


def record_positions(module: Any) -> list[int]:
    """Returns a list that gets the number of positions of each call of a module."""
    passed: list[int] = []
    module.register_forward_hook(lambda module, args, out: passed.append(math.prod(args[0].shape[:-1])))
    return passed


def test_the_prefix_is_computed_once_and_short_texts_are_not_padded_to_the_longest() -> None:
    packed = build_packed_llm(tiny_llama())
    assert packed.gathers_last_layer
    first, last = (record_positions(get_layers(packed.llm)[at].mlp) for at in (0, -1))
    packed.compute_last_states(build_embeddings(packed.llm), build_texts(), N_LAST)
    assert sum(LENGTHS) <= sum(first) < 1.2 * sum(LENGTHS) < len(LENGTHS) * max(LENGTHS)
    assert len(first) == len(last) == 1
    assert sum(N_LAST) <= sum(last) < sum(first) / 2


def test_texts_in_the_same_row_do_not_see_each_other() -> None:
    packed = build_packed_llm(tiny_llama())
    table = build_embeddings(packed.llm).detach()
    texts = [np.arange(5), np.arange(5, 12), np.arange(12, 15)]
    whole = packed.compute_last_states(table, texts, [5, 7, 3])
    changed = table.clone()
    changed[5:12] = 100 * torch.randn_like(changed[5:12])
    other = packed.compute_last_states(changed, texts, [5, 7, 3])
    assert torch.equal(whole[[0, 2], -3:], other[[0, 2], -3:])
    assert not torch.isclose(whole[1], other[1]).all(1).any()


def test_the_llm_is_unchanged_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = build_packed_llm(tiny_llama())
    assert packed.gathers_last_layer
    last = get_layers(packed.llm)[-1]
    packed.compute_last_states(build_embeddings(packed.llm), build_texts(), N_LAST)
    assert "forward" not in vars(last)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(last.mlp, "forward", fail)
    with pytest.raises(KeyboardInterrupt):
        packed.compute_last_states(build_embeddings(packed.llm), build_texts(), N_LAST)
    assert "forward" not in vars(last)
    assert not packed.llm.training


def test_bfloat16_and_autocast() -> None:
    """It computes in its own dtype, even inside an autocast block."""
    packed = build_packed_llm(tiny_llama())
    table = build_embeddings(packed.llm)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(
            build_packed_llm(tiny_llama()).compute_last_states(table, build_texts(), N_LAST),
            packed.compute_last_states(table, build_texts(), N_LAST),
        )
    half = build_packed_llm(tiny_llama().bfloat16())
    assert half.gathers_last_layer
    table = table.detach().bfloat16()
    plain = half.forward(table, build_texts(), N_LAST, None, gathers_last_layer=False)[3, -5:]
    found = half.compute_last_states(table, build_texts(), N_LAST)[3, -5:]
    assert torch.cosine_similarity(found.float(), plain.float(), dim=-1).min() > 0.99


def test_a_dynamic_copy_of_the_prefix_grows_and_the_prefix_does_not() -> None:
    llm = tiny_llama()
    shared = PrefixCache.compute(llm, PREFIX)
    copied = shared.to_dynamic_cache(3)
    ids = torch.arange(6).view(3, 2)
    position_ids = torch.arange(len(PREFIX), len(PREFIX) + 2).expand(3, -1)
    read = llm.base_model(
        inputs_embeds=embed(llm, ids), position_ids=position_ids, use_cache=True, **{CACHE_NAME: copied}
    )
    whole = torch.cat([torch.tensor(PREFIX).expand(3, -1), ids], dim=1)
    own = llm.base_model(input_ids=whole).last_hidden_state[:, -2:]
    torch.testing.assert_close(read.last_hidden_state, own)
    assert copied.get_seq_length() == len(PREFIX) + 2
    assert shared.get_seq_length() == len(PREFIX)


# Layouts


@given(
    st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=1, max_size=30),
    st.sampled_from([0, ROW_LENGTH]),
)
def test_every_position_is_placed_once(sizes: list[tuple[int, int]], row: int) -> None:
    lengths = [n for n, _ in sizes]
    n_last = [min(n, last) for n, last in sizes]
    starts = np.cumsum([0, *lengths])
    texts = [np.arange(n) + start for n, start in zip(lengths, starts, strict=False)]
    packed = build_layout(texts, n_last, row)
    is_filled = packed.text_numbers >= 0
    assert sorted(packed.embedding_index[is_filled]) == list(range(sum(lengths)))
    assert packed.shape[1] <= max(max(lengths), row and 2 * row)
    assert row or len(texts) == packed.shape[0]
    n_wanted = packed.output_index.shape[1]
    for number, text in enumerate(texts):
        at = np.argwhere(packed.text_numbers == number)
        assert len(set(at[:, 0])) == 1  # a row holds a text whole, in its order and without gaps
        assert (np.diff(at[:, 1]) == 1).all()
        assert (packed.embedding_index[at[:, 0], at[:, 1]] == text).all()
        assert (packed.positions[at[:, 0], at[:, 1]] == np.arange(len(text))).all()
        found = packed.gather_index[number, -n_last[number] :]
        own = packed.output_index[found // n_wanted, found % n_wanted]
        assert (own == at[-n_last[number] :, 1]).all()
        assert (found // n_wanted == at[0, 0]).all()


def test_rows_have_little_padding() -> None:
    def shape(*lengths: int) -> tuple[int, int]:
        return build_layout([np.arange(n) for n in lengths], [1] * len(lengths), ROW_LENGTH).shape

    assert shape(8, 8, 8) == (1, 24)
    assert shape(*[19] * 8) == (2, 76)  # four to a row, where three would leave holes
    assert shape(200, 150) == (2, 200)
    rng = np.random.default_rng(0)
    lengths = rng.integers(8, 40, 64).tolist()
    n_rows, length = shape(*lengths)
    assert sum(lengths) <= n_rows * length < 1.05 * sum(lengths)
    assert length <= 3 * ROW_LENGTH // 2
