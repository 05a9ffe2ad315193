"""Kills training and the teacher's precompute at random moments, and changes the number of processes on the way.

    python -m benchmarks.training.resume                 # 20 kills each, some ten minutes on two cores
    python -m benchmarks.training.resume --kills 3

1. A run that is killed with SIGKILL again and again, and restarted by the same command, ends with the connector of an
   undisturbed run, bit for bit. The same holds for the teacher's cache, file by file.
2. A run that resumes with 2, 4 and 1 processes learns the same clips in the same order as with one process. Its losses
   differ only by the order of sums: not at all in float64, to nine digits, in every step; in float32 by less than 1e-5
   in the first step. From there AdamW, whose steps are as large for small gradients as for large ones, amplifies
   rounding errors: a run of one process that takes each batch clip by clip shows by how much.

Prints what it found. The last line is JSON. The exit code is 1 if any of this does not hold.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

RECIPE = """
out = "{out}"

[base]
encoder = "pocket/whisper"
llm = "pocket/llm"

[connector]
form = "anchored"
n_queries = 40
dropout = {dropout}

[objective]
hidden_positions = "all"
hidden_weight = 0.05
token_ce_weight = 1.0
align_only_ratio = 0.5

[data]
source = "pocket/speech"
n_clips = {n_clips}
n_augmented_views = 2
n_workers = 1
teacher_cache = "{teacher_cache}"

