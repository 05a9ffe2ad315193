"""Laws of the teacher: stored states equal computed ones, in any batch, and both equal those of a plain loop."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_families import FAMILIES, tiny_llm
from support.tiny_models import tiny_ear, tiny_llama, tiny_whisper
from support.training_runs import FORMS
from torch import Tensor
from torch.testing import assert_close

from ossicle.backbones.causal_lm import compute_logits
from ossicle.backbones.fingerprints import fingerprint_model, fingerprint_tokenizer
from ossicle.config import ObjectiveSettings
from ossicle.connectors import Transcripts
from ossicle.ear import Ear
from ossicle.errors import CacheError
from ossicle.training.batch import Batch
from ossicle.training.cache.cache_writer import plan_cache_write, write_index
from ossicle.training.cache.teacher_cache import (
    compute_teacher_fingerprint,
    get_stored_positions,
    open_teacher_cache,
)
from ossicle.training.cache.tensor_cache import TensorCache
from ossicle.training.distillation import distillation_loss
from ossicle.training.teacher import TargetPositions, Teacher, TeacherTargets, compute_transcript_key

POSITIONS = ("last", "suffix", "all")
TEXTS = ("yes", "what is the capital of france?", "two cats", "seven", "the old house on the hill", "rain")
FLOAT32_SUMS: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}
"""Padding on the other side, and a cache of keys and values, change the order of float32 sums."""


def objective(positions: str = "last", n_response_tokens: int = 1, **others: Any) -> ObjectiveSettings:
    settings = ObjectiveSettings(n_response_tokens=n_response_tokens, **others)
    return replace(settings, hidden_positions=positions)


def tokenize(ear: Ear, texts: tuple[str, ...] = TEXTS) -> list[Tensor]:
    return [torch.tensor(ear.template.split_prompt(text).text) for text in texts]


@pytest.fixture(scope="module")
def ear() -> Ear:
    return tiny_ear("query")


def build_ear_with_eos(ear: Ear, token: int) -> Ear:
    """Returns the same ear with an LLM that also ends its responses with another token."""
    llm = tiny_llama(ear.tokenizer)
    llm.generation_config.eos_token_id = [token, ear.tokenizer.eos_token_id]
    return tiny_ear("query", llm=llm)


def fill_teacher_cache(
    ear: Ear, folder: Path, settings: ObjectiveSettings, rows: list[Tensor]
) -> TensorCache:
    """Returns a cache of the teacher's states on transcripts, each computed in a batch of its own."""
    teacher, parts = Teacher(ear, settings), compute_fingerprint(ear)
    n_suffix = len(ear.template.frame.suffix)
    n_states = [
        TargetPositions.from_objective(settings).n_states(len(ids), n_suffix, settings.n_response_tokens - 1)
        for ids in rows
    ]
    cache_fingerprint = parts | TargetPositions.from_objective(settings).fingerprint
    plan = plan_cache_write(
        folder,
        cache_fingerprint,
        [compute_transcript_key(ids) for ids in rows],
        n_states,
        width=48,
        dtype=torch.float32,
    )
    plan.write_shards(
        lambda indices: [teacher.compute_states([rows[index]])[0] for index in indices.tolist()]
    )
    write_index(folder, cache_fingerprint)
    return open_teacher_cache(folder, parts, settings)


def compute_fingerprint(ear: Ear) -> dict[str, str]:
    backbone_fingerprints = {
        "llm": fingerprint_model(ear.llm),
        "tokenizer": fingerprint_tokenizer(ear.tokenizer),
    }
    return compute_teacher_fingerprint(backbone_fingerprints, ear, "a rule")


def run_plain_loop(ear: Ear, ids: Tensor, positions: TargetPositions) -> tuple[Tensor, list[int]]:
    """Returns states and response by a plain loop: the whole row again for each token, no padding, no cache."""
    prefix, suffix = ear.template.frame
    row, read = [*prefix, *ids.tolist(), *suffix], []
    end = ear.llm.generation_config.eos_token_id
    eos_ids = set(end) if isinstance(end, list) else {end}
    while True:
        with torch.no_grad():
            states = ear.llm.base_model(inputs_embeds=ear.embed(torch.tensor([row]))).last_hidden_state[0]
        token = int(compute_logits(ear.llm, states[-1]).argmax())
        if len(read) == positions.n_read or token in eos_ids:
            break
        read, row = [*read, token], [*row, token]
    n = {"last": 1, "suffix": len(suffix), "all": len(ids) + len(suffix)}[positions.positions] + len(read)
    return states[-n:], read


