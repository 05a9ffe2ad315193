"""Transcribed speech from one or several sources as numbered rows; this module decodes no audio and draws no order."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from itertools import accumulate

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float32

from ossicle.data.formats import open_source
from ossicle.data.formats.parquet import RowGroupCache
from ossicle.data.source import Source, Utterance
from ossicle.data.source_spec import parse_source_specs
from ossicle.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class SourceRange:
    """The rows of a dataset that belong to one source."""

    first_row: int
    n_rows: int
    weight: float | None
    """How often the source is drawn from, relative to the other weights; None: in proportion to its rows."""
    label: str = ""
    """The layout that the source was recognized as."""


class SpeechDataset:
    """Rows of transcribed speech, source after source.

    Each process opens files itself when it reads a row, so that a copy may go to forked or spawned workers.

    Args:
        sources: each source with its weight; none of them empty
        n_clips: keeps only the first n rows of all sources together
    """

    def __init__(self, sources: Sequence[tuple[Source, float | None]], n_clips: int | None = None) -> None:
        n_rows = sum(len(source) for source, _ in sources)
        self._n_rows = n_rows if n_clips is None else min(n_rows, n_clips)
        starts = accumulate((len(source) for source, _ in sources), initial=0)
        used = [
            (
                source,
                SourceRange(
                    first_row=start,
                    n_rows=min(len(source), self._n_rows - start),
                    weight=weight,
                    label=source.label,
                ),
            )
            for (source, weight), start in zip(sources, starts, strict=False)
            if start < self._n_rows
        ]
        self._sources = tuple(source for source, _ in used)
        self.source_ranges = tuple(source_range for _, source_range in used)
        self.is_sequential = any(source.is_sequential for source in self._sources)
        """Whether rows are cheap to read in ascending order only."""

    def __len__(self) -> int:
        return self._n_rows

    def __getitem__(self, row: int) -> Utterance:
        """Returns one row, its transcript normalized and checked, its audio not decoded yet.

        Raises:
            DataError: the row is invalid; the message begins with the row's name
        """
        source, source_row = self._locate(row)
        return source[source_row]

    def row_name(self, row: int) -> str:
        """Returns file and row number, for messages."""
        source, source_row = self._locate(row)
        return source.row_name(source_row)

    def audio_version(self, row: int) -> str:
        """Returns a string that changes when the audio file of a row is replaced under the same name."""
        source, source_row = self._locate(row)
        return source.audio_version(source_row)

    @cached_property
    def texts(self) -> pa.ChunkedArray:
        """Normalized transcripts; null where a row has none, and for all rows of a stream."""
        chunks = [chunk for source in self._sources for chunk in source.texts.chunks]
        return pa.chunked_array(chunks, type=pa.string()).slice(0, self._n_rows)

    @cached_property
    def durations_s(self) -> Float32[np.ndarray, " n"]:
        """Seconds of each row, measured or estimated: good enough to batch clips of similar length."""
        return np.concatenate([source.durations_s for source in self._sources])[: self._n_rows]

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change with texts, durations, order or sources, but not when folders are moved."""
        digest, sizes = blake2b(digest_size=8), blake2b()
        for chunk in self.texts.chunks:
            # A missing transcript and an empty one count as the same: neither is trained on.
            _, offsets, characters = pc.fill_null(chunk, "").buffers()
            ends = np.frombuffer(offsets, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
            sizes.update(np.diff(ends).data)
            digest.update(memoryview(characters or b"")[ends[0] : ends[-1]])
        digest.update(sizes.digest())
        digest.update(self.durations_s.astype(np.float32).data)
        for source, source_range in zip(self._sources, self.source_ranges, strict=True):
            digest.update(repr((source_range.n_rows, source_range.weight, source.content_id)).encode())
        return digest.hexdigest()

    def _locate(self, row: int) -> tuple[Source, int]:
        """Returns the source of a row and the row's number within it."""
        if not 0 <= row < self._n_rows:
            raise IndexError(f"row {row} of {self._n_rows}")
        index = next(
            n
            for n, source_range in enumerate(self.source_ranges)
            if row < source_range.first_row + source_range.n_rows
        )
        return self._sources[index], row - self.source_ranges[index].first_row


def open_speech(sources: Sequence[str], n_clips: int | None = None) -> SpeechDataset:
    """Opens sources as one dataset, one source after the other; no audio is read yet.

    Args:
        sources: NAME or NAME?key=value&key=value of each; `source_spec.py` parses it
        n_clips: keeps only the first n rows of all sources together

    Raises:
        ConfigError: a source string that cannot be parsed, or n_clips below 1 or not for these sources
        DataError: there is no such source, it cannot be read at all, or it has no rows
    """
    if n_clips is not None and n_clips < 1:
        raise ConfigError(f"the number of clips is {n_clips}, expected at least 1, or none to take all clips")
    row_groups = RowGroupCache()
    opened = []
    for spec in parse_source_specs(sources):
        source = open_source(spec, row_groups, n_clips)
        if not len(source):
            raise DataError(f"source {spec.name!r} holds no utterances; expected at least one")
        opened.append((source, spec.weight))
    dataset = SpeechDataset(opened, n_clips)
    _check_shares(dataset, opened)
    return dataset


def _check_shares(dataset: SpeechDataset, opened: Sequence[tuple[Source, float | None]]) -> None:
    """Refuses a number of clips that takes rows from sources whose share of the samples was asked for.

    Raises:
        ConfigError: sources with weights are cut, or a stream is left out
    """
    has_weights = any(weight is not None for _, weight in opened)
    left_out = [source for source, _ in opened[len(dataset.source_ranges) :]]
    if len(opened) > 1 and has_weights and len(dataset) < sum(len(source) for source, _ in opened):
        raise ConfigError(
            f"the number of clips is {len(dataset)}, which cuts sources that have weights: leave it out, or the weights"
        )
    if any(source.is_sequential for source in left_out):
        raise ConfigError(
            f"the number of clips is {len(dataset)}, which the first {len(dataset.source_ranges)} of {len(opened)}"
            " sources fill, so a stream is never read: give one source, or pack the streams first (ossicle data pack)"
        )
