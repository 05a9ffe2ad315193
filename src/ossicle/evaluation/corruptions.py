"""Corruptions of a clip before it is heard: noise, another speed, a telephone line, added silence.

This module knows samples, and which other items of a suite speak in the background; it knows no models. All random
draws depend on an item's id and the kind of corruption alone: the order and number of the items do not matter, and the
levels of one kind differ in nothing but the level.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import soxr
from jaxtyping import Float32

from ossicle.audio.augment import add_noise, change_speed, mix_voices
from ossicle.audio.waveform import SAMPLE_RATE, load_audio
from ossicle.errors import ConfigError, DataError
from ossicle.evaluation.suite import Item
from ossicle.evaluation.text_normalization import normalize_text

N_VOICES = 6
"""Voices of a babble, if the suite has as many: with six, no single voice can be followed."""
MIN_VOICES = 3
"""Fewer voices are no babble: single speakers would be understood, which is another, harder task."""

TELEPHONE_RATE = 8_000  # samples per second
TELEPHONE_BAND_HZ = (300.0, 3_400.0)
_TELEPHONE_SLOPE_HZ = 50.0
"""Width of the slopes at both ends of the band."""
_TELEPHONE_RINGING_S = 0.1
"""Upper bound of the filter's ringing."""
_MU = 255.0
_MU_STEPS = 127
"""Steps on either side of zero: with the sign 8 bits, in which zero has two codes, as in G.711."""

CorruptionKind = Literal[
    "clean",
    "babble",
    "white noise",
    "speed",
    "telephone",
    "silence before",
    "silence after",
    "silence around",
]
_NOISES: tuple[CorruptionKind, ...] = ("babble", "white noise")
_SILENCES: tuple[CorruptionKind, ...] = ("silence before", "silence after", "silence around")
_RANGES = {
    "babble": (-40.0, 80.0, "dB of speech over babble"),
    "white noise": (-40.0, 80.0, "dB of speech over noise"),
    "speed": (0.25, 4.0, "times as fast"),
    "silence before": (0.001, 60.0, "seconds"),
    "silence after": (0.001, 60.0, "seconds"),
    "silence around": (0.001, 60.0, "seconds"),
}
"""For each kind with levels: the lowest and highest level, and their unit."""


@dataclass(frozen=True, kw_only=True)
class Corruption:
    """A corruption that is applied to every clip of a suite."""

    kind: CorruptionKind
    level: float | None = None
    """dB of speech over noise, speed as a factor, or seconds of silence; None for "clean" and "telephone"."""

    def __post_init__(self) -> None:
        """Check the level.

        Raises:
            ConfigError: a level outside the kind's range, or a level for a kind without levels.
        """
        if self.kind not in _RANGES:
            if self.level is not None:
                raise ConfigError(
                    f"corruption.level is {self.level!r}, but {self.kind} has no levels; leave it out"
                )
            return
        low, high, unit = _RANGES[self.kind]
        if self.level is None or not low <= self.level <= high:  # NaN is outside, too
            raise ConfigError(
                f"corruption.level is {self.level!r}; expected {low:g} to {high:g} {unit} for {self.kind}"
            )

    @property
    def name(self) -> str:
        """Shown to people: "babble, 10 dB"."""
        if self.level is None:
            return self.kind
        if self.kind == "speed":
            return f"speed × {self.level:g}"
        return f"{self.kind}, {self.level:g} {'dB' if self.kind in _NOISES else 's'}"


CORRUPTIONS = (
    Corruption(kind="clean"),
    *(Corruption(kind=kind, level=snr_db) for kind in _NOISES for snr_db in (20.0, 10.0, 5.0, 0.0)),
    *(Corruption(kind="speed", level=factor) for factor in (0.8, 0.9, 1.1, 1.2, 1.3)),
    Corruption(kind="telephone"),
    *(Corruption(kind=kind, level=1.0) for kind in _SILENCES),
)
"""The corruptions under which robustness is measured."""


def compute_seed(item_id: str, corruption: Corruption) -> int:
    """Returns the seed of all random draws for an item: the same at every level of a kind.

    So a clip gets the same noise at every level, only louder, and a difference between two levels is not due to chance.
    """
    return _hash_to_int(corruption.kind, item_id)


def load_babble_voices(item: Item, items: Sequence[Item], seed: int) -> tuple[Float32[np.ndarray, " _"], ...]:
    """Returns the sounds that speak in an item's background: up to `N_VOICES` random other items of its suite.

    The voices of a suite are not in the training data, so an ear cannot have learned to ignore them. Neither the item
    itself nor another item with the same words is chosen: it would repeat the question. An item that is added to the
    suite or removed changes only the babbles that it is part of.

    Args:
        items: the suite, with or without the item, in any order

    Raises:
        AudioError: a sound that cannot be opened
    """
    words = normalize_text(item.text)
    chosen: list[Item] = []
    for other in sorted(items, key=lambda other: _hash_to_int(seed, other.id)):
        if len(chosen) == N_VOICES:
            break
        if other.id != item.id and normalize_text(other.text) != words:
            chosen.append(other)
    return tuple(load_audio(other.audio) for other in chosen)


