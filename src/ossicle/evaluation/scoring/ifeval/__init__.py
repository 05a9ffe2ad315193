"""IFEval: whether answers follow instructions that a program can check."""

from ossicle.evaluation.scoring.ifeval.instructions import check_instruction, follows_instruction
from ossicle.evaluation.scoring.ifeval.rule import IFEVAL

__all__ = ["IFEVAL", "check_instruction", "follows_instruction"]
