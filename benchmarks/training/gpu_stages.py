"""The stages of the GPU benchmark that measure a training step: lengths, the published step, variants, a profile."""

import contextlib
import re
import tempfile
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
from torch.profiler import ProfilerActivity, profile
from transformers.models.whisper.modeling_whisper import WhisperDecoderLayer

from benchmarks.meters import measure_peak_bytes, measure_seconds
from benchmarks.shapes import CONNECTOR, Backbones, Shape
from benchmarks.stage_log import StageTimeout, free_memory
from benchmarks.training.fast_run import FastRun, prepare_run
from benchmarks.training.synthetic_run import build_published_batch, build_published_step, draw_batches
from benchmarks.training.train_step import compare_steps
from ossicle.atomic_io import write_text
from ossicle.backbones import packed_forward

DEFAULT_FORM = replace(CONNECTOR, form="autoregressive")
"""The connector that is measured: of the form that recipes have."""
MEAN_S = 5.0
"""Mean length of clips, where a stage has only one."""


def run_with_halved_batches(work: Callable[[int], Any], batch_size: int) -> Any:
    """Runs `work` with the largest batch that fits into memory: this one, halved as often as needed."""
    while True:
        try:
            return work(batch_size)
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
            batch_size //= 2
        free_memory()


Variant = Callable[[FastRun], contextlib.AbstractContextManager[Any]]
"""Changes our step within a block."""


def pad_rows(_: FastRun) -> contextlib.AbstractContextManager[Any]:
    """Pads the LLM's texts to each other in place of packing them."""
    return mock.patch.object(packed_forward, "ROW_LENGTH", 0)


def pack_long_rows(_: FastRun) -> contextlib.AbstractContextManager[Any]:
    """Packs the LLM's texts into rows of four times as many positions."""
    return mock.patch.object(packed_forward, "ROW_LENGTH", 4 * packed_forward.ROW_LENGTH)


def compile_connector(ours: FastRun) -> contextlib.AbstractContextManager[Any]:
    """Runs the connector's decoder layers through torch.compile, with dynamic lengths; compiles them only once."""
    stack = contextlib.ExitStack()
    for layer in ours.run.ear.connector.modules():
        if isinstance(layer, WhisperDecoderLayer):
            compiled = vars(layer).get("benchmark_compiled") or torch.compile(layer.forward, dynamic=True)
            object.__setattr__(layer, "benchmark_compiled", compiled)
            stack.enter_context(mock.patch.object(layer, "forward", compiled))
    return stack


VARIANTS: dict[str, Variant] = {
    "texts not packed": pad_rows,
    "rows four times as long": pack_long_rows,
    "connector compiled": compile_connector,
}


