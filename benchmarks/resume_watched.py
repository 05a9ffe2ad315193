"""A run that writes down what each process learns, step by step, and stops after a given one; see resume.py."""

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from earshot.config import load_recipe
from earshot.training import Stopped, loop, train
from earshot.training.examples import Portion
from earshot.training.run import Run
from earshot.training.step import Taken, optimise


def main() -> None:
    recipe_file, until = Path(sys.argv[1]), int(sys.argv[2])
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
    try:
        train(load_recipe(recipe_file))
    except Stopped:
        pass


if __name__ == "__main__":
    main()