[train]
n_steps = {n_steps}
batch_size = 16
peak_lr = 1e-3
save_every = 10
"""
ROOT = Path(__file__).parents[2]
RTOL = 1e-5
"""Relative tolerance of a loss in float32, with the same weights."""
RTOL_FLOAT64 = 1e-9
"""Relative tolerance of every loss of a run in float64."""


def build_command(*argv: str) -> list[str]:
    """Returns an ossicle command."""
    return [sys.executable, "-m", "ossicle", *argv]


def build_environment() -> dict[str, str]:
    """Returns the environment of all commands: one thread each."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def run_command(command: list[str]) -> float:
    """Runs a command to its end; returns the seconds that it took."""
    started = time.monotonic()
    subprocess.run(command, cwd=ROOT, env=build_environment(), check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def run_with_kills(command: list[str], n_kills: int, undisturbed_s: float, rng: random.Random) -> list[float]:
    """Runs a command again and again, killed at random moments, and then to its end; returns the seconds to each kill.

    Each try may take as long as a few start-ups and a part of the work, so that the kills fall on all of it.
    """
    killed_after_s: list[float] = []
    while len(killed_after_s) < n_kills:
        started = time.monotonic()
        process = subprocess.Popen(
            command, cwd=ROOT, env=build_environment(), stdout=subprocess.DEVNULL, start_new_session=True
        )
        try:
            process.wait(rng.uniform(0.2, 1.0) * max(8.0, 3 * undisturbed_s / n_kills))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            killed_after_s.append(round(time.monotonic() - started, 1))
            continue
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed with exit code {process.returncode}")
        print(f"  it finished after {len(killed_after_s)} of {n_kills} kills")
        break
    run_command(command)
    return killed_after_s


def hash_files(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of all files of a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def write_recipe(folder: Path, name: str, **values: object) -> Path:
    """Writes a recipe with some values changed; returns its path."""
    path = folder / f"{name}.toml"
    defaults = {
        "out": folder / name,
        "teacher_cache": folder / "no-cache",
        "n_clips": 400,
        "n_steps": 120,
        "dropout": 0.1,
    }
    path.write_text(RECIPE.format(**defaults | values))
    return path


def kill_training(folder: Path, n_kills: int, rng: random.Random) -> dict[str, object]:
    """Compares the ear of a run that is killed with that of an undisturbed one."""
    undisturbed_s = run_command(build_command("train", str(write_recipe(folder, "whole"))))
    command = build_command("train", str(write_recipe(folder, "killed")))
    killed_after_s = run_with_kills(command, n_kills, undisturbed_s, rng)
    is_same = hash_files(folder / "whole" / "ear") == hash_files(folder / "killed" / "ear")
    print(
        f"training: undisturbed in {undisturbed_s:.0f} s; killed after {killed_after_s} s;"
        f" the ears are equal: {is_same}"
    )
    return {"kills": len(killed_after_s), "is_bit_identical": is_same}


def kill_teacher(folder: Path, n_kills: int, rng: random.Random) -> dict[str, object]:
    """Compares the teacher's cache of a precompute that is killed with that of an undisturbed one."""
    recipes = {
        name: write_recipe(folder, f"teacher-{name}", teacher_cache=folder / name, n_clips=10_700)
        for name in ("whole-cache", "killed-cache")
    }
    undisturbed_s = run_command(build_command("teacher", str(recipes["whole-cache"])))
    command = build_command("teacher", str(recipes["killed-cache"]))
    killed_after_s = run_with_kills(command, n_kills, undisturbed_s, rng)
    is_same = hash_files(folder / "whole-cache") == hash_files(folder / "killed-cache")
    print(
        f"teacher: undisturbed in {undisturbed_s:.0f} s; killed after {killed_after_s} s;"
        f" the caches are equal: {is_same}"
    )
    return {"kills": len(killed_after_s), "is_bit_identical": is_same}


def build_logged_command(recipe: Path, n_processes: int, stop_step: int, dtype: str) -> list[str]:
    """Returns the command of a run that logs what it learns, and stops by itself after some steps."""
    module = ["-m", "benchmarks.training.resume", "watch", str(recipe), str(stop_step), dtype]
    if n_processes == 1:
        return [sys.executable, *module]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_processes}"]
    return [sys.executable, *torchrun, *module]


def train_logged(recipe_file: Path, stop_step: int, dtype_name: str) -> None:
    """Trains in a dtype, logs clips and loss of each step and process, and stops after some steps."""
    import torch

    from ossicle.backbones import causal_lm, pretrained
    from ossicle.config import load_recipe
    from ossicle.ear import Ear
    from ossicle.training import StopRequested, train, trainer
    from ossicle.training.run import RankBatch, Run
    from ossicle.training.train_step import StepResult

    new_ear, train_step = Ear.new, trainer.train_step
    dtype: torch.dtype = getattr(torch, dtype_name)
    log = recipe_file.with_name(f"{recipe_file.stem}-rank{os.environ.get('RANK', '0')}.jsonl")

    def new_ear_of_dtype(*args: Any, **options: Any) -> Ear:
        ear = new_ear(*args, **options)
        ear.connector.to(dtype)
        return ear

    def logged_step(run: Run, step: int, rank_batch: RankBatch, elapsed_s: float) -> StepResult:
        result = train_step(run, step, rank_batch, elapsed_s)
        rows = [(draw.row, draw.epoch) for chunk in run.draw_chunks(step) for draw in chunk]
        with log.open("a") as file:
            file.write(json.dumps({"step": step, "rows": rows, "loss": float(result.terms["loss"])}) + "\n")
        if step + 1 == stop_step:
            signal.raise_signal(signal.SIGTERM)
        return result

    with (
        mock.patch.object(Ear, "new", new_ear_of_dtype),
        mock.patch.object(trainer, "train_step", logged_step),
        mock.patch.object(pretrained, "get_frozen_dtype", return_value=dtype),
        mock.patch.dict(causal_lm._RELATIVE_TOLERANCE, {dtype: 1e-3}),
        contextlib.suppress(StopRequested),
    ):
        train(load_recipe(recipe_file))


@dataclass
class LoggedStep:
    """The clips that all processes together learned from in a step, and its loss."""

    rows: list[list[int]] = field(default_factory=list)
    loss: float = 0.0


def read_steps(recipe: Path) -> list[LoggedStep]:
    """Reads all steps of a logged run."""
    steps: dict[int, LoggedStep] = {}
    for file in sorted(recipe.parent.glob(f"{recipe.stem}-rank*.jsonl")):
        for line in file.read_text().splitlines():
            row = json.loads(line)
            step = steps.setdefault(row["step"], LoggedStep())
            step.rows = sorted([*step.rows, *row["rows"]])
            step.loss += row["loss"]
    return [steps[number] for number in sorted(steps)]


def compute_max_difference(first: list[LoggedStep], second: list[LoggedStep]) -> float:
    """Returns the largest relative difference between the losses of a step."""
    return max(abs(a.loss - b.loss) / abs(a.loss) for a, b in zip(first, second, strict=True))


def change_processes(folder: Path) -> dict[str, object]:
    """Compares the same steps with one process, with 2, 4 and 1 in turn, and with one process clip by clip."""
    n_steps, result = 24, {}
    for dtype in ("float64", "float32"):
        recipes = {
            name: write_recipe(folder, f"{name}-{dtype}", n_steps=n_steps, n_clips=200, dropout=0.0)
            for name in ("alone", "changing", "parts")
        }
        with recipes["parts"].open("a") as file:
            file.write("microbatch_gb = 1e-9\n")
        run_command(build_logged_command(recipes["alone"], 1, n_steps, dtype))
        run_command(build_logged_command(recipes["parts"], 1, n_steps, dtype))
        for n_processes, stop_step in ((2, 9), (4, 17), (1, n_steps)):
            run_command(build_logged_command(recipes["changing"], n_processes, stop_step, dtype))
        alone, changing, parts = (read_steps(recipes[name]) for name in ("alone", "changing", "parts"))
        result |= {
            f"is_same_order_{dtype}": [step.rows for step in alone] == [step.rows for step in changing],
            f"max_loss_difference_{dtype}": compute_max_difference(alone, changing),
            f"max_loss_difference_of_parts_{dtype}": compute_max_difference(alone, parts),
            f"first_loss_difference_{dtype}": compute_max_difference(alone[:1], changing[:1]),
        }
    result["holds"] = (
        result["is_same_order_float64"]
        and result["is_same_order_float32"]
        and result["max_loss_difference_float64"] < RTOL_FLOAT64
        and result["first_loss_difference_float32"] < RTOL
    )
    print(f"2 -> 4 -> 1 processes, {n_steps} steps: {result}")
    return result


def main() -> int:
    if sys.argv[1:2] == ["watch"]:
        train_logged(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
        return 0
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--kills", type=int, default=20, help="kills of training, and as many of the precompute"
    )
    parser.add_argument("--seed", type=int, default=0, help="draws the moments of the kills")
    args = parser.parse_args()
    rng, folder = random.Random(args.seed), Path(tempfile.mkdtemp(prefix="resume-"))
    try:
        result = {
            "benchmark": "resume",
            "elastic": change_processes(folder),
            "training": kill_training(folder, args.kills, rng),
            "teacher": kill_teacher(folder, args.kills, rng),
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    holds = (
        result["elastic"]["holds"],
        result["training"]["is_bit_identical"],
        result["teacher"]["is_bit_identical"],
    )
    print(json.dumps(result))
    return 0 if all(holds) else 1


if __name__ == "__main__":
    sys.exit(main())
