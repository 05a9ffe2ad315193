"""All that a GPU is wanted for, in ten minutes: speed, memory and profile of a training step in real sizes.

    python benchmarks/gpu.py            # Whisper-large-v3 and turbo with an 8B Llama, random weights
    python benchmarks/gpu.py --small    # the same on a CPU in small sizes, to see that everything runs

Each stage has a time limit; one that fails is noted with its reason and the rest goes on. After each, everything so far
is written to benchmarks/results/DATE-gpu-NAME.json, the profile beside it.
"""

import argparse
import contextlib
import gc
import json
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.meters import about, matmul_peak, median, peak_bytes, seconds
from benchmarks.shapes import SHAPES, Bases, Shape, drawn_batches
from benchmarks.training.published_step import Given, Literal, new_literal
from benchmarks.training.train_step import Ours, compared, prepared, proportions
from ossicle.atomic_io import write_text
from ossicle.backbones import packed_forward
from ossicle.backbones.pretrained import get_default_device, get_frozen_dtype

ROOT = Path(__file__).parents[1]
TARGET = 205.0
"""Clips of 5 s a second: 2.2 million in three hours."""
_MEAN_S = 5.0


@dataclass(frozen=True)
class Plan:
    """What is run, and for how many seconds at most."""

    shapes: tuple[str, str]
    lengths: tuple[float, ...]
    batches: dict[float, int]
    """The largest batch that is tried for each length; half of it where memory does not do."""
    literal_batch: int
    rounds: int
    limits: dict[str, float]


REAL = Plan(
    shapes=("large-v3", "turbo"),
    lengths=(5.0, 2.0, 10.0, 30.0),
    batches={2.0: 128, 5.0: 64, 10.0: 32, 30.0: 8},
    literal_batch=8,
    rounds=5,
    limits={"lengths": 110.0, "published": 90.0, "choices": 150.0, "profile": 60.0, "first_token": 120.0},
)
SMALL = Plan(
    shapes=("toy", "toy"),
    lengths=(5.0, 2.0),
    batches={2.0: 8, 5.0: 8},
    literal_batch=4,
    rounds=1,
    limits={"lengths": 60.0, "published": 60.0, "choices": 60.0, "profile": 60.0, "first_token": 60.0},
)


class OutOfTime(Exception):
    """A stage's time is up."""


@dataclass
class Journal:
    """What is known so far, on disk after each stage.

    Args:
        end: when no more time is left, by the clock of `time.perf_counter`
    """

    path: Path
    end: float
    found: dict[str, Any] = field(default_factory=dict)

    def stage(self, name: str, limit_s: float, work: Callable[[], Any], *, is_noted: bool = True) -> Any:
        """Runs a stage; None if it failed, with the reason noted."""
        print(f"== {name}", flush=True)
        started, done = time.perf_counter(), None
        try:
            with at_most(min(limit_s, self.end - started)):
                done = work()
            self.found[name] = done if is_noted else "done"
        except Exception as error:  # whatever it is, the other stages are wanted
            reason = " ".join(str(error).split())[:500]
            self.found[name] = {"failed": f"{type(error).__name__}: {reason}"}
            print(f"   failed: {type(error).__name__}: {reason}", flush=True)
        let_go()
        self.found.setdefault("stage_s", {})[name] = round(time.perf_counter() - started, 1)
        write_text(self.path, json.dumps(self.found, indent=1) + "\n")
        return done


