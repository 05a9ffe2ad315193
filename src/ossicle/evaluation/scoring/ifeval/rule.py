"""IFEval's number: how many instructions and whole prompts the answers follow, by strict and by loose checks."""

import numpy as np
from jaxtyping import Float, Int

from ossicle.evaluation.scoring.base import Rule, score_each
from ossicle.evaluation.scoring.ifeval.instructions import follows_instruction
from ossicle.evaluation.statistics import ItemScore, Metric
from ossicle.evaluation.suite import Item


def build_loose_variants(answer: str) -> tuple[str, ...]:
    """Returns the eight variants of an answer that a loose check accepts.

    They are the answer itself, the answer without its first line, its last line, or both, and each of these without
    asterisks. So a correct answer after "Sure, here it is:" follows its instructions.
    """
    lines = answer.split("\n")
    cuts = (lines[1:], lines[:-1], lines[1:-1])
    variants = [answer, *("\n".join(cut).strip() for cut in cuts)]
    return (*variants, *(variant.replace("*", "") for variant in variants))


def _score_instructions(item: Item, answer: str) -> ItemScore:
    """Returns prompt strict, prompt loose (0 or 1 each), instructions strict, loose, and the number of instructions."""
    instructions = [(one["id"], one["arguments"]) for one in item.rubric["instructions"]]
    variants = build_loose_variants(answer)
    strict = [follows_instruction(answer, name, arguments) for name, arguments in instructions]
    loose = [
        any(follows_instruction(variant, name, arguments) for variant in variants)
        for name, arguments in instructions
    ]
    return tuple(map(float, (all(strict), all(loose), sum(strict), sum(loose), len(instructions))))


def _compute_followed_ratio(
    sums: Float[np.ndarray, "... 5"], n: Int[np.ndarray, "..."]
) -> Float[np.ndarray, "..."]:
    """Returns the mean of four ratios: of prompts and of instructions, strict and loose."""
    prompts = (sums[..., 0] + sums[..., 1]) / np.maximum(n, 1)
    instructions = (sums[..., 2] + sums[..., 3]) / np.maximum(sums[..., 4], 1)
    return np.asarray((prompts + instructions) / 4)


FOLLOWED = Metric(
    name="followed",
    label="instructions followed",
    headline="By ear, the LLM follows {} of its instructions.",
    aggregate=_compute_followed_ratio,
    is_mean=False,
)

IFEVAL = Rule(
    name="ifeval",
    metric=FOLLOWED,
    description="The mean of four ratios, as VoiceBench has it: of the instructions and of the whole prompts that the"
    " answer follows, each by a strict and by a loose check. The checks are our own code for IFEval's 25 kinds of"
    " instruction; our own rules split sentences and identify languages.",
    score=score_each(_score_instructions),
)
