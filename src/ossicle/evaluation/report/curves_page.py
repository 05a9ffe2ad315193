"""The training curves of one or several runs side by side, as an HTML page that needs no other file."""

from collections.abc import Mapping, Sequence

from ossicle.evaluation.report import training_curves
from ossicle.evaluation.report.page import build_environment
from ossicle.evaluation.report.training_curves import build_shared_panels


def render_curves(names: Sequence[str], runs: Sequence[Sequence[Mapping[str, object]]]) -> str:
    """Returns the page.

    Args:
        runs: lines of the metrics.jsonl of each run, which has the name at the same place
    """
    rows = build_shared_panels(runs)
    template = build_environment().get_template("curves.html")
    return template.render(names=names, rows=rows, panel_layout=training_curves)
