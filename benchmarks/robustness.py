"""Collects what corruptions of the sound cost ears, from reports: one JSON file and one plot.

    ossicle eval pocket/ear --suite pocket --robustness --out report.json
    python -m benchmarks.robustness report.json --name pocket/ear --json RESULTS.json --plot docs/figures/robustness.svg

It measures nothing. An existing JSON file keeps its other ears. `--column cascade` plots the cascade of a report with
another ASR model (`--asr`) under the given name. The last line is JSON.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ossicle.atomic_io import write_text
from ossicle.errors import DataError, OssicleError
from ossicle.evaluation import Report, read_report
from ossicle.evaluation.report_data import ASR_MODEL

PANELS = {
    "white noise": ("White noise", "speech over noise, dB"),
    "babble": ("Babble", "speech over other voices, dB"),
    "speed": ("Speed", "times as fast and as high"),
    "": ("Telephone, a second of silence", ""),
}
"""Kinds of corruptions with a panel of their own; the last panel has all others."""
_COLORS = ("#1b6ca8", "#5a8f3c", "#8e4f9e", "#b0413e")
_CASCADE, _TEXT, _LIGHT = "#d1701f", "#5f6368", "#c9cdd2"
_CLEAN = "clean"


def extract_numbers(report: Report) -> dict[str, Any]:
    """Returns an ear's numbers, clean and under each corruption, and their origin.

    Raises:
        DataError: the report has no corruptions, or does not count right answers
    """
    if not report.robustness:
        raise DataError("the report has no corruptions; expected one by ossicle eval ... --robustness")
    if report.overall.metric.name != "right":
        raise DataError(f"the report's metric is {report.overall.metric.label}; expected right answers")
    clean = {"condition": _CLEAN, "kind": _CLEAN, "level": None, **report.overall.to_json()}
    changed = [
        {"condition": condition.name, "kind": condition.kind, "level": condition.level, **table.to_json()}
        for condition, table in report.robustness
    ]
    return {
        "suite": report.suite,
        "command": report.command,
        "recogniser": report.about.get(ASR_MODEL),
        "created": report.created,
        "versions": report.versions,
        "groups": {name: table.to_json() for name, table in report.groups.items()},
        "instructions": report.instructions and report.instructions.to_json(),
        "conditions": [clean, *changed],
    }


def plot_ears(ears: Mapping[str, Any]) -> Figure:
    """Plots the lines of all ears, of the text ceiling and of the plain cascade, which are the same for all ears."""
    figure = Figure(figsize=(9.6, 7.2), layout="constrained")
    for axes, (kind, (title, x_title)) in zip(
        figure.subplots(2, 2, sharey=True).flat, PANELS.items(), strict=True
    ):
        _plot_panel(axes, kind, ears)
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_xlabel(x_title)
        axes.set_ylim(0, 103)
        axes.grid(color=_LIGHT, linewidth=0.5)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in figure.axes[::2]:
        axes.set_ylabel("right answers, %")
    fullest = max(figure.axes, key=lambda axes: len(axes.get_legend_handles_labels()[0]))
    fullest.legend(frameon=False, fontsize=9, loc="lower left")
    return figure


def _plot_panel(axes: Axes, kind: str, ears: Mapping[str, Any]) -> None:
    rows = {name: _select_rows(ear, kind) for name, ear in ears.items()}
    plain = [ear_rows for name, ear_rows in rows.items() if not ears[name].get("recogniser")]
    longest = max(plain or rows.values(), key=len)
    if len(longest) < 2:  # nothing but clean
        return
    names = [row["condition"] for row in longest]
    labels = [_format_level(row) if kind else row["condition"].replace(", ", ",\n") for row in longest]
    axes.plot(_to_percent(longest, "text_ceiling"), "--", color=_TEXT, label="text ceiling")
    lines = [("cascade", _CASCADE, longest, "cascade")] if plain else []
    lines += [
        (name, color, ear_rows, ears[name].get("column", "ear"))
        for (name, ear_rows), color in zip(rows.items(), _COLORS * len(rows), strict=False)
        if len(ear_rows) > 1
    ]
    for number, (name, color, ear_rows, column) in enumerate(lines):
        points = [(names.index(row["condition"]), row) for row in ear_rows if row["condition"] in names]
        percents = _to_percent([row for _, row in points], column)
        intervals = [row[column]["ci95"] for _, row in points]
        axes.errorbar(
            [x + 0.06 * (number - (len(lines) - 1) / 2) for x, _ in points],
            percents,
            yerr=[
                [
                    max(0.0, percent - 100 * low)
                    for percent, (low, _) in zip(percents, intervals, strict=True)
                ],
                [
                    max(0.0, 100 * high - percent)
                    for percent, (_, high) in zip(percents, intervals, strict=True)
                ],
            ],
            fmt="o-" if kind else "o",
            markersize=4,
            capsize=2,
            linewidth=1.3,
            color=color,
            label=name,
        )
    axes.set_xticks(range(len(labels)), [label.replace("silence ", "silence\n") for label in labels])


def _format_level(row: Mapping[str, Any]) -> str:
    return _CLEAN if row["level"] is None else f"{row['level']:g}"


def _select_rows(ear: Mapping[str, Any], kind: str) -> list[dict[str, Any]]:
    """Returns the rows of a kind and the clean one, from the easiest or slowest to the hardest or fastest."""
    rows = ear["conditions"]
    clean = [row for row in rows if row["kind"] == _CLEAN]
    if not kind:
        return clean + [row for row in rows if row["kind"] not in {_CLEAN, *PANELS}]
    rows_of_kind = [row for row in rows if row["kind"] == kind]
    if kind == "speed":
        return sorted(clean + rows_of_kind, key=lambda row: row["level"] or 1.0)
    return clean + sorted(rows_of_kind, key=lambda row: -row["level"])


def _to_percent(rows: list[dict[str, Any]], column: str) -> list[float]:
    return [100 * row[column]["value"] for row in rows]


def main(arguments: list[str] | None = None) -> int:
    """Reads a report, writes the JSON file and the plot, and prints the differences."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("report", type=Path, help="report.json of an evaluation with --robustness")
    parser.add_argument("--name", required=True, help="name of the ear")
    parser.add_argument(
        "--column", choices=("ear", "cascade"), default="ear", help="column of the report to plot"
    )
    parser.add_argument("--json", type=Path, required=True, help="JSON file of all ears' numbers")
    parser.add_argument("--plot", type=Path, help="file for the plot")
    args = parser.parse_args(arguments)
    try:
        numbers = {"column": args.column, **extract_numbers(read_report(args.report))}
        ears = _read_ears(args.json, numbers["suite"]) | {args.name: numbers}
        write_text(args.json, json.dumps({"benchmark": "robustness", "ears": ears}, indent=1) + "\n")
        if args.plot:
            args.plot.parent.mkdir(parents=True, exist_ok=True)
            plot_ears(ears).savefig(args.plot)
    except OssicleError as error:
        print(f"robustness: {error}", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:  # matplotlib raises these for a path or a format
        print(f"robustness: --plot {args.plot} cannot be written: {error}", file=sys.stderr)
        return 1
    for row in numbers["conditions"]:
        gain, (low, high) = row["difference"]["value"], row["difference"]["ci95"]
        percents = "  ".join(f"{way} {100 * row[way]['value']:5.1f} %" for way in ("cascade", "ear"))
        print(
            f"{row['condition']:22} {percents}  difference {100 * gain:+5.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
        )
    print(json.dumps(numbers))
    return 0


def _read_ears(path: Path, suite: str) -> dict[str, Any]:
    """Returns the ears of an existing file.

    Raises:
        DataError: it is no file of this benchmark, or of another suite
    """
    if not path.exists():
        return {}
    try:
        ears = dict(json.loads(path.read_text(encoding="utf-8"))["ears"])
        suites = {ear["suite"] for ear in ears.values()} - {suite}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no file of this benchmark ({error!r}); give another --json") from error
    if suites:
        raise DataError(f"{path} is of suite {suites.pop()!r}, the report of {suite!r}; give another --json")
    return ears


if __name__ == "__main__":
    sys.exit(main())
