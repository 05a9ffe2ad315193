"""What noise, speed, a telephone and silence do to ears, out of reports: one file of numbers and one picture.

    ossicle eval pocket/ear --suite pocket --robustness --out report.json
    python benchmarks/robustness.py report.json --name pocket/ear --json RESULTS.json --plot docs/figures/robustness.svg

It measures nothing. A file of numbers that is there already keeps its other ears. `--column cascade` draws, of a report
whose cascade had another recogniser (`--asr`), that cascade under the name. Last, the numbers as a line of JSON.
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
"""Kinds of conditions with a panel of their own; the last one takes all others."""
_COLOURS = ("#1b6ca8", "#5a8f3c", "#8e4f9e", "#b0413e")
_CASCADE, _TEXT, _LIGHT = "#d1701f", "#5f6368", "#c9cdd2"
_CLEAN = "clean"


def extract_numbers(report: Report) -> dict[str, Any]:
    """An ear's numbers, clean and under each condition, and where they come from.

    Raises:
        DataError: a report without conditions, or one that does not count right answers
    """
    if not report.robustness:
        raise DataError("the report has no conditions: expected one by ossicle eval ... --robustness")
    if report.overall.metric.name != "right":
        raise DataError(f"the report has {report.overall.metric.label}, expected right answers")
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
    """The lines of all ears, and of the text ceiling and the plain cascade, which are the same beside each of them."""
    figure = Figure(figsize=(9.6, 7.2), layout="constrained")
    for axes, (kind, (title, x_title)) in zip(
        figure.subplots(2, 2, sharey=True).flat, PANELS.items(), strict=True
    ):
        _panel(axes, kind, ears)
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


def _panel(axes: Axes, kind: str, ears: Mapping[str, Any]) -> None:
    rows = {name: _of_kind(ear, kind) for name, ear in ears.items()}
    plain = [own for name, own in rows.items() if not ears[name].get("recogniser")]
    longest = max(plain or rows.values(), key=len)
    if len(longest) < 2:  # nothing but clean
        return
    names = [row["condition"] for row in longest]
    labels = [_label(row) if kind else row["condition"].replace(", ", ",\n") for row in longest]
    axes.plot(_shares(longest, "text_ceiling"), "--", color=_TEXT, label="text ceiling")
    who = [("cascade", _CASCADE, longest, "cascade")] if plain else []
    who += [
        (name, colour, own, ears[name].get("column", "ear"))
        for (name, own), colour in zip(rows.items(), _COLOURS * len(rows), strict=False)
        if len(own) > 1
    ]
    for number, (name, colour, own, column) in enumerate(who):
        there = [(names.index(row["condition"]), row) for row in own if row["condition"] in names]
        shares = _shares([row for _, row in there], column)
        intervals = [row[column]["ci95"] for _, row in there]
        axes.errorbar(
            [place + 0.06 * (number - (len(who) - 1) / 2) for place, _ in there],
            shares,
            yerr=[
                [max(0.0, share - 100 * low) for share, (low, _) in zip(shares, intervals, strict=True)],
                [max(0.0, 100 * high - share) for share, (_, high) in zip(shares, intervals, strict=True)],
            ],
            fmt="o-" if kind else "o",
            markersize=4,
            capsize=2,
            linewidth=1.3,
            color=colour,
            label=name,
        )
    axes.set_xticks(range(len(labels)), [label.replace("silence ", "silence\n") for label in labels])


def _label(row: Mapping[str, Any]) -> str:
    return _CLEAN if row["level"] is None else f"{row['level']:g}"


def _of_kind(ear: Mapping[str, Any], kind: str) -> list[dict[str, Any]]:
    """The clean clip and the conditions of a kind, from the easiest or slowest to the hardest or fastest."""
    rows = ear["conditions"]
    clean = [row for row in rows if row["kind"] == _CLEAN]
    if not kind:
        return clean + [row for row in rows if row["kind"] not in {_CLEAN, *PANELS}]
    own = [row for row in rows if row["kind"] == kind]
    if kind == "speed":
        return sorted(clean + own, key=lambda row: row["level"] or 1.0)
    return clean + sorted(own, key=lambda row: -row["level"])


def _shares(rows: list[dict[str, Any]], column: str) -> list[float]:
    return [100 * row[column]["value"] for row in rows]


def main(arguments: list[str] | None = None) -> int:
    """Reads a report, writes what is asked for, and says the differences."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("report", type=Path, help="report.json of an evaluation with --robustness")
    parser.add_argument("--name", required=True, help="what the ear is called")
    parser.add_argument("--column", choices=("ear", "cascade"), default="ear", help="what is drawn of it")
    parser.add_argument("--json", type=Path, required=True, help="the file of numbers")
    parser.add_argument("--plot", type=Path, help="the picture")
    asked = parser.parse_args(arguments)
    try:
        found = {"column": asked.column, **extract_numbers(read_report(asked.report))}
        ears = _known(asked.json, found["suite"]) | {asked.name: found}
        write_text(asked.json, json.dumps({"benchmark": "robustness", "ears": ears}, indent=1) + "\n")
        if asked.plot:
            asked.plot.parent.mkdir(parents=True, exist_ok=True)
            plot_ears(ears).savefig(asked.plot)
    except OssicleError as error:
        print(f"robustness: {error}", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:  # what matplotlib raises of a place or a format
        print(f"robustness: --plot {asked.plot} cannot be written: {error}", file=sys.stderr)
        return 1
    for row in found["conditions"]:
        gain, (low, high) = row["difference"]["value"], row["difference"]["ci95"]
        shares = "  ".join(f"{way} {100 * row[way]['value']:5.1f} %" for way in ("cascade", "ear"))
        print(
            f"{row['condition']:22} {shares}  difference {100 * gain:+5.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
        )
    print(json.dumps(found))
    return 0


def _known(path: Path, suite: str) -> dict[str, Any]:
    """The ears that a file has already.

    Raises:
        DataError: no file of these numbers, or one of another suite
    """
    if not path.exists():
        return {}
    try:
        ears = dict(json.loads(path.read_text(encoding="utf-8"))["ears"])
        suites = {ear["suite"] for ear in ears.values()} - {suite}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no file of these numbers ({error!r}); give another") from error
    if suites:
        raise DataError(f"{path} is about {suites.pop()!r} and the report about {suite!r}; give another")
    return ears


if __name__ == "__main__":
    sys.exit(main())
