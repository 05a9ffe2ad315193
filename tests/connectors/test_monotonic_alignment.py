"""Monotonic alignment against every path written out, and its laws."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ossicle.connectors.layers import token_logits
from ossicle.connectors.monotonic_alignment import Alignment, align, detect_tokens

EXAMPLES = settings(max_examples=30)
clips = st.lists(st.tuples(st.integers(1, 7), st.integers(1, 4)), min_size=1, max_size=3)


def scores(pairs: list[tuple[int, int]], seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Arguments of `align` for clips of (positions, tokens), with large values in the padding."""
    generator = torch.Generator().manual_seed(seed)
    n_positions, n_text = torch.tensor(pairs).T
    width, length = int(n_text.max()), int(n_positions.max())
    spoken = torch.randn(len(pairs), length, width, generator=generator, dtype=torch.float64)
    pause = torch.randn(len(pairs), length, generator=generator, dtype=torch.float64)
    mask = torch.arange(length) < n_positions[:, None]
    return spoken.masked_fill(~mask[..., None], 50.0), pause.masked_fill(~mask, 50.0), n_text, mask


def paths(n_positions: int, n_text: int) -> list[tuple[int, ...]]:
    """Every path through pause 0, token 0, pause 1, ... that skips nothing but the pauses at both ends."""
    last = 2 * n_text
    return [
        path
        for path in itertools.product(range(last + 1), repeat=n_positions)
        if path[0] <= 1
        and path[-1] >= last - 1
        and all(step - before in (0, 1) for before, step in itertools.pairwise(path))
    ]


