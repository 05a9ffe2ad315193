"""Which parts of the method matter: a connector and what is left of it without each, at equal steps.

    python benchmarks/ablations.py --out runs/ablations
    python benchmarks/ablations.py --out runs/ablations --only anchored left right --seeds 0 --plot ablations.png
    python benchmarks/ablations.py --out runs/ablations --json benchmarks/results/2026-11-26-ablations.json

An arm is trained with one seed after the other; a seed draws new weights and another order of clips, the same for all
arms, so that they are compared in pairs. Trained ears stay in --out, what was measured of each beside it: the same
command goes on where it was stopped, and --measure-again measures all that was trained anew, training nothing. Runs that
a file of results holds are not run again: what one computer began another goes on with. Last, a table and one line of
JSON of whatever is there.
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

MEASURED = "measured.json"


# Runs


class AblationRuns:
    """The runs below one folder: trains and measures what is not there yet."""

    def __init__(self, out: Path, n_steps: int, known: Mapping[str, Mapping[int, Measures]]) -> None:
        self.out, self.n_steps, self.known = out, n_steps, known

    def train(self, arm: Arm, seed: int) -> None:
        """Distils an arm's ear, from where its run stands.

        Raises:
            ConfigError: a run of another recipe in its folder
        """
        recipe = build_recipe(arm, seed, self.n_steps, self.out)
        if self.is_trained(arm, seed):
            _check_same(recipe)
        else:
            train(recipe)

    def is_trained(self, arm: Arm, seed: int) -> bool:
        """Whether the run is at its end."""
        return (get_run_folder(arm, seed, self.out) / checkpoint.RUN_EAR).is_dir()

    def measure(self, arm: Arm, seed: int, *, again: bool) -> Measures:
        """What a trained ear is worth; measured, if it was not yet."""
        folder = get_run_folder(arm, seed, self.out)
        place = folder / MEASURED
        if again or not place.exists():
            ear, recipe = checkpoint.load(folder), load_recipe(folder / "recipe.toml")
            asked = self.questions
            found = summarize_report(asked.evaluate(ear)) | measure_token_naming(ear, asked.items)
            if arm.is_measured_in_noise:
                noisy = summarize_report(self.noisy.evaluate(ear)) | measure_token_naming(
                    ear, self.noisy.items
                )
                found |= {name + IN_NOISE: value for name, value in noisy.items()}
            if not arm.is_punctuated:  # whose slots for commas the clips' transcripts do not have
                found["by slot"] = measure_slot_errors(ear, self.clips)
            found |= read_training_cost(folder, recipe.train.batch_size)
            write_text(place, json.dumps(found, indent=1) + "\n")
        return json.loads(place.read_text())

    @cached_property
    def questions(self) -> QuestionSet:
        """As they were spoken."""
        return load_questions(self.out)

    @cached_property
    def noisy(self) -> QuestionSet:
        """The same in noise."""
        return load_noisy_questions(self.out)

    @cached_property
    def clips(self) -> Clips:
        """Those by which slots are measured."""
        return load_training_clips()

    def read_all(self) -> dict[str, dict[int, Measures]]:
        """All that was measured so far, by arm and seed, here or elsewhere."""
        stored: dict[str, dict[int, Measures]] = {}
        for arm in ARMS.values():
            elsewhere = dict(self.known.get(arm.name, {}))
            places = self.out.glob(f"{arm.slug}-*/{MEASURED}")
            by_seed = {
                int(place.parent.name.removeprefix(f"{arm.slug}-")): place
                for place in places
                if _is_of(arm, place)
            }
            runs = elsewhere | {seed: json.loads(by_seed[seed].read_text()) for seed in by_seed}
            if runs:
                stored[arm.name] = dict(sorted(runs.items()))
        return stored


def _is_of(arm: Arm, place: Path) -> bool:
    """Whether a run is an arm's, not one's whose name begins with its name."""
    return place.parent.name.removeprefix(f"{arm.slug}-").isdigit()


def _check_same(recipe: Recipe) -> None:
    """A folder that was moved is the same run."""

    def placeless(other: Recipe) -> Recipe:
        data = replace(other.data, feature_cache=None, source=tuple(Path(s).name for s in other.data.source))
        return replace(other, out=".", data=data)

    kept = load_recipe(Path(recipe.out) / "recipe.toml")
    if placeless(kept) != placeless(recipe):
        raise ConfigError(
            f"{recipe.out} holds a run of another recipe (of {kept.train.n_steps} steps) than the one asked for (of"
            f" {recipe.train.n_steps}); give another --out, or remove that run"
        )


def read_known_runs(path: Path | None, n_steps: int) -> dict[str, dict[int, Measures]]:
    """The runs that a file of results holds, by arm and seed; none if there is no such file.

    Raises:
        ConfigError: no results, or those of runs of another number of steps
    """
    if path is None or not path.exists():
        return {}
    try:
        kept = json.loads(path.read_text())
        runs = {
            arm: {int(seed): run for seed, run in told["runs"].items()} for arm, told in kept["arms"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"--json {path} holds no results of this benchmark ({error!r}); give another name"
        ) from error
    if kept.get("n_steps") != n_steps:
        raise ConfigError(
            f"--json {path} holds runs of {kept.get('n_steps')} steps, expected {n_steps}; give another name"
        )
    return runs


# The command


def run_all(runs: AblationRuns, arms: Sequence[Arm], seeds: Sequence[int], *, again: bool) -> dict[str, str]:
    """Trains and measures seed by seed; why runs failed that did: the others are not kept from going on."""
    failed: dict[str, str] = {}
    for seed in seeds:
        for arm in arms:
            try:
                if not runs.is_trained(arm, seed) and (again or seed in runs.known.get(arm.name, {})):
                    continue
                runs.train(arm, seed)
                found = runs.measure(arm, seed, again=again)
            except OssicleError as error:
                failed[f"{arm.name}, seed {seed}"] = str(error)
                print(f"{seed:4}  {arm.name:26} FAILED: {error}", flush=True)
                continue
            print(f"{seed:4}  {arm.name:26}{found['ear']:7.1%}", flush=True)
    return failed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--steps", type=int, default=1_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", metavar="ARM", choices=ARMS, default=list(ARMS))
    parser.add_argument("--measure-again", action="store_true", help="of what is trained; trains nothing")
    parser.add_argument("--show", action="store_true", help="what is there; trains and measures nothing")
    parser.add_argument(
        "--json", type=Path, help="file for the results; runs that it holds are not run again"
    )
    parser.add_argument("--plot", type=Path, help="picture of quality by operations; beside it, one of slots")
    return parser


def _drawing() -> Callable[[Measures, Path], object]:
    """What draws the pictures, asked for before anything is trained.

    Raises:
        ConfigError: no matplotlib, which nothing else wants
    """
    try:
        from benchmarks.ablations.plots import draw_plots
    except ImportError as error:
        raise ConfigError(f"--plot draws with matplotlib ({error}): pip install matplotlib") from error
    return draw_plots


def main(arguments: Sequence[str] | None = None) -> Measures:
    """Trains, measures and tells, as the flags say; gives what it told."""
    given = _parser().parse_args(arguments)
    draw = _drawing() if given.plot else None
    runs = AblationRuns(given.out, given.steps, read_known_runs(given.json, given.steps))
    arms = [] if given.show else [ARMS[name] for name in given.only]
    failed = run_all(runs, arms, given.seeds, again=given.measure_again)
    found = build_result(runs.read_all(), given.steps, failed)
    print("\n" + "\n".join(format_tables(found)))
    if given.json:
        write_text(given.json, json.dumps(found, indent=1) + "\n")
    if draw is not None:
        draw(found, given.plot)
    print(json.dumps(found))
    return found


if __name__ == "__main__":
    try:
        sys.exit(1 if main()["failed"] else 0)
    except OssicleError as error:
        sys.exit(f"error: {error}")
    except StopRequested as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(130)
