"""IFEval's number: how many instructions, and how many whole prompts, answers follow, read strictly and loosely."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from ossicle.evaluation.scoring.ifeval.instructions import follows
from ossicle.evaluation.scoring.rule import Judge, Rule
from ossicle.evaluation.statistics import ItemScore, Metric
from ossicle.evaluation.suite import Item


def loose_readings(answer: str) -> tuple[str, ...]:
    """The answer, and what is left of it without its first line, its last, both, and all of these without asterisks.

    An answer that is right but for "Sure, here it is:" in front follows its instructions when read so.
    """
    lines = answer.split("\n")
    cuts = (lines[1:], lines[:-1], lines[1:-1])
    readings = [answer, *("\n".join(cut).strip() for cut in cuts)]
    return (*readings, *(reading.replace("*", "") for reading in readings))


def _marks(item: Item, answer: str) -> ItemScore:
    """Prompt strictly, prompt loosely (0 or 1 each), instructions strictly, loosely, and how many there are."""
    asked = [(one["id"], one["arguments"]) for one in item.rubric["instructions"]]
    readings = loose_readings(answer)
    strict = [follows(answer, name, arguments) for name, arguments in asked]
    loose = [any(follows(text, name, arguments) for text in readings) for name, arguments in asked]
    return tuple(map(float, (all(strict), all(loose), sum(strict), sum(loose), len(asked))))


def _mark(items: Sequence[Item], answers: Sequence[str], judge: Judge | None) -> list[ItemScore]:
    return [_marks(item, answer) for item, answer in zip(items, answers, strict=True)]


def _followed(sums: Float[np.ndarray, "... 5"], n: Int[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """The mean of four shares: of prompts and of instructions, strictly and loosely."""
    prompts = (sums[..., 0] + sums[..., 1]) / np.maximum(n, 1)
    instructions = (sums[..., 2] + sums[..., 3]) / np.maximum(sums[..., 4], 1)
    return np.asarray((prompts + instructions) / 4)


FOLLOWED = Metric(
    name="followed",
    label="instructions followed",
    headline="By ear, the LLM follows {} of its instructions.",
    aggregate=_followed,
    is_mean=False,
)

IFEVAL = Rule(
    name="ifeval",
    metric=FOLLOWED,
    about="The mean of four shares, as VoiceBench has it: of instructions and of whole prompts that the answer follows,"
    " each read strictly and loosely. The checks are IFEval's 25 kinds, written anew; sentences are split and languages"
    " told apart by rules of our own.",
    mark=_mark,
)
