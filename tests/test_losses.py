"""Laws of the losses, and each of them against its formula written out."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from ossicle.connectors import Transcripts
from ossicle.connectors.layers import TOKEN_TEMPERATURE
from ossicle.losses import (
    alignment_l2,
    anchor_kl,
    end_bce,
    forward_kl,
    hidden_l2,
    slot_targets,
    token_ce,
)

EXAMPLES = settings(max_examples=25)
D = 5
alignments = st.sampled_from(["left", "right"])
lengths = st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=4)
seeds = st.integers(0, 2**16)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tensors(pairs: list[tuple[int, int]], seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random audio, text, n_audio and n_text of clips given as (n_audio, n_text)."""
    n_audio, n_text = torch.tensor(pairs).T
    audio = drawn(seed, len(pairs), int(n_audio.max()) + 1, D)
    text = drawn(seed + 1, len(pairs), int(n_text.max()) + 1, D)
    return audio, text, n_audio, n_text


def target(alignment: str, slot: int, n_audio: int, n_text: int) -> int | None:
    """The target of a slot by the formula: text[t] in audio[Q - T + t], or in audio[t]."""
    token = slot if alignment == "left" else slot - n_audio + n_text
    return token if 0 <= token < n_text and slot < n_audio else None


@EXAMPLES
@given(pairs=lengths, alignment=alignments)
def test_slot_targets_follow_the_formula(pairs, alignment) -> None:
    n_audio, n_text = torch.tensor(pairs).T
    n_slots = int(n_audio.max()) + 1
    tokens, stands = slot_targets(n_text, n_audio, n_slots, alignment)
    for row, (a, t) in enumerate(pairs):
        found = [
            token if is_one else None
            for token, is_one in zip(tokens[row].tolist(), stands[row].tolist(), strict=True)
        ]
        assert found == [target(alignment, slot, a, t) for slot in range(n_slots)]
    assert ((tokens >= 0) & (tokens < n_text[:, None])).all()  # safe to look up, whether it counts or not


@pytest.mark.parametrize(
    ("alignment", "kept"),
    [("left", [0, 1, 2]), ("right", [2, 3, 4])],
    ids=["left: the first tokens", "right: the last tokens"],
)
def test_a_transcript_longer_than_the_slots_is_truncated(alignment, kept: list[int]) -> None:
    tokens, stands = slot_targets(torch.tensor([5]), torch.tensor([3]), 3, alignment)
    assert stands.all()
    assert tokens.tolist() == [kept]


@EXAMPLES
@given(pairs=lengths, alignment=alignments, seed=seeds)
def test_alignment_l2_is_the_mean_distance_of_slots_with_a_target(pairs, alignment, seed: int) -> None:
    audio, text, n_audio, n_text = tensors(pairs, seed)
    expected = [
        math.dist(audio[row, slot].tolist(), text[row, token].tolist())
        for row, (a, t) in enumerate(pairs)
        for slot in range(audio.shape[1])
        if (token := target(alignment, slot, a, t)) is not None
    ]
    found = alignment_l2(audio, text, n_audio, n_text, alignment)
    torch.testing.assert_close(found, torch.tensor(sum(expected) / len(expected)))


@EXAMPLES
@given(pairs=lengths, alignment=alignments, seed=seeds)
def test_alignment_l2_is_zero_only_if_every_slot_equals_its_target(pairs, alignment, seed: int) -> None:
    audio, text, n_audio, n_text = tensors(pairs, seed)
    tokens, stands = slot_targets(n_text, n_audio, audio.shape[1], alignment)
    right = text.gather(1, tokens[..., None].expand(-1, -1, D))
    audio = torch.where(stands[..., None], right, audio).requires_grad_()
    distance = alignment_l2(audio, text, n_audio, n_text, alignment)
    (gradient,) = torch.autograd.grad(distance, audio)
    assert distance == 0
    assert (gradient == 0).all()
    row, slot = stands.nonzero()[seed % int(stands.sum())].tolist()
    wrong = audio.detach().clone()
    wrong[row, slot, seed % D] += 1e-3
    assert alignment_l2(wrong, text, n_audio, n_text, alignment) > 0


