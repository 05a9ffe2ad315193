"""Audio from any source -> mono float32 at 16 kHz; it knows no model and does not change the loudness.

Audio that cannot be decoded completely is refused with a one-line error: nothing is dropped, repeated or invented.
"""

import io
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import soxr
from jaxtyping import Float32

from ossicle.audio.decoding import BLOCK_SAMPLES, AudioStream, check_sample_rate, open_audio
from ossicle.audio.excerpt import AudioExcerpt, open_excerpt
from ossicle.errors import AudioError

SAMPLE_RATE = 16_000  # samples per second
N_FFT = 400  # samples in the window of one frame: 25 ms
HOP_LENGTH = 160  # samples from one frame to the next: 10 ms
FRAMES_PER_SECOND = SAMPLE_RATE // HOP_LENGTH  # 100

MAX_DURATION_S = 3600.0  # far longer than any question, short enough to hold in memory
MAX_CHANNELS = 64  # an array with more is no audio
MAX_PEAK = 100.0  # float samples beyond this were never scaled to [-1, 1]
SILENCE_PEAK = 2.0**-24  # below the last bit of 24-bit audio: lossy codecs decode digital silence to this

# Windows around a position whose energies are added, in samples to either side: 25 to 200 ms, so that the nearest
# samples count four times. The middle of a long pause is then quieter than its ends, and a pause is quieter than the
# closure of a consonant.
_QUIET_RADII = (400, 800, 1_600, 3_200)


@runtime_checkable
class _Tensor(Protocol):
    """A tensor of PyTorch, which is not imported for it: a process that only decodes needs none."""

    dtype: Any

    def float(self) -> "_Tensor":
        """Returns it in single precision."""
        ...

    def numpy(self, *, force: bool = False) -> np.ndarray:
        """Returns it as an array."""
        ...


_Samples = np.ndarray | _Tensor
AudioSource = (
    str
    | Path
    | bytes
    | io.IOBase
    | _Samples
    | tuple[_Samples, int]
    | tuple[int, _Samples]
    | Mapping[str, Any]
    | AudioExcerpt
)
"""A path, the bytes of an audio file, a file open for binary reading, samples, (samples, rate in Hz) in any order, a
value of Hugging Face's datasets, or a stretch of one of them."""


def load_audio(
    source: AudioSource, *, sample_rate: int | None = None, max_duration_s: float = MAX_DURATION_S
) -> Float32[np.ndarray, " N"]:
    """Returns audio as mono samples at 16 kHz, about -1 to 1: channels averaged, nothing trimmed or scaled.

    Files are decoded block by block, so that a file that is too long is refused before it fills the memory.

    Args:
        source: arrays are (n,), (n, channels) or (channels, n), the longer axis being time; float from -1 to
            1, or int16, int32, int8 or uint8 over their full range.
        sample_rate: Hz, of an array that comes without its own; 16 kHz by default. Files have theirs.
        max_duration_s: longer audio is refused.

    Raises:
        AudioError: nothing there, not audio, damaged or cut short, empty, digital silence only, NaN or
            infinite samples, too long, or an array that is not samples.
    """
    if isinstance(source, Mapping):
        source = _unwrap(source)
    if isinstance(source, tuple):
        if len(source) != 2 or sample_rate is not None:
            raise AudioError(
                f"got a tuple of {len(source)} with sample_rate={sample_rate}; expected (samples, rate in Hz)"
                " and no sample_rate"
            )
        source, sample_rate = _order_pair(*source)
    if isinstance(source, (_Tensor, np.ndarray)):
        rate = SAMPLE_RATE if sample_rate is None else sample_rate
        return _to_mono_16k(_read_array(_to_array(source), rate), max_duration_s)
    if isinstance(source, AudioExcerpt):
        return _load_excerpt(source, max_duration_s)
    name = name_source(source)
    if sample_rate is not None:
        raise AudioError(
            f"sample_rate={sample_rate} was given for {name}; expected it for arrays only, as files have"
            " their own: leave it out"
        )
    with open_audio(source, name) as stream:
        return _to_mono_16k(stream, max_duration_s)


class SampleReader:
    """Reads samples that arrive in pieces: joined, they are those that `load_audio` reads of the whole.

    What is silent is as good as any other piece.
    """

    def __init__(self) -> None:
        self._rate, self._resampler = SAMPLE_RATE, soxr.ResampleStream(SAMPLE_RATE, SAMPLE_RATE, 1)

    def read(self, piece: Any, sample_rate: int) -> Float32[np.ndarray, " _"]:
        """Returns the samples at 16 kHz that are complete with a piece, whose rate may be another than before.

        Raises:
            AudioError: not samples, values that are not finite or beyond all scales, or a rate of no sound
        """
        array = _to_array(piece if isinstance(piece, _Tensor) else np.asarray(piece))
        stream = _read_array(array, sample_rate)
        rest = np.zeros(0, np.float32)
        if sample_rate != self._rate:
            rest, self._rate = self.flush(), sample_rate
            self._resampler = soxr.ResampleStream(sample_rate, SAMPLE_RATE, 1, dtype="float32")
        pieces = []
        for block in stream.blocks:
            mono = block.mean(axis=1).astype(np.float32, copy=False)
            _check_values(mono, stream, 0)
            pieces.append(mono if sample_rate == SAMPLE_RATE else self._resampler.resample_chunk(mono))
        return np.concatenate([rest, *pieces])

    def flush(self) -> Float32[np.ndarray, " _"]:
        """Returns the samples that were not complete when the last piece had come; a new sound then begins."""
        rest, rate = np.zeros(0, np.float32), self._rate
        if rate != SAMPLE_RATE:
            rest = self._resampler.resample_chunk(rest, last=True)
            self._resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
        return rest


