"""Kills training and the teacher's cache at random moments, and changes the number of processes on the way.

    python benchmarks/resume.py                 # 20 kills each, some ten minutes on two cores
    python benchmarks/resume.py --kills 3

1. A run killed with SIGKILL again and again, restarted by the same command, ends with a connector bit for bit that of
   the run that nobody disturbed. The same for the teacher's cache, file by file.
2. A run that goes on with 2, 4 and 1 processes learns the same clips in the same order as with one process. Its losses
   are the same but for the order of sums: computed in float64 to many digits in every step; in float32 to seven in the
   first step, from where AdamW, which makes steps of equal size from gradients of any, carries roundings on. How far it
   carries them shows in a run of one process that takes each batch clip by clip.

Prints what it saw and, last, one line of JSON; exit code 1 if any of it does not hold.
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
"""Of a loss in float32, with the same weights."""
RTOL_FLOAT64 = 1e-9
"""Of every loss of a run in float64."""


def ossicle(*argv: str) -> list[str]:
    return [sys.executable, "-m", "ossicle", *argv]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def run(command: list[str]) -> float:
    """Runs a command to its end; seconds that it took."""
    started = time.monotonic()
    subprocess.run(command, cwd=ROOT, env=environment(), check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def run_with_kills(command: list[str], n_kills: int, whole_s: float, rng: random.Random) -> list[float]:
    """Runs a command over and over, killed at random moments, and then to its end; seconds until each kill.

    Each try may live as long as some start-ups and a share of the work, so that the kills fall on all of it.
    """
    lived = []
    while len(lived) < n_kills:
        started = time.monotonic()
        process = subprocess.Popen(
            command, env=environment(), stdout=subprocess.DEVNULL, start_new_session=True
        )
        try:
            process.wait(rng.uniform(0.2, 1.0) * max(8.0, 3 * whole_s / n_kills))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            lived.append(round(time.monotonic() - started, 1))
            continue
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
        print(f"  it came to its end after {len(lived)} of {n_kills} kills")
        break
    run(command)
    return lived


def digests(folder: Path) -> dict[str, str]:
    """Hashes of all files of a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def write_recipe(folder: Path, name: str, **values: object) -> Path:
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


def killed_training(folder: Path, n_kills: int, rng: random.Random) -> dict[str, object]:
    whole_s = run(ossicle("train", str(write_recipe(folder, "whole"))))
    lived = run_with_kills(ossicle("train", str(write_recipe(folder, "killed"))), n_kills, whole_s, rng)
    same = digests(folder / "whole" / "ear") == digests(folder / "killed" / "ear")
    print(f"training: undisturbed in {whole_s:.0f} s; killed after {lived} s; the ears are equal: {same}")
    return {"kills": len(lived), "is_bit_identical": same}


def killed_teacher(folder: Path, n_kills: int, rng: random.Random) -> dict[str, object]:
    recipes = {
        name: write_recipe(folder, f"teacher-{name}", teacher_cache=folder / name, n_clips=10_700)
        for name in ("whole-cache", "killed-cache")
    }
    whole_s = run(ossicle("teacher", str(recipes["whole-cache"])))
    lived = run_with_kills(ossicle("teacher", str(recipes["killed-cache"])), n_kills, whole_s, rng)
    same = digests(folder / "whole-cache") == digests(folder / "killed-cache")
    print(f"teacher: undisturbed in {whole_s:.0f} s; killed after {lived} s; the caches are equal: {same}")
    return {"kills": len(lived), "is_bit_identical": same}


def watched(recipe: Path, n_processes: int, until: int, dtype: str) -> list[str]:
    """The command of a run that writes down what it learns, and stops by itself after a step."""
    script = ["-m", "benchmarks.training.resume", "watch", str(recipe), str(until), dtype]
    if n_processes == 1:
        return [sys.executable, *script]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_processes}"]
    return [sys.executable, *torchrun, *script]


