"""How answers are scored: one rule for each kind of expected answer, found by its name."""

from collections.abc import Mapping

from ossicle.evaluation.scoring.base import Judge, JudgeRequest, Rule
from ossicle.evaluation.scoring.exact_match import EXACT, LABEL
from ossicle.evaluation.scoring.ifeval import IFEVAL
from ossicle.evaluation.scoring.judged import AGREED, RATED
from ossicle.evaluation.scoring.multiple_choice import CHOICE
from ossicle.evaluation.scoring.qa import PANDA
from ossicle.evaluation.scoring.reasoning import BBH, FINAL
from ossicle.evaluation.scoring.refusal import REFUSAL
from ossicle.evaluation.scoring.translation import BLEU
from ossicle.evaluation.scoring.wer import WER

__all__ = ["RULES", "Judge", "JudgeRequest", "Rule"]

RULES: Mapping[str, Rule] = {
    rule.name: rule
    for rule in (EXACT, CHOICE, BBH, REFUSAL, IFEVAL, RATED, AGREED, PANDA, BLEU, WER, FINAL, LABEL)
}
"""Every rule that an item can name."""
