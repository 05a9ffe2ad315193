"""Measures speed, memory and profile of a training step in real sizes on a GPU, and the first token, in ten minutes.

    python -m benchmarks.gpu            # Whisper-large-v3 and turbo with an 8B Llama, random weights
    python -m benchmarks.gpu --ear EAR --speech SPEECH.jsonl    # the models of an ear and people's recordings as well
    python -m benchmarks.gpu --small    # the same on a CPU in small sizes, to see that everything runs

Ours is of the default form. Clips a second, FLOPs, their ratio to those of a large matrix product and peak memory are
by length of the clips; the first token, by length of the question, is of the ear, the cascade and the published form.

Each stage has a time limit; one that fails is noted with its reason, and the others run. After each stage the results
so far are written to benchmarks/results/DATE-gpu-NAME.json, with the profile next to it.
"""

import argparse
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.meters import describe_run, measure_matmul_flops
from benchmarks.shapes import SHAPES, Backbones, describe_shape
from benchmarks.stage_log import StageLog, free_memory
from benchmarks.training.gpu_stages import MEAN_S, TrainingStages
from benchmarks.training.train_step import compute_flop_ratios
from ossicle import checkpoint
from ossicle.backbones.pretrained import get_default_device, get_frozen_dtype

ROOT = Path(__file__).parents[1]
TARGET = 205.0
"""Clips of 5 s a second: 2.2 million in three hours."""


@dataclass(frozen=True)
class BenchmarkPlan:
    """The stages' sizes, and the most seconds of each."""

    shapes: tuple[str, str]
    mean_lengths_s: tuple[float, ...]
    batch_sizes: dict[float, int]
    """The largest batch that is tried for each mean length; halved where it does not fit into memory."""
    published_batch_size: int
    n_rounds: int
    limits_s: dict[str, float]
    first_token_s: tuple[float, ...]
    """Lengths of the questions."""


REAL = BenchmarkPlan(
    shapes=("large-v3", "turbo"),
    mean_lengths_s=(5.0, 2.0, 10.0, 30.0),
    batch_sizes={2.0: 128, 5.0: 64, 10.0: 32, 30.0: 8},
    published_batch_size=8,
    n_rounds=5,
    limits_s={"lengths": 110.0, "published": 90.0, "choices": 150.0, "profile": 60.0, "first_token": 120.0},
    first_token_s=(2.0, 5.0, 10.0, 30.0),
)
SMALL = BenchmarkPlan(
    shapes=("toy", "toy"),
    mean_lengths_s=(5.0, 2.0),
    batch_sizes={2.0: 8, 5.0: 8},
    published_batch_size=4,
    n_rounds=1,
    limits_s={"lengths": 60.0, "published": 60.0, "choices": 60.0, "profile": 60.0, "first_token": 60.0},
    first_token_s=(2.0, 3.0),
)


def measure_matmul_peaks(device: torch.device) -> dict[str, float]:
    """Returns the FLOPs a second of large matrix products by dtype; on CUDA also of float32 as tf32."""
    peaks = {str(dtype)[6:]: measure_matmul_flops(device, dtype) for dtype in (torch.bfloat16, torch.float32)}
    if device.type == "cuda":
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = True
        peaks["tf32"] = measure_matmul_flops(device, torch.float32)
        torch.backends.cuda.matmul.allow_tf32 = before
    return peaks


def run_first_token(options: Sequence[str], limit_s: float) -> dict[str, Any]:
    """Runs the benchmark of the first token in a process of its own; returns its last line.

    Raises:
        RuntimeError: it failed
    """
    command = [sys.executable, "-m", "benchmarks.serving.first_token", *options]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit_s, check=False)
    if process.returncode:
        raise RuntimeError(f"it failed with exit code {process.returncode}: {process.stderr.strip()[-400:]}")
    return json.loads(process.stdout.strip().splitlines()[-1])


