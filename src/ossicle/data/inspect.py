"""What is in a source of speech: counts, hours, lengths, bad rows by reason, examples; it shows nothing itself."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
from jaxtyping import Float32, Int64

from ossicle.audio.waveform import SAMPLE_RATE, load_audio
from ossicle.data.dataset import Speech
from ossicle.errors import AudioError, DataError

_PARTICULAR = re.compile(r"b?'[^']*'|\"[^\"]*\"|(?<![\w-])\d+(?:[.,:]\d+)*")
"""What differs between reasons of one kind: names, values and numbers."""
_N_BINS = 20


@dataclass(frozen=True, kw_only=True)
class BadRow:
    """A row that cannot be used, and why."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Example:
    """A row to look at and to listen to."""

    name: str
    text: str
    samples: Float32[np.ndarray, " N"]

    @property
    def duration_s(self) -> float:
        """Its length."""
        return len(self.samples) / SAMPLE_RATE


@dataclass(frozen=True, kw_only=True)
class Bins:
    """A histogram of even steps from `low` up."""

    low: float
    step: float
    counts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What was found in a source; of rows that were not decoded, only their transcripts are judged."""

    n_rows: int
    n_decoded: int
    """Rows whose sound was looked for, spread evenly over all (of a stream: the first)."""
    bad: tuple[BadRow, ...]
    """In the order of the rows."""
    kinds: dict[str, int]
    """Number of bad rows by the kind of their reason, most frequent first."""
    seconds: Float32[np.ndarray, " good"]
    """Of the clips that were decoded."""
    characters: Int64[np.ndarray, " texts"]
    """Of the transcripts that are known."""
    examples: tuple[Example, ...]

    @property
    def is_complete(self) -> bool:
        """Whether every row was read and decoded; else hours are an estimate."""
        return self.n_decoded == self.n_rows

    @property
    def n_usable(self) -> int:
        """Rows that are not known to be bad."""
        return self.n_rows - len(self.bad)

    @property
    def hours(self) -> float | None:
        """Of all usable clips, at the mean length of those that were decoded; None if none was."""
        if not len(self.seconds):
            return None
        return float(self.seconds.mean(dtype=np.float64)) * self.n_usable / 3600


def survey(
    speech: Speech,
    *,
    n_decoded: int = 1_000,
    n_examples: int = 5,
    progress: Callable[[int, int], None] = lambda n_done, n_all: None,
) -> Survey:
    """Looks at all transcripts, and decodes the sound of so many rows.

    Args:
        n_decoded: rows to read and decode; 0 for none
        progress: is told how many rows of how many are decoded
    """
    wanted = _spread(len(speech), n_decoded, is_sequential=speech.is_sequential)
    bad = {} if speech.is_sequential else _without_text(speech, skip=set(wanted))
    seconds, examples, lengths = [], [], []
    for n_done, row in enumerate(wanted, 1):
        name = speech.name(row)
        try:
            utterance = speech[row]
            samples = load_audio(utterance.audio)
        except (DataError, AudioError) as error:
            bad[row] = str(error).removeprefix(f"{name}: ")
        else:
            seconds.append(len(samples) / SAMPLE_RATE)
            lengths.append(len(utterance.text))
            if (n_done - 1) * n_examples >= len(examples) * len(wanted) and len(examples) < n_examples:
                examples.append(Example(name=name, text=utterance.text, samples=samples))
        progress(n_done, len(wanted))
    rows = tuple(BadRow(name=speech.name(row), reason=bad[row]) for row in sorted(bad))
    known = pc.call_function("utf8_length", [speech.texts.drop_null()]).to_numpy().astype(np.int64)
    return Survey(
        n_rows=len(speech),
        n_decoded=len(wanted),
        bad=rows,
        kinds=dict(Counter(_kind(row.reason) for row in rows).most_common()),
        seconds=np.array(seconds, np.float32),
        characters=np.array(lengths, np.int64) if speech.is_sequential else known,
        examples=tuple(examples),
    )


def histogram(values: Float32[np.ndarray, " n"] | Int64[np.ndarray, " n"]) -> Bins:
    """Counts in at most 20 steps of a round size, from 0 or the step of the smallest value to the largest."""
    if not len(values):
        return Bins(low=0.0, step=1.0, counts=())
    high = float(values.max())
    rough = max(high, 1e-9) / _N_BINS
    power = 10.0 ** np.floor(np.log10(rough))
    step = float(next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9)))
    if values.dtype.kind == "i":
        step = max(1.0, step)
    places = np.minimum(values / step, _N_BINS).astype(np.int64)
    first = int(places.min())
    return Bins(low=first * step, step=step, counts=tuple(np.bincount(places - first).tolist()))


def _spread(n_rows: int, n_wanted: int, *, is_sequential: bool) -> list[int]:
    """Row numbers at even distances; the first ones of a stream, whose others cost as much as all before them."""
    n_wanted = min(n_wanted, n_rows)
    if is_sequential:
        return list(range(n_wanted))
    return [place * n_rows // n_wanted for place in range(n_wanted)]


def _without_text(speech: Speech, skip: set[int]) -> dict[int, str]:
    """Rows whose transcript alone rules them out; reading them tells why."""
    found = {}
    for row in np.flatnonzero(speech.texts.is_null().to_numpy()).tolist():
        if row not in skip:
            try:
                speech[row]
            except DataError as error:
                found[row] = str(error).removeprefix(f"{speech.name(row)}: ")
    return found


def _kind(reason: str) -> str:
    """A reason without what is particular to its row."""
    return " ".join(_PARTICULAR.sub("…", reason.split("; ", 1)[0]).split())
