"""Laws of the teacher: stored is live, alone is in company, and all of it is what the LLM does token by token."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_families import FAMILIES, tiny_llm
from support.tiny_models import tiny_ear, tiny_llama, tiny_whisper
from torch import Tensor
from torch.testing import assert_close

from ossicle import checkpoint
from ossicle.backbones.causal_lm import compute_logits
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
"""Padding on the other side, and keys and values kept from pass to pass, change the order of float32 sums."""


def objective(positions: str = "last", n_response_tokens: int = 1, **others: Any) -> ObjectiveSettings:
    settings = ObjectiveSettings(n_response_tokens=n_response_tokens, **others)
    return replace(settings, hidden_positions=positions)


def ids_of(ear: Ear, texts: tuple[str, ...] = TEXTS) -> list[Tensor]:
    return [torch.tensor(ear.template.split_prompt(text).text) for text in texts]


@pytest.fixture(scope="module")
def ear() -> Ear:
    return tiny_ear("query")


def ending(ear: Ear, token: int) -> Ear:
    """The same ear, whose LLM ends its answers by another token."""
    llm = tiny_llama(ear.tokenizer)
    llm.generation_config.eos_token_id = [token, ear.tokenizer.eos_token_id]
    return tiny_ear("query", llm=llm)


def stored(ear: Ear, folder: Path, settings: ObjectiveSettings, rows: list[Tensor]) -> TensorCache:
    """A cache of what the teacher makes of transcripts, each computed in other company than the tests have."""
    teacher, parts = Teacher(ear, settings), fingerprint(ear)
    n_suffix = len(ear.template.frame.suffix)
    n_states = [
        TargetPositions.from_objective(settings).n_states(len(ids), n_suffix, settings.n_response_tokens - 1)
        for ids in rows
    ]
    made_for = parts | TargetPositions.from_objective(settings).fingerprint
    filling = plan_cache_write(
        folder,
        made_for,
        [compute_transcript_key(ids) for ids in rows],
        n_states,
        width=48,
        dtype=torch.float32,
    )
    filling.write_shards(
        lambda places: [teacher.compute_states([rows[place]])[0] for place in places.tolist()]
    )
    write_index(folder, made_for)
    return open_teacher_cache(folder, parts, settings)


def fingerprint(ear: Ear) -> dict[str, str]:
    bases = {
        "llm": checkpoint.fingerprint_model(ear.llm),
        "tokenizer": checkpoint.fingerprint_tokenizer(ear.tokenizer),
    }
    return compute_teacher_fingerprint(bases, ear, "a rule")


def by_hand(ear: Ear, ids: Tensor, need: TargetPositions) -> tuple[Tensor, list[int]]:
    """The states and the answer by a plain loop: the whole row anew for each token, no padding, no cache."""
    prefix, suffix = ear.template.frame
    row, fed = [*prefix, *ids.tolist(), *suffix], []
    end = ear.llm.generation_config.eos_token_id
    ends = set(end) if isinstance(end, list) else {end}
    while True:
        with torch.no_grad():
            states = ear.llm.base_model(inputs_embeds=ear.embed(torch.tensor([row]))).last_hidden_state[0]
        token = int(compute_logits(ear.llm, states[-1]).argmax())
        if len(fed) == need.n_response_tokens - 1 or token in ends:
            break
        fed, row = [*fed, token], [*row, token]
    n = {"last": 1, "suffix": len(suffix), "all": len(ids) + len(suffix)}[need.positions] + len(fed)
    return states[-n:], fed


def own(targets: TeacherTargets, row: int) -> tuple[Tensor, list[int]]:
    """A row's states and answer without the padding."""
    n = int(targets.n_states[row])
    return targets.states[row, -n:], targets.answers[row, : int(targets.n_answers[row])].tolist()


# What the LLM does


@pytest.mark.parametrize("n_response_tokens", [1, 2, 5])
@pytest.mark.parametrize("positions", POSITIONS)
def test_targets_are_those_of_a_plain_loop(ear: Ear, positions: str, n_response_tokens: int) -> None:
    rows, settings = ids_of(ear), objective(positions, n_response_tokens)
    targets = Teacher(ear, settings).compute_targets(rows)
    assert targets.states.shape[1] == int(targets.n_states.max())
    assert torch.equal(targets.mask.sum(1), targets.n_states)
    for row, ids in enumerate(rows):
        states, fed = by_hand(ear, ids, TargetPositions.from_objective(settings))
        assert own(targets, row)[1] == fed
        assert_close(own(targets, row)[0], states, **FLOAT32_SUMS)
        first = targets.states[row, targets.first_answer_index[row]]
        assert_close(first, by_hand(ear, ids, TargetPositions("last", 1))[0][-1], **FLOAT32_SUMS)


