"""The tables that people read say what the files of results say."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results"
README, RESULTS_PAGE = ROOT / "README.md", ROOT / "docs/explanation/results.md"
PERFORMANCE_PAGE = ROOT / "docs/explanation/performance.md"
ABLATIONS = json.loads((RESULTS / "2026-11-26-ablations.json").read_text())
EARS = json.loads((RESULTS / "2026-11-27-robustness.json").read_text())["ears"]
SHIPPED, NEW, NO_SILENCE = EARS["pocket/ear"], EARS["new ear"], EARS["pocket/ear, no silence learned"]
TRANSCRIBED = EARS["pocket/ear, written down"]
"""The same ear next to a cascade whose ASR model it is."""
MISSING = "–"
ROBUSTNESS_COLUMNS = ("new ear", "no silence in training", "its own transcript, read", "pocket/ear")
DIFFERENCES_HEAD = "pocket/ear minus, points (95 %) | the cascade | its own transcript, read"


def read_table(document: Path, head: str) -> dict[str, list[str]]:
    """Returns the rows of the only table with this head: the cells after the first one, by the first one."""
    (_, after) = document.read_text().split(f"\n| {head} |")
    lines = after.split("\n\n", 1)[0].splitlines()[2:]
    cells = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines]
    return {first: rest for first, *rest in cells}


def format_percent(ratio: float) -> str:
    return f"{100 * ratio:.1f} %"


def format_with_interval(score: Mapping[str, Any]) -> str:
    low, high = score["ci95"]
    return f"{format_percent(score['value'])} ({100 * low:.1f}–{100 * high:.1f})"


def format_points(difference: Mapping[str, Any]) -> str:
    value, low, high = (
        f"{100 * number:.1f}".replace("-", "−").replace("−0.0", "0.0")
        for number in (difference["value"], *difference["ci95"])
    )
    sign = "" if value.startswith(("−", "0.0")) else "+"
    return f"{sign}{value} ({low} to {high})"


def by_condition(ear: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {result["condition"]: result for result in ear["conditions"]}


def format_ear(ear: Mapping[str, Any], condition: str) -> str:
    result = by_condition(ear).get(condition)
    return format_percent(result["ear"]["value"]) if result else MISSING


# Ablations

COLUMNS = {
    "right of 828": ("ear", 100, 1, " %"),
    "by flite": ("ear, unseen engine (flite)", 100, 1, " %"),
    "in noise": ("ear, in noise", 100, 1, " %"),
    "tokens named": ("tokens named", 100, 1, " %"),
    "KL, nats": ("KL", 1, 2, ""),
}


def format_over_seeds(arm: Mapping[str, Any], name: str, factor: int, n_digits: int, unit: str) -> str:
    if name not in arm["mean"]:
        return MISSING
    mean, spread = arm["mean"][name], arm["spread"][name]
    plus_minus = "" if spread is None else f" ± {factor * spread:.{n_digits}f}"
    return f"{factor * mean:.{n_digits}f}{plus_minus}{unit}"


def test_ablations() -> None:
    """The table has every arm with the results of its runs, the best one first."""
    shown = read_table(RESULTS_PAGE, "arm | n | " + " | ".join(COLUMNS) + " | operations, TFLOP")
    names = [name.group(1) for first in shown if (name := re.match(r"`(.+?)`", first))]
    arms = ABLATIONS["arms"]
    assert names == sorted(arms, key=lambda name: arms[name]["mean"]["ear"], reverse=True)
    for name, cells in zip(names, shown.values(), strict=True):
        arm = arms[name]
        expected = [format_over_seeds(arm, *column) for column in COLUMNS.values()]
        assert cells == [str(arm["n"]), *expected, f"{arm['mean']['training TFLOP']:.1f}"], name


# The published form by steps


def test_step_curve() -> None:
    run = json.loads((RESULTS / "2026-11-29-diva.json").read_text())["runs"]["diva"]
    shown = read_table(
        RESULTS_PAGE,
        "steps of 32 clips | right of 828 | unseen voices | by flite | tokens named | naming, nats, in training",
    )
    assert list(shown) == [f"{point['step']:,}" for point in run["curve"]]
    for cells, point in zip(shown.values(), run["curve"], strict=True):
        ratios = ("ear", "ear, unseen voices (espeak-ng)", "ear, unseen engine (flite)", "tokens named")
        assert cells == [*(format_percent(point[name]) for name in ratios), f"{point['loss, token_ce']:.2f}"]


# The ear that comes with ossicle


REAL_SETS = {"LJ Speech": "ljspeech", "Arctic": "arctic-kathleen", "learners": "speechocean-dev"}


def format_wer(wer: Mapping[str, Any]) -> str:
    low, high = wer["difference"]["ci95"]
    return f"{wer['value']:.1f} ({low:.1f} to {high:.1f})".replace("-", "−")


def test_real_speech() -> None:
    sets = json.loads((RESULTS / "2026-11-28-real-speech.json").read_text())["sets"]
    shown = read_table(RESULTS_PAGE, "word errors, % | n | cascade | no anchor | anchored | half-way")
    other_seed = read_table(RESULTS_PAGE, "word errors, % | n | cascade | half-way, seed 1")
    control = read_table(RESULTS_PAGE, "word errors, % | cascade | cross-entropy alone | its half-way")
    summary = read_table(README, "word errors, % | cascade | trained, three seeds | cross-entropy alone")
    third = json.loads((RESULTS / "2026-11-29-real-speech-tiny.json").read_text())["sets"]
    third_seed = read_table(
        RESULTS_PAGE,
        "word errors, % | cascade | half-way, seed 2 | carried to Qwen | and back | trained for Qwen",
    )
    assert third_seed.keys() == shown.keys()
    assert shown.keys() == control.keys()
    assert len(other_seed) == sum(map(len, sets.values()))
    for row, cells in other_seed.items():
        name, _, condition = row.partition(", ")
        result = sets[REAL_SETS[name]][condition]
        wer = result["wer"]
        first = [str(result["n"]), f"{wer['cascade']['value']:.1f}"]
        assert cells == [*first, format_wer(wer["half-way, seed 1"])], row
        if row in shown:
            ears = [format_wer(wer[ear]) for ear in ("no anchor", "anchored", "half-way")]
            assert shown[row] == [*first, *ears], row
            assert control[row] == [first[1], format_wer(wer["ce"]), format_wer(wer["ce-half"])], row
            assert wer["untrained"]["value"] == wer["cascade"]["value"]
    for row, cells in third_seed.items():
        wer = third[REAL_SETS[row.partition(", ")[0]]][row.partition(", ")[2]]["wer"]
        own, carried, native = (format_wer(wer[ear]) for ear in ("half-way, seed 2", "carried", "native"))
        values = [f"{wer[ear]['value']:.1f}" for ear in ("cascade", "back")]
        assert cells == [values[0], own, carried, values[1], native], row
    for row, cells in summary.items():
        name, _, condition = row.partition(", ")
        wer = sets[REAL_SETS[name]][condition]["wer"]
        trained = [wer["half-way"], wer["half-way, seed 1"]]
        trained.append(third[REAL_SETS[name]][condition]["wer"]["half-way, seed 2"])
        seeds = ", ".join(f"{each['value']:.1f}" for each in trained)
        assert cells == [f"{wer['cascade']['value']:.1f}", seeds, f"{wer['ce']['value']:.1f}"], row


def test_real_speech_through_a_larger_whisper() -> None:
    sets = json.loads((RESULTS / "2026-11-29-real-speech-base.json").read_text())["sets"]
    shown = read_table(RESULTS_PAGE, "word errors, % | n | cascade | untrained | base, half-way")
    assert len(shown) == sum(map(len, sets.values()))
    for row, cells in shown.items():
        name, _, condition = row.partition(", ")
        result = sets[REAL_SETS[name]][condition]
        wer = result["wer"]
        ears = [format_wer(wer[ear]) for ear in ("untrained", "half-way")]
        assert cells == [str(result["n"]), f"{wer['cascade']['value']:.1f}", *ears], row


def test_windows_on_real_speech() -> None:
    sets = json.loads((RESULTS / "2026-11-28-window-real.json").read_text())["sets"]
    columns = "whole window | sound+silence | trained, whole window | trained, sound+silence"
    shown = read_table(PERFORMANCE_PAGE, f"word errors, % (n = 32) | {columns}")
    assert len(shown) == sum(map(len, sets.values()))
    for row, cells in shown.items():
        name, _, condition = row.partition(", ")
        wer = sets[REAL_SETS[name]][condition]["wer"]
        ears = ("full", "silence", "trained-full", "trained-silence")
        assert cells == [f"{wer[ear]['value']:.1f}" for ear in ears], row


def test_first_token_on_real_models() -> None:
    results = json.loads((RESULTS / "2026-11-29-first-token-real.json").read_text())
    ratios = "ear / cascade | / 448 | whole / cascade | / 448"
    columns = f"tokens | text, read | ear | cascade | 448 slots | {ratios}"
    shown = read_table(PERFORMANCE_PAGE, f"Whisper, sound | {columns}")
    assert len(shown) == 10
    for name, cells in shown.items():
        whisper, _, seconds = name.removesuffix(" s").partition(", ")
        windows = results[f"whisper-{whisper} with SmolLM2-135M-Instruct"]
        expected = list[str]()
        for window in ("sound+silence", "full"):
            (row,) = (row for row in windows[window]["lengths"] if f"{row['seconds']:.1f}" == seconds)
            text, ear, cascade, fixed = (
                row[way]["first_token_ms"] for way in ("text", "ear", "cascade", "published")
            )
            if not expected:
                expected += [str(row["tokens"]), *(f"{time:.0f}" for time in (text, ear, cascade, fixed))]
            expected += [f"{ear / cascade:.2f}", f"{ear / fixed:.2f}"]
        assert cells == expected, name


def test_training_steps_next_to_ultravox() -> None:
    lengths = json.loads((RESULTS / "2026-11-29-peers.json").read_text())["lengths"]
    columns = "Ultravox | ours | compared | times fewer | with 50 positions | compared | times fewer"
    shown = read_table(PERFORMANCE_PAGE, f"seconds | {columns}")
    assert len(shown) == len(lengths)
    for row in lengths:
        theirs, ours, more = (row[way] for way in ("ultravox", "ours", "ours, as many positions"))
        ratio = theirs["gflop_per_clip"] / ours["gflop_per_clip_teacher_in_1_pass"]
        assert shown[f"{row['seconds']:g}"] == [
            f"{theirs['gflop_per_clip']:.1f}",
            f"{ours['gflop_per_clip']:.1f}",
            f"{ours['n_compared_per_clip']:.1f}",
            f"{ours['ratio_operations']:.1f} ({ratio:.1f})",
            f"{more['gflop_per_clip']:.1f}",
            f"{more['n_compared_per_clip']:.1f}",
            f"{more['ratio_operations']:.1f}",
        ]


def test_live_on_real_models() -> None:
    results = json.loads((RESULTS / "2026-11-28-live.json").read_text())
    columns = "listening | whole sound at its end | cascade | listening / cascade | busy"
    shown = read_table(PERFORMANCE_PAGE, f"Whisper, sound | {columns}")
    for name, cells in shown.items():
        whisper, _, seconds = name.removesuffix(" s").partition(", ")
        lengths = results[f"whisper-{whisper} with SmolLM2-135M-Instruct"]["lengths"]
        (row,) = (row for row in lengths if f"{row['seconds']:.1f}" == seconds)
        times = [row[f"{way}_ms"] for way in ("live", "offline", "cascade")]
        ratio, busy = f"{times[0] / times[2]:.2f}", f"{row['busy']:.2f}"
        assert cells == [*(f"{time:.0f}" for time in times), ratio, busy], name


def test_three_numbers() -> None:
    shown = read_table(
        RESULTS_PAGE, "right answers, 95 % interval | n | text ceiling | cascade | new ear | pocket/ear"
    )
    assert len(shown) == 4
    for group, cells in shown.items():
        shipped, new = (_get_group(ear, group) for ear in (SHIPPED, NEW))
        common = [format_with_interval(shipped[name]) for name in ("text_ceiling", "cascade")]
        ears = [format_with_interval(new["ear"]), format_with_interval(shipped["ear"])]
        assert cells == [str(shipped["n"]), *common, *ears], group


def _get_group(ear: Mapping[str, Any], name: str) -> dict[str, Any]:
    if name == "all items":
        return by_condition(ear)["clean"]
    return ear["instructions"] if name == "with a text instruction" else ear["groups"][name]


def test_robustness() -> None:
    shown = read_table(RESULTS_PAGE, "right answers, n = 828 | cascade | " + " | ".join(ROBUSTNESS_COLUMNS))
    differences = read_table(RESULTS_PAGE, DIFFERENCES_HEAD)
    conditions, transcribed = by_condition(SHIPPED), by_condition(TRANSCRIBED)
    assert set(shown) == set(differences) == set(conditions)
    for name, cells in shown.items():
        result = conditions[name]
        assert cells == [
            format_percent(result["cascade"]["value"]),
            *(format_ear(ear, name) for ear in (NEW, NO_SILENCE)),
            format_percent(transcribed[name]["cascade"]["value"]),
            format_ear(SHIPPED, name),
        ], name
        assert differences[name] == [
            format_points(result["difference"]),
            format_points(transcribed[name]["difference"]),
        ], name
        assert format_ear(TRANSCRIBED, name) == format_ear(SHIPPED, name), "the same ear, evaluated again"


def test_robustness_in_the_readme() -> None:
    shown = read_table(
        README,
        "right answers, n = 828 | text ceiling | cascade | new ear, not trained | pocket/ear"
        " | its own transcript, read",
    )
    conditions, transcribed = by_condition(SHIPPED), by_condition(TRANSCRIBED)
    assert len(shown) == 4
    for name, cells in shown.items():
        assert cells == [
            format_percent(conditions[name]["text_ceiling"]["value"]),
            format_percent(conditions[name]["cascade"]["value"]),
            format_ear(NEW, name),
            format_ear(SHIPPED, name),
            format_percent(transcribed[name]["cascade"]["value"]),
        ], name


@pytest.mark.parametrize(
    ("value", "ci95", "text"),
    [
        (0.012, (-0.006, 0.03), "+1.2 (−0.6 to 3.0)"),
        (-0.0004, (-0.01, 0.0), "0.0 (−1.0 to 0.0)"),
        (-0.02, (-0.03, -0.01), "−2.0 (−3.0 to −1.0)"),
    ],
)
def test_differences_have_their_sign(value: float, ci95: tuple[float, float], text: str) -> None:
    assert format_points({"value": value, "ci95": ci95}) == text