@dataclass
class TrainingStages:
    """The stages with one shape's models.

    Args:
        batch_sizes: the largest batch that is tried for each mean length; halved where it does not fit into memory
        published_batch_size: the same for the published step
        n_rounds: timed turns
        matmul_flops: FLOPs a second of a matrix product on the device
    """

    shape: Shape
    backbones: Backbones
    batch_sizes: dict[float, int]
    published_batch_size: int
    n_rounds: int
    matmul_flops: float

    @property
    def device(self) -> torch.device:
        """The device of the models."""
        return self.backbones.llm.device

    def measure_length(self, mean_s: float) -> dict[str, Any]:
        """Measures our step at one mean length of clips."""

        def measure(batch_size: int) -> dict[str, Any]:
            return compare_steps(
                self.backbones,
                self.shape,
                mean_s,
                batch_size,
                self.n_rounds,
                None,
                self.matmul_flops,
                DEFAULT_FORM,
            )

        rows = run_with_halved_batches(measure, self.batch_sizes[mean_s])
        clips_per_s = rows["ours"]["clips_per_s"]
        print(f"   {mean_s:g} s, batch {rows['batch']}: {clips_per_s:.1f} clips/s", flush=True)
        return rows

    def compare_published(self) -> dict[str, Any]:
        """Compares our step with the published one, with a batch that fits into memory for both."""
        published = build_published_step(self.backbones, self.shape)

        def compare(batch_size: int) -> dict[str, Any]:
            published.optimizer.zero_grad()
            clips = draw_batches(self.shape, MEAN_S, batch_size, 1)[0]
            published.run_step(build_published_batch(self.shape, clips))
            return compare_steps(
                self.backbones, self.shape, MEAN_S, batch_size, 3, published, self.matmul_flops, DEFAULT_FORM
            )

        return run_with_halved_batches(compare, self.published_batch_size)

    @contextlib.contextmanager
    def open_run(self, batch_size: int) -> Generator[FastRun]:
        """Prepares a run that has taken its first steps."""
        with tempfile.TemporaryDirectory() as folder:
            ours = prepare_run(self.backbones, self.shape, MEAN_S, batch_size, Path(folder), 3, DEFAULT_FORM)
            ours.run_steps()
            yield ours

    def compare_variants(self) -> dict[str, Any]:
        """Compares variants that only a GPU can decide, each with our step, in turns."""
        batch_size, rows = self.batch_sizes[MEAN_S], dict[str, Any]()
        rows["part sizes"] = self._measure_batch_sizes()
        for name, variant in VARIANTS.items():
            try:
                rows[name] = run_with_halved_batches(
                    lambda batch_size, variant=variant: self._compare_variant(batch_size, variant), batch_size
                )
            except StageTimeout:
                raise
            except Exception as error:  # the other variants run, whatever it is
                rows[name] = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
            print(f"   {name}: {rows[name]}", flush=True)
        return rows

    def _compare_variant(self, batch_size: int, variant: Variant) -> dict[str, float]:
        times: dict[str, list[float]] = {"baseline": [], "changed": []}
        with self.open_run(batch_size) as ours:
            with variant(ours):
                ours.run_steps()  # warm up; compile where the variant does
            for _ in range(self.n_rounds):
                times["baseline"].append(measure_seconds(ours.run_steps, self.device))
                with variant(ours):
                    times["changed"].append(measure_seconds(ours.run_steps, self.device))
            clips_per_s = {name: ours.n_clips / median(run_s) for name, run_s in times.items()}
        ratio = clips_per_s["changed"] / clips_per_s["baseline"]
        return {"batch": batch_size, **clips_per_s, "ratio": ratio}

    def _measure_batch_sizes(self) -> dict[int, Any]:
        """Measures clips a second and peak memory by batch size."""
        largest, rows = self.batch_sizes[MEAN_S], dict[int, Any]()
        for batch_size in (largest // 4, largest // 2, largest, 2 * largest):
            try:
                with self.open_run(batch_size) as ours:
                    run_s = [measure_seconds(ours.run_steps, self.device) for _ in range(self.n_rounds)]
                    rows[batch_size] = {
                        "clips_per_s": ours.n_clips / median(run_s),
                        "peak_bytes": measure_peak_bytes(ours.run_steps, self.device),
                    }
            except torch.OutOfMemoryError:
                rows[batch_size] = {"failed": "out of memory"}
            free_memory()
        return rows

    def write_profile(self, path: Path) -> dict[str, Any]:
        """Writes the slowest kernels of a step to a file; returns where the host waits for the device."""
        is_gpu = self.device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_gpu else [])]
        with self.open_run(self.batch_sizes[MEAN_S] // 2) as ours:
            with profile(activities=activities) as profiler:
                step_s = measure_seconds(lambda: ours.run_step(ours.middle_index), self.device)
            events = profiler.key_averages()
            order = "self_cuda_time_total" if is_gpu else "self_cpu_time_total"
            write_text(
                path,
                f"one step of {self.shape.name}, {len(ours.batches[ours.middle_index])} clips of {MEAN_S:g} s,"
                f" {step_s:.3f} s with the profiler on\n\n"
                + events.table(sort_by=order, row_limit=40, max_name_column_width=90)
                + "\nby the host's time\n\n"
                + events.table(sort_by="self_cpu_time_total", row_limit=30, max_name_column_width=90),
            )
        waits = re.compile("Synchronize|aten::item|_local_scalar_dense|Memcpy|aten::nonzero")
        waiting = {
            event.key: {"n": event.count, "host_ms": event.self_cpu_time_total / 1e3}
            for event in events
            if waits.search(event.key)
        }
        return {"table": path.name, "waits": waiting, "n_launches": _count_launches(events)}


def _count_launches(events: Any) -> int:
    return sum(event.count for event in events if "LaunchKernel" in event.key)
