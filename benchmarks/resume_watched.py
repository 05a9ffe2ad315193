"""A run that writes down what each process learns, step by step, and stops after a given one; see resume.py.

python benchmarks/resume_watched.py RECIPE.toml STEP float32|float64
"""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from earshot import bases
from earshot.config import load_recipe
from earshot.model import Ear
from earshot.training import Stopped, loop, train
from earshot.training.examples import Portion
from earshot.training.run import Run
from earshot.training.step import Taken, optimise


def compute_in(dtype: torch.dtype) -> None:
    """Has everything computed in a type of its own: in float64, two orders of the same sums give the same run."""
    new = Ear.new

    def new_ear(*args: Any, **options: Any) -> Ear:
        ear = new(*args, **options)
        ear.connector.to(dtype)
        return ear

    Ear.new = new_ear
    bases.frozen_dtype = lambda device: dtype
    bases._SAME_READING[dtype] = 1e-3


def main() -> None:
    recipe_file, until, dtype = Path(sys.argv[1]), int(sys.argv[2]), getattr(torch, sys.argv[3])
    compute_in(dtype)
    log = recipe_file.with_name(f"{recipe_file.stem}-rank{os.environ.get('RANK', '0')}.jsonl")

    def watched(run: Run, step: int, portions: Sequence[Portion]) -> Taken:
        taken = optimise(run, step, portions)
        rows = [(draw.row, draw.epoch) for part in run.parts(step) for draw in part]
        with log.open("a") as file:
            file.write(json.dumps({"step": step, "rows": rows, "loss": float(taken.terms["loss"])}) + "\n")
        if step + 1 == until:
            signal.raise_signal(signal.SIGTERM)
        return taken

    loop.optimise = watched
    with contextlib.suppress(Stopped):
        train(load_recipe(recipe_file))


if __name__ == "__main__":
    main()