def unpad(targets: TeacherTargets, row: int) -> tuple[Tensor, list[int]]:
    """Returns a row's states and response without the padding."""
    n = int(targets.n_states[row])
    return targets.states[row, -n:], targets.answers[row, : int(targets.n_answers[row])].tolist()


# The LLM


@pytest.mark.parametrize("n_response_tokens", [1, 2, 5])
@pytest.mark.parametrize("positions", POSITIONS)
def test_targets_are_those_of_a_plain_loop(ear: Ear, positions: str, n_response_tokens: int) -> None:
    rows, settings = tokenize(ear), objective(positions, n_response_tokens)
    targets = Teacher(ear, settings).compute_targets(rows)
    assert targets.states.shape[1] == int(targets.n_states.max())
    assert torch.equal(targets.mask.sum(1), targets.n_states)
    for row, ids in enumerate(rows):
        states, read = run_plain_loop(ear, ids, TargetPositions.from_objective(settings))
        assert unpad(targets, row)[1] == read
        assert_close(unpad(targets, row)[0], states, **FLOAT32_SUMS)
        first = targets.states[row, targets.first_answer_index[row]]
        assert_close(first, run_plain_loop(ear, ids, TargetPositions("last", 1))[0][-1], **FLOAT32_SUMS)


def test_a_response_ends_where_the_llm_ends_it(ear: Ear) -> None:
    rows = tokenize(ear)
    answers = [run_plain_loop(ear, ids, TargetPositions("last", 6))[1] for ids in rows]
    second = build_ear_with_eos(ear, answers[1][2])  # a token in the middle of a response
    targets = Teacher(second, objective("suffix", 6)).compute_targets(rows)
    lengths = targets.n_answers.tolist()
    assert lengths[1] == answers[1].index(answers[1][2]) < 5
    for row, ids in enumerate(rows):
        states, read = run_plain_loop(second, ids, TargetPositions("suffix", 6))
        assert unpad(targets, row)[1] == read
        assert_close(unpad(targets, row)[0], states, **FLOAT32_SUMS)


@pytest.mark.parametrize("family", FAMILIES)
def test_targets_of_every_family_are_those_of_a_plain_loop(family: str) -> None:
    llm, tokenizer = tiny_llm(family)
    ear = tiny_ear("query", llm=llm, tokenizer=tokenizer, whisper=tiny_whisper())
    rows, settings = tokenize(ear, TEXTS[:3]), objective("all", 3)
    targets = Teacher(ear, settings).compute_targets(rows)
    for row, ids in enumerate(rows):
        states, read = run_plain_loop(ear, ids, TargetPositions("all", 3))
        assert unpad(targets, row)[1] == read
        assert_close(unpad(targets, row)[0], states, **FLOAT32_SUMS)


# Batches


