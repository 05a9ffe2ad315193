"""Measures the published training step: clips a second, FLOPs, and how much of the processor it uses.

    python -m benchmarks.training.time_published_step                              # small shapes, on a CPU
    python -m benchmarks.training.time_published_step --shape large-v3 --batch 8   # real ones, on a GPU

The last line is JSON.
"""

import argparse
import json
from collections.abc import Sequence
from statistics import median
from typing import Any

from benchmarks.meters import FlopCounter, describe_run, measure_matmul_flops, measure_seconds
from benchmarks.shapes import SHAPES, Backbones
from benchmarks.training.synthetic_run import build_published_batch, build_published_step, draw_batches
from ossicle.backbones.pretrained import get_default_device


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--shape", choices=SHAPES, default="small", help="sizes of the models")
    parser.add_argument("--batch", type=int, default=8, help="clips in a batch")
    parser.add_argument("--seconds", type=float, default=5.0, help="mean length of the clips")
    parser.add_argument("--rounds", type=int, default=3, help="timed steps; the median counts")
    args = parser.parse_args(arguments)
    device, shape = get_default_device(), SHAPES[args.shape]
    step = build_published_step(Backbones.build(shape, device), shape)
    batch = build_published_batch(shape, draw_batches(shape, args.seconds, args.batch, 1)[0])
    with FlopCounter() as counter:
        losses = [float(step.run_step(batch))]
    times = []
    for _ in range(args.rounds):
        times.append(measure_seconds(lambda: losses.append(float(step.run_step(batch))), device))
    matmul_flops = measure_matmul_flops(device, step.llm.dtype)
    step_s = median(times)
    result = {
        **describe_run("literal", device),
        "shape": shape.name,
        "batch": args.batch,
        "clips_per_s": args.batch / step_s,
        "step_s": step_s,
        "tflop_per_clip": counter.total / args.batch / 1e12,
        "share_of_attention": counter.in_attention / counter.total,
        "utilisation": counter.total / step_s / matmul_flops,
        "loss": losses,
    }
    print(f"{shape.name}: {result['clips_per_s']:.2f} clips/s, {result['tflop_per_clip']:.3g} TFLOP a clip")
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
