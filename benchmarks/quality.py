"""What an ear is worth at equal steps: ours, ours with the encoder's full window, and the method as published.

    python benchmarks/quality.py --out runs/quality

Each seed draws new weights, another order of clips and the same of both for all three; pocket world, the same clips and
steps. Compared in pairs, on the spoken questions of the suite that comes with earshot. It can be stopped at any point
and goes on with the same command. Last, one line of JSON.
"""

import argparse
import json
import os
import platform
import statistics
import time
from dataclasses import replace
from datetime import date
from pathlib import Path

import torch

from earshot import checkpoint
from earshot.bases import locate
from earshot.config import Recipe, load_recipe
from earshot.evaluation import evaluate, load_suite
from earshot.storage import write_text
from earshot.training.loop import train

ARMS = ("ours", "published", "ours, full window")


def recipe_of(arm: str, seed: int, n_steps: int, out: Path) -> Recipe:
    """Ours is the pocket recipe. The published form has every slot the decoder has positions for, aligned to the right
    end, the full window, both terms from the first step at the last position; its learning rate and the weight of
    hidden states, both fitted to the pocket world, are ours.
    """
    pocket = load_recipe(Path(locate("pocket/recipe.toml")))
    window = "sound" if arm == "ours" else "full"
    recipe = replace(
        pocket,
        out=str(out / f"{arm.replace(', ', '-').replace(' ', '-')}-{seed}"),
        base=replace(pocket.base, encoder_window=window),
        data=replace(pocket.data, n_views=1, n_workers=0, feature_cache=str(out / f"features-{window}")),
        train=replace(pocket.train, n_steps=n_steps, seed=seed),
    )
    if arm != "published":
        return recipe
    return replace(
        recipe,
        connector=replace(pocket.connector, form="right", n_queries=64),
        objective=replace(pocket.objective, hidden_positions="last", name_weight=0.0, lead_share=0.0),
    )


def measured(arm: str, seed: int, n_steps: int, out: Path) -> dict[str, float]:
    """The right answers of one ear, which is distilled if it is not there yet."""
    recipe = recipe_of(arm, seed, n_steps, out)
    place = Path(recipe.out) / "quality.json"
    if not place.exists():
        started = time.perf_counter()
        if not (Path(recipe.out) / checkpoint.RUN_EAR).is_dir():
            train(recipe)
        trained_s = time.perf_counter() - started
        report = evaluate(
            checkpoint.load(Path(recipe.out)), load_suite("pocket"), name="pocket", batch_size=64
        )
        table = report.overall
        found = {
            "ear": table.ear.accuracy,
            "cascade": table.cascade.accuracy,
            "trained_s": trained_s,
        }
        write_text(place, json.dumps(found) + "\n")
    return json.loads(place.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--steps", type=int, default=1_000)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    right: dict[str, list[float]] = {arm: [] for arm in ARMS}
    print(f"{'seed':>4}  {'':20}{'right answers':>14}")
    for seed in range(given.seeds):
        for arm in ARMS:
            found = measured(arm, seed, given.steps, given.out)
            right[arm].append(found["ear"])
            print(f"{seed:4}  {arm:20}{found['ear']:14.1%}", flush=True)
    against = {
        arm: [ours - other for ours, other in zip(right["ours"], right[arm], strict=True)] for arm in ARMS[1:]
    }
    result = {
        "benchmark": "quality",
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "n_steps": given.steps,
        "right_answers": {arm: [round(share, 4) for share in found] for arm, found in right.items()},
        "ours_minus": {arm: [round(share, 4) for share in found] for arm, found in against.items()},
        "mean_ours_minus": {arm: round(statistics.mean(found), 4) for arm, found in against.items()},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
