"""Transcribed speech from one source or several, as rows with numbers; it decodes no sound and knows no order."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from itertools import accumulate

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float32

from ossicle.data.source import Rows, Utterance


@dataclass(frozen=True, kw_only=True)
class Section:
    """The rows of one source among all."""

    first: int
    n_rows: int
    weight: float | None
    """How often the source is drawn from, beside the others' weights; None: as often as it has rows."""


class Speech:
    """Rows of speech, source after source.

    Files are opened when a row is asked for, in each process anew, so that a copy may go to workers, forked or
    spawned.

    Args:
        sources: rows and weight of each; none of them empty
        n_clips: only the first so many of all rows
    """

    def __init__(self, sources: Sequence[tuple[Rows, float | None]], n_clips: int | None = None) -> None:
        n_rows = sum(len(rows) for rows, _ in sources)
        self._n_rows = n_rows if n_clips is None else min(n_rows, n_clips)
        starts = accumulate((len(rows) for rows, _ in sources), initial=0)
        used = [
            (rows, Section(first=first, n_rows=min(len(rows), self._n_rows - first), weight=weight))
            for (rows, weight), first in zip(sources, starts, strict=False)
            if first < self._n_rows
        ]
        self._rows = tuple(rows for rows, _ in used)
        self.sections = tuple(section for _, section in used)
        self.is_sequential = any(rows.is_sequential for rows in self._rows)
        """Whether rows are cheap in rising order only."""

    def __len__(self) -> int:
        return self._n_rows

    def __getitem__(self, row: int) -> Utterance:
        """One row, normalised and checked, its sound not yet decoded.

        Raises:
            DataError: a row that cannot be used; the message begins with its name
        """
        rows, number = self._at(row)
        return rows[number]

    def name(self, row: int) -> str:
        """File and row, for messages."""
        rows, number = self._at(row)
        return rows.name(number)

    def stamp(self, row: int) -> str:
        """What changes when the sound of a row that is a file of its own is replaced under the same name."""
        rows, number = self._at(row)
        return rows.stamp(number)

    @cached_property
    def texts(self) -> pa.ChunkedArray:
        """Transcripts, normalised; null where a row has none or a stream has yet to tell."""
        chunks = [chunk for rows in self._rows for chunk in rows.texts.chunks]
        return pa.chunked_array(chunks, type=pa.string()).slice(0, self._n_rows)

    @cached_property
    def lengths(self) -> Float32[np.ndarray, " n"]:
        """Seconds where they are known, else an estimate: good enough to put like lengths together."""
        return np.concatenate([rows.lengths for rows in self._rows])[: self._n_rows]

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change when texts, lengths, order or sources do, and not when folders are moved."""
        digest, sizes = blake2b(digest_size=8), blake2b()
        for chunk in self.texts.chunks:
            _, offsets, characters = pc.fill_null(
                chunk, ""
            ).buffers()  # none or empty: neither is learned from
            ends = np.frombuffer(offsets, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
            sizes.update(np.diff(ends).data)
            digest.update(memoryview(characters or b"")[ends[0] : ends[-1]])
        digest.update(sizes.digest())
        digest.update(self.lengths.astype(np.float32).data)
        for rows, section in zip(self._rows, self.sections, strict=True):
            digest.update(repr((section.n_rows, section.weight, rows.mark)).encode())
        return digest.hexdigest()

    def _at(self, row: int) -> tuple[Rows, int]:
        if not 0 <= row < self._n_rows:
            raise IndexError(f"row {row} of {self._n_rows}")
        number = next(n for n, section in enumerate(self.sections) if row < section.first + section.n_rows)
        return self._rows[number], row - self.sections[number].first