def written_out(spoken: Tensor, pause: Tensor, n_positions: int, n_text: int) -> tuple[Tensor, Tensor] | None:
    """Log-likelihood and posterior (T, S) of one clip, path by path; None if there is no path."""
    found = paths(n_positions, n_text)
    if not found:
        return None
    each = torch.stack(
        [
            sum(
                (spoken[s, link // 2] if link % 2 else pause[s] for s, link in enumerate(path)),
                start=torch.zeros((), dtype=torch.float64),
            )
            for path in found
        ]
    )
    posterior = torch.zeros(n_text, n_positions, dtype=torch.float64)
    for path, share in zip(found, each.softmax(0), strict=True):
        for s, link in enumerate(path):
            if link % 2:
                posterior[link // 2, s] += share
    return each.logsumexp(0), posterior


@EXAMPLES
@given(pairs=clips, seed=st.integers(0, 9))
def test_the_likelihood_is_the_sum_over_all_paths(pairs: list[tuple[int, int]], seed: int) -> None:
    spoken, pause, n_text, mask = scores(pairs, seed)
    found = align(spoken, pause, n_text, mask)
    for row, (n_positions, n) in enumerate(pairs):
        expected = written_out(spoken[row], pause[row], n_positions, n)
        if expected is None:
            assert found.log_likelihood[row] == 0
            continue
        torch.testing.assert_close(found.log_likelihood[row], expected[0])
        torch.testing.assert_close(found.posterior[row, :n, :n_positions], expected[1])
        assert not found.posterior[row, n:].any()
        assert not found.posterior[row, :, n_positions:].any()


@EXAMPLES
@given(pairs=clips, seed=st.integers(0, 9))
def test_a_batch_is_aligned_as_each_clip_alone(pairs: list[tuple[int, int]], seed: int) -> None:
    spoken, pause, n_text, mask = scores(pairs, seed)
    whole = align(spoken, pause, n_text, mask)
    for row, (n_positions, n) in enumerate(pairs):
        alone = slice(row, row + 1), slice(n_positions)
        single = align(spoken[alone][..., :n], pause[alone], n_text[row : row + 1], mask[alone])
        torch.testing.assert_close(whole.log_likelihood[row], single.log_likelihood[0])
        torch.testing.assert_close(whole.posterior[row, :n, :n_positions], single.posterior[0])


def test_the_gradient_is_the_posterior() -> None:
    spoken, pause, n_text, mask = scores([(6, 2), (5, 3), (1, 1), (2, 4)], 0)
    inputs = spoken.requires_grad_(), pause.requires_grad_()
    assert torch.autograd.gradcheck(lambda *given: align(*given, n_text, mask).log_likelihood, inputs)
    found = align(*inputs, n_text, mask)
    (gradient,) = torch.autograd.grad(found.log_likelihood.sum(), spoken)
    torch.testing.assert_close(gradient[:3].transpose(1, 2), found.posterior[:3])
    assert not found.posterior.requires_grad


def test_two_tokens_have_a_pause_between_them() -> None:
    """Even where no pause is heard: otherwise two tokens could not be told from one."""
    spoken, pause = torch.zeros(1, 3, 2), torch.full((1, 3), -30.0)
    found = align(spoken, pause, torch.tensor([2]), torch.ones(1, 3, dtype=torch.bool))
    torch.testing.assert_close(found.posterior[0], torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))


def too_short() -> Alignment:
    spoken, pause, n_text, mask = scores([(4, 3), (6, 3)], 0)
    return align(spoken.requires_grad_(), pause, n_text, mask)


def test_a_clip_too_short_for_its_transcript_has_no_gradient_and_is_divided_evenly() -> None:
    found = too_short()
    assert found.log_likelihood[0] == 0
    expected = [[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
    torch.testing.assert_close(found.posterior[0, :, :4], torch.tensor(expected, dtype=torch.float64))
    assert not found.posterior[0, :, 4:].any()


@pytest.mark.parametrize("log_impossible", [-1e4, -torch.inf])
def test_impossible_positions_leave_gradients_finite(log_impossible: float) -> None:
    spoken, pause, n_text, mask = scores([(6, 2), (4, 2)], 0)
    spoken[0, :5], pause[1, 2] = log_impossible, log_impossible
    spoken.requires_grad_()
    found = align(spoken, pause, n_text, mask)
    found.log_likelihood.sum().backward()
    assert found.log_likelihood.isfinite().all()
    assert found.posterior.isfinite().all()
    assert spoken.grad is not None
    assert spoken.grad.isfinite().all()


def test_half_precision_is_summed_in_float32() -> None:
    spoken, pause, n_text, mask = scores([(7, 3)], 0)
    found = align(spoken.bfloat16(), pause.bfloat16(), n_text, mask)
    assert found.log_likelihood.dtype == torch.float32


@EXAMPLES
@given(pairs=clips, seed=st.integers(0, 9))
def test_the_likeliest_count_has_the_largest_sum_over_paths(pairs: list[tuple[int, int]], seed: int) -> None:
    spoken, pause, most, mask = scores(pairs, seed)
    spotted = detect_tokens(spoken[..., 0], pause, most, mask)
    counts = spotted.n_tokens
    for row, (n_positions, n_most) in enumerate(pairs):
        any_token = spoken[row, :, :1].expand(-1, n_most)
        found = [written_out(any_token, pause[row], n_positions, n) for n in range(1, n_most + 1)]
        totals = torch.stack([torch.tensor(-torch.inf) if one is None else one[0] for one in found])
        assert counts[row] == totals.argmax() + 1
    # Where they are spoken is what aligning so many tokens gives, each as likely as the next.
    alike = spoken[..., :1].expand(-1, -1, int(counts.max()))
    torch.testing.assert_close(spotted.posterior, align(alike, pause, counts, mask).posterior)


def test_the_nearest_candidate_is_the_likeliest() -> None:
    candidates = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
    logits = token_logits(torch.tensor([[[0.1, 0.2], [1.7, 0.3], [0.5, 2.0]]]), candidates)
    assert logits.argmax(-1).tolist() == [[0, 1, 2]]
    torch.testing.assert_close(
        token_logits(torch.ones(4, 2), candidates), token_logits(torch.ones(4, 2) * 9, candidates * 9)
    )
