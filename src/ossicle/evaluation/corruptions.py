"""What a clip goes through on its way to the ear: noise, a tape's speed, a telephone, silence around it.

It knows samples, and which other items of a suite talk in the background; it asks no model. All that is drawn comes
from an item's id and the kind of condition, so that neither the order of the items nor their number matters, and the
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

from ossicle.audio.augment import add_noise, change_speed, crop_or_loop, measure_speech_power
from ossicle.audio.waveform import SAMPLE_RATE, load_audio
from ossicle.errors import ConfigError, DataError
from ossicle.evaluation.suite import Item
from ossicle.evaluation.text_normalization import normalize_text

N_VOICES = 6
"""Voices of a babble where the suite has as many: no single one can be followed any more."""
MIN_VOICES = 3
"""Fewer are no babble but somebody else who is understood, another and harder condition."""

TELEPHONE_RATE = 8_000  # samples per second
TELEPHONE_BAND_HZ = (300.0, 3_400.0)
_TELEPHONE_SLOPE_HZ = 50.0
"""Within so much of its ends the band rises from nothing to all."""
_TELEPHONE_RINGING_S = 0.1
"""A filter so steep goes on sounding for less than this."""
_MU = 255.0
_MU_STEPS = 127
"""Steps on either side of zero: with the sign, 8 bits, of which G.711 too spends two codes on zero."""

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
"""Of each kind that has levels: the least, the most, and what they are."""


@dataclass(frozen=True, kw_only=True)
class Corruption:
    """One way of changing every clip of a suite."""

    kind: CorruptionKind
    level: float | None = None
    """dB of speech over noise, times as fast, or seconds of silence; a clean clip and a telephone have none."""

    def __post_init__(self) -> None:
        """Refuse what is no condition.

        Raises:
            ConfigError: a level that the kind does not have.
        """
        if self.kind not in _RANGES:
            if self.level is not None:
                raise ConfigError(
                    f"condition.level is {self.level!r}; {self.kind} has no levels: leave it out"
                )
            return
        low, high, unit = _RANGES[self.kind]
        if self.level is None or not low <= self.level <= high:  # not a number is in no range
            raise ConfigError(
                f"condition.level is {self.level!r}; for {self.kind} expected {low:g} to {high:g} {unit}"
            )

    @property
    def name(self) -> str:
        """What people read: "babble, 10 dB"."""
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
"""What the robustness of an ear is measured under."""


def compute_seed(item_id: str, condition: Corruption) -> int:
    """The seed of all that is drawn for an item: the same at every level of a kind.

    So a clip meets the same noise louder and louder, and what changes between two levels is no luck of the draw.
    """
    return _digest(condition.kind, item_id)


def load_babble_voices(item: Item, items: Sequence[Item], seed: int) -> tuple[Float32[np.ndarray, " _"], ...]:
    """The sounds that talk in an item's background: up to `N_VOICES` other items' of its own suite, at random.

    A suite is what training has not heard, so its babble is nobody's whom an ear could have learned to pass over.
    The item itself is never among them, nor is another that says the same words: it would say the question aloud.
    An item that joins or leaves the suite changes only the babbles that it is in.

    Args:
        items: the suite, with or without the item, in any order

    Raises:
        AudioError: a sound that cannot be opened
    """
    words = normalize_text(item.text)
    chosen: list[Item] = []
    for other in sorted(items, key=lambda other: _digest(seed, other.id)):
        if len(chosen) == N_VOICES:
            break
        if other.id != item.id and normalize_text(other.text) != words:
            chosen.append(other)
    return tuple(load_audio(other.audio) for other in chosen)


def corrupt(
    samples: Float32[np.ndarray, " N"],
    condition: Corruption,
    *,
    seed: int,
    voices: Sequence[Float32[np.ndarray, " _"]] = (),
) -> Float32[np.ndarray, " _"]:
    """The clip as it is heard under a condition; the very same where it is clean.

    What becomes louder than full scale is made quieter as a whole, speech and noise alike: a file could not hold
    it, and cutting its peaks off would be a condition of its own. Added silence is digital silence.

    Args:
        samples: mono at 16 kHz, from -1 to 1
        seed: of `seed_of`
        voices: of `voices_beside`, for babble; others need none

    Raises:
        DataError: babble of fewer than `MIN_VOICES`
    """
    level = 0.0 if condition.level is None else condition.level
    rng = np.random.default_rng(seed)
    match condition.kind:
        case "clean":
            return samples
        case "babble":
            return _within_full_scale(add_noise(samples, mix_babble(voices, len(samples), rng), level))
        case "white noise":
            noise = rng.standard_normal(len(samples), dtype=np.float32)
            return _within_full_scale(add_noise(samples, noise, level))
        case "speed":
            return _within_full_scale(change_speed(samples, level))
        case "telephone":
            return _within_full_scale(simulate_telephone(samples))
        case "silence before":
            return np.concatenate([_silence(level), samples])
        case "silence after":
            return np.concatenate([samples, _silence(level)])
        case "silence around":
            return np.concatenate([_silence(level), samples, _silence(level)])


def mix_babble(
    voices: Sequence[Float32[np.ndarray, " _"]], n_samples: int, rng: np.random.Generator
) -> Float32[np.ndarray, " _"]:
    """All voices at once, as loud as each other where they speak, each from a random place and over again.

    Raises:
        DataError: fewer than `MIN_VOICES`
    """
    if len(voices) < MIN_VOICES:
        raise DataError(
            f"got {len(voices)} voice(s) for babble; expected at least {MIN_VOICES}, each of another item with"
            " other words: evaluate more items, or leave babble out"
        )
    mixed = np.zeros(n_samples, np.float32)
    for voice in voices:
        power = measure_speech_power(voice)
        if power > 0:
            mixed += crop_or_loop(voice, n_samples, rng) * np.float32(power**-0.5)
    return mixed


def simulate_telephone(samples: Float32[np.ndarray, " N"]) -> Float32[np.ndarray, " N"]:
    """The clip through a digital line of the fixed network: 300 to 3,400 Hz at 8 kHz, 8 bits by the mu law.

    Filtered at both ends, as a line is: where it is spoken into, and where the steps of its 8 bits would hiss.

    Source: ITU-T G.711, the smooth curve with mu = 255 that its table approximates; the band is that of G.712.
    """
    even = np.pad(samples, (0, len(samples) % 2))
    sent = _band_passed(soxr.resample(even, SAMPLE_RATE, TELEPHONE_RATE))
    loudness = np.log1p(_MU * np.abs(sent).clip(max=1.0)) / math.log1p(_MU)
    received = np.expm1(np.round(loudness * _MU_STEPS) / _MU_STEPS * math.log1p(_MU)) / _MU
    line = _band_passed(np.copysign(received, sent).astype(np.float32))
    heard = soxr.resample(line, TELEPHONE_RATE, SAMPLE_RATE)[: len(samples)]
    return np.pad(heard, (0, len(samples) - len(heard)))


def _band_passed(samples: Float32[np.ndarray, " N"]) -> Float32[np.ndarray, " N"]:
    """Sound at 8 kHz without what a telephone does not carry, nothing of it earlier or later."""
    # A power of two, as sizes with large prime factors take many times as long; the end rings into the zeros.
    n_fft = 1 << (len(samples) + round(_TELEPHONE_RINGING_S * TELEPHONE_RATE)).bit_length()
    low, high = TELEPHONE_BAND_HZ
    hertz = np.fft.rfftfreq(n_fft, 1 / TELEPHONE_RATE)
    corners = (low, low + _TELEPHONE_SLOPE_HZ, high - _TELEPHONE_SLOPE_HZ, high)
    gain = np.interp(hertz, corners, (0.0, 1.0, 1.0, 0.0)).astype(np.float32)
    return np.fft.irfft(np.fft.rfft(samples, n_fft) * gain, n_fft)[: len(samples)].astype(np.float32)


def _silence(duration_s: float) -> Float32[np.ndarray, " _"]:
    return np.zeros(round(duration_s * SAMPLE_RATE), np.float32)


def _within_full_scale(samples: Float32[np.ndarray, " N"]) -> Float32[np.ndarray, " N"]:
    peak = np.abs(samples).max(initial=0.0)
    return samples / peak if peak > 1 else samples


def _digest(*parts: object) -> int:
    """64 bits that are the same on every machine and in every process."""
    text = "\0".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
