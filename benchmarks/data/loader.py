"""Clips a second that the loader alone delivers from each kind of source, beside what the pocket training consumes.

    python benchmarks/loader.py

The loader reads, decodes and analyses in two worker processes; training takes clips that are ready in memory, so it is
never kept waiting, on both cores. Both run in turn, several times; medians. Last, one line of JSON.
"""

import argparse
import io
import json
import os
import platform
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from itertools import cycle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ossicle.backbones.model_files import resolve_model_path
from ossicle.config import AugmentSettings, DataSettings, load_recipe
from ossicle.data.dataset import open_speech
from ossicle.data.pack import pack
from ossicle.data.sampler import BatchSampler
from ossicle.training.dataloader import map_in_workers
from ossicle.training.dataset import ClipDataset
from ossicle.training.run import Run
from ossicle.training.setup import build_run
from ossicle.training.train_step import train_step

BATCH = 32
N_WORKERS = 2


def written_sources(folder: Path, n_clips: int) -> dict[str, str]:
    """The same clips of pocket/speech as every kind of source."""
    speech = open_speech(["pocket/speech"], n_clips)
    rows = [(f"{row:06}", speech[row]) for row in range(n_clips)]
    (folder / "clips").mkdir()
    with (folder / "speech.jsonl").open("w") as manifest, tarfile.open(folder / "speech.tar", "w") as tar:
        for name, utterance in rows:
            (folder / "clips" / f"{name}.ogg").write_bytes(utterance.audio)
            manifest.write(json.dumps({"audio": f"clips/{name}.ogg", "text": utterance.text}) + "\n")
            for ending, content in (("ogg", utterance.audio), ("txt", utterance.text.encode())):
                member = tarfile.TarInfo(f"{name}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    table = pa.table(
        {
            "audio": [{"bytes": utterance.audio, "path": f"{name}.ogg"} for name, utterance in rows],
            "text": [utterance.text for _, utterance in rows],
        }
    )
    pq.write_table(table, folder / "speech.parquet", row_group_size=100)
    data_set = folder / "hub" / "data"
    data_set.mkdir(parents=True)
    pq.write_table(table, data_set / "train-00000-of-00001.parquet", row_group_size=100)
    pack(open_speech([str(folder / "speech.jsonl")]), folder / "packed")
    pack(open_speech([str(folder / "speech.jsonl")]), folder / "packed-pcm", pcm=True)
    return {
        "parquet": str(folder / "speech.parquet"),
        "JSONL": str(folder / "speech.jsonl"),
        "tar": str(folder / "speech.tar"),
        "data set": f"{folder / 'hub'}?split=train",
        "data set, streamed": f"{folder / 'hub'}?split=train&streaming=true",
        "packed": str(folder / "packed"),
        "packed, PCM": str(folder / "packed-pcm"),
    }


def loading(run: Run, source: str, n_batches: int, n_clips: int) -> Callable[[], float]:
    speech = open_speech([source], n_clips)
    sampler = BatchSampler(
        speech.durations_s, BATCH, 0, source_ranges=speech.source_ranges, is_sequential=speech.is_sequential
    )
    examples = ClipDataset(run.ear, speech, DataSettings(n_workers=N_WORKERS), AugmentSettings(), 0)

    def clips_per_s() -> float:
        """From the first batch that arrives on: a run starts its workers once."""
        batches = map_in_workers(
            examples.load_clips, [sampler[step] for step in range(n_batches)], examples.n_workers
        )
        next(batches)
        started, n = time.perf_counter(), 0
        for made in batches:
            n += len(made.n_text)
        return n / (time.perf_counter() - started)

    return clips_per_s


def learning(run: Run, n_steps: int) -> Callable[[], float]:
    """The second stage of the recipe, all terms; batches of every length."""
    first = run.recipe.train.n_steps - 1
    ready = cycle([run.load_rank_batch(step) for step in range(8)])

    def clips_per_s() -> float:
        started = time.perf_counter()
        n = sum(train_step(run, first, next(ready)).n_clips for _ in range(n_steps))
        return n / (time.perf_counter() - started)

    return clips_per_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--clips", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    recipe = load_recipe(Path(resolve_model_path("pocket/recipe.toml")))
    data = replace(recipe.data, feature_cache=None, n_augmented_views=1, n_clips=given.clips, n_workers=0)
    with tempfile.TemporaryDirectory() as folder:
        run = build_run(replace(recipe, out=f"{folder}/run", data=data, augment=AugmentSettings()))
        train = learning(run, n_steps=8)
        train()
        kinds = {
            kind: loading(run, source, given.clips // BATCH, given.clips)
            for kind, source in written_sources(Path(folder), given.clips).items()
        }
        speeds: dict[str, list[float]] = {kind: [] for kind in ("training", *kinds)}
        for _ in range(given.rounds):
            for kind, measure in kinds.items():
                speeds["training"].append(train())
                speeds[kind].append(measure())
    medians = {kind: statistics.median(found) for kind, found in speeds.items()}
    print(f"{'':20}{'clips/s':>10}{'x training':>12}")
    for kind, speed in medians.items():
        print(f"{kind:20}{speed:10.0f}{speed / medians['training']:12.1f}")
    result = {
        "benchmark": "loader",
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "n_workers": N_WORKERS,
        "clips_per_s": {kind: round(speed, 1) for kind, speed in medians.items()},
        "least_ratio": round(min(medians[kind] for kind in kinds) / medians["training"], 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
