"""Fidelity is perfect for the text itself, and all numbers equal those of plain forward passes."""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_models import tiny_ear, tiny_llama
from support.tiny_tokenizers import tiny_tokenizer

import ossicle
from ossicle.chat.choice_scoring import ContinuationScores
from ossicle.chat.messages import parse_conversation
from ossicle.ear import Ear
from ossicle.errors import AudioError, DataError, RequestError
from ossicle.evaluation import load_suite
from ossicle.evaluation.fidelity import (
    N_COMPARED_TOKENS,
    ContinuationScorer,
    Fidelity,
    Messages,
    compute_fidelity,
    compute_fidelity_batch,
    summarize_fidelity,
)

TEXTS = ("what is the capital of france?", "hello", "the cat sat on the mat.", "why?")


def tone(duration_s: float, pitch: float) -> np.ndarray:
    return (0.3 * np.sin(np.arange(round(16_000 * duration_s)) * pitch)).astype(np.float32)


SOUNDS = (tone(1.5, 0.1), tone(0.4, 0.3), tone(2.5, 0.05), tone(0.2, 0.2))


def turn(part: dict[str, Any], instruction: str | None = None) -> Messages:
    rest = [] if instruction is None else [{"type": "text", "text": instruction}]
    return [{"role": "user", "content": [part, *rest]}]


def as_text(text: str, instruction: str | None = None) -> Messages:
    return turn({"type": "text", "text": text}, instruction)


def as_sound(sound: Any, instruction: str | None = None) -> Messages:
    return turn({"type": "audio", "audio": sound}, instruction)


READ = [as_text(text) for text in TEXTS]
HEARD = [as_sound(sound) for sound in SOUNDS]


@pytest.fixture(scope="module")
def ear() -> Ear:
    """An ear whose LLM ends some of its answers within the first 32 tokens."""
    tokenizer = tiny_tokenizer("llama")
    llm = tiny_llama(tokenizer, seed=8)
    ear = tiny_ear(llm=llm, tokenizer=tokenizer)
    first = ear.generate_ids_batch([READ[0]], max_new_tokens=6)[0]
    llm.generation_config.eos_token_id = [tokenizer.eos_token_id, first[4]]
    return ear


def measure(
    ear: ContinuationScorer, read: list[Messages], heard: Sequence[Messages | None]
) -> list[Fidelity]:
    found = [ways["ear"] for ways in compute_fidelity_batch(ear, read, {"ear": heard})]
    return [each for each in found if each is not None]


def build_fidelities(*agreements: Sequence[bool], **numbers: float) -> list[Fidelity]:
    given = {"kl_nats": 1.0, "cosine": 0.5, "l2": 2.0, **numbers}
    return [Fidelity(agreements=tuple(row), **given) for row in agreements]


# Laws


def test_a_text_compared_with_itself_is_perfect(ear: Ear) -> None:
    for found in measure(ear, READ, READ):
        assert found.kl_nats == 0
        assert found.l2 == 0
        assert found.cosine == pytest.approx(1, abs=1e-12)
        assert found.agreement_ratio == 1
        assert found.is_first_same
        assert found.is_same_throughout


def test_an_untrained_ear_hears_a_sound_unlike_its_text(ear: Ear) -> None:
    for found in measure(ear, READ, HEARD):
        assert found.kl_nats > 0.01
        assert found.l2 > 0.1
        assert found.cosine < 0.999
        assert not found.is_same_throughout


def test_a_batch_equals_its_turns_alone(ear: Ear) -> None:
    together = measure(ear, READ, HEARD)
    alone = [measure(ear, [read], [heard])[0] for read, heard in zip(READ, HEARD, strict=True)]
    for one, other in zip(together, alone, strict=True):
        assert one.agreements == other.agreements
        assert one.kl_nats == pytest.approx(other.kl_nats, rel=1e-4)
        assert one.l2 == pytest.approx(other.l2, rel=1e-4)
        assert one.cosine == pytest.approx(other.cosine, abs=1e-5)
    assert len({len(found.agreements) for found in together}) > 1


