"""Whether answers follow instructions that a program can check: IFEval."""

from ossicle.evaluation.scoring.ifeval.instructions import check_instruction, follows
from ossicle.evaluation.scoring.ifeval.rule import IFEVAL

__all__ = ["IFEVAL", "check_instruction", "follows"]