def let_go() -> None:
    """Gives memory back that nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def at_most(limit_s: float) -> Generator[None]:
    """Raises OutOfTime in the block when its time is up."""

    def over(*_: Any) -> None:
        raise OutOfTime(f"not done after {limit_s:g} s")

    if limit_s <= 0:
        raise OutOfTime("not begun: no time was left")
    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def peaks(device: torch.device) -> dict[str, float]:
    """FLOPs a second of large matrix products, by type; float32 also as tf32, where there is that."""
    found = {str(dtype)[6:]: matmul_peak(device, dtype) for dtype in (torch.bfloat16, torch.float32)}
    if device.type == "cuda":
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = True
        found["tf32"] = matmul_peak(device, torch.float32)
        torch.backends.cuda.matmul.allow_tf32 = before
    return found


def with_room(work: Callable[[int], Any], batch: int) -> Any:
    """What `work` gives for the largest batch that memory allows, from this one down by halves."""
    while True:
        try:
            return work(batch)
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
            batch //= 2
        let_go()


@dataclass
class Stages:
    """The work of all stages with one shape's models."""

    plan: Plan
    shape: Shape
    bases: Bases
    peak: float

    def length(self, mean_s: float) -> dict[str, Any]:
        """Our step at one length."""

        def work(batch: int) -> dict[str, Any]:
            return compared(self.bases, self.shape, mean_s, batch, self.plan.rounds, None, self.peak)

        found = with_room(work, self.plan.batches[mean_s])
        print(
            f"   {mean_s:g} s, batch {found['batch']}: {found['ours']['clips_per_s']:.1f} clips/s", flush=True
        )
        return found

    def published(self) -> dict[str, Any]:
        """Ours against the published step, at 5 s and with a batch that it has memory for."""
        literal: Literal = new_literal(self.bases, self.shape)

        def work(batch: int) -> dict[str, Any]:
            literal.optimizer.zero_grad()
            literal.step(Given.of(self.shape, drawn_batches(self.shape, _MEAN_S, batch, 1)[0]))
            return compared(self.bases, self.shape, _MEAN_S, batch, 3, literal, self.peak)

        return with_room(work, self.plan.literal_batch)

    @contextlib.contextmanager
    def ours(self, batch: int) -> Generator[Ours]:
        """A run at 5 s that has taken its first steps."""
        with tempfile.TemporaryDirectory() as folder:
            ours = prepared(self.bases, self.shape, _MEAN_S, batch, Path(folder), 3)
            ours.sweep()
            yield ours

    def choices(self) -> dict[str, Any]:
        """What only a GPU can decide, each against the step as it is, in turns."""
        batch, found = self.plan.batches[_MEAN_S], {"part sizes": self._part_sizes()}
        for name, change in CHOICES.items():
            try:
                found[name] = with_room(lambda batch, change=change: self._choice(batch, change), batch)
            except OutOfTime:
                raise
            except Exception as error:  # one that cannot be had says nothing of the others
                found[name] = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
            print(f"   {name}: {found[name]}", flush=True)
        return found

    def _choice(self, batch: int, change: "Change") -> dict[str, float]:
        device = self.bases.llm.device
        times: dict[str, list[float]] = {"as it is": [], "changed": []}
        with self.ours(batch) as ours:
            with change(ours):
                ours.sweep()  # compiled, if it is to be, and warm
            for _ in range(self.plan.rounds):
                times["as it is"].append(seconds(ours.sweep, device))
                with change(ours):
                    times["changed"].append(seconds(ours.sweep, device))
            found = {name: ours.n_clips / median(taken) for name, taken in times.items()}
        return {"batch": batch, **found, "ratio": found["changed"] / found["as it is"]}

    def _part_sizes(self) -> dict[str, Any]:
        """Clips a second and memory by how many clips are run together."""
        largest, found = self.plan.batches[_MEAN_S], {}
        for batch in (largest // 4, largest // 2, largest, 2 * largest):
            try:
                with self.ours(batch) as ours:
                    device = self.bases.llm.device
                    taken = median([seconds(ours.sweep, device) for _ in range(self.plan.rounds)])
                    found[batch] = {
                        "clips_per_s": ours.n_clips / taken,
                        "peak_bytes": peak_bytes(ours.sweep, device),
                    }
            except torch.OutOfMemoryError:
                found[batch] = {"failed": "out of memory"}
            let_go()
        return found

    def profiled(self, path: Path) -> dict[str, Any]:
        """The kernels that take longest, and where the host waits for the device."""
        device = self.bases.llm.device
        is_gpu = device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_gpu else [])]
        with self.ours(self.plan.batches[_MEAN_S] // 2) as ours:
            with profile(activities=activities) as profiler:
                taken = seconds(lambda: ours.step(ours.middle), device)
            events = profiler.key_averages()
            order = "self_cuda_time_total" if is_gpu else "self_cpu_time_total"
            write_text(
                path,
                f"one step of {self.shape.name}, {len(ours.batches[ours.middle])} clips of {_MEAN_S:g} s,"
                f" {taken:.3f} s with the profiler on\n\n"
                + events.table(sort_by=order, row_limit=40, max_name_column_width=90)
                + "\nby the host's time\n\n"
                + events.table(sort_by="self_cpu_time_total", row_limit=30, max_name_column_width=90),
            )
        waits = re.compile("Synchronize|aten::item|_local_scalar_dense|Memcpy|aten::nonzero")
        found = {
            event.key: {"n": event.count, "host_ms": event.self_cpu_time_total / 1e3}
            for event in events
            if waits.search(event.key)
        }
        return {"table": path.name, "waits": found, "n_launches": _n_launches(events)}


def _n_launches(events: Any) -> int:
    return sum(event.count for event in events if "LaunchKernel" in event.key)


Change = Callable[[Ours], contextlib.AbstractContextManager[Any]]


def one_text_a_row(_: Ours) -> contextlib.AbstractContextManager[Any]:
    """Texts are padded to each other, not packed."""
    return mock.patch.object(packed_forward, "ROW_LENGTH", 0)


def long_rows(_: Ours) -> contextlib.AbstractContextManager[Any]:
    """Rows of four times as many positions."""
    return mock.patch.object(packed_forward, "ROW_LENGTH", 4 * packed_forward.ROW_LENGTH)


def compiled_connector(ours: Ours) -> contextlib.AbstractContextManager[Any]:
    """The connector's layers through torch.compile, lengths as symbols; compiled once for all sweeps."""
    connector = ours.run.ear.connector
    stack = contextlib.ExitStack()
    for layer in connector.layers:
        if not hasattr(layer, "benchmark_compiled"):
            object.__setattr__(layer, "benchmark_compiled", torch.compile(layer.forward, dynamic=True))
        stack.enter_context(mock.patch.object(layer, "forward", layer.benchmark_compiled))
    return stack


CHOICES: dict[str, Change] = {
    "texts not packed": one_text_a_row,
    "rows four times as long": long_rows,
    "connector compiled": compiled_connector,
}


def first_token(shape: str, limit_s: float) -> dict[str, Any]:
    """Its last line, as it runs by itself."""
    command = [sys.executable, "-m", "benchmarks.serving.first_token", "--shape", shape, "--no-pocket"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit_s, check=False)
    if done.returncode:
        raise RuntimeError(f"it ended with {done.returncode}: {done.stderr.strip()[-400:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def with_shape(journal: Journal, plan: Plan, name: str, number: int, peak: float) -> None:
    """All stages with one shape's models; what needs no other shape with the first one's alone."""
    shape, limits, device = SHAPES[name], plan.limits, get_default_device()
    label = f"{number} {name}"
    bases = journal.stage(
        f"{label}: models", limits["lengths"], lambda: Bases.of(shape, device), is_noted=False
    )
    if bases is None:
        return
    stages = Stages(plan, shape, bases, peak)
    for length in plan.lengths:
        journal.stage(
            f"{label}: {length:g} s", limits["lengths"], lambda length=length: stages.length(length)
        )
    if number == 1:
        table = journal.path.with_suffix(".txt")
        journal.stage("profile", limits["profile"], lambda: stages.profiled(table))
        journal.stage("published", limits["published"], stages.published)
        journal.stage("choices", limits["choices"], stages.choices)
        journal.stage("proportions", limits["profile"], lambda: proportions(shape, _MEAN_S))


def summary(journal: Journal, header: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """The last line."""
    five = journal.found.get(f"1 {plan.shapes[0]}: {_MEAN_S:g} s", {})
    failed = [
        name for name, one in journal.found.items() if isinstance(one, dict) and one.get("failed") is not None
    ]
    return {
        **header,
        "clips_per_s_at_5_s": five.get("ours", {}).get("clips_per_s"),
        "target": TARGET,
        "failed": failed,
        "results": journal.path.name,
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--small", action="store_true", help="small sizes, to see that everything runs")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results", help="folder of the results")
    parser.add_argument("--minutes", type=float, default=10.0, help="for all stages together")
    asked = parser.parse_args(arguments)
    plan, device, started = SMALL if asked.small else REAL, get_default_device(), time.perf_counter()
    header = about("gpu", device)
    name = re.sub(r"[^a-z0-9]+", "-", header["machine"].split(",")[0].lower()).strip("-")
    asked.out.mkdir(parents=True, exist_ok=True)
    path = asked.out / f"{header['date']}-gpu-{name}{'-small' * asked.small}.json"
    journal = Journal(path, started + 60 * asked.minutes, header | {"command": shlex.join(sys.argv)})
    if device.type == "cuda":
        _, total = torch.cuda.mem_get_info(device)
        journal.found |= {"gpu_bytes": total, "cuda": torch.version.cuda}
    peak_of = journal.stage("matmul peak", plan.limits["profile"], lambda: peaks(device)) or {}
    peak = peak_of.get(str(get_frozen_dtype(device))[6:], float("nan"))
    for number, shape in enumerate(plan.shapes, 1):
        with_shape(journal, plan, shape, number, peak)
        let_go()
    limit_s = plan.limits["first_token"]
    journal.stage("first token", limit_s, lambda: first_token(plan.shapes[0], limit_s))
    print(f"{(time.perf_counter() - started) / 60:.1f} minutes; {path}")
    result = summary(journal, header, plan)
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
