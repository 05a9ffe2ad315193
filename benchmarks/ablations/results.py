"""What the runs of the ablations came to: means, spreads, paired differences, tables, JSON; it runs nothing."""

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

import torch

from benchmarks.ablations.arms import ARMS, BASE

Measures = dict[str, Any]
"""What was measured of one run: numbers by name, and errors by slot."""
Runs = Mapping[str, Mapping[int, Measures]]
"""By arm and seed."""

IN_NOISE = ", in noise"
"""Ends the name of what was measured on noisy questions."""
FALL_MEASURES = ("ear", "tokens named")
"""Measures whose fall in noise and with punctuated transcripts is told."""


def select_numbers(found: Measures) -> dict[str, float]:
    """The single numbers of what was measured."""
    return {name: value for name, value in found.items() if isinstance(value, int | float)}


def compute_spread(values: Sequence[float]) -> float | None:
    """Standard deviation over seeds; none of a single one."""
    return statistics.stdev(values) if len(values) > 1 else None


def summarize_seeds(values: Sequence[float]) -> dict[str, Any] | None:
    """Mean, spread and how many; none of nothing."""
    if not values:
        return None
    return {"mean": statistics.mean(values), "spread": compute_spread(values), "n": len(values)}


def compute_difference(
    runs: Mapping[int, Measures], others: Mapping[int, Measures], name: str, other_name: str | None = None
) -> dict[str, Any] | None:
    """How much more a measure is than that of other runs, over the seeds that both have it of."""
    other_name = other_name or name
    seeds = [seed for seed in runs if name in runs[seed] and other_name in others.get(seed, {})]
    return summarize_seeds([runs[seed][name] - others[seed][other_name] for seed in seeds])


def summarize_arm(runs: Mapping[int, Measures], base: Mapping[int, Measures]) -> dict[str, Any]:
    """An arm's means and spreads over its seeds, and its differences to the base."""
    names = list(dict.fromkeys(name for found in runs.values() for name in select_numbers(found)))
    columns = {name: [found[name] for found in runs.values() if name in found] for name in names}
    against = {name: compute_difference(runs, base, name) for name in names}
    return {
        "n": len(runs),
        "mean": {name: statistics.mean(values) for name, values in columns.items()},
        "spread": {name: compute_spread(values) for name, values in columns.items()},
        "minus_base": {name: value for name, value in against.items() if value},
        "runs": {str(seed): runs[seed] for seed in sorted(runs)},
    }


def compute_falls(found: Runs) -> dict[str, dict[str, Any]]:
    """What noise does to the arms that were asked in it, and punctuated transcripts to those that learned them too.

    Differences to the same ear on clean speech, and to the arm that learned the transcripts as they are.
    """
    told: dict[str, dict[str, Any]] = {}
    for arm in ARMS.values():
        runs = found.get(arm.name, {})
        rows = {name: compute_difference(runs, runs, name + IN_NOISE, name) for name in FALL_MEASURES}
        told[f"{arm.name}: in noise"] = rows if arm.is_measured_in_noise else {}
        if arm.plain is not None:
            plain = found.get(arm.plain, {})
            told[f"{arm.plain}: punctuated"] = {
                name: compute_difference(runs, plain, name) for name in FALL_MEASURES
            }
    return {what: rows for what, rows in told.items() if any(rows.values())}


def build_result(found: Runs, n_steps: int, failed: Mapping[str, str]) -> Measures:
    """All that is known, as the file and the last line have it."""
    base = found.get(BASE, {})
    return {
        "benchmark": "ablations",
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "n_steps": n_steps,
        "arms": {name: summarize_arm(runs, base) for name, runs in found.items()},
        "falls": compute_falls(found),
        "failed": dict(failed),
    }


# Tables

_PERCENT, _PLAIN = 100.0, 1.0
_WORTH = {
    "ear": ("right %", _PERCENT),
    "ear, unseen voices (espeak-ng)": ("espeak %", _PERCENT),
    "ear, unseen engine (flite)": ("flite %", _PERCENT),
    "ear, in noise": ("in noise %", _PERCENT),
    "tokens named": ("named %", _PERCENT),
    "errors per token": ("errors %", _PERCENT),
    "length right": ("length %", _PERCENT),
}
_NEARNESS = {
    "same answers": ("same %", _PERCENT),
    "top-1": ("top-1 %", _PERCENT),
    "KL": ("KL, nats", _PLAIN),
    "L2": ("L2", _PLAIN),
    "cosine": ("cosine", _PLAIN),
    "training TFLOP": ("TFLOP", _PLAIN),
    "seconds trained": ("minutes", 1 / 60),
}
"""What the tables show: a measure's name, its heading, and what it is multiplied by."""
_NAME, _CELL = 26, 13


def format_tables(found: Measures) -> list[str]:
    """Mean and standard deviation over seeds; beside right answers, the difference to the base over both's seeds."""
    arms = found["arms"]
    lines = [_heads(_WORTH) + f"{'right minus base':>22}"]
    for name, arm in arms.items():
        against = None if name == BASE else arm["minus_base"].get("ear")
        lines.append(_row(name, arm, _WORTH) + f"{_difference(against):>22}")
    lines += ["", _heads(_NEARNESS), *(_row(name, arm, _NEARNESS) for name, arm in arms.items())]
    if found["falls"]:
        lines += ["", f"{'':{_NAME + 2}}{'right, points':>22}{'tokens named, points':>24}"]
    for what, rows in found["falls"].items():
        lines.append(
            f"{what:{_NAME + 2}}{_difference(rows['ear']):>22}{_difference(rows['tokens named']):>24}"
        )
    return lines


def _heads(columns: Mapping[str, tuple[str, float]]) -> str:
    return f"{'':{_NAME}}{'n':>2}" + "".join(f"{head:>{_CELL}}" for head, _ in columns.values())


def _row(name: str, arm: Mapping[str, Any], columns: Mapping[str, tuple[str, float]]) -> str:
    cells = (
        _cell(arm["mean"].get(key), arm["spread"].get(key), factor) for key, (_, factor) in columns.items()
    )
    return f"{name:{_NAME}}{arm['n']:>2}" + "".join(f"{cell:>{_CELL}}" for cell in cells)


def _cell(mean: float | None, deviation: float | None, factor: float) -> str:
    if mean is None:
        return "-"
    digits = 3 if factor == _PLAIN and abs(mean) < 10 else 1
    shown = f"{factor * mean:.{digits}f}"
    return shown if deviation is None else f"{shown} ±{factor * deviation:.{digits}f}"


def _difference(against: Mapping[str, Any] | None) -> str:
    if against is None:
        return ""
    deviation = against["spread"]
    give_or_take = "" if deviation is None else f" ±{_PERCENT * deviation:.1f}"
    return f"{_PERCENT * against['mean']:+.1f}{give_or_take} (n {against['n']})"
