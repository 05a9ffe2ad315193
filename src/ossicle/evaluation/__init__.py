"""Evaluation: the text ceiling, the cascade, and the ear, always measured together on the same items."""

from ossicle.evaluation.audio_model import AudioModel
from ossicle.evaluation.corruptions import CORRUPTIONS, Corruption
from ossicle.evaluation.evaluate import EvaluationSettings, evaluate
from ossicle.evaluation.item_result import ItemResult
from ossicle.evaluation.report.write import build_model_card_table, print_table, write_report
from ossicle.evaluation.report_data import Report, read_report
from ossicle.evaluation.stages import STAGES
from ossicle.evaluation.suite import Item, Suite, load_suite
from ossicle.evaluation.suites import open_suite

__all__ = [
    "CORRUPTIONS",
    "STAGES",
    "AudioModel",
    "Corruption",
    "EvaluationSettings",
    "Item",
    "ItemResult",
    "Report",
    "Suite",
    "build_model_card_table",
    "evaluate",
    "load_suite",
    "open_suite",
    "print_table",
    "read_report",
    "write_report",
]