@pytest.mark.parametrize("n_response_tokens", [1, 4])
def test_states_do_not_depend_on_the_batch(ear: Ear, n_response_tokens: int) -> None:
    """They are equal bit for bit at any length, also at the longest that still has padding."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(1, 400, (1 + number % 19,), generator=generator) for number in range(38)]
    teacher = Teacher(ear, objective("all", n_response_tokens))
    whole = teacher.compute_states(rows)
    for batch_size in (1, 2, 5):
        for first in range(0, len(rows), batch_size):
            part = teacher.compute_states(rows[first : first + batch_size])
            for found, expected in zip(part, whole[first : first + batch_size], strict=True):
                assert torch.equal(found.states, expected.states)
                assert found.token_ids == expected.token_ids


@pytest.mark.parametrize("n_response_tokens", [1, 4])
def test_sharded_ranks_compute_nearly_the_same_states(ear: Ear, n_response_tokens: int) -> None:
    rows, settings = tokenize(ear), objective("all", n_response_tokens)
    sharded = Teacher(ear, settings, is_sharded=True).compute_targets(rows)
    plain = Teacher(ear, settings).compute_targets(rows)
    assert torch.equal(sharded.answers, plain.answers)
    assert torch.equal(sharded.n_states, plain.n_states)
    assert_close(sharded.states, plain.states, **FLOAT32_SUMS)


# The cache


@pytest.mark.parametrize("n_response_tokens", [1, 4])
@pytest.mark.parametrize("positions", POSITIONS)
def test_stored_states_equal_computed_ones_bit_for_bit(
    ear: Ear, tmp_path: Path, positions: str, n_response_tokens: int
) -> None:
    rows, settings = tokenize(ear), objective(positions, n_response_tokens)
    computed = Teacher(ear, settings).compute_targets(rows)
    cache = fill_teacher_cache(
        ear, tmp_path / "cache", settings, rows[::-2]
    )  # half of them, in another order
    assert len(cache) == 3
    assert_equal(Teacher(ear, settings, cache).compute_targets(rows), computed)
    assert_equal(
        Teacher(ear, settings, cache, is_sharded=True).compute_targets(rows[1::2]),
        select_rows(computed, [1, 3, 5]),
    )


def assert_equal(found: TeacherTargets, expected: TeacherTargets) -> None:
    for name in ("n_states", "n_answers"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    for row in range(len(expected.n_states)):
        assert torch.equal(unpad(found, row)[0], unpad(expected, row)[0])
        assert unpad(found, row)[1] == unpad(expected, row)[1]


def select_rows(targets: TeacherTargets, rows: list[int]) -> TeacherTargets:
    parts = (targets.states, targets.n_states, targets.answers, targets.n_answers)
    return TeacherTargets(*(part[rows] for part in parts))


def test_a_cache_of_more_positions_serves_every_objective_with_fewer(ear: Ear, tmp_path: Path) -> None:
    rows = tokenize(ear)
    fill_teacher_cache(ear, tmp_path / "cache", objective("all", 5), rows)
    for positions in POSITIONS:
        for n_response_tokens in (1, 3, 5):
            settings = objective(positions, n_response_tokens)
            cache = open_teacher_cache(tmp_path / "cache", compute_fingerprint(ear), settings)
            assert get_stored_positions(cache) == TargetPositions("all", 5)
            found = Teacher(ear, settings, cache).compute_targets(rows)
            assert_equal(found, Teacher(ear, settings).compute_targets(rows))


def test_stored_states_are_not_computed_again(
    ear: Ear, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, settings = tokenize(ear), objective("suffix", 3)
    teacher = Teacher(ear, settings, fill_teacher_cache(ear, tmp_path / "cache", settings, rows))
    calls: list[int] = []
    monkeypatch.setattr(teacher, "compute_states", lambda rows: calls.append(len(rows)) or [])
    teacher.compute_targets(rows)
    assert calls == [0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            objective("all", 3),
            r"positions 'suffix' with n_response_tokens 3, but the objective needs 'all' with 3",
        ),
        (
            objective("last", 4),
            r"positions 'suffix' with n_response_tokens 3, but the objective needs 'last' with 4",
        ),
    ],
)
def test_a_cache_of_too_few_positions_is_refused(ear: Ear, tmp_path: Path, settings, message: str) -> None:
    fill_teacher_cache(ear, tmp_path / "cache", objective("suffix", 3), tokenize(ear))
    with pytest.raises(CacheError, match=message):
        open_teacher_cache(tmp_path / "cache", compute_fingerprint(ear), settings)


@pytest.mark.parametrize("part", ["llm", "tokenizer", "prompt", "text rule", "dtype", "llm bits"])
def test_a_cache_of_something_else_is_refused_and_the_part_named(ear: Ear, tmp_path: Path, part: str) -> None:
    fill_teacher_cache(ear, tmp_path / "cache", objective(), tokenize(ear))
    with pytest.raises(CacheError, match=rf"its {part} is '.*', expected 'another'; give another folder"):
        open_teacher_cache(tmp_path / "cache", compute_fingerprint(ear) | {part: "another"}, objective())


def test_the_fingerprint_changes_with_the_prompt(ear: Ear) -> None:
    other = tiny_ear("query", prompt=replace(ear.settings.prompt, system="be brief"))
    first, second = compute_fingerprint(ear), compute_fingerprint(other)
    assert {part for part in first if first[part] != second[part]} == {"prompt"}


def test_a_key_depends_on_the_tokens_alone() -> None:
    assert compute_transcript_key(torch.tensor([1, 2])) == compute_transcript_key(
        np.array([1, 2], dtype=np.int32)
    )
    keys = {
        compute_transcript_key(torch.tensor(ids))
        for ids in ([1, 2], [2, 1], [1], [1, 2, 0], [258, 0], [2, 1, 0])
    }
    assert len(keys) == 6


# Losses


def build_random_batch(ear: Ear, rows: list[Tensor]) -> Batch:
    rng = np.random.default_rng(0)
    sounds = [rng.standard_normal(4_000 * len(ids)).astype(np.float32) * 0.1 for ids in rows]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    features, n_text = ear.encode_sounds(sounds), [len(ids) for ids in rows]
    return Batch(features, ids, torch.tensor(n_text), n_text, features.mask.sum(1).tolist())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n_response_tokens", [1, 3])
def test_losses_and_gradients_do_not_depend_on_the_cache(
    tmp_path: Path, form: str, n_response_tokens: int
) -> None:
    ear = tiny_ear(form)
    positions = "all" if form not in ("diva", "stack") else "suffix"
    settings = objective(positions, n_response_tokens, kl_weight=0.5)
    rows = tokenize(ear)[:4]
    batch = build_random_batch(ear, rows)
    cache = fill_teacher_cache(ear, tmp_path / "cache", settings, rows[::2])
    losses, gradients = [], []
    for teacher in (
        None,
        Teacher(ear, settings),
        Teacher(ear, settings, cache),
        Teacher(ear, settings, cache).compute_targets(rows),
    ):
        ear.connector.zero_grad()
        loss = distillation_loss(ear, batch, settings, teacher=teacher).total
        loss.backward()
        losses.append(loss.item())
        gradients.append([weight.grad for weight in ear.connector.parameters() if weight.grad is not None])
    assert losses[1:] == losses[:1] * 3
    for other in gradients[1:]:
        assert all(torch.equal(one, two) for one, two in zip(gradients[0], other, strict=True))
    assert sum(float(gradient.abs().sum()) for gradient in gradients[0]) > 0


@pytest.mark.parametrize("n_response_tokens", [1, 4])
@pytest.mark.parametrize("positions", POSITIONS)
def test_a_connector_that_returns_the_text_embeddings_has_no_loss(
    ear: Ear, positions: str, n_response_tokens: int
) -> None:
    settings = objective(positions, n_response_tokens, align_weight=0.0, end_weight=0.0, kl_weight=1.0)
    batch = build_random_batch(ear, tokenize(ear)[:4])

    def return_text(features, transcripts):
        audio = ear.connector(features, transcripts)
        return replace(
            audio,
            end_logits=None,
            tokens=ear.embed(batch.text_ids) + 0 * audio.tokens[:, : batch.text_ids.shape[1]],
        )

    terms = distillation_loss(ear, batch, settings, connector=return_text).terms
    scale = Teacher(ear, settings).compute_targets(tokenize(ear)[:4]).states.norm(dim=-1).mean()
    assert terms["hidden"] < 1e-5 * scale
    assert terms["kl"].abs() < 1e-6
    wrong = distillation_loss(ear, batch, settings).terms
    assert wrong["hidden"] > 0.1 * scale


def test_the_response_is_compared_where_the_student_reads_it(ear: Ear) -> None:
    """The student reads the teacher's response, and only the gradient of its own states reaches the ear."""
    settings = objective("last", 4, align_weight=0.0, end_weight=0.0)
    rows = tokenize(ear)[:3]
    batch = build_random_batch(ear, rows)
    targets = Teacher(ear, settings).compute_targets(rows)
    (term,) = distillation_loss(ear, batch, settings, teacher=targets).terms.values()
    audio = ear.connector(batch.features, embed_transcripts(ear, batch))
    distances = []
    for row in range(3):
        states, read = unpad(targets, row)
        tokens = audio.tokens[row, : int(audio.n_tokens[row])]
        prefix, suffix = map(ear.embed, ear.template.frame)
        whole = torch.cat([prefix, tokens, suffix, ear.embed(read)])[None]
        student = ear.llm.base_model(inputs_embeds=whole).last_hidden_state[0, -len(states) :]
        distances.append((student - states).norm(dim=-1).mean())
    assert_close(term, torch.stack(distances).mean(), **FLOAT32_SUMS)
    assert not targets.states.requires_grad


def embed_transcripts(ear: Ear, batch: Batch) -> Transcripts:
    target_ids = torch.searchsorted(batch.unique_ids, batch.text_ids).clamp(max=len(batch.unique_ids) - 1)
    return Transcripts(batch.n_text, target_ids, ear.embed(batch.unique_ids))


def test_kl_alone_needs_only_the_last_position() -> None:
    assert TargetPositions.from_objective(
        objective("all", 5, hidden_weight=0.0, kl_weight=1.0)
    ) == TargetPositions("last", 1)
