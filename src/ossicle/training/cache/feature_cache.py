"""Encoder features of a small set, encoded once and kept on disk for all passes and all runs."""

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
from ossicle.training.batch import ClipDataset
from ossicle.training.cache.tensor_cache import CacheEntry, TensorCache, plan_cache_write, write_index
from ossicle.training.dataloader import map_in_workers
from ossicle.training.distributed import Ranks

FEATURE_DTYPE = torch.bfloat16
_ENCODED_AT_ONCE = 32
_VIEW_RULE = "1"
"""Name of the way in which views are drawn; features of another way are other features."""


def fill_feature_cache(
    ear: Ear,
    examples: ClipDataset,
    folder: Path,
    encoder: str,
    ranks: Ranks,
    *,
    announce: Callable[[str], None],
    progress: Callable[[int, int], None],
) -> TensorCache:
    """Encodes every clip, in each of its views, that the folder does not hold yet; like lengths together.

    Args:
        encoder: the encoder's fingerprint
        announce: told what disk that takes, before it is taken
        progress: told how many of how many are done, by all ranks if they go equally fast

    Raises:
        CacheError: a folder of other features, a damaged one, or too small a disk
        CheckpointError: a disk that is full all the same
    """
    fingerprint = {
        "encoder": encoder,
        "window": ear.settings.base.encoder_window,
        "views": _VIEW_RULE,
        "dtype": str(FEATURE_DTYPE).removeprefix("torch."),
    }
    lengths = examples.speech.durations_s
    order = np.argsort(lengths, kind="stable").tolist()
    views = list(itertools.product(range(examples.data.n_augmented_views), filter(examples.has_text, order)))
    with ranks.sync_errors():
        filling = plan_cache_write(
            folder,
            fingerprint,
            [examples.compute_feature_key(row, view) for view, row in views],
            [max(1, int(lengths[row] * POSITIONS_PER_SECOND)) for _, row in views],
            width=ear.whisper.config.d_model,
            dtype=FEATURE_DTYPE,
        )
        filling.check_disk()
    ranks.check_equal([block.name for block in filling.shards], str(folder))
    if not filling.n_missing:
        return TensorCache.open(folder, fingerprint)
    announce(f"encoding {filling.n_missing} clips; {folder} needs {filling.n_bytes / 1e9:.2f} GB of disk")

    def compute(places: Int[np.ndarray, " n"]) -> Iterator[CacheEntry | None]:
        return _encoded(ear, examples, [views[place] for place in places])

    with ranks.sync_errors():
        filling.write_shards(compute, rank=ranks.rank, n_ranks=ranks.n_ranks, progress=progress)
    with ranks.sync_errors():
        if ranks.is_first:
            write_index(folder, fingerprint)
    return TensorCache.open(folder, fingerprint)


def _encoded(
    ear: Ear, examples: ClipDataset, views: Sequence[tuple[int, int]]
) -> Iterator[CacheEntry | None]:
    """The features of some clips, in their order; none for one that cannot be used."""
    work = functools.partial(_mels, examples)
    pieces = [views[first : first + _ENCODED_AT_ONCE] for first in range(0, len(views), _ENCODED_AT_ONCE)]
    for mel, n_frames in map_in_workers(work, pieces, examples.n_workers):
        rows: Iterator[Tensor] = iter(())
        if mel is not None:
            states = ear.encode_mels(mel, torch.tensor([n for n in n_frames if n])).states.to(
                "cpu", FEATURE_DTYPE
            )
            rows = iter(states)
        yield from (CacheEntry(next(rows)[: n // FRAMES_PER_POSITION]) if n else None for n in n_frames)


def _mels(
    examples: ClipDataset, views: Sequence[tuple[int, int]]
) -> tuple[Float[Tensor, "B M F"] | None, list[int]]:
    """Spectrograms of the clips that can be used, and the frames of each clip, 0 for one that cannot."""
    mels, n_frames = [], []
    for view, row in views:
        try:
            mels.append(examples.load_view_mel(row, view))
            n_frames.append(mels[-1].shape[1])
        except DataError:  # it will be met again by the run, which says why
            n_frames.append(0)
    return (pad_mels(mels)[0] if mels else None), n_frames