def watch(recipe_file: Path, until: int, dtype: str) -> None:
    """A run that writes down what its processes learn, step by step, and stops after a given one."""
    import torch

    from ossicle.backbones import causal_lm, pretrained
    from ossicle.config import load_recipe
    from ossicle.ear import Ear
    from ossicle.training import StopRequested, train, trainer

    new, train_step = Ear.new, trainer.train_step
    log = recipe_file.with_name(f"{recipe_file.stem}-rank{os.environ.get('RANK', '0')}.jsonl")

    def new_ear(*args: Any, **options: Any) -> Ear:
        ear = new(*args, **options)
        ear.connector.to(getattr(torch, dtype))
        return ear

    def watched(run: Any, step: int, share: Any) -> Any:
        taken = train_step(run, step, share)
        rows = [(draw.row, draw.epoch) for piece in run.pieces(step) for draw in piece]
        with log.open("a") as file:
            file.write(json.dumps({"step": step, "rows": rows, "loss": float(taken.terms["loss"])}) + "\n")
        if step + 1 == until:
            signal.raise_signal(signal.SIGTERM)
        return taken

    Ear.new, trainer.train_step = new_ear, watched
    pretrained.get_frozen_dtype = lambda device: getattr(torch, dtype)
    causal_lm.RELATIVE_TOLERANCE[getattr(torch, dtype)] = 1e-3
    with contextlib.suppress(StopRequested):
        train(load_recipe(recipe_file))


@dataclass
class Step:
    """What all processes together learned from in a step, and its loss."""

    rows: list[list[int]] = field(default_factory=list)
    loss: float = 0.0


def seen(recipe: Path) -> list[Step]:
    """Every step of a watched run."""
    steps: dict[int, Step] = {}
    for file in sorted(recipe.parent.glob(f"{recipe.stem}-rank*.jsonl")):
        for line in file.read_text().splitlines():
            row = json.loads(line)
            step = steps.setdefault(row["step"], Step())
            step.rows = sorted([*step.rows, *row["rows"]])
            step.loss += row["loss"]
    return [steps[number] for number in sorted(steps)]


def furthest(first: list[Step], second: list[Step]) -> float:
    """The largest relative difference between the losses of a step."""
    return max(abs(a.loss - b.loss) / abs(a.loss) for a, b in zip(first, second, strict=True))


def elastic(folder: Path) -> dict[str, object]:
    """The same steps with one process, with 2, 4 and 1 in turn, and with one process clip by clip."""
    n_steps, result = 24, {}
    for dtype in ("float64", "float32"):
        recipes = {
            name: write_recipe(folder, f"{name}-{dtype}", n_steps=n_steps, n_clips=200, dropout=0.0)
            for name in ("alone", "changing", "parts")
        }
        with recipes["parts"].open("a") as file:
            file.write("microbatch_gb = 1e-9\n")
        run(watched(recipes["alone"], 1, n_steps, dtype))
        run(watched(recipes["parts"], 1, n_steps, dtype))
        for n_processes, until in ((2, 9), (4, 17), (1, n_steps)):
            run(watched(recipes["changing"], n_processes, until, dtype))
        alone, changing, parts = (seen(recipes[name]) for name in ("alone", "changing", "parts"))
        result |= {
            f"is_same_order_{dtype}": [step.rows for step in alone] == [step.rows for step in changing],
            f"max_loss_difference_{dtype}": furthest(alone, changing),
            f"max_loss_difference_of_parts_{dtype}": furthest(alone, parts),
            f"first_loss_difference_{dtype}": furthest(alone[:1], changing[:1]),
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
        watch(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
        return 0
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng, folder = random.Random(given.seed), Path(tempfile.mkdtemp(prefix="resume-"))
    try:
        result = {
            "benchmark": "resume",
            "elastic": elastic(folder),
            "training": killed_training(folder, given.kills, rng),
            "teacher": killed_teacher(folder, given.kills, rng),
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