def test_the_numbers_equal_those_of_plain_passes_in_float64(ear: Ear) -> None:
    """Plain passes over prompt and answer use none of the code under test."""
    for read, heard, found in zip(READ, HEARD, measure(ear, READ, HEARD), strict=True):
        ids = ear.template.tokenize(parse_conversation(read))
        with torch.no_grad():
            answer_ids = ear.llm.generate(  # ty: ignore[not-callable]
                input_ids=torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                max_new_tokens=N_COMPARED_TOKENS,
                do_sample=False,
                pad_token_id=0,
            )[0, len(ids) :]
            answer = ear.embed(answer_ids[:-1])
            by_text = ear.llm(
                inputs_embeds=torch.cat([ear.embed(ids), answer])[None], output_hidden_states=True
            )
            prompt = ear.build_prompts([heard])[0].embeds
            by_sound = ear.llm(inputs_embeds=torch.cat([prompt, answer])[None], output_hidden_states=True)
        p, q = by_text.logits[0, -len(answer_ids) :].double(), by_sound.logits[0, -len(answer_ids) :].double()
        log_p, log_q = p[0] - p[0].logsumexp(0), q[0] - q[0].logsumexp(0)
        kl = math.fsum((log_p.exp() * (log_p - log_q)).tolist())
        one, other = (
            passed.hidden_states[-1][0, -len(answer_ids)].double().numpy() for passed in (by_text, by_sound)
        )
        assert found.kl_nats == pytest.approx(kl, rel=1e-4)
        assert found.l2 == pytest.approx(np.sqrt(((one - other) ** 2).sum()), rel=1e-4)
        cosine = one @ other / np.sqrt((one @ one) * (other @ other))
        assert found.cosine == pytest.approx(cosine, abs=1e-5)
        assert p.argmax(-1).tolist() == answer_ids.tolist()
        assert found.agreements == tuple((q.argmax(-1) == answer_ids).tolist())


def test_kl_is_exact_where_float32_is_not() -> None:
    """Two distributions that differ by less than float32 can tell next to one of 16 nats."""
    read, heard = torch.tensor([16.0, 0.0, 0.0]), torch.tensor([16.0, 1e-3, 0.0])
    states = torch.ones(1, 4)
    found = compute_fidelity(
        ContinuationScores(states, torch.tensor([0]), read),
        ContinuationScores(states, torch.tensor([0]), heard),
    ).kl_nats
    x, y = (np.exp(logits.double().numpy()) for logits in (read, heard))
    x, y = x / x.sum(), y / y.sum()
    # D(p || q) to second order in the one logit that differs by d: p(1 - p) d² / 2.
    assert found == pytest.approx(x[1] * (1 - x[1]) * 1e-6 / 2, rel=1e-2)
    assert found == pytest.approx(float((x * np.log(x / y)).sum()), rel=1e-2)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_states_that_are_not_finite_are_an_error(value: float) -> None:
    scores = [
        ContinuationScores(torch.full((1, 4), state), torch.tensor([0]), torch.ones(3))
        for state in (1.0, value)
    ]
    for read, heard in (scores, scores[::-1]):
        with pytest.raises(DataError, match="states are not finite in this dtype; use --dtype bfloat16"):
            compute_fidelity(read, heard)


def test_an_answer_is_compared_to_its_end_or_for_the_maximum_of_tokens(ear: Ear) -> None:
    answers = ear.generate_ids_batch(READ, max_new_tokens=100)
    counts = [len(found.agreements) for found in measure(ear, READ, HEARD)]
    assert counts == [min(len(answer), N_COMPARED_TOKENS) for answer in answers]
    assert min(counts) < N_COMPARED_TOKENS == max(counts)


def test_a_repetition_penalty_of_the_model_does_not_matter(ear: Ear) -> None:
    """The most likely tokens are compared before any penalty."""
    ear.llm.generation_config.repetition_penalty = 2.0
    try:
        assert all(found.is_same_throughout for found in measure(ear, READ, READ))
    finally:
        ear.llm.generation_config.repetition_penalty = None


# Systems


def test_several_systems_are_compared_with_one_reading(ear: Ear) -> None:
    n_turns: list[int] = []

    class Counting:
        def generate_ids_batch(self, conversations: list[Messages], /, **options: Any) -> list[list[int]]:
            n_turns.append(len(conversations))
            return ear.generate_ids_batch(conversations, **options)

        def score_continuations(
            self, conversations: list[Messages], answers: list[list[int]], /
        ) -> list[ContinuationScores]:
            return ear.score_continuations(conversations, answers)

    transcripts = [as_text("what is the capital of france?"), None, as_text("the cat sat on a mat."), None]
    found = compute_fidelity_batch(Counting(), READ, {"ear": HEARD, "cascade": transcripts})
    assert n_turns == [len(READ)]
    cascade = [ways["cascade"] for ways in found]
    assert [each is None for each in cascade] == [False, True, False, True]
    assert cascade[0] is not None
    assert cascade[2] is not None
    assert cascade[0].l2 < 1e-4 < cascade[2].l2
    assert [ways["ear"] for ways in found] == measure(ear, READ, HEARD)
    nothing = compute_fidelity_batch(ear, READ[:1], {"cascade": [None]})
    assert nothing == [{"cascade": None}]
    assert compute_fidelity_batch(ear, [], {"ear": []}) == []


