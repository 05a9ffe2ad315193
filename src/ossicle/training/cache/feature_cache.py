"""Encoder features of a small source, encoded once and kept on disk for all epochs and all runs."""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ossicle.backbones.encoder import FRAMES_PER_POSITION, POSITIONS_PER_SECOND, pad_mels
from ossicle.ear import Ear
from ossicle.errors import DataError
from ossicle.training.cache.cache_writer import CountCallback, plan_cache_write
from ossicle.training.cache.tensor_cache import TensorCache
from ossicle.training.cache.tensor_shard import CacheEntry
from ossicle.training.dataloader import map_in_workers
from ossicle.training.dataset import ClipDataset
from ossicle.training.distributed import Ranks

FEATURE_DTYPE = torch.bfloat16
_BATCH_SIZE = 32
_VIEW_VERSION = "1"
"""Changes with the way in which views are augmented; features of another version are not used."""


def fill_feature_cache(
    ear: Ear,
    dataset: ClipDataset,
    folder: Path,
    encoder: str,
    ranks: Ranks,
    *,
    print_message: Callable[[str], None],
    progress: CountCallback,
) -> TensorCache:
    """Encodes every view of every clip that the folder does not hold yet, in the order of their durations.

    Args:
        encoder: the encoder's fingerprint
        print_message: called with the disk space that is needed, before any of it is used

    Raises:
        CacheError: the folder holds other features or a damaged cache, or the disk is too small
        CheckpointError: the disk is full in spite of that check
    """
    fingerprint = {
        "encoder": encoder,
        "window": ear.window.describe(),
        "views": _VIEW_VERSION,
        "dtype": str(FEATURE_DTYPE).removeprefix("torch."),
    }
    durations_s = dataset.speech.durations_s
    order = np.argsort(durations_s, kind="stable").tolist()
    views = list(itertools.product(range(dataset.data.n_augmented_views), filter(dataset.has_text, order)))
    with ranks.sync_errors():
        plan = plan_cache_write(
            folder,
            fingerprint,
            [dataset.compute_feature_key(row, view) for view, row in views],
            [max(1, int(durations_s[row] * POSITIONS_PER_SECOND)) for _, row in views],
            width=ear.whisper.config.d_model,
            dtype=FEATURE_DTYPE,
        )
        plan.check_disk()
    ranks.check_equal([shard.name for shard in plan.shards], str(folder))
    if not plan.n_missing:
        return TensorCache.open(folder, fingerprint)
    print_message(f"encoding {plan.n_missing} clips; {folder} needs {plan.n_bytes / 1e9:.2f} GB of disk")

    def compute(indices: Int[np.ndarray, " n"]) -> Iterator[CacheEntry | None]:
        return _encode(ear, dataset, [views[index] for index in indices])

    return plan.fill(compute, ranks, progress)


def _encode(ear: Ear, dataset: ClipDataset, views: Sequence[tuple[int, int]]) -> Iterator[CacheEntry | None]:
    """Yields the features of clips, given by view and row, in their order; None for one that cannot be used."""
    load = functools.partial(_load_mels, dataset)
    chunks = [views[first : first + _BATCH_SIZE] for first in range(0, len(views), _BATCH_SIZE)]
    for mel, n_frames in map_in_workers(load, chunks, dataset.n_workers):
        rows: Iterator[Tensor] = iter(())
        if mel is not None:
            features = ear.encode_mels(mel, torch.tensor([n for n in n_frames if n]))
            rows = iter(features.states.to("cpu", FEATURE_DTYPE))
        yield from (CacheEntry(next(rows)[: n // FRAMES_PER_POSITION]) if n else None for n in n_frames)


def _load_mels(
    dataset: ClipDataset, views: Sequence[tuple[int, int]]
) -> tuple[Float[Tensor, "B M F"] | None, list[int]]:
    """Returns the spectrograms of the clips that can be used, and the frames of each clip, 0 for one that cannot."""
    mels, n_frames = [], []
    for view, row in views:
        try:
            mels.append(dataset.load_view_mel(row, view))
            n_frames.append(mels[-1].shape[1])
        except DataError:  # the run raises it again, and reports the reason
            n_frames.append(0)
    return (pad_mels(mels)[0] if mels else None), n_frames