def _to_array(samples: Any) -> np.ndarray:
    if not isinstance(samples, _Tensor):
        return samples
    if samples.is_sparse:
        samples = samples.to_dense()
    is_half = str(samples.dtype) == "torch.bfloat16"  # which numpy does not have
    return (samples.float() if is_half else samples).numpy(force=True)


def _load_excerpt(excerpt: AudioExcerpt, max_duration_s: float) -> Float32[np.ndarray, " N"]:
    """Returns the samples of a stretch, which alone must not be too long."""
    source, name = excerpt.source, name_source(excerpt)

    def open_stream() -> AbstractContextManager[AudioStream]:
        if isinstance(source, np.ndarray):
            return nullcontext(replace(_read_array(source, SAMPLE_RATE), name=name))
        return open_audio(source, name)

    with open_excerpt(open_stream, excerpt) as stream:
        return _to_mono_16k(stream, max_duration_s)


def _unwrap(value: Mapping[str, Any]) -> Any:
    """Returns what a dataset's value has: samples and their rate, or a file's bytes or path."""
    if value.get("array") is not None and value.get("sampling_rate"):
        try:
            return np.asarray(value["array"]), value["sampling_rate"]
        except ValueError as error:  # rows of different lengths
            raise AudioError(
                f"got an array that is no table of numbers ({error}); expected samples"
            ) from error
    found = value.get("bytes") or value.get("path")
    if not found:
        raise AudioError(
            f"got a dict with the keys {', '.join(map(str, value)) or '(none)'}; expected array and sampling_rate, or"
            " bytes or path, as Hugging Face's datasets have them"
        )
    return found


def _order_pair(first: Any, second: Any) -> tuple[Any, Any]:
    """Returns samples before their rate; scipy and Gradio have the rate first."""
    is_swapped = isinstance(second, (_Tensor, np.ndarray)) and not getattr(first, "ndim", 0)
    return (second, first) if is_swapped else (first, second)


