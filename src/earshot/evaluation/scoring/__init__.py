"""How answers are marked: a rule for each kind of expected answer, found by its name."""

from collections.abc import Mapping

from earshot.evaluation.scoring.bbh import BBH
from earshot.evaluation.scoring.choices import CHOICE
from earshot.evaluation.scoring.ifeval import IFEVAL
from earshot.evaluation.scoring.refusal import REFUSAL
from earshot.evaluation.scoring.rule import Judge, Judgement, Rule
from earshot.evaluation.scoring.words import EXACT

__all__ = ["RULES", "Judge", "Judgement", "Rule"]

RULES: Mapping[str, Rule] = {rule.name: rule for rule in (EXACT, CHOICE, BBH, REFUSAL, IFEVAL)}
"""Every rule that an item can name."""
