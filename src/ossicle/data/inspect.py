"""Counts what a dataset holds: rows, hours, durations, invalid rows by reason, examples; prints nothing itself."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float32, Int64

from ossicle.audio.speech import load_speech
from ossicle.audio.waveform import SAMPLE_RATE
from ossicle.data.dataset import SpeechDataset
from ossicle.errors import AudioError, DataError

_ROW_SPECIFIC = re.compile(r"b?'[^']*'|\"[^\"]*\"|(?<![\w-])\d+(?:[.,:]\d+)*")
"""The parts in which reasons of one kind differ: names, values and numbers."""
_MAX_BINS = 20


@dataclass(frozen=True, kw_only=True)
class InvalidRow:
    """A row that cannot be used, and the reason."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Example:
    """A row to read and to listen to."""

    name: str
    text: str
    samples: Float32[np.ndarray, " N"]

    @property
    def duration_s(self) -> float:
        """Its length."""
        return len(self.samples) / SAMPLE_RATE


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Counts in bins of equal width, the first of which begins at `low`."""

    low: float
    step: float
    counts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class DatasetSummary:
    """The findings about a dataset; rows that were not decoded are judged by their transcripts only."""

    n_rows: int
    layouts: tuple[str, ...]
    """What each source was recognized as."""
    n_decoded: int
    """Rows whose audio was read, spread evenly over all rows (of a stream: the first ones)."""
    invalid_rows: tuple[InvalidRow, ...]
    """In row order."""
    reason_counts: dict[str, int]
    """Number of invalid rows by the kind of reason, most frequent first."""
    durations_s: Float32[np.ndarray, " valid"]
    """Seconds of the clips that were decoded."""
    n_characters: Int64[np.ndarray, " texts"]
    """Lengths of the transcripts that are known, of rows that are not known to be invalid."""
    examples: tuple[Example, ...]

    @property
    def is_complete(self) -> bool:
        """Whether every row was read and decoded; otherwise the hours are an estimate."""
        return self.n_decoded == self.n_rows

    @property
    def n_usable(self) -> int:
        """Number of rows that are not known to be invalid."""
        return self.n_rows - len(self.invalid_rows)

    @property
    def has_usable_row(self) -> bool:
        """Whether a row is known to be usable; where none was decoded, whether one may be."""
        return bool(len(self.durations_s) if self.n_decoded else self.n_usable)

    @property
    def hours(self) -> float | None:
        """Hours of all usable clips, by the mean duration of the decoded ones; None if none was decoded."""
        if not len(self.durations_s):
            return None
        return float(self.durations_s.mean(dtype=np.float64)) * self.n_usable / 3600


def inspect_dataset(
    dataset: SpeechDataset,
    *,
    n_decoded: int = 1_000,
    n_examples: int = 5,
    progress: Callable[[int, int], None] = lambda n_done, n_all: None,
) -> DatasetSummary:
    """Checks all transcripts, and decodes the audio of `n_decoded` rows.

    Args:
        n_decoded: number of rows to read and decode; 0 for none
        progress: called with the number of rows decoded so far and of all rows to decode
    """
    decoded_rows = _spread_rows(len(dataset), n_decoded, is_sequential=dataset.is_sequential)
    reasons = {} if dataset.is_sequential else _check_texts(dataset, skip=set(decoded_rows))
    durations, examples, lengths = [], [], []
    for n_done, row in enumerate(decoded_rows, 1):
        name = dataset.row_name(row)
        try:
            utterance = dataset[row]
            samples = load_speech(utterance.audio)
        except (DataError, AudioError) as error:
            reasons[row] = str(error).removeprefix(f"{name}: ")
        else:
            durations.append(len(samples) / SAMPLE_RATE)
            lengths.append(len(utterance.text))
            is_due = (n_done - 1) * n_examples >= len(examples) * len(decoded_rows)
            if is_due and len(examples) < n_examples:
                examples.append(Example(name=name, text=utterance.text, samples=samples))
        progress(n_done, len(decoded_rows))
    invalid = tuple(InvalidRow(name=dataset.row_name(row), reason=reasons[row]) for row in sorted(reasons))
    is_usable = np.ones(len(dataset), bool)
    is_usable[list(reasons)] = False
    usable_texts = dataset.texts.filter(pa.array(is_usable)).drop_null()
    known = pc.call_function("utf8_length", [usable_texts]).to_numpy().astype(np.int64)
    return DatasetSummary(
        n_rows=len(dataset),
        layouts=tuple(source_range.label for source_range in dataset.source_ranges),
        n_decoded=len(decoded_rows),
        invalid_rows=invalid,
        reason_counts=dict(Counter(_generalize(row.reason) for row in invalid).most_common()),
        durations_s=np.array(durations, np.float32),
        n_characters=np.array(lengths, np.int64) if dataset.is_sequential else known,
        examples=tuple(examples),
    )


def compute_histogram(values: Float32[np.ndarray, " n"] | Int64[np.ndarray, " n"]) -> Histogram:
    """Counts values in up to 21 bins of a round width, from the smallest value's bin to the largest's."""
    if not len(values):
        return Histogram(low=0.0, step=1.0, counts=())
    high = float(values.max())
    min_step = max(high, 1e-9) / _MAX_BINS
    power = 10.0 ** np.floor(np.log10(min_step))
    steps = (factor * power for factor in (1, 2, 5, 10))
    step = float(next(step for step in steps if step >= min_step * (1 - 1e-9)))
    if values.dtype.kind == "i":
        step = max(1.0, step)
    bins = np.minimum(values / step, _MAX_BINS).astype(np.int64)
    first = int(bins.min())
    return Histogram(low=first * step, step=step, counts=tuple(np.bincount(bins - first).tolist()))


def _spread_rows(n_rows: int, n_requested: int, *, is_sequential: bool) -> list[int]:
    """Returns rows at even distances; of a stream the first ones, as a later row costs as much as all before it."""
    n = min(n_requested, n_rows)
    if is_sequential:
        return list(range(n))
    return [index * n_rows // n for index in range(n)]


def _check_texts(dataset: SpeechDataset, skip: set[int]) -> dict[int, str]:
    """Returns the rows without a valid transcript and the reasons, which reading them gives."""
    reasons = {}
    for row in np.flatnonzero(dataset.texts.is_null().to_numpy()).tolist():
        if row not in skip:
            try:
                dataset[row]
            except DataError as error:
                reasons[row] = str(error).removeprefix(f"{dataset.row_name(row)}: ")
    return reasons


def _generalize(reason: str) -> str:
    """Returns a reason without the parts that are specific to its row."""
    return " ".join(_ROW_SPECIFIC.sub("…", reason.split("; ", 1)[0]).split())