def split_at_quiet(samples: Float32[np.ndarray, " N"], max_samples: int) -> list[Float32[np.ndarray, " _"]]:
    """Returns the audio in pieces of at most `max_samples`, cut where it is quietest; joined, they are the whole.

    Each piece is at least half of `max_samples` long, so that there are few of them, and the last one at least a
    quarter: the encoder would hear a fragment of a word without its context. Pieces are views.
    """
    pieces, start = [], 0
    while len(samples) - start > max_samples:
        rest = samples[start:]
        latest = min(max_samples, len(rest) - max_samples // 4)
        cut = _find_quietest(rest, max(1, max_samples // 2), latest)
        pieces.append(rest[:cut])
        start += cut
    return [*pieces, samples[start:]]


def locate_windows(
    samples: Float32[np.ndarray, " N"], max_samples: int
) -> list[tuple[int, Float32[np.ndarray, " _"]]]:
    """Splits a sound as `split_at_quiet` does and returns each piece with its first sample's number.

    Silent pieces are left out: Whisper would hear words in them.
    """
    pieces = split_at_quiet(samples, max_samples)
    windows = list(zip(accumulate(map(len, pieces), initial=0), pieces, strict=False))
    return [window for window in windows if np.abs(window[1]).max() >= SILENCE_PEAK] or windows[:1]


def _find_quietest(samples: Float32[np.ndarray, " N"], first: int, last: int) -> int:
    """Returns the position in steps of 10 ms between the two with the least energy around it; of equal ones the last."""
    positions = np.arange(last, first - 1, -HOP_LENGTH)
    begin = max(0, first - _QUIET_RADII[-1])
    power = np.square(samples[begin : last + _QUIET_RADII[-1]], dtype=np.float64)
    energy = np.concatenate([np.zeros(1), power.cumsum()])  # of all samples before a position

    ends = [(positions + radius - begin).clip(max=len(power)) for radius in _QUIET_RADII]
    starts = [(positions - radius - begin).clip(min=0) for radius in _QUIET_RADII]
    loudness = sum(energy[end] - energy[start] for start, end in zip(starts, ends, strict=True))
    return int(positions[np.argmin(loudness)])


def _read_array(array: np.ndarray, rate: int) -> AudioStream:
    """Returns samples in memory as a stream of blocks, as of a file."""
    name = name_source(array)
    if isinstance(rate, bool) or not isinstance(rate, (int, np.integer)) or rate <= 0:
        raise AudioError(
            f"{name} came with sample rate {reprlib.repr(rate)}; expected a positive whole number of Hz"
        )
    check_sample_rate(name, int(rate), 1)
    if array.ndim not in (1, 2) or (array.ndim == 2 and min(array.shape) > MAX_CHANNELS):
        raise AudioError(f"got {name}; expected samples of shape (n,), (n, channels) or (channels, n)")
    is_integer = array.dtype in (np.int8, np.int16, np.int32, np.uint8)
    if not is_integer and array.dtype.kind != "f":
        raise AudioError(
            f"got {name}; expected float samples from -1 to 1, or int16, int32, int8 or uint8 over their full"
            " range: convert with .astype to the type that the values are meant for"
        )
    full_scale = 2.0 ** (8 * array.dtype.itemsize - 1) if is_integer else 1.0
    zero = full_scale if array.dtype == np.uint8 else 0.0
    frames = array[:, None] if array.ndim == 1 else array
    frames = frames.T if frames.shape[0] < frames.shape[1] else frames  # (n, channels)

    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, array.size and len(frames), BLOCK_SAMPLES):
            yield (frames[start : start + BLOCK_SAMPLES].astype(np.float64) - zero) / full_scale

    return AudioStream(
        name=name, sample_rate=int(rate), blocks=blocks(), declared_duration_s=len(frames) / int(rate)
    )


@np.errstate(invalid="ignore", over="ignore")  # values that are not finite are refused below
def _to_mono_16k(stream: AudioStream, max_duration_s: float) -> Float32[np.ndarray, " N"]:
    """Returns the stream as mono samples at 16 kHz: mixed, checked and resampled block by block."""
    if stream.declared_duration_s is not None and stream.declared_duration_s > max_duration_s:
        raise _build_too_long_error(stream.name, f"{stream.declared_duration_s:.1f} s", max_duration_s)
    resampler = soxr.ResampleStream(stream.sample_rate, SAMPLE_RATE, 1, dtype="float32")
    is_resampled = stream.sample_rate != SAMPLE_RATE
    pieces, n_read, peak = [np.zeros(0, np.float32)], 0, 0.0
    for block in stream.blocks:
        mono = block.mean(axis=1).astype(np.float32, copy=False)
        _check_values(mono, stream, n_read)
        n_read += len(mono)
        if n_read > max_duration_s * stream.sample_rate:
            raise _build_too_long_error(stream.name, f"more than {max_duration_s:g} s", max_duration_s)
        peak = max(peak, float(np.abs(mono).max(initial=0.0)))
        pieces.append(resampler.resample_chunk(mono) if is_resampled else mono)
    if is_resampled:
        pieces.append(resampler.resample_chunk(pieces[0], last=True))
    samples = np.concatenate(pieces)
    _check_length(stream, n_read, len(samples))
    if peak < SILENCE_PEAK:
        raise AudioError(
            f"{stream.name} contains only silence: all {n_read} samples are zero, channels mixed; expected"
            " speech: check the microphone or the export"
        )
    return samples


def _check_values(mono: np.ndarray, stream: AudioStream, n_before: int) -> None:
    is_valid = np.abs(mono) <= MAX_PEAK  # false for NaN as well
    if is_valid.all():
        return
    first = int(is_valid.argmin())
    where = (
        f"{stream.name} has a sample of {mono[first]:g} at {(n_before + first) / stream.sample_rate:.2f} s"
    )
    if np.isfinite(mono[first]):
        raise AudioError(
            f"{where}; expected float samples from -1 to 1: divide by the full scale (32768 for 16-bit"
            " sound) or pass the integers"
        )
    raise AudioError(f"{where}; expected finite numbers: fix the step that produced it")


def _check_length(stream: AudioStream, n_read: int, n_samples: int) -> None:
    if n_read == 0:
        raise AudioError(f"{stream.name} is empty (0 samples); expected speech: record or export it again")
    if n_samples == 0:
        raise AudioError(
            f"{stream.name} is too short: {n_read} sample(s) at {stream.sample_rate} Hz make none at {SAMPLE_RATE}"
            " Hz; expected speech: record or export it again"
        )


def _build_too_long_error(name: str, duration: str, max_duration_s: float) -> AudioError:
    return AudioError(
        f"{name} is too long: {duration}; expected at most {max_duration_s:g} s: split it, or raise"
        " max_duration_s"
    )


def name_source(source: object) -> str:
    """Returns what error messages call the source."""
    if isinstance(source, AudioExcerpt):
        end = "the end" if source.end_s is None else f"{source.end_s:g} s"
        return f"{name_source(source.source)} from {source.start_s:g} s to {end}"
    if isinstance(source, (str, Path)):
        return f"'{source}'"
    if isinstance(source, np.ndarray):
        return f"the array of shape {source.shape} and type {source.dtype}"
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"the audio of {len(source)} bytes"
    return f"the {type(source).__name__}"
