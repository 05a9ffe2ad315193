"""Three numbers, always: what the LLM answers when it reads, reads a transcript, and hears."""

from earshot.evaluation.answered import Answered
from earshot.evaluation.asking import Progress
from earshot.evaluation.compare import STAGES, Evaluation, Listener, evaluate
from earshot.evaluation.conditions import CONDITIONS, Condition
from earshot.evaluation.progress import shown
from earshot.evaluation.report import model_card_table, print_table, write_report
from earshot.evaluation.results import Report, read_report
from earshot.evaluation.suite import Item, Suite, load_suite
from earshot.evaluation.suites import open_suite

__all__ = [
    "CONDITIONS",
    "STAGES",
    "Answered",
    "Condition",
    "Evaluation",
    "Item",
    "Listener",
    "Progress",
    "Report",
    "Suite",
    "evaluate",
    "load_suite",
    "model_card_table",
    "open_suite",
    "print_table",
    "read_report",
    "shown",
    "write_report",
]
