"""Three numbers, always: what the LLM answers when it reads, reads a transcript, and hears."""

from earshot.evaluation.compare import STAGES, Listener, evaluate
from earshot.evaluation.progress import shown
from earshot.evaluation.report import model_card_table, print_table, write_report
from earshot.evaluation.results import Answered, Report, read_report
from earshot.evaluation.suite import Item, load_suite

__all__ = [
    "STAGES",
    "Answered",
    "Item",
    "Listener",
    "Report",
    "evaluate",
    "load_suite",
    "model_card_table",
    "print_table",
    "read_report",
    "shown",
    "write_report",
]
