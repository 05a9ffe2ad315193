"""The tables that people read say what the files of results say."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results"
README, DOCS = ROOT / "README.md", ROOT / "docs/explanation/results.md"
ABLATIONS = json.loads((RESULTS / "2026-11-26-ablations.json").read_text())
EARS = json.loads((RESULTS / "2026-11-27-robustness.json").read_text())["ears"]
SHIPPED, NEW, WITHOUT = EARS["pocket/ear"], EARS["new ear"], EARS["pocket/ear, no silence learned"]
WRITTEN = EARS["pocket/ear, written down"]
"""Beside the same ear a cascade whose recogniser it is."""
NONE = "–"


def rows(document: Path, head: str) -> dict[str, list[str]]:
    """The cells behind the first one of each row of the only table whose head begins so, by the first one."""
    (_, behind) = document.read_text().split(f"\n| {head} |")
    lines = behind.split("\n\n", 1)[0].splitlines()[2:]
    cells = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines]
    return {first: rest for first, *rest in cells}


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def with_interval(score: Mapping[str, Any]) -> str:
    low, high = score["ci95"]
    return f"{percent(score['value'])} ({100 * low:.1f}–{100 * high:.1f})"


def in_points(difference: Mapping[str, Any]) -> str:
    value, low, high = (
        f"{100 * number:.1f}".replace("-", "−").replace("−0.0", "0.0")
        for number in (difference["value"], *difference["ci95"])
    )
    sign = "" if value.startswith(("−", "0.0")) else "+"
    return f"{sign}{value} ({low} to {high})"


def by_condition(ear: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {found["condition"]: found for found in ear["conditions"]}


def heard(ear: Mapping[str, Any], condition: str) -> str:
    found = by_condition(ear).get(condition)
    return percent(found["ear"]["value"]) if found else NONE


# Ablations

COLUMNS = {
    "right of 828": ("ear", 100, 1, " %"),
    "by flite": ("ear, unseen engine (flite)", 100, 1, " %"),
    "in noise": ("ear, in noise", 100, 1, " %"),
    "tokens named": ("tokens named", 100, 1, " %"),
    "KL, nats": ("KL", 1, 2, ""),
}


def over_seeds(arm: Mapping[str, Any], name: str, factor: int, n_digits: int, unit: str) -> str:
    if name not in arm["mean"]:
        return NONE
    mean, spread = arm["mean"][name], arm["spread"][name]
    give_or_take = "" if spread is None else f" ± {factor * spread:.{n_digits}f}"
    return f"{factor * mean:.{n_digits}f}{give_or_take}{unit}"


def test_ablations() -> None:
    """The table has every arm, the best one first, and of each what its runs came to."""
    shown = rows(DOCS, "arm | n | " + " | ".join(COLUMNS) + " | operations, TFLOP")
    names = [name.group(1) for first in shown if (name := re.match(r"`(.+?)`", first))]
    arms = ABLATIONS["arms"]
    assert names == sorted(arms, key=lambda name: arms[name]["mean"]["ear"], reverse=True)
    for name, cells in zip(names, shown.values(), strict=True):
        arm = arms[name]
        expected = [over_seeds(arm, *column) for column in COLUMNS.values()]
        assert cells == [str(arm["n"]), *expected, f"{arm['mean']['training TFLOP']:.1f}"], name


# The ear that comes with ossicle

README_HEAD = (
    "right answers, 95 % interval | n | text ceiling | cascade | ear of the demo's minutes"
    " | ear that comes with ossicle"
)


def test_three_numbers() -> None:
    shown = rows(DOCS, "right answers, 95 % interval | n | text ceiling | cascade | new ear | pocket/ear")
    in_short = rows(README, README_HEAD)
    assert len(shown) == len(in_short) == 4
    for group, cells in shown.items():
        own, new = (_part(ear, group) for ear in (SHIPPED, NEW))
        beside = [with_interval(own[name]) for name in ("text_ceiling", "cascade")]
        assert cells == [str(own["n"]), *beside, with_interval(new["ear"]), with_interval(own["ear"])], group
        n, ceiling, cascade, _, shipped = in_short[group]
        assert [n, ceiling, cascade, shipped] == [*cells[:3], cells[4]], group


def _part(ear: Mapping[str, Any], name: str) -> dict[str, Any]:
    if name == "all items":
        return by_condition(ear)["clean"]
    return ear["instructions"] if name == "with a text instruction" else ear["groups"][name]


def test_robustness() -> None:
    shown = rows(
        DOCS,
        "right answers, n = 828; read: 99.9 % | cascade | new ear | no silence learned | own words, read"
        " | pocket/ear | it minus the cascade, points | it minus its own words, points",
    )
    conditions, written = by_condition(SHIPPED), by_condition(WRITTEN)
    assert set(shown) == set(conditions)
    for name, cells in shown.items():
        found = conditions[name]
        assert cells == [
            percent(found["cascade"]["value"]),
            *(heard(ear, name) for ear in (NEW, WITHOUT)),
            percent(written[name]["cascade"]["value"]),
            heard(SHIPPED, name),
            in_points(found["difference"]),
            in_points(written[name]["difference"]),
        ], name
        assert heard(WRITTEN, name) == heard(SHIPPED, name), "the same ear, heard again"


def test_robustness_in_short() -> None:
    (head,) = re.findall(r"\n\| right answers, n = 828 \|(.+)\|\n", README.read_text())
    levels = [level.strip() for level in head.split("|")]
    shown = rows(README, f"right answers, n = 828 | {' | '.join(levels)}")
    names, kind = [], ""
    for level in levels:
        kind = level.split(",")[0] if ", " in level else kind
        names.append(f"{kind}, {level}" if level in ("10 dB", "5 dB", "0 dB") else level)
    names = [name.replace("a second of silence before", "silence before, 1 s") for name in names]
    assert shown == {
        "cascade": [percent(by_condition(SHIPPED)[name]["cascade"]["value"]) for name in names],
        "a new ear, not trained at all": [heard(NEW, name) for name in names],
        "its own words, written down and read": [
            percent(by_condition(WRITTEN)[name]["cascade"]["value"]) for name in names
        ],
        "ear that comes with ossicle": [heard(SHIPPED, name) for name in names],
    }


@pytest.mark.parametrize(
    ("value", "ci95", "said"),
    [
        (0.012, (-0.006, 0.03), "+1.2 (−0.6 to 3.0)"),
        (-0.0004, (-0.01, 0.0), "0.0 (−1.0 to 0.0)"),
        (-0.02, (-0.03, -0.01), "−2.0 (−3.0 to −1.0)"),
    ],
)
def test_differences_are_written_with_their_sign(value: float, ci95: tuple[float, float], said: str) -> None:
    assert in_points({"value": value, "ci95": ci95}) == said