@EXAMPLES
@given(pairs=lengths, alignment=alignments, seed=seeds)
def test_padding_does_not_change_alignment_l2(pairs, alignment, seed: int) -> None:
    audio, text, n_audio, n_text = tensors(pairs, seed)
    distance = alignment_l2(audio, text, n_audio, n_text, alignment)
    audio = torch.cat([audio, drawn(seed + 2, len(pairs), 3, D)], dim=1)
    text = torch.cat([text, drawn(seed + 3, len(pairs), 2, D)], dim=1)
    for row, (a, t) in enumerate(pairs):
        audio[row, a:], text[row, t:] = 1e6, -1e6
    audio.requires_grad_()
    padded = alignment_l2(audio, text, n_audio, n_text, alignment)
    torch.testing.assert_close(padded, distance)
    (gradient,) = torch.autograd.grad(padded, audio)
    assert not any(gradient[row, a:].any() for row, (a, _) in enumerate(pairs))


@EXAMPLES
@given(n_rows=st.integers(1, 4), n_positions=st.integers(1, 5), seed=seeds)
def test_hidden_l2_is_a_mean_of_means(n_rows: int, n_positions: int, seed: int) -> None:
    student, teacher = drawn(seed, n_rows, n_positions, D), drawn(seed + 1, n_rows, n_positions, D)
    counts = drawn(seed + 2, n_rows, n_positions) > 0
    counts[:, -1] = True
    rows = []
    for row in range(n_rows):
        counted = counts[row].nonzero()[:, 0].tolist()
        each = [math.dist(student[row, at].tolist(), teacher[row, at].tolist()) for at in counted]
        rows.append(sum(each) / len(each))
    expected = torch.tensor(sum(rows) / n_rows)
    torch.testing.assert_close(hidden_l2(student, teacher, counts), expected)
    student[~counts] = 1e6
    torch.testing.assert_close(hidden_l2(student, teacher, counts), expected)
    everywhere = torch.ones_like(counts)
    torch.testing.assert_close(hidden_l2(student, teacher), hidden_l2(student, teacher, everywhere))


def test_hidden_l2_is_zero_only_if_equal() -> None:
    teacher = drawn(0, 2, 3, D)
    student = teacher.clone().requires_grad_()
    for counts in (None, torch.ones(2, 3, dtype=torch.bool)):
        distance = hidden_l2(student, teacher, counts)
        (gradient,) = torch.autograd.grad(distance, student)
        assert distance == 0
        assert (gradient == 0).all()
    assert hidden_l2(student + torch.eye(D)[:3] * 1e-3, teacher) > 0


def test_gradients_point_straight_at_the_target() -> None:
    student = torch.tensor([[[3.0, 4.0]]], requires_grad=True)
    hidden_l2(student, torch.zeros(1, 1, 2)).backward()
    torch.testing.assert_close(student.grad, torch.tensor([[[0.6, 0.8]]]))


@EXAMPLES
@given(n_text=st.lists(st.integers(1, 8), min_size=1, max_size=4), n_slots=st.integers(1, 9), seed=seeds)
def test_end_bce_uses_slots_zero_to_t(n_text: list[int], n_slots: int, seed: int) -> None:
    logits = drawn(seed, len(n_text), n_slots)
    expected = [
        -math.log(torch.sigmoid(logits[row, slot] if slot == t else -logits[row, slot]).item())
        for row, t in enumerate(n_text)
        for slot in range(min(t + 1, n_slots))
    ]
    found = end_bce(logits, torch.tensor(n_text))
    torch.testing.assert_close(found, torch.tensor(sum(expected) / len(expected)))
    for row, t in enumerate(n_text):
        logits[row, t + 1 :] = 1e6
    torch.testing.assert_close(end_bce(logits, torch.tensor(n_text)), found)


@EXAMPLES
@given(temperature=st.floats(0.25, 4), seed=seeds)
def test_forward_kl_equals_that_of_the_distributions(temperature: float, seed: int) -> None:
    student, teacher = drawn(seed, 3, 11), drawn(seed + 1, 3, 11)
    divergences = kl_divergence(
        Categorical(logits=teacher / temperature), Categorical(logits=student / temperature)
    )
    found = forward_kl(student, teacher, temperature)
    torch.testing.assert_close(found, divergences.mean() * temperature**2)


@EXAMPLES
@given(seed=seeds)
def test_anchor_kl_is_the_mean_divergence_over_all_tokens(seed: int) -> None:
    student, start, n_text = drawn(seed, 3, 4, 11), drawn(seed + 1, 3, 4, 11), [4, 1, 2]
    divergences = kl_divergence(Categorical(logits=start), Categorical(logits=student))
    expected = torch.cat([row[:n] for row, n in zip(divergences, n_text, strict=True)]).mean()
    torch.testing.assert_close(anchor_kl(student, start, torch.tensor(n_text)), expected)
    student[1, 1:] = 1e6
    torch.testing.assert_close(anchor_kl(student, start, torch.tensor(n_text)), expected)