def run_shape(log: StageLog, plan: BenchmarkPlan, name: str, number: int, matmul_flops: float) -> None:
    """Runs all stages with one shape's models; those that need only one shape run with the first."""
    shape, limits_s, device = SHAPES[name], plan.limits_s, get_default_device()
    label = f"{number} {name}"
    backbones = log.run_stage(
        f"{label}: models", limits_s["lengths"], lambda: Backbones.build(shape, device), keeps_result=False
    )
    if backbones is None:
        return
    stages = TrainingStages(
        shape, backbones, plan.batch_sizes, plan.published_batch_size, plan.n_rounds, matmul_flops
    )
    for mean_s in plan.mean_lengths_s:
        log.run_stage(
            f"{label}: {mean_s:g} s",
            limits_s["lengths"],
            lambda mean_s=mean_s: stages.measure_length(mean_s),
        )
    if number == 1:
        table = log.path.with_suffix(".txt")
        log.run_stage("profile", limits_s["profile"], lambda: stages.write_profile(table))
        log.run_stage("published", limits_s["published"], stages.compare_published)
        log.run_stage("choices", limits_s["choices"], stages.compare_variants)
        log.run_stage("proportions", limits_s["profile"], lambda: compute_flop_ratios(shape, MEAN_S))


def run_ear(log: StageLog, plan: BenchmarkPlan, ear_name: str, matmul_flops: float) -> None:
    """Runs the stages of a training step with the models of an ear."""
    limit_s = plan.limits_s["lengths"]
    ear = log.run_stage("ear: models", limit_s, lambda: checkpoint.load(ear_name), keeps_result=False)
    if ear is None:
        return
    shape = describe_shape(ear)
    stages = TrainingStages(
        shape,
        Backbones(ear.whisper, ear.llm, ear.tokenizer),
        plan.batch_sizes,
        plan.published_batch_size,
        plan.n_rounds,
        matmul_flops,
    )
    for mean_s in plan.mean_lengths_s:
        log.run_stage(
            f"{shape.name}: {mean_s:g} s", limit_s, lambda mean_s=mean_s: stages.measure_length(mean_s)
        )


def run_first_tokens(log: StageLog, plan: BenchmarkPlan, ear: str | None, speech: str | None) -> None:
    """Measures the first token: of the real sizes, and of an ear that is asked by recordings."""
    limit_s = plan.limits_s["first_token"]
    seconds = ["--seconds", *map(str, plan.first_token_s), "--rounds", str(plan.n_rounds)]
    random = ["--shape", plan.shapes[0], "--no-pocket", *seconds]
    log.run_stage("first token", limit_s, lambda: run_first_token(random, limit_s))
    if ear is not None and speech is not None:
        asked = ["--ear", ear, "--speech", speech, *seconds]
        log.run_stage("ear: first token", limit_s, lambda: run_first_token(asked, limit_s))


def summarize(log: StageLog, header: dict[str, Any], plan: BenchmarkPlan) -> dict[str, Any]:
    """Returns what the last line says."""
    at_mean = log.results.get(f"1 {plan.shapes[0]}: {MEAN_S:g} s", {})
    failed = [
        name
        for name, stage in log.results.items()
        if isinstance(stage, dict) and stage.get("failed") is not None
    ]
    return {
        **header,
        "clips_per_s_at_5_s": at_mean.get("ours", {}).get("clips_per_s"),
        "target": TARGET,
        "failed": failed,
        "results": log.path.name,
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--small", action="store_true", help="small sizes, to see that everything runs")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks/results", help="folder for the results"
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="time for all stages together")
    parser.add_argument("--ear", help="an ear whose models are measured, too")
    parser.add_argument("--speech", help="manifest of the recordings that it is asked")
    args = parser.parse_args(arguments)
    if (args.ear is None) != (args.speech is None):
        parser.error("--ear and --speech belong together")
    plan, device, started = SMALL if args.small else REAL, get_default_device(), time.perf_counter()
    header = describe_run("gpu", device)
    name = re.sub(r"[^a-z0-9]+", "-", header["machine"].split(",")[0].lower()).strip("-")
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"{header['date']}-gpu-{name}{'-small' * args.small}.json"
    log = StageLog(path, started + 60 * args.minutes, header | {"command": shlex.join(sys.argv)})
    if device.type == "cuda":
        _, total = torch.cuda.mem_get_info(device)
        log.results |= {"gpu_bytes": total, "cuda": torch.version.cuda}
    peaks = log.run_stage("matmul peak", plan.limits_s["profile"], lambda: measure_matmul_peaks(device)) or {}
    matmul_flops = peaks.get(str(get_frozen_dtype(device))[6:], float("nan"))
    for number, shape in enumerate(plan.shapes, 1):
        run_shape(log, plan, shape, number, matmul_flops)
        free_memory()
    if args.ear is not None:
        run_ear(log, plan, args.ear, matmul_flops)
        free_memory()
    run_first_tokens(log, plan, args.ear, args.speech)
    print(f"{(time.perf_counter() - started) / 60:.1f} minutes; {path}")
    result = summarize(log, header, plan)
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
