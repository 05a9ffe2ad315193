"""Kills training and the teacher's cache at random moments, and changes the number of processes on the way.

    python benchmarks/resume.py                 # 20 kills each, some ten minutes on two cores
    python benchmarks/resume.py --kills 3

1. A run killed with SIGKILL again and again, restarted by the same command, ends with a connector bit for bit that of
   the run that nobody disturbed. The same for the teacher's cache, file by file.
2. A run that goes on with 2, 4 and 1 processes learns the same clips in the same order as with one process, and its
   losses agree within float32 summation.

Prints what it saw and, last, one line of JSON; exit code 1 if any of it does not hold.
"""

import argparse
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
from pathlib import Path

RECIPE = """
out = "{out}"

[base]
encoder = "pocket/whisper"
llm = "pocket/llm"

[connector]
form = "anchored"
n_queries = 40
dropout = 0.1

[objective]
hidden_positions = "all"
hidden_weight = 0.05
name_weight = 1.0
lead_share = 0.5

[data]
source = "pocket/speech"
n_clips = {n_clips}
n_views = 2
n_workers = 1
teacher_cache = "{teacher_cache}"

[train]
n_steps = {n_steps}
batch_size = 16
peak_lr = 1e-3
save_every = 10
"""
WATCHED = Path(__file__).with_name("resume_watched.py")
RTOL = 1e-5
"""Of losses: sums in float32 differ in order from one number of processes to another."""


def earshot(*argv: str) -> list[str]:
    return [sys.executable, "-m", "earshot", *argv]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def run(command: list[str]) -> float:
    """Runs a command to its end; seconds that it took."""
    started = time.monotonic()
    subprocess.run(command, env=environment(), check=True, stdout=subprocess.DEVNULL)
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
    values = {"out": folder / name, "teacher_cache": folder / "no-cache", "n_clips": 400, "n_steps": 120, **values}
    path.write_text(RECIPE.format(**values))
    return path


def killed_training(folder: Path, n_kills: int, rng: random.Random) -> dict[str, object]:
    whole_s = run(earshot("train", str(write_recipe(folder, "whole"))))
    lived = run_with_kills(earshot("train", str(write_recipe(folder, "killed"))), n_kills, whole_s, rng)
    same = digests(folder / "whole" / "ear") == digests(folder / "killed" / "ear")
    print(f"training: undisturbed in {whole_s:.0f} s; killed after {lived} s; the ears are equal: {same}")
    return {"kills": len(lived), "is_bit_identical": same}


def killed_teacher(folder: Path, n_kills: int, rng: random.Random) -> dict[str, object]:
    recipes = {
        name: write_recipe(folder, f"teacher-{name}", teacher_cache=folder / name, n_clips=10_700)
        for name in ("whole-cache", "killed-cache")
    }
    whole_s = run(earshot("teacher", str(recipes["whole-cache"])))
    lived = run_with_kills(earshot("teacher", str(recipes["killed-cache"])), n_kills, whole_s, rng)
    same = digests(folder / "whole-cache") == digests(folder / "killed-cache")
    print(f"teacher: undisturbed in {whole_s:.0f} s; killed after {lived} s; the caches are equal: {same}")
    return {"kills": len(lived), "is_bit_identical": same}


def watched(recipe: Path, n_processes: int, until: int) -> list[str]:
    """The command of a run that writes down what it learns, and stops by itself after a step."""
    script = [str(WATCHED), str(recipe), str(until)]
    if n_processes == 1:
        return [sys.executable, *script]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_processes}"]
    return [sys.executable, *torchrun, *script]


def seen(recipe: Path) -> list[dict[str, object]]:
    """Step by step, the rows that all ranks together learned from, and the loss."""
    steps: dict[int, dict[str, object]] = {}
    for file in sorted(recipe.parent.glob(f"{recipe.stem}-rank*.jsonl")):
        for line in file.read_text().splitlines():
            row = json.loads(line)
            step = steps.setdefault(row["step"], {"rows": [], "loss": 0.0})
            step["rows"] = sorted([*step["rows"], *row["rows"]])  # ty: ignore[not-iterable]
            step["loss"] += row["loss"]  # ty: ignore[unsupported-operator]
    return [steps[number] for number in sorted(steps)]


def elastic(folder: Path) -> dict[str, object]:
    n_steps = 24
    alone = write_recipe(folder, "alone", n_steps=n_steps, n_clips=200)
    changing = write_recipe(folder, "changing", n_steps=n_steps, n_clips=200)
    for recipe in (alone, changing):
        recipe.write_text(recipe.read_text().replace("dropout = 0.1", "dropout = 0.0"))
    run(watched(alone, 1, n_steps))
    for n_processes, until in ((2, 9), (4, 17), (1, n_steps)):
        run(watched(changing, n_processes, until))
    expected, got = seen(alone), seen(changing)
    order = [step["rows"] for step in expected] == [step["rows"] for step in got]
    furthest = max(abs(a["loss"] - b["loss"]) / abs(a["loss"]) for a, b in zip(expected, got, strict=True))  # ty: ignore
    print(f"2 -> 4 -> 1 processes, {n_steps} steps: the same clips: {order}; losses differ by {furthest:.1e} at most")
    return {"is_same_order": order, "max_relative_loss_difference": furthest, "holds": order and furthest < RTOL}


def main() -> int:
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
