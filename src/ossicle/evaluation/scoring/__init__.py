"""How answers are marked: a rule for each kind of expected answer, found by its name."""

from collections.abc import Mapping

from ossicle.evaluation.scoring.bbh import BBH
from ossicle.evaluation.scoring.bleu import BLEU
from ossicle.evaluation.scoring.choices import CHOICE
from ossicle.evaluation.scoring.final import FINAL
from ossicle.evaluation.scoring.ifeval import IFEVAL
from ossicle.evaluation.scoring.judged import AGREED, RATED
from ossicle.evaluation.scoring.labels import LABEL
from ossicle.evaluation.scoring.qa import PANDA
from ossicle.evaluation.scoring.refusal import REFUSAL
from ossicle.evaluation.scoring.rule import Judge, Judgement, Rule
from ossicle.evaluation.scoring.wer import WER
from ossicle.evaluation.scoring.words import EXACT

__all__ = ["RULES", "Judge", "Judgement", "Rule"]

RULES: Mapping[str, Rule] = {
    rule.name: rule
    for rule in (EXACT, CHOICE, BBH, REFUSAL, IFEVAL, RATED, AGREED, PANDA, BLEU, WER, FINAL, LABEL)
}
"""Every rule that an item can name."""