def test_an_answer_ends_where_the_llm_ends_it(ear: Ear) -> None:
    rows = ids_of(ear)
    answers = [by_hand(ear, ids, TargetPositions("last", 6))[1] for ids in rows]
    second = ending(ear, answers[1][2])  # one that comes in the middle of an answer
    targets = Teacher(second, objective("suffix", 6)).compute_targets(rows)
    lengths = targets.n_answers.tolist()
    assert lengths[1] == answers[1].index(answers[1][2]) < 5
    for row, ids in enumerate(rows):
        states, fed = by_hand(second, ids, TargetPositions("suffix", 6))
        assert own(targets, row)[1] == fed
        assert_close(own(targets, row)[0], states, **FLOAT32_SUMS)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_read_as_it_reads(family: str) -> None:
    llm, tokenizer = tiny_llm(family)
    ear = tiny_ear("query", llm=llm, tokenizer=tokenizer, whisper=tiny_whisper())
    rows, settings = ids_of(ear, TEXTS[:3]), objective("all", 3)
    targets = Teacher(ear, settings).compute_targets(rows)
    for row, ids in enumerate(rows):
        states, fed = by_hand(ear, ids, TargetPositions("all", 3))
        assert own(targets, row)[1] == fed
        assert_close(own(targets, row)[0], states, **FLOAT32_SUMS)


# Company