def test_other_turns_of_a_batch_make_no_difference(ear: Ear) -> None:
    for index, among in enumerate(measure(ear, READ, HEARD)):
        (alone,) = measure(ear, READ[index : index + 1], HEARD[index : index + 1])
        assert alone.agreements == among.agreements
        assert alone.kl_nats == pytest.approx(among.kl_nats, rel=1e-4)


def test_invalid_turns_are_refused(ear: Ear) -> None:
    with pytest.raises(DataError, match="3 turns to hear as 'ear', but 4 to read"):
        compute_fidelity_batch(ear, READ, {"ear": HEARD[:3]})
    with pytest.raises(AudioError):
        compute_fidelity_batch(ear, READ[:1], {"ear": [as_sound(np.zeros(0, np.float32))]})
    with pytest.raises(RequestError, match="control token"):
        compute_fidelity_batch(ear, [as_text("<|eot_id|>")], {"ear": HEARD[:1]})


# Over items


def test_a_summary_is_the_mean_over_items() -> None:
    items = [
        *build_fidelities([True, True, True, False], kl_nats=0.5, cosine=0.9, l2=1.0),
        *build_fidelities([True, False], kl_nats=0.1, cosine=0.7, l2=3.0),
        *build_fidelities([False], kl_nats=3.0, cosine=-0.1, l2=8.0),
        *build_fidelities([True, True], kl_nats=0.0, cosine=1.0, l2=0.0),
    ]
    found = summarize_fidelity(items, [("a", "a"), ("a", "b"), ("a", "A"), ("", "")])
    assert (found.n, found.kl_nats.n) == (4, 4)
    assert found.kl_nats.mean == pytest.approx(0.9)
    assert found.kl_nats.median == pytest.approx(0.3)
    assert found.cosine.mean == pytest.approx(0.625)
    assert found.l2.median == pytest.approx(2.0)
    assert found.first_same.mean == 0.75
    assert found.agreement.mean == pytest.approx((0.75 + 0.5 + 0 + 1) / 4)
    assert found.same_along.mean == 0.25
    assert [(at.n, at.mean) for at in found.by_position] == [(4, 0.75), (3, 2 / 3), (1, 1.0), (1, 0.0)]
    assert found.same_answers is not None
    assert found.same_answers.mean == 0.5
    for mean in (found.kl_nats, found.cosine, found.l2, found.agreement, *found.by_position):
        assert mean.ci95 is not None
        low, high = mean.ci95
        assert low <= mean.mean <= high


def test_an_unbounded_mean_has_no_interval() -> None:
    found = summarize_fidelity(build_fidelities([True], [True]))
    assert found.kl_nats.ci95 is None
    assert found.l2.ci95 is None
    assert found.cosine.ci95 is not None
    assert found.cosine.ci95[0] < 0.5 < found.cosine.ci95[1]
    assert found.same_answers is None


def test_a_stored_fidelity_is_restored(ear: Ear) -> None:
    items = measure(ear, READ, HEARD)
    stored = json.loads(json.dumps([item.to_json() for item in items], allow_nan=False))
    assert [Fidelity.from_json(each) for each in stored] == items
    whole = json.dumps(summarize_fidelity(items[:1]).to_json(), allow_nan=False)
    assert json.loads(whole)["kl_nats"]["mean"] == items[0].kl_nats


@pytest.mark.parametrize(("n", "n_answers"), [(0, 0), (2, 1)])
def test_a_summary_of_nothing_is_refused(n: int, n_answers: int) -> None:
    with pytest.raises(DataError, match=f"{n} items and {n_answers} pairs"):
        summarize_fidelity(build_fidelities([True]) * n, [("a", "a")] * n_answers)


# The embedded ear


def test_the_embedded_ear_hears_nearly_what_it_reads() -> None:
    """Its own turn is closer than another one, and it chooses the requested word among several."""
    ear = ossicle.load("pocket/ear", device="cpu")
    items = [item for item in load_suite("pocket") if item.answer and not item.instruction][:3]
    read = [as_text(item.text) for item in items]
    heard = [as_sound(item.audio) for item in items]
    own, itself, other = (measure(ear, read, turns) for turns in (heard, read, [*heard[1:], heard[0]]))
    assert all(found.kl_nats == 0 and found.is_same_throughout for found in itself)
    assert all(found.cosine > 0.9 for found in own)
    for near, far in zip(own, other, strict=True):
        assert near.l2 < far.l2
        assert near.agreement_ratio >= far.agreement_ratio
    words = [str(item.answer).rstrip(".").split()[-1].capitalize() for item in items]
    one_word_turns = [as_sound(item.audio, "Answer in one word.") for item in items]
    choices = sorted({*words, "Elephant", "Rome", "Seven"})
    assert [choices[number] for number in ear.choose_batch(one_word_turns, choices)] == words
