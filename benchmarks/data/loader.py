"""Compares the clips a second that the loader delivers from each kind of source with those that pocket training takes.

    python -m benchmarks.data.loader

The loader reads, decodes and computes spectrograms in two worker processes. Training takes clips that are ready in
memory, so that it never waits, on both cores. Both take turns several times; medians count. The last line is JSON.
"""

import argparse
import io
import json
import os
import platform
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from itertools import cycle
from pathlib import Path
from statistics import median

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

BATCH_SIZE = 32
N_WORKERS = 2


def load_pocket_clips(n_clips: int) -> list[tuple[str, bytes, str]]:
    """Returns name, encoded sound and text of the first clips of pocket/speech."""
    speech, clips = open_speech(["pocket/speech"], n_clips), []
    for row in range(n_clips):
        utterance = speech[row]
        assert isinstance(utterance.audio, bytes)
        clips.append((f"{row:06}", utterance.audio, utterance.text))
    return clips


def write_sources(folder: Path, clips: Sequence[tuple[str, bytes, str]]) -> dict[str, str]:
    """Writes the same clips as every kind of source; returns the sources by kind."""
    _write_jsonl_and_tar(folder, clips)
    table = pa.table(
        {
            "audio": [{"bytes": audio, "path": f"{name}.ogg"} for name, audio, _ in clips],
            "text": [text for _, _, text in clips],
        }
    )
    pq.write_table(table, folder / "speech.parquet", row_group_size=100)
    dataset = folder / "hub" / "data"
    dataset.mkdir(parents=True)
    pq.write_table(table, dataset / "train-00000-of-00001.parquet", row_group_size=100)
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


def _write_jsonl_and_tar(folder: Path, clips: Sequence[tuple[str, bytes, str]]) -> None:
    (folder / "clips").mkdir()
    with (folder / "speech.jsonl").open("w") as jsonl, tarfile.open(folder / "speech.tar", "w") as tar:
        for name, audio, text in clips:
            (folder / "clips" / f"{name}.ogg").write_bytes(audio)
            jsonl.write(json.dumps({"audio": f"clips/{name}.ogg", "text": text}) + "\n")
            for extension, content in (("ogg", audio), ("txt", text.encode())):
                member = tarfile.TarInfo(f"{name}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def build_loader_meter(run: Run, source: str, n_batches: int, n_clips: int) -> Callable[[], float]:
    """Returns a function that measures the clips a second that the loader delivers from a source."""
    speech = open_speech([source], n_clips)
    sampler = BatchSampler(
        speech.durations_s,
        BATCH_SIZE,
        0,
        source_ranges=speech.source_ranges,
        is_sequential=speech.is_sequential,
    )
    dataset = ClipDataset(run.ear, speech, DataSettings(n_workers=N_WORKERS), AugmentSettings(), 0)

    def measure_clips_per_s() -> float:
        """Measures from the arrival of the first batch on: a run starts its workers only once."""
        batches = map_in_workers(
            dataset.load_clips, [sampler[step] for step in range(n_batches)], dataset.n_workers
        )
        next(batches)
        started, n_loaded = time.perf_counter(), 0
        for batch in batches:
            n_loaded += len(batch.n_text)
        return n_loaded / (time.perf_counter() - started)

    return measure_clips_per_s


def build_training_meter(run: Run, n_steps: int) -> Callable[[], float]:
    """Returns a function that measures the clips a second of training with all terms, batches of every length."""
    last_step = run.recipe.train.n_steps - 1
    batches = cycle([run.load_rank_batch(step) for step in range(8)])

    def measure_clips_per_s() -> float:
        started = time.perf_counter()
        n_trained = sum(train_step(run, last_step, next(batches)).n_clips for _ in range(n_steps))
        return n_trained / (time.perf_counter() - started)

    return measure_clips_per_s


def measure_loaders(n_clips: int, n_rounds: int) -> dict[str, float]:
    """Returns the median clips a second of training and of each kind of source."""
    recipe = load_recipe(Path(resolve_model_path("pocket/recipe.toml")))
    data = replace(recipe.data, feature_cache=None, n_augmented_views=1, n_clips=n_clips, n_workers=0)
    with tempfile.TemporaryDirectory() as folder:
        run = build_run(replace(recipe, out=f"{folder}/run", data=data, augment=AugmentSettings()))
        measure_training = build_training_meter(run, n_steps=8)
        measure_training()
        loaders = {
            kind: build_loader_meter(run, source, n_clips // BATCH_SIZE, n_clips)
            for kind, source in write_sources(Path(folder), load_pocket_clips(n_clips)).items()
        }
        clips_per_s: dict[str, list[float]] = {kind: [] for kind in ("training", *loaders)}
        for _ in range(n_rounds):
            for kind, measure_loader in loaders.items():
                clips_per_s["training"].append(measure_training())
                clips_per_s[kind].append(measure_loader())
    return {kind: median(rounds) for kind, rounds in clips_per_s.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--clips", type=int, default=2_000, help="clips of pocket/speech")
    parser.add_argument("--rounds", type=int, default=3, help="timed turns; the median counts")
    args = parser.parse_args()
    clips_per_s = measure_loaders(args.clips, args.rounds)
    print(f"{'':20}{'clips/s':>10}{'x training':>12}")
    for kind, speed in clips_per_s.items():
        print(f"{kind:20}{speed:10.0f}{speed / clips_per_s['training']:12.1f}")
    slowest = min(speed for kind, speed in clips_per_s.items() if kind != "training")
    result = {
        "benchmark": "loader",
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "n_workers": N_WORKERS,
        "clips_per_s": {kind: round(speed, 1) for kind, speed in clips_per_s.items()},
        "least_ratio": round(slowest / clips_per_s["training"], 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