@pytest.mark.parametrize("n_response_tokens", [1, 4])
def test_a_transcript_is_read_alone_as_in_company(ear: Ear, n_response_tokens: int) -> None:
    """To the last bit, and whatever its length: those that fill a row up to its padding too."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(1, 400, (1 + number % 19,), generator=generator) for number in range(38)]
    teacher = Teacher(ear, objective("all", n_response_tokens))
    whole = teacher.compute_states(rows)
    for company in (1, 2, 5):
        for first in range(0, len(rows), company):
            part = teacher.compute_states(rows[first : first + company])
            for found, expected in zip(part, whole[first : first + company], strict=True):
                assert torch.equal(found.states, expected.states)
                assert found.token_ids == expected.token_ids


@pytest.mark.parametrize("n_response_tokens", [1, 4])
def test_read_together_they_are_nearly_the_same(ear: Ear, n_response_tokens: int) -> None:
    rows, settings = ids_of(ear), objective("all", n_response_tokens)
    together = Teacher(ear, settings, is_sharded=True).compute_targets(rows)
    apart = Teacher(ear, settings).compute_targets(rows)
    assert torch.equal(together.answers, apart.answers)
    assert torch.equal(together.n_states, apart.n_states)
    assert_close(together.states, apart.states, **FLOAT32_SUMS)


# The cache


@pytest.mark.parametrize("n_response_tokens", [1, 4])
@pytest.mark.parametrize("positions", POSITIONS)
def test_stored_is_live_to_the_last_bit(
    ear: Ear, tmp_path: Path, positions: str, n_response_tokens: int
) -> None:
    rows, settings = ids_of(ear), objective(positions, n_response_tokens)
    live = Teacher(ear, settings).compute_targets(rows)
    cache = stored(ear, tmp_path / "cache", settings, rows[::-2])  # half of them, in another order
    assert len(cache) == 3
    assert_equal(Teacher(ear, settings, cache).compute_targets(rows), live)
    assert_equal(
        Teacher(ear, settings, cache, is_sharded=True).compute_targets(rows[1::2]), pick(live, [1, 3, 5])
    )


def assert_equal(found: TeacherTargets, expected: TeacherTargets) -> None:
    for name in ("n_states", "n_answers"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    for row in range(len(expected.n_states)):
        assert torch.equal(own(found, row)[0], own(expected, row)[0])
        assert own(found, row)[1] == own(expected, row)[1]


def pick(targets: TeacherTargets, rows: list[int]) -> TeacherTargets:
    parts = (targets.states, targets.n_states, targets.answers, targets.n_answers)
    return TeacherTargets(*(part[rows] for part in parts))


def test_a_wide_cache_serves_every_narrower_need(ear: Ear, tmp_path: Path) -> None:
    rows = ids_of(ear)
    stored(ear, tmp_path / "cache", objective("all", 5), rows)
    for positions in POSITIONS:
        for n_response_tokens in (1, 3, 5):
            settings = objective(positions, n_response_tokens)
            cache = open_teacher_cache(tmp_path / "cache", fingerprint(ear), settings)
            assert get_stored_positions(cache) == TargetPositions("all", 5)
            found = Teacher(ear, settings, cache).compute_targets(rows)
            assert_equal(found, Teacher(ear, settings).compute_targets(rows))


def test_what_is_stored_is_not_read_again(ear: Ear, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, settings = ids_of(ear), objective("suffix", 3)
    teacher = Teacher(ear, settings, stored(ear, tmp_path / "cache", settings, rows))
    read: list[int] = []
    monkeypatch.setattr(teacher, "compute_states", lambda rows: read.append(len(rows)) or [])
    teacher.compute_targets(rows)
    assert read == [0]


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
def test_a_cache_of_too_little_is_refused(ear: Ear, tmp_path: Path, settings, message: str) -> None:
    stored(ear, tmp_path / "cache", objective("suffix", 3), ids_of(ear))
    with pytest.raises(CacheError, match=message):
        open_teacher_cache(tmp_path / "cache", fingerprint(ear), settings)


@pytest.mark.parametrize("part", ["llm", "tokenizer", "prompt", "text rule", "dtype", "llm bits"])
def test_a_cache_of_something_else_is_refused_by_the_part(ear: Ear, tmp_path: Path, part: str) -> None:
    stored(ear, tmp_path / "cache", objective(), ids_of(ear))
    with pytest.raises(CacheError, match=rf"its {part} is '.*', expected 'another'; give another folder"):
        open_teacher_cache(tmp_path / "cache", fingerprint(ear) | {part: "another"}, objective())


def test_the_fingerprint_changes_with_what_is_around_the_text(ear: Ear) -> None:
    other = tiny_ear("query", prompt=replace(ear.settings.prompt, system="be brief"))
    first, second = fingerprint(ear), fingerprint(other)
    assert {part for part in first if first[part] != second[part]} == {"prompt"}


def test_a_key_is_of_the_tokens_alone() -> None:
    assert compute_transcript_key(torch.tensor([1, 2])) == compute_transcript_key(
        np.array([1, 2], dtype=np.int32)
    )
    keys = {
        compute_transcript_key(torch.tensor(ids))
        for ids in ([1, 2], [2, 1], [1], [1, 2, 0], [258, 0], [2, 1, 0])
    }
    assert len(keys) == 6


# Losses


def batch_of(ear: Ear, rows: list[Tensor]) -> Batch:
    rng = np.random.default_rng(0)
    sounds = [rng.standard_normal(4_000 * len(ids)).astype(np.float32) * 0.1 for ids in rows]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    features, n_text = ear.encode_sounds(sounds), [len(ids) for ids in rows]
    return Batch(features, ids, torch.tensor(n_text), n_text, features.mask.sum(1).tolist())


@pytest.mark.parametrize("form", ["query", "autoregressive", "anchored", "diva", "stack"])
@pytest.mark.parametrize("n_response_tokens", [1, 3])
def test_losses_and_gradients_are_those_of_the_live_teacher(
    tmp_path: Path, form: str, n_response_tokens: int
) -> None:
    ear = tiny_ear(form)
    positions = "all" if form not in ("diva", "stack") else "suffix"
    settings = objective(positions, n_response_tokens, kl_weight=0.5)
    rows = ids_of(ear)[:4]
    batch = batch_of(ear, rows)
    cache = stored(ear, tmp_path / "cache", settings, rows[::2])
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
def test_an_ear_that_hears_the_words_themselves_is_the_teacher(
    ear: Ear, positions: str, n_response_tokens: int
) -> None:
    settings = objective(positions, n_response_tokens, align_weight=0.0, end_weight=0.0, kl_weight=1.0)
    batch = batch_of(ear, ids_of(ear)[:4])

    def reads(features, transcripts):
        audio = ear.connector(features, transcripts)
        return replace(
            audio,
            end_logits=None,
            tokens=ear.embed(batch.text_ids) + 0 * audio.tokens[:, : batch.text_ids.shape[1]],
        )

    terms = distillation_loss(ear, batch, settings, connector=reads).terms
    scale = Teacher(ear, settings).compute_targets(ids_of(ear)[:4]).states.norm(dim=-1).mean()
    assert terms["hidden"] < 1e-5 * scale
    assert terms["kl"].abs() < 1e-6
    wrong = distillation_loss(ear, batch, settings).terms
    assert wrong["hidden"] > 0.1 * scale


def test_the_answer_is_compared_where_the_student_reads_it(ear: Ear) -> None:
    """The student is fed the teacher's answer, and no gradient but that of its own states reaches the ear."""
    settings = objective("last", 4, align_weight=0.0, end_weight=0.0)
    rows = ids_of(ear)[:3]
    batch = batch_of(ear, rows)
    targets = Teacher(ear, settings).compute_targets(rows)
    (term,) = distillation_loss(ear, batch, settings, teacher=targets).terms.values()
    audio = ear.connector(batch.features, transcripts_of(ear, batch))
    distances = []
    for row in range(3):
        states, fed = own(targets, row)
        tokens = audio.tokens[row, : int(audio.n_tokens[row])]
        prefix, suffix = map(ear.embed, ear.template.frame)
        whole = torch.cat([prefix, tokens, suffix, ear.embed(fed)])[None]
        heard = ear.llm.base_model(inputs_embeds=whole).last_hidden_state[0, -len(states) :]
        distances.append((heard - states).norm(dim=-1).mean())
    assert_close(term, torch.stack(distances).mean(), **FLOAT32_SUMS)
    assert not targets.states.requires_grad


def transcripts_of(ear: Ear, batch: Batch) -> Transcripts:
    wanted = torch.searchsorted(batch.unique_ids, batch.text_ids).clamp(max=len(batch.unique_ids) - 1)
    return Transcripts(batch.n_text, wanted, ear.embed(batch.unique_ids))


def test_kl_alone_needs_the_last_position_alone() -> None:
    assert TargetPositions.from_objective(
        objective("all", 5, hidden_weight=0.0, kl_weight=1.0)
    ) == TargetPositions("last", 1)
