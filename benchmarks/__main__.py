"""Runs the benchmarks that take minutes, and prints one table of their results next to the targets.

    python -m benchmarks                    # all: half an hour on two cores
    python -m benchmarks --only loss cache

The table marks targets that are missed, and benchmarks that fail. Others are run by hand: benchmarks.training.resume,
benchmarks.ablations.run (hours), benchmarks.security.attack, and benchmarks.gpu for everything that needs a GPU.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Row:
    """One number and its target, if it has one."""

    title: str
    value: float
    min_value: float | None = None
    max_value: float | None = None

    @property
    def is_reached(self) -> bool:
        """Whether the number is within its target."""
        return (self.min_value is None or self.value >= self.min_value) and (
            self.max_value is None or self.value <= self.max_value
        )

    @property
    def target(self) -> str:
        """The target as text."""
        limits = ((">=", self.min_value), ("<=", self.max_value))
        bounds = [f"{sign} {bound:g}" for sign, bound in limits if bound]
        return " and ".join(bounds)


def build_train_step_rows(result: dict[str, Any]) -> Iterator[Row]:
    """Targets 10 times the published clips/s at 1 and 5 s, a tenth of its FLOPs at 5 s, and no less speed at 30 s."""
    min_ratio = {1.0: 10.0, 5.0: 10.0, 30.0: 1.0}
    for row in result["lengths"]:
        length = row["seconds"]
        at = f"at {length:g} s"
        yield Row(
            f"clips/s, ours to published, {at}", row["ratio_clips_per_s"], min_value=min_ratio.get(length)
        )
        yield Row(
            f"... with the teacher's states for one pass, {at}", row["ratio_clips_per_s_teacher_in_1_pass"]
        )
        yield Row(
            f"FLOPs a clip, ours to published, {at}",
            row["ratio_flops"],
            max_value=0.1 if length == 5 else None,
        )
        yield Row(
            f"FLOPs, counted to planned, {at}", row["ours"]["flops_to_plan"], min_value=0.9, max_value=1.1
        )
    if fit := result.get("fit"):
        yield Row("step by seconds of sound, R2 of a straight line", fit["r2"], min_value=0.98)


def build_loss_rows(result: dict[str, Any]) -> Iterator[Row]:
    """Targets a step whose memory does not depend on V."""
    yield Row("bytes saved by a step, V = 128,256 to 2,566", result["step_kept_ratio"], max_value=1.001)
    for row in result["losses"]:
        if row["V"] == max(other["V"] for other in result["losses"]):
            ratio = row["divergence"]["ms"] / row["hidden states"]["ms"]
            yield Row(f"time of divergence to hidden states, D {row['D']}, V {row['V']:,}", ratio)


def build_first_token_rows(result: dict[str, Any]) -> Iterator[Row]:
    """Targets half of the cascade's time from 2 to 10 s, and 0.3 of the published ear's at 3 s."""
    for name, value in result["ratios"].items():
        yield Row(f"first token, {name}", value["ratio"], max_value=value.get("most"))


def build_loader_rows(result: dict[str, Any]) -> Iterator[Row]:
    """Targets a loader four times as fast as training."""
    yield Row("clips/s, slowest loader to pocket training", result["least_ratio"], min_value=4.0)


def build_cache_rows(result: dict[str, Any]) -> Iterator[Row]:
    """Targets entries a second of the slowest shape."""
    slowest = min(row["cold_per_s"] for row in result["results"].values())
    yield Row("values/s of the slowest cache, cold", slowest, min_value=result["target_per_s"])


def build_serving_rows(result: dict[str, Any]) -> Iterator[Row]:
    """Targets flat memory, and four times as many requests a second with sixteen clients as with one."""
    yield Row(
        "server's largest memory to that after the warm-up", result["soak"]["resident_growth"], max_value=1.1
    )
    yield Row("requests/s, 16 clients to one", result["ratio_16_to_1"], min_value=4.0)
    for row in result["loads"]:
        first = {way: row[way]["first_token_ms"]["p50"] for way in ("ear", "cascade")}
        yield Row(f"first token, ear to cascade, {row['clients']} clients", first["ear"] / first["cascade"])


ROWS: dict[str, Callable[[dict[str, Any]], Iterator[Row]]] = {
    "train_step": build_train_step_rows,
    "loss": build_loss_rows,
    "first_token": build_first_token_rows,
    "loader": build_loader_rows,
    "cache": build_cache_rows,
    "serving": build_serving_rows,
}

MODULES = {
    "train_step": "benchmarks.training.train_step",
    "loss": "benchmarks.training.loss",
    "first_token": "benchmarks.serving.first_token",
    "loader": "benchmarks.data.loader",
    "cache": "benchmarks.data.cache",
    "serving": "benchmarks.serving.load",
}


def run_benchmark(name: str) -> dict[str, Any]:
    """Runs a benchmark, prints its output, and returns its last line.

    Raises:
        RuntimeError: it failed
    """
    process = subprocess.Popen(
        [sys.executable, "-m", MODULES[name]], cwd=ROOT, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    )
    assert process.stdout is not None
    last = ""
    for line in process.stdout:
        print(line, end="", flush=True)
        last = line if line.strip() else last
    if process.wait():
        raise RuntimeError(f"{MODULES[name]} failed with exit code {process.returncode}")
    return json.loads(last)


def format_table(results: dict[str, dict[str, Any]]) -> tuple[list[str], list[Row]]:
    """Returns the table's lines, and the rows that miss their target."""
    lines, missed = [f"{'':62}{'value':>10}  {'target':>16}"], []
    for name, result in results.items():
        for row in ROWS[name](result):
            mark = "" if row.is_reached else "  MISSED"
            lines.append(f"{row.title:62}{row.value:10.4g}  {row.target:>16}{mark}")
            missed += [] if row.is_reached else [row]
    return lines, missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), help="benchmarks to run")
    results, failed, started = {}, {}, time.perf_counter()
    for name in parser.parse_args().only:
        print(f"\n== {name}", flush=True)
        try:
            results[name] = run_benchmark(name)
        except (RuntimeError, json.JSONDecodeError) as error:
            failed[name] = str(error)
    lines, missed = format_table(results)
    print(f"\n{(time.perf_counter() - started) / 60:.1f} minutes\n\n" + "\n".join(lines))
    for name, reason in failed.items():
        print(f"{name} FAILED: {reason}")
    print(f"{len(missed)} targets missed; {len(failed)} of {len(failed) + len(results)} benchmarks failed")
    summary = [{"what": row.title, "found": row.value, "reached": row.is_reached} for row in missed]
    print(json.dumps({"benchmark": "all", "missed": summary, "failed": failed}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
