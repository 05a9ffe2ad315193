"""Ratings and verdicts of a judge become scores."""

import pytest
from support.scoring import ScriptedJudge, build_rated_item

from ossicle.errors import ConfigError, RequestError
from ossicle.evaluation.scoring import RULES
from ossicle.evaluation.scoring.judged import (
    parse_reply,
)
from ossicle.evaluation.scoring.judges import OfflineJudge


@pytest.mark.parametrize(
    ("reply", "points"),
    [
        ("Rating: 4", 4),
        ("**Rating:** 5/5", 5),
        ("rating - 1.", 1),
        ("3", 3),
        (" [[2]] ", 2),
        ("4/5", 4),
        ("It could be Rating: 2, but no.\nRating: 3", 3),
        ("Rating (1-5): 4", 4),
        ("**Rating (1 to 5):** 4", 4),
        ("Rating: 1-5 -> 4", 4),
        ("Rating: 1-5", None),
        ("Rating: 6", None),
        ("Rating: 45", None),
        ("Rating: 4.5", None),
        ("I would give it 4 of 5 points.", None),
        ("", None),
    ],
)
def test_ratings_are_parsed(reply: str, points: int | None) -> None:
    assert parse_reply(reply, "rating") == points


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("Verdict: yes", 1),
        ("verdict: **No**", 0),
        ("Yes.", 1),
        ("no", 0),
        ("Yes, it is.", None),
        ("None", None),
    ],
)
def test_verdicts_are_parsed(reply: str, value: int | None) -> None:
    assert parse_reply(reply, "verdict") == value


def test_five_points_score_one_and_one_point_a_fifth() -> None:
    judge = ScriptedJudge(["Rating: 5", "1", "Rating: 3"])
    items = [build_rated_item(number, instruction="Be brief.") for number in range(4)]
    scores = RULES["rated"].score(items, ["Very.", "Tea.", " ", "Some."], judge)
    assert scores == [(1.0,), (0.2,), (0.2,), (0.6,)], "an empty answer is rated without asking"
    (questions,) = judge.requests
    assert "How tall are oak trees? Be brief." in questions[0].prompt
    assert "Very." in questions[0].prompt


def test_an_unreadable_reply_is_requested_once_more() -> None:
    judge = ScriptedJudge(["Rating: 2", "Splendid!"], ["Rating: 4"])
    assert RULES["rated"].score([build_rated_item(0), build_rated_item(1)], ["a", "b"], judge) == [
        (0.4,),
        (0.8,),
    ]
    assert [len(questions) for questions in judge.requests] == [2, 1]
    assert judge.requests[1][0].prompt.startswith(judge.requests[0][1].prompt)
    assert judge.requests[1][0].prompt.endswith("a whole number from 1 to 5 alone.")
    with pytest.raises(
        RequestError,
        match=r"item '0001': the judge, scripted, was asked twice and replied 'Quite\.'.* take another",
    ):
        RULES["rated"].score(
            [build_rated_item(0), build_rated_item(1)],
            ["a", "b"],
            ScriptedJudge(["1", "Splendid!"], ["Quite."]),
        )


def test_a_judged_rule_needs_a_judge() -> None:
    for name in ("rated", "panda and judge"):
        assert RULES[name].needs_judge
        with pytest.raises(ConfigError, match="needs a judge"):
            RULES[name].score([build_rated_item(rule=name)], ["a"], None)


def test_agreement_is_the_mean_of_rule_and_judge() -> None:
    item = build_rated_item(rule="panda and judge", answer="Paris", rubric={"answers": ["Paris"]})
    judge = ScriptedJudge(["Verdict: yes", "Verdict: yes", "Verdict: no"])
    answers = ["It is Paris.", "The capital of France.", "Rome", ""]
    assert RULES["panda and judge"].score([item] * 4, answers, judge) == [(1.0,), (0.5,), (0.0,), (0.0,)]
    assert "Paris" in judge.requests[0][2].prompt
    by_rule = RULES["panda"].score([item] * 4, answers, None)
    assert RULES["panda and judge"].score([item] * 4, answers, OfflineJudge()) == by_rule
