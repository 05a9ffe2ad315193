"""The benchmarks that take minutes, one after the other, and one table of what they found beside what is wanted.

    python benchmarks                    # all: half an hour on two cores
    python benchmarks --only loss cache

What is wanted and not reached is said, and so is a benchmark that fails. Two more are long and are run by hand:
resume.py and ablations.py (hours); and gpu.py does all that a GPU is wanted for.
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
    """One number and what it should be."""

    what: str
    found: float
    least: float | None = None
    most: float | None = None

    @property
    def is_reached(self) -> bool:
        """Whether it is what is wanted, if anything is."""
        return (self.least is None or self.found >= self.least) and (
            self.most is None or self.found <= self.most
        )

    @property
    def wanted(self) -> str:
        """In words."""
        bounds = [f"{sign} {bound:g}" for sign, bound in ((">=", self.least), ("<=", self.most)) if bound]
        return " and ".join(bounds)


def of_train_step(result: dict[str, Any]) -> Iterator[Row]:
    """10 times the published clips/s and a tenth of its FLOPs at 5 s, more at 1 s, no slower at 30 s."""
    least = {1.0: 10.0, 5.0: 10.0, 30.0: 1.0}
    for row in result["lengths"]:
        length = row["seconds"]
        at = f"at {length:g} s"
        yield Row(f"clips/s, ours to published, {at}", row["ratio_clips_per_s"], least=least.get(length))
        yield Row(f"... teacher's states made for one pass, {at}", row["ratio_clips_per_s_teacher_in_1_pass"])
        yield Row(
            f"FLOPs a clip, ours to published, {at}", row["ratio_flops"], most=0.1 if length == 5 else None
        )
        yield Row(f"FLOPs, counted to planned, {at}", row["ours"]["flops_to_plan"], least=0.9, most=1.1)
    if fit := result.get("fit"):
        yield Row("step by seconds of sound, R2 of a straight line", fit["r2"], least=0.98)


def of_loss(result: dict[str, Any]) -> Iterator[Row]:
    """A step whose memory does not know V."""
    yield Row("bytes kept by a step, V = 128,256 to 2,566", result["step_kept_ratio"], most=1.001)
    for row in result["losses"]:
        if row["V"] == max(other["V"] for other in result["losses"]):
            ratio = row["divergence"]["ms"] / row["hidden states"]["ms"]
            yield Row(f"time of divergence to hidden states, D {row['D']}, V {row['V']:,}", ratio)


def of_first_token(result: dict[str, Any]) -> Iterator[Row]:
    """Half the cascade's time from 2 to 10 s; at 3 s 0.3 of 448 tokens'."""
    for name, value in result["ratios"].items():
        yield Row(f"first token, {name}", value["ratio"], most=value.get("most"))


def of_loader(result: dict[str, Any]) -> Iterator[Row]:
    """Four times as fast as the training that it feeds."""
    yield Row("clips/s, slowest loader to pocket training", result["least_ratio"], least=4.0)


def of_cache(result: dict[str, Any]) -> Iterator[Row]:
    """Values a second, whatever they are."""
    slowest = min(found["cold_per_s"] for found in result["results"].values())
    yield Row("values/s of the slowest cache, cold", slowest, least=result["target_per_s"])


def of_serving(result: dict[str, Any]) -> Iterator[Row]:
    """Memory that stays what it is, four times as many answers for sixteen clients as for one."""
    yield Row(
        "server's memory within a minute to after its warm-up", result["soak"]["resident_growth"], most=1.1
    )
    yield Row("requests/s, 16 clients to one", result["ratio_16_to_1"], least=4.0)
    for row in result["loads"]:
        first = {way: row[way]["first_token_ms"]["p50"] for way in ("ear", "cascade")}
        yield Row(f"first token, ear to cascade, {row['clients']} clients", first["ear"] / first["cascade"])


ROWS: dict[str, Callable[[dict[str, Any]], Iterator[Row]]] = {
    "train_step": of_train_step,
    "loss": of_loss,
    "first_token": of_first_token,
    "loader": of_loader,
    "cache": of_cache,
    "serving": of_serving,
}

MODULES = {
    "train_step": "benchmarks.training.train_step",
    "loss": "benchmarks.training.loss",
    "first_token": "benchmarks.serving.first_token",
    "loader": "benchmarks.data.loader",
    "cache": "benchmarks.data.cache",
    "serving": "benchmarks.serving.load",
}


def ran(name: str) -> dict[str, Any]:
    """A benchmark's last line, after all it has to say.

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
        raise RuntimeError(f"{MODULES[name]} ended with {process.returncode}")
    return json.loads(last)


def table(results: dict[str, dict[str, Any]]) -> tuple[list[str], list[Row]]:
    """All rows as lines, and those that are not what is wanted."""
    lines, missed = [f"{'':62}{'found':>10}  {'wanted':>16}"], []
    for name, result in results.items():
        for row in ROWS[name](result):
            mark = "" if row.is_reached else "  NOT REACHED"
            lines.append(f"{row.what:62}{row.found:10.4g}  {row.wanted:>16}{mark}")
            missed += [] if row.is_reached else [row]
    return lines, missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS))
    results, failed, started = {}, {}, time.perf_counter()
    for name in parser.parse_args().only:
        print(f"\n== {name}", flush=True)
        try:
            results[name] = ran(name)
        except (RuntimeError, json.JSONDecodeError) as error:
            failed[name] = str(error)
    lines, missed = table(results)
    print(f"\n{(time.perf_counter() - started) / 60:.1f} minutes\n\n" + "\n".join(lines))
    for name, reason in failed.items():
        print(f"{name} FAILED: {reason}")
    print(
        f"{len(missed)} of what is wanted not reached; {len(failed)} of {len(failed) + len(results)} failed"
    )
    summary = [{"what": row.what, "found": row.found, "reached": row.is_reached} for row in missed]
    print(json.dumps({"benchmark": "all", "missed": summary, "failed": failed}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
