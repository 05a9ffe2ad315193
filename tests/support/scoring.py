"""Items, answers and judges for tests of scoring."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from ossicle.evaluation.scoring import JudgeRequest
from ossicle.evaluation.statistics import METRICS, ItemScore
from ossicle.evaluation.suite import Item


def build_item(answer: str | None = None, **fields: object) -> Item:
    return Item(id="1", audio=b"", text="something", answer=answer, **fields)  # ty: ignore[invalid-argument-type]


def build_rated_item(number: int = 0, **fields: Any) -> Item:
    given: dict[str, Any] = {
        "id": f"{number:04d}",
        "audio": b"",
        "text": "How tall are oak trees?",
        "answer": "a good answer",
        "rule": "rated",
    }
    return Item(**(given | fields))


def aggregate(metric: str, scores: Sequence[ItemScore]) -> float:
    """Returns the number that a metric computes from scores."""
    return float(METRICS[metric].aggregate(np.array([np.sum(scores, axis=0)]), np.array([len(scores)]))[0])


def draw_corpus(
    seed: int, words: Sequence[str], separator: str, max_words: int = 12, n: int = 30
) -> tuple[list[str], list[str]]:
    """Returns answers and references that share some words; a few answers are empty."""
    rng = random.Random(seed)
    references = [[rng.choice(words) for _ in range(rng.randint(1, max_words))] for _ in range(n)]
    answers = [
        [word if rng.random() < 0.8 else rng.choice(words) for word in reference if rng.random() < 0.9]
        for reference in references
    ]
    answers[0] = []
    return [separator.join(answer) for answer in answers], [
        separator.join(reference) for reference in references
    ]


class ScriptedJudge:
    """A judge that replies from a list and records its requests."""

    name = "scripted"

    def __init__(self, *replies: list[str]) -> None:
        self.replies = iter(replies)
        self.requests: list[list[JudgeRequest]] = []

    def judge(self, requests: Sequence[JudgeRequest], /) -> list[str]:
        self.requests.append(list(requests))
        return next(self.replies)
