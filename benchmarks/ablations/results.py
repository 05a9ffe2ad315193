"""Results of the ablations: means, spreads, paired differences, tables and JSON of stored measures."""

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

import torch

from benchmarks.ablations.arms import ARMS, BASE

Measures = dict[str, Any]
"""The measures of one run: numbers by name, and errors by slot."""
Runs = Mapping[str, Mapping[int, Measures]]
"""Measures by arm and seed."""

IN_NOISE = ", in noise"
"""Suffix of measures on noisy questions."""
FALL_MEASURES = ("ear", "tokens named")
"""Measures whose fall in noise and with punctuated transcripts is reported."""


def select_numbers(measures: Measures) -> dict[str, float]:
    """Returns the measures that are single numbers."""
    return {name: value for name, value in measures.items() if isinstance(value, int | float)}


def compute_spread(values: Sequence[float]) -> float | None:
    """Returns the standard deviation over seeds; None for a single one."""
    return statistics.stdev(values) if len(values) > 1 else None


def summarize_seeds(values: Sequence[float]) -> dict[str, Any] | None:
    """Returns mean, spread and number of values; None without values."""
    if not values:
        return None
    return {"mean": statistics.mean(values), "spread": compute_spread(values), "n": len(values)}


def compute_difference(
    runs: Mapping[int, Measures], others: Mapping[int, Measures], name: str, other_name: str | None = None
) -> dict[str, Any] | None:
    """Returns the difference of a measure to that of other runs, over the seeds that both have."""
    other_name = other_name or name
    seeds = [seed for seed in runs if name in runs[seed] and other_name in others.get(seed, {})]
    return summarize_seeds([runs[seed][name] - others[seed][other_name] for seed in seeds])


def summarize_arm(runs: Mapping[int, Measures], base: Mapping[int, Measures]) -> dict[str, Any]:
    """Returns an arm's means and spreads over its seeds, and its differences to the base."""
    names = list(dict.fromkeys(name for measures in runs.values() for name in select_numbers(measures)))
    columns = {name: [measures[name] for measures in runs.values() if name in measures] for name in names}
    delta = {name: compute_difference(runs, base, name) for name in names}
    return {
        "n": len(runs),
        "mean": {name: statistics.mean(values) for name, values in columns.items()},
        "spread": {name: compute_spread(values) for name, values in columns.items()},
        "minus_base": {name: value for name, value in delta.items() if value},
        "runs": {str(seed): runs[seed] for seed in sorted(runs)},
    }


def compute_falls(measures: Runs) -> dict[str, dict[str, Any]]:
    """Returns the fall in noise, and with punctuated transcripts, of the arms that have such measures.

    These are differences to the same ear on clean speech, and to the arm that learned the plain transcripts.
    """
    falls_by_name: dict[str, dict[str, Any]] = {}
    for arm in ARMS.values():
        runs = measures.get(arm.name, {})
        rows = {name: compute_difference(runs, runs, name + IN_NOISE, name) for name in FALL_MEASURES}
        falls_by_name[f"{arm.name}: in noise"] = rows if arm.is_measured_in_noise else {}
        if arm.plain is not None:
            plain = measures.get(arm.plain, {})
            falls_by_name[f"{arm.plain}: punctuated"] = {
                name: compute_difference(runs, plain, name) for name in FALL_MEASURES
            }
    return {name: rows for name, rows in falls_by_name.items() if any(rows.values())}


def build_result(measures: Runs, n_steps: int, failed: Mapping[str, str]) -> Measures:
    """Returns the content of the file of results and of the last line."""
    base = measures.get(BASE, {})
    return {
        "benchmark": "ablations",
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "n_steps": n_steps,
        "arms": {name: summarize_arm(runs, base) for name, runs in measures.items()},
        "falls": compute_falls(measures),
        "failed": dict(failed),
    }


# Tables

_PERCENT, _PLAIN = 100.0, 1.0
_QUALITY = {
    "ear": ("right %", _PERCENT),
    "ear, unseen voices (espeak-ng)": ("espeak %", _PERCENT),
    "ear, unseen engine (flite)": ("flite %", _PERCENT),
    "ear, in noise": ("in noise %", _PERCENT),
    "tokens named": ("named %", _PERCENT),
    "errors per token": ("errors %", _PERCENT),
    "length right": ("length %", _PERCENT),
}
_FIDELITY = {
    "same answers": ("same %", _PERCENT),
    "top-1": ("top-1 %", _PERCENT),
    "KL": ("KL, nats", _PLAIN),
    "L2": ("L2", _PLAIN),
    "cosine": ("cosine", _PLAIN),
    "training TFLOP": ("TFLOP", _PLAIN),
    "seconds trained": ("minutes", 1 / 60),
}
"""The tables' columns: a measure's name, its heading, and its factor."""
_NAME, _CELL = 26, 13


def format_tables(measures: Measures) -> list[str]:
    """Formats mean and standard deviation over seeds, and the difference of right answers to the base."""
    arms = measures["arms"]
    lines = [_format_head(_QUALITY) + f"{'right minus base':>22}"]
    for name, arm in arms.items():
        delta = None if name == BASE else arm["minus_base"].get("ear")
        lines.append(_format_row(name, arm, _QUALITY) + f"{_format_difference(delta):>22}")
    lines += ["", _format_head(_FIDELITY), *(_format_row(name, arm, _FIDELITY) for name, arm in arms.items())]
    if measures["falls"]:
        lines += ["", f"{'':{_NAME + 2}}{'right, points':>22}{'tokens named, points':>24}"]
    for name, rows in measures["falls"].items():
        lines.append(
            f"{name:{_NAME + 2}}{_format_difference(rows['ear']):>22}{_format_difference(rows['tokens named']):>24}"
        )
    return lines


def _format_head(columns: Mapping[str, tuple[str, float]]) -> str:
    return f"{'':{_NAME}}{'n':>2}" + "".join(f"{head:>{_CELL}}" for head, _ in columns.values())


def _format_row(name: str, arm: Mapping[str, Any], columns: Mapping[str, tuple[str, float]]) -> str:
    cells = (
        _format_cell(arm["mean"].get(key), arm["spread"].get(key), factor)
        for key, (_, factor) in columns.items()
    )
    return f"{name:{_NAME}}{arm['n']:>2}" + "".join(f"{cell:>{_CELL}}" for cell in cells)


def _format_cell(mean: float | None, deviation: float | None, factor: float) -> str:
    if mean is None:
        return "-"
    digits = 3 if factor == _PLAIN and abs(mean) < 10 else 1
    text = f"{factor * mean:.{digits}f}"
    return text if deviation is None else f"{text} ±{factor * deviation:.{digits}f}"


def _format_difference(delta: Mapping[str, Any] | None) -> str:
    if delta is None:
        return ""
    deviation = delta["spread"]
    margin = "" if deviation is None else f" ±{_PERCENT * deviation:.1f}"
    return f"{_PERCENT * delta['mean']:+.1f}{margin} (n {delta['n']})"
