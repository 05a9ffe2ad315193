"""Right answers of a run by its steps: trains a recipe of the pocket world, keeps ears on the way and evaluates them.

    python -m benchmarks.training.step_curve recipes/pocket-diva.toml --every 1000 --name diva --json OUT.json

Ears are kept in the run's folder as `ears/step-00001000` and so on. A stopped run resumes. `--only-evaluate` evaluates
the ears that are there, also of a run that is still training; each is evaluated once. The last line is JSON.
"""

import argparse
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.ablations.measures import (
    load_questions,
    measure_token_naming,
    read_training_cost,
    summarize_report,
)
from benchmarks.meters import describe_run
from ossicle import checkpoint
from ossicle.atomic_io import lock_folder, write_text
from ossicle.config import Recipe, load_recipe
from ossicle.settings_io import to_table
from ossicle.training.distillation import TERMS
from ossicle.training.run import Run
from ossicle.training.run_log import TrainingProgress, read_metrics
from ossicle.training.setup import build_run
from ossicle.training.trainer import train_run

N_ROWS = 10
"""Lines of metrics, of ten steps each, that a loss is averaged over."""


@dataclass
class KeepEars(TrainingProgress):
    """Saves the ear of a run every so many steps."""

    every: int
    run: Run | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        super().__init__()

    def advance(self, step: int, elapsed_s: float) -> None:
        """Saves the ear if it is due."""
        super().advance(step, elapsed_s)
        if step % self.every == 0 and self.run is not None:
            folder = self.run.folder / "ears" / f"step-{step:08}"
            checkpoint.save(self.run.ear, folder, fingerprints=self.run.backbone_fingerprints)


def train_and_keep_ears(recipe: Recipe, every: int) -> None:
    """Trains a recipe, or the rest of it, and keeps the ears of every so many steps and of the last one."""
    progress = KeepEars(every=every)
    with lock_folder(Path(recipe.out)):
        progress.run = build_run(recipe, progress)
        ear = train_run(progress.run, progress)
    n_steps = read_metrics(Path(recipe.out))[-1]["step"]
    checkpoint.save(ear, Path(recipe.out) / "ears" / f"step-{n_steps:08}")


def evaluate_kept_ears(folder: Path, known: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the measures of each kept ear on the pocket suite, by step; those that are known are not taken again."""
    questions = load_questions(folder)
    curve = dict(known)
    for path in sorted((folder / "ears").glob("step-*")):
        step = int(path.name.removeprefix("step-"))
        if step not in curve:
            ear = checkpoint.load(path)
            report = questions.evaluate(ear)
            curve[step] = {
                "step": step,
                **summarize_report(report),
                "ci95": list(report.overall.ear.ci95),
                **measure_token_naming(ear, questions.items),
                **read_losses(folder, step),
            }
            sys.stdout.write(json.dumps(curve[step]) + "\n")
    return [curve[step] for step in sorted(curve)]


def read_losses(folder: Path, step: int) -> dict[str, float]:
    """Returns the mean of each term of the loss over the last `N_ROWS` lines of metrics up to a step."""
    rows = [row for row in read_metrics(folder) if row["step"] <= step][-N_ROWS:]
    names = [name for name in TERMS if rows and all(name in row for row in rows)]
    return {f"loss, {name}": sum(row[name] for row in rows) / len(rows) for name in names}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs the benchmark; returns the file of results."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training.step_curve", description=__doc__.split("\n")[0]
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--every", type=int, default=1_000, help="steps between ears that are kept")
    parser.add_argument("--name", required=True, help="name of the run in the file of results")
    parser.add_argument("--json", type=Path, required=True, help="file of results; runs of other names stay")
    parser.add_argument("--only-evaluate", action="store_true")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    recipe = load_recipe(arguments.recipe)
    if not arguments.only_evaluate:
        train_and_keep_ears(recipe, arguments.every)
    results = json.loads(arguments.json.read_text()) if arguments.json.exists() else {"runs": {}}
    stored = results["runs"].get(arguments.name, {"curve": []})["curve"]
    folder = Path(recipe.out)
    curve = evaluate_kept_ears(folder, {point["step"]: point for point in stored})
    results |= describe_run("step curve", torch.device("cpu"))
    results["runs"][arguments.name] = {
        "command": f"python -m benchmarks.training.step_curve {arguments.recipe.name} --every {arguments.every}",
        "recipe": to_table(recipe),
        "cost": read_training_cost(folder, recipe.train.batch_size),
        "curve": curve,
    }
    write_text(arguments.json, json.dumps(results, indent=1) + "\n")
    sys.stdout.write(json.dumps(results) + "\n")
    return results


if __name__ == "__main__":
    main()