def test_kl_is_zero_only_if_the_distributions_are_equal() -> None:
    teacher = drawn(0, 3, 11)
    student = (teacher + 7).requires_grad_()  # the same distribution by other logits
    distance = forward_kl(student, teacher)
    (gradient,) = torch.autograd.grad(distance, student)
    torch.testing.assert_close(distance, torch.tensor(0.0))
    torch.testing.assert_close(gradient, torch.zeros(3, 11))
    assert forward_kl(teacher + torch.eye(11)[:3], teacher) > 1e-3


@pytest.mark.parametrize(
    ("dtype", "expected"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)]
)
def test_losses_are_computed_in_float32_at_least(dtype: torch.dtype, expected: torch.dtype) -> None:
    states, n = drawn(0, 2, 3, D).to(dtype), torch.tensor([3, 2])
    assert hidden_l2(states, states + 1).dtype == expected
    assert alignment_l2(states, states, n, n, "left").dtype == expected
    assert end_bce(states[..., 0], n).dtype == expected
    assert forward_kl(states[:, 0], states[:, 1]).dtype == expected
    assert anchor_kl(states, states + 1, n).dtype == expected


@pytest.mark.parametrize("alignment", ["left", "right"])
def test_gradients_equal_finite_differences(alignment) -> None:
    audio, text, n_audio, n_text = tensors([(4, 3), (2, 5)], 0)
    audio, text = audio.double().requires_grad_(), text.double()
    assert torch.autograd.gradcheck(lambda x: alignment_l2(x, text, n_audio, n_text, alignment), audio)


# Naming

N_CANDIDATES = 6


def naming(pairs: list[tuple[int, int]], seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Arguments of `token_ce` without the alignment, with candidates far apart from each other."""
    audio, text, n_audio, n_text = tensors(pairs, seed)
    generator = torch.Generator().manual_seed(seed)
    wanted = torch.randint(0, N_CANDIDATES, text.shape[:2], generator=generator)
    return audio, torch.eye(N_CANDIDATES, D) * 3, wanted, n_audio, n_text


@EXAMPLES
@given(pairs=lengths, alignment=alignments, seed=seeds)
def test_token_ce_is_the_cross_entropy_of_its_formula(pairs, alignment, seed) -> None:
    audio, candidates, wanted, n_audio, n_text = naming(pairs, seed)
    spread = torch.stack([(c - candidates.mean(0)).norm() ** 2 for c in candidates]).mean()
    losses = []
    for row, (a, t) in enumerate(pairs):
        for slot in range(a):
            token = target(alignment, slot, a, t)
            if token is not None:
                near = torch.stack([-((audio[row, slot] - c).norm() ** 2) for c in candidates])
                losses.append(-(near / (TOKEN_TEMPERATURE * spread)).log_softmax(0)[wanted[row, token]])
    found = token_ce(audio, Transcripts(n_text, wanted, candidates), n_audio, alignment)
    torch.testing.assert_close(found, torch.stack(losses).mean(), rtol=1e-4, atol=1e-4)


def test_token_ce_is_zero_at_the_target() -> None:
    _, candidates, wanted, n_audio, n_text = naming([(4, 4), (3, 3)], 0)
    audio = candidates[wanted].requires_grad_()
    loss = token_ce(audio, Transcripts(n_text, wanted, candidates), n_audio, "left")
    loss.backward()
    assert loss < 1e-3
    assert audio.grad is not None
    assert audio.grad.abs().max() < 1e-2
    assert token_ce(audio, Transcripts(n_text, (wanted + 1) % N_CANDIDATES, candidates), n_audio, "left") > 5


def test_token_ce_does_not_depend_on_the_scale_of_embeddings() -> None:
    audio, candidates, wanted, n_audio, n_text = naming([(5, 4), (3, 6)], 1)
    first, scaled = (
        token_ce(audio * factor, Transcripts(n_text, wanted, candidates * factor), n_audio, "left")
        for factor in (1, 40)
    )
    torch.testing.assert_close(first, scaled)


def test_token_ce_with_one_candidate_is_zero() -> None:
    audio, _, wanted, n_audio, n_text = naming([(2, 2)], 0)
    audio.requires_grad_()
    loss = token_ce(audio, Transcripts(n_text, wanted * 0, torch.zeros(1, D)), n_audio, "left")
    loss.backward()
    assert loss == 0
    assert audio.grad is not None
    assert not audio.grad.any()
