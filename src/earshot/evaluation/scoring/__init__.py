"""How answers are marked: a rule for each kind of expected answer, found by its name."""

from collections.abc import Mapping

from earshot.evaluation.scoring.rule import Judge, Judgement, Rule
from earshot.evaluation.scoring.words import EXACT

__all__ = ["RULES", "Judge", "Judgement", "Rule"]

RULES: Mapping[str, Rule] = {rule.name: rule for rule in (EXACT,)}
"""Every rule that an item can name."""