def corrupt(
    samples: Float32[np.ndarray, " N"],
    corruption: Corruption,
    *,
    seed: int,
    voices: Sequence[Float32[np.ndarray, " _"]] = (),
) -> Float32[np.ndarray, " _"]:
    """Returns the clip under a corruption; the same array if it is "clean".

    A result above full scale is scaled down as a whole, speech and noise alike: a file could not hold it, and clipping
    its peaks would be another corruption. Added silence is digital silence.

    Args:
        samples: mono at 16 kHz, from -1 to 1
        seed: from `compute_seed`
        voices: from `load_babble_voices`, for babble alone

    Raises:
        DataError: babble of fewer than `MIN_VOICES`
    """
    level = 0.0 if corruption.level is None else corruption.level
    rng = np.random.default_rng(seed)
    match corruption.kind:
        case "clean":
            return samples
        case "babble":
            return _scale_to_full_scale(add_noise(samples, mix_babble(voices, len(samples), rng), level))
        case "white noise":
            noise = rng.standard_normal(len(samples), dtype=np.float32)
            return _scale_to_full_scale(add_noise(samples, noise, level))
        case "speed":
            return _scale_to_full_scale(change_speed(samples, level))
        case "telephone":
            return _scale_to_full_scale(simulate_telephone(samples))
        case "silence before":
            return np.concatenate([_make_silence(level), samples])
        case "silence after":
            return np.concatenate([samples, _make_silence(level)])
        case "silence around":
            return np.concatenate([_make_silence(level), samples, _make_silence(level)])


def mix_babble(
    voices: Sequence[Float32[np.ndarray, " _"]], n_samples: int, rng: np.random.Generator
) -> Float32[np.ndarray, " _"]:
    """Returns the sum of all voices at equal power of their speech, each repeated from a random position.

    Raises:
        DataError: fewer than `MIN_VOICES`
    """
    if len(voices) < MIN_VOICES:
        raise DataError(
            f"got {len(voices)} voice(s) for babble; expected at least {MIN_VOICES}, from other items with other"
            " words: evaluate more items, or leave babble out"
        )
    return mix_voices(voices, n_samples, rng)


def simulate_telephone(samples: Float32[np.ndarray, " N"]) -> Float32[np.ndarray, " N"]:
    """Returns the clip after a digital telephone line: 300 to 3,400 Hz at 8 kHz, 8 bits by the mu law.

    It is filtered at both ends of the line: before quantization, and after it, to remove quantization noise.

    Source: ITU-T G.711, the smooth curve with mu = 255 that its table approximates; the band is that of G.712.
    """
    padded = np.pad(samples, (0, len(samples) % 2))
    sent = _band_pass(soxr.resample(padded, SAMPLE_RATE, TELEPHONE_RATE))
    compressed = np.log1p(_MU * np.abs(sent).clip(max=1.0)) / math.log1p(_MU)
    expanded = np.expm1(np.round(compressed * _MU_STEPS) / _MU_STEPS * math.log1p(_MU)) / _MU
    received = _band_pass(np.copysign(expanded, sent).astype(np.float32))
    resampled = soxr.resample(received, TELEPHONE_RATE, SAMPLE_RATE)[: len(samples)]
    return np.pad(resampled, (0, len(samples) - len(resampled)))


def _band_pass(samples: Float32[np.ndarray, " N"]) -> Float32[np.ndarray, " N"]:
    """Returns sound at 8 kHz within the telephone band, without a delay."""
    # A power of two: sizes with large prime factors take many times as long. The end rings into the padding.
    n_fft = 1 << (len(samples) + round(_TELEPHONE_RINGING_S * TELEPHONE_RATE)).bit_length()
    low, high = TELEPHONE_BAND_HZ
    hertz = np.fft.rfftfreq(n_fft, 1 / TELEPHONE_RATE)
    corners = (low, low + _TELEPHONE_SLOPE_HZ, high - _TELEPHONE_SLOPE_HZ, high)
    gain = np.interp(hertz, corners, (0.0, 1.0, 1.0, 0.0)).astype(np.float32)
    return np.fft.irfft(np.fft.rfft(samples, n_fft) * gain, n_fft)[: len(samples)].astype(np.float32)


def _make_silence(duration_s: float) -> Float32[np.ndarray, " _"]:
    return np.zeros(round(duration_s * SAMPLE_RATE), np.float32)


def _scale_to_full_scale(samples: Float32[np.ndarray, " N"]) -> Float32[np.ndarray, " N"]:
    peak = np.abs(samples).max(initial=0.0)
    return samples / peak if peak > 1 else samples


def _hash_to_int(*parts: object) -> int:
    """Returns 64 bits that are the same on every machine and in every process."""
    text = "\0".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
