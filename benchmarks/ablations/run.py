"""Measures which parts of the method matter: a connector, and variants without one part each, at equal steps.

    python -m benchmarks.ablations.run --out runs/ablations
    python -m benchmarks.ablations.run --out runs/ablations --only anchored query diva --seeds 0 --plot ablations.png
    python -m benchmarks.ablations.run --out runs/ablations --json benchmarks/results/2026-11-26-ablations.json

Each arm is trained with one seed after the other. A seed draws new weights and another order of clips, the same for all
arms, so that they are compared in pairs. Trained ears stay in --out, with their measures next to them: the same command
resumes where it stopped, and --measure-again measures everything that is trained again, without training. Runs that are
in the file of results are not repeated, so that one computer can continue what another began. Prints a table of all
runs; the last line is JSON.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from benchmarks.ablations.arms import ARMS, Arm, build_recipe, get_run_folder
from benchmarks.ablations.measures import (
    Clips,
    QuestionSet,
    load_noisy_questions,
    load_questions,
    load_training_clips,
    measure_slot_errors,
    measure_token_naming,
    read_training_cost,
    summarize_report,
)
from benchmarks.ablations.results import IN_NOISE, Measures, build_result, format_tables
from ossicle import checkpoint
from ossicle.atomic_io import write_text
from ossicle.config import Recipe, load_recipe
from ossicle.errors import ConfigError, OssicleError
from ossicle.training.trainer import StopRequested, train

MEASURES_FILE = "measured.json"


# Runs


class AblationRuns:
    """The runs below one folder; trains and measures the missing ones."""

    def __init__(self, out: Path, n_steps: int, known: Mapping[str, Mapping[int, Measures]]) -> None:
        self.out, self.n_steps, self.known = out, n_steps, known

    def train(self, arm: Arm, seed: int) -> None:
        """Trains an arm's ear, or resumes its run.

        Raises:
            ConfigError: its folder holds a run of another recipe
        """
        recipe = build_recipe(arm, seed, self.n_steps, self.out)
        if self.is_trained(arm, seed):
            _check_same(recipe)
        else:
            train(recipe)

    def is_trained(self, arm: Arm, seed: int) -> bool:
        """Whether the run is finished."""
        return (get_run_folder(arm, seed, self.out) / checkpoint.RUN_EAR).is_dir()

    def measure(self, arm: Arm, seed: int, *, again: bool) -> Measures:
        """Returns the measures of a trained ear; reads them if they are stored.

        Args:
            again: measures even if they are stored
        """
        folder = get_run_folder(arm, seed, self.out)
        file = folder / MEASURES_FILE
        if again or not file.exists():
            ear, recipe = checkpoint.load(folder), load_recipe(folder / "recipe.toml")
            questions = self.questions
            measures: Measures = summarize_report(questions.evaluate(ear)) | measure_token_naming(
                ear, questions.items
            )
            if arm.is_measured_in_noise:
                noisy = summarize_report(self.noisy.evaluate(ear)) | measure_token_naming(
                    ear, self.noisy.items
                )
                measures |= {name + IN_NOISE: value for name, value in noisy.items()}
            if (
                not arm.is_punctuated
            ):  # else its slots for commas have no counterpart in the clips' transcripts
                measures["by slot"] = measure_slot_errors(ear, self.clips)
            measures |= read_training_cost(folder, recipe.train.batch_size)
            write_text(file, json.dumps(measures, indent=1) + "\n")
        return json.loads(file.read_text())

    @cached_property
    def questions(self) -> QuestionSet:
        """The questions as they were recorded."""
        return load_questions(self.out)

    @cached_property
    def noisy(self) -> QuestionSet:
        """The same questions in noise."""
        return load_noisy_questions(self.out)

    @cached_property
    def clips(self) -> Clips:
        """The clips by which slots are measured."""
        return load_training_clips()

    def read_all(self) -> dict[str, dict[int, Measures]]:
        """Returns the measures of all runs, in the folder and in the file of results, by arm and seed."""
        stored: dict[str, dict[int, Measures]] = {}
        for arm in ARMS.values():
            elsewhere = dict(self.known.get(arm.name, {}))
            files = self.out.glob(f"{arm.slug}-*/{MEASURES_FILE}")
            by_seed = {
                int(file.parent.name.removeprefix(f"{arm.slug}-")): file
                for file in files
                if _belongs_to(arm, file)
            }
            runs = elsewhere | {seed: json.loads(by_seed[seed].read_text()) for seed in by_seed}
            if runs:
                stored[arm.name] = dict(sorted(runs.items()))
        return stored


def _belongs_to(arm: Arm, file: Path) -> bool:
    """Whether a run is of this arm, and not of another whose name starts with its name."""
    return file.parent.name.removeprefix(f"{arm.slug}-").isdigit()


def _check_same(recipe: Recipe) -> None:
    """Checks that the folder holds a run of the same recipe; the folder may have been moved."""

    def without_paths(other: Recipe) -> Recipe:
        data = replace(other.data, feature_cache=None, source=tuple(Path(s).name for s in other.data.source))
        return replace(other, out=".", data=data)

    stored = load_recipe(Path(recipe.out) / "recipe.toml")
    if without_paths(stored) != without_paths(recipe):
        raise ConfigError(
            f"{recipe.out} holds a run of another recipe ({stored.train.n_steps} steps; expected"
            f" {recipe.train.n_steps} steps); give another --out, or delete that run"
        )


def read_known_runs(path: Path | None, n_steps: int) -> dict[str, dict[int, Measures]]:
    """Returns the runs in a file of results by arm and seed; none if the file does not exist.

    Raises:
        ConfigError: it is no file of results, or its runs have another number of steps
    """
    if path is None or not path.exists():
        return {}
    try:
        stored = json.loads(path.read_text())
        runs = {
            arm: {int(seed): run for seed, run in arm_results["runs"].items()}
            for arm, arm_results in stored["arms"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"--json {path} is no file of results of this benchmark ({error!r}); give another name"
        ) from error
    if stored.get("n_steps") != n_steps:
        raise ConfigError(
            f"--json {path} holds runs of {stored.get('n_steps')} steps, expected {n_steps}; give another name"
        )
    return runs


# Command line


def run_all(runs: AblationRuns, arms: Sequence[Arm], seeds: Sequence[int], *, again: bool) -> dict[str, str]:
    """Trains and measures seed by seed; returns why runs failed. A failed run does not stop the others."""
    failed: dict[str, str] = {}
    for seed in seeds:
        for arm in arms:
            try:
                if not runs.is_trained(arm, seed) and (again or seed in runs.known.get(arm.name, {})):
                    continue
                runs.train(arm, seed)
                measures = runs.measure(arm, seed, again=again)
            except OssicleError as error:
                failed[f"{arm.name}, seed {seed}"] = str(error)
                print(f"{seed:4}  {arm.name:26} FAILED: {error}", flush=True)
                continue
            print(f"{seed:4}  {arm.name:26}{measures['ear']:7.1%}", flush=True)
    return failed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--steps", type=int, default=1_000, help="steps of each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of each arm")
    parser.add_argument(
        "--only", nargs="+", metavar="ARM", choices=ARMS, default=list(ARMS), help="arms to run"
    )
    parser.add_argument("--measure-again", action="store_true", help="measure trained ears again; train none")
    parser.add_argument("--show", action="store_true", help="print stored results; train and measure nothing")
    parser.add_argument("--json", type=Path, help="file for the results; runs in it are not repeated")
    parser.add_argument(
        "--plot",
        type=Path,
        help="file for the plot of quality by FLOPs; the plot of slots is written next to it",
    )
    return parser


def _import_draw_plots() -> Callable[[Measures, Path], object]:
    """Imports the function that draws the plots, before anything is trained.

    Raises:
        ConfigError: matplotlib is not installed
    """
    try:
        from benchmarks.ablations.plots import draw_plots
    except ImportError as error:
        raise ConfigError(f"--plot needs matplotlib ({error}): pip install matplotlib") from error
    return draw_plots


def main(arguments: Sequence[str] | None = None) -> Measures:
    """Trains, results, prints and writes as the flags say; returns the results."""
    args = _parser().parse_args(arguments)
    draw = _import_draw_plots() if args.plot else None
    runs = AblationRuns(args.out, args.steps, read_known_runs(args.json, args.steps))
    arms = [] if args.show else [ARMS[name] for name in args.only]
    failed = run_all(runs, arms, args.seeds, again=args.measure_again)
    results = build_result(runs.read_all(), args.steps, failed)
    print("\n" + "\n".join(format_tables(results)))
    if args.json:
        write_text(args.json, json.dumps(results, indent=1) + "\n")
    if draw is not None:
        draw(results, args.plot)
    print(json.dumps(results))
    return results


if __name__ == "__main__":
    try:
        sys.exit(1 if main()["failed"] else 0)
    except OssicleError as error:
        sys.exit(f"error: {error}")
    except StopRequested as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(130)
