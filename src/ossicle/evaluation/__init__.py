"""Three numbers, always: what the LLM answers when it reads, reads a transcript, and hears."""

from ossicle.evaluation.corruptions import CONDITIONS, Condition
from ossicle.evaluation.evaluate import STAGES, Evaluation, Listener, evaluate
from ossicle.evaluation.item_result import Answered
from ossicle.evaluation.report.write import model_card_table, print_table, write_report
from ossicle.evaluation.report_data import Report, read_report
from ossicle.evaluation.suite import Item, Suite, load_suite
from ossicle.evaluation.suites import open_suite

__all__ = [
    "CONDITIONS",
    "STAGES",
    "Answered",
    "Condition",
    "Evaluation",
    "Item",
    "Listener",
    "Report",
    "Suite",
    "evaluate",
    "load_suite",
    "model_card_table",
    "open_suite",
    "print_table",
    "read_report",
    "write_report",
]
