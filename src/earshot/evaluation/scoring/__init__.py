"""How answers are marked: a rule for each kind of expected answer, found by its name."""

from collections.abc import Mapping

from earshot.evaluation.scoring.bbh import BBH
from earshot.evaluation.scoring.bleu import BLEU
from earshot.evaluation.scoring.choices import CHOICE
from earshot.evaluation.scoring.final import FINAL
from earshot.evaluation.scoring.ifeval import IFEVAL
from earshot.evaluation.scoring.judged import AGREED, RATED
from earshot.evaluation.scoring.labels import LABEL
from earshot.evaluation.scoring.qa import PANDA
from earshot.evaluation.scoring.refusal import REFUSAL
from earshot.evaluation.scoring.rule import Judge, Judgement, Rule
from earshot.evaluation.scoring.wer import WER
from earshot.evaluation.scoring.words import EXACT

__all__ = ["RULES", "Judge", "Judgement", "Rule"]

RULES: Mapping[str, Rule] = {
    rule.name: rule
    for rule in (EXACT, CHOICE, BBH, REFUSAL, IFEVAL, RATED, AGREED, PANDA, BLEU, WER, FINAL, LABEL)
}
"""Every rule that an item can name."""
