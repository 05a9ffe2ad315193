"""Augmentation of samples: speed, silence and noise, as the settings of a run ask for."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

import numpy as np
import soxr
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from ossicle.audio.spec_augment import mask_patches
from ossicle.audio.waveform import HOP_LENGTH, SAMPLE_RATE, load_audio
from ossicle.config import AugmentSettings
from ossicle.errors import AudioError, ConfigError

_SPEECH_RANGE_DB = 40.0
"""Stretches of 10 ms that are quieter than the loudest one by more than this are pauses and no speech."""
_TILT_RANGE = (-0.5, 2.0)
"""Exponents of generated noise: its power falls with frequency to this power; 0 is white, 1 pink, 2 brown."""
_LOWEST_HZ = 60.0
"""The power of generated noise is constant below this frequency, or a slow swell would dominate."""
_BABBLE_VOICES = (3, 8)
"""Fewest and most voices of a babble: with fewer, single ones would be understood."""
_MAX_SILENCE_S = 1.5
"""On either side of a clip: about the time between pressing a button and speaking."""
_MAX_NOISE_S = 600.0
_MAX_CACHED_SAMPLES = 1 << 27
"""Noise that is cached in memory, which worker processes share: half a gigabyte, 2.3 hours."""
_SOUND_SUFFIXES = {".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".webm", ".m4a", ".aif", ".aiff", ".au"}

DrawVoice = Callable[[random.Random], Float32[np.ndarray, " _"]]


class Augmenter:
    """Augments the clips of a run by its settings; each clip comes with the seed of its random draws.

    Args:
        max_samples: a slower speed makes no clip longer than this
        draw_voice: returns the sound of a random clip, for babble

    Raises:
        ConfigError: the folder of noise is missing, has no sound files, or has one that cannot be used
    """

    def __init__(
        self, settings: AugmentSettings, max_samples: int, draw_voice: DrawVoice | None = None
    ) -> None:
        self.settings, self.max_samples, self._draw_voice = settings, max_samples, draw_voice
        is_from_files = settings.noise is not None and settings.noise_ratio > 0
        self.noises = _load_noises(Path(settings.noise)) if is_from_files else []

    @property
    def is_active(self) -> bool:
        """Whether the settings change any clip."""
        return self.settings != AugmentSettings()

    @cached_property
    def fingerprint(self) -> str:
        """The hash of all that the result depends on apart from the seeds: the settings, and the noise itself."""
        digest = blake2b(repr(replace(self.settings, noise=None)).encode(), digest_size=16)
        for noise in self.noises:
            samples = _load_noise(noise) if isinstance(noise, Path) else noise
            digest.update(samples.tobytes())
        return digest.hexdigest()

    def augment_samples(self, samples: Float32[np.ndarray, " N"], seed: int) -> Float32[np.ndarray, " _"]:
        """Returns the clip at another speed, with silence, babble and noise; the same array if nothing changes."""
        rng = np.random.default_rng((seed, 0))
        # All values are always drawn, so that the draws of one setting do not depend on the others.
        factor, is_noisy = rng.uniform(*self.settings.speed), rng.random() < self.settings.noise_ratio
        snr_db = rng.uniform(*self.settings.noise_snr_db)
        longest = max(len(samples), self.max_samples)
        augmented = change_speed(samples, max(factor, len(samples) / longest))[:longest]  # resampling rounds
        augmented = self._add_silence(augmented, longest, np.random.default_rng((seed, 1)))
        augmented = self._add_babble(augmented, np.random.default_rng((seed, 2)))
        if not is_noisy:
            return augmented
        return add_noise(augmented, self._draw_noise(len(augmented), rng), snr_db)

    def augment_mel(self, mel: Float[Tensor, "M F"], n_frames: int, seed: int) -> Float[Tensor, "M F"]:
        """Returns the spectrogram masked by SpecAugment; the same tensor if the settings do not ask for it.

        Args:
            n_frames: only these first ones are masked: the sound's own, without the silence behind it
        """
        if not self.settings.spec_augment:
            return mel
        masked = mel.clone()
        mask_patches(masked[:, :n_frames], seed)
        return masked

    def _add_silence(
        self, samples: Float32[np.ndarray, " N"], longest: int, rng: np.random.Generator
    ) -> Float32[np.ndarray, " _"]:
        is_silent = rng.random() < self.settings.silence_ratio
        before, behind = (rng.uniform(0.0, _MAX_SILENCE_S * SAMPLE_RATE, 2)).astype(int)
        if not is_silent:
            return samples
        room = longest - len(samples)
        before = min(before, room)
        return np.pad(samples, (before, min(behind, room - before)))

    def _add_babble(
        self, samples: Float32[np.ndarray, " N"], rng: np.random.Generator
    ) -> Float32[np.ndarray, " N"]:
        is_babble, snr_db = (
            rng.random() < self.settings.babble_ratio,
            rng.uniform(*self.settings.noise_snr_db),
        )
        if not is_babble or self._draw_voice is None:
            return samples
        rows = random.Random(int(rng.integers(2**62)))
        voices = [self._draw_voice(rows) for _ in range(int(rng.integers(*_BABBLE_VOICES, endpoint=True)))]
        return add_noise(samples, mix_voices(voices, len(samples), rng), snr_db)

    def _draw_noise(self, n_samples: int, rng: np.random.Generator) -> Float32[np.ndarray, " N"]:
        if not self.noises:
            return generate_colored_noise(n_samples, rng)
        noise = self.noises[rng.integers(len(self.noises))]
        return crop_or_loop(_load_noise(noise) if isinstance(noise, Path) else noise, n_samples, rng)


def change_speed(samples: Float32[np.ndarray, " N"], factor: float) -> Float32[np.ndarray, " _"]:
    """Returns the clip `factor` times as fast and as high, as a tape at another speed."""
    if factor == 1:
        return samples
    return soxr.resample(samples, factor, 1.0)


def add_noise(
    samples: Float32[np.ndarray, " N"], noise: Float32[np.ndarray, " N"], snr_db: float
) -> Float32[np.ndarray, " N"]:
    """Returns the clip with noise at the given ratio of the power of speech to that of the noise.

    Pauses do not count, or a clip with a long silence around it would get less noise than others. If speech or noise
    is silent, there is no ratio, and the clip is returned unchanged.
    """
    noise_power = np.square(noise, dtype=np.float64).mean()
    speech = measure_speech_power(samples)
    if noise_power == 0 or speech == 0:
        return samples
    gain = np.sqrt(speech / noise_power * 10 ** (-snr_db / 10))
    return samples + noise * np.float32(gain)


def mix_voices(
    voices: Sequence[Float32[np.ndarray, " _"]], n_samples: int, rng: np.random.Generator
) -> Float32[np.ndarray, " N"]:
    """Returns the sum of all voices at equal power of their speech, each repeated from a random position."""
    mixed = np.zeros(n_samples, np.float32)
    for voice in voices:
        power = measure_speech_power(voice)
        if power > 0:
            mixed += crop_or_loop(voice, n_samples, rng) * np.float32(power**-0.5)
    return mixed


def measure_speech_power(samples: Float32[np.ndarray, " N"]) -> float:
    """Returns the mean square over the stretches of 10 ms that are no pauses, weighted by their length."""
    starts = np.arange(0, len(samples), HOP_LENGTH)
    energy = np.add.reduceat(np.square(samples, dtype=np.float64), starts)
    n_samples = np.diff(starts, append=len(samples))
    power = energy / n_samples
    is_speech = power >= power.max() * 10 ** (-_SPEECH_RANGE_DB / 10)
    return float(energy[is_speech].sum() / n_samples[is_speech].sum())


def generate_colored_noise(n_samples: int, rng: np.random.Generator) -> Float32[np.ndarray, " _"]:
    """Returns steady noise of a random color, from hissing over white and pink to rumbling."""
    # FFTs of sizes with large prime factors take many times as long.
    step = 1 << max(1, n_samples.bit_length() - 4)
    n_fft = -(-n_samples // step) * step
    n_bins = n_fft // 2 + 1
    slope = np.float32(-rng.uniform(*_TILT_RANGE) / 2)
    amplitude = np.maximum(np.arange(n_bins, dtype=np.float32), _LOWEST_HZ / 16_000 * n_fft) ** slope
    spectrum = rng.standard_normal((n_bins, 2), dtype=np.float32) * amplitude[:, None]
    noise = torch.fft.irfft(torch.view_as_complex(torch.from_numpy(spectrum)), n_fft).numpy()
    return noise[:n_samples]


def crop_or_loop(
    noise: Float32[np.ndarray, " N"], n_samples: int, rng: np.random.Generator
) -> Float32[np.ndarray, " _"]:
    """Returns n samples of a recording from a random position; a recording that is too short is repeated."""
    if len(noise) >= n_samples:
        first = int(rng.integers(len(noise) - n_samples + 1))
        return noise[first : first + n_samples]
    return np.resize(np.roll(noise, -int(rng.integers(len(noise)))), n_samples)


def _load_noises(folder: Path) -> list[Float32[np.ndarray, " _"] | Path]:
    """Returns the recordings below a folder in the order of their names; beyond the memory limit, their paths.

    All are read once, so that an unusable one is found before training begins.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"augment.noise is {str(folder)!r}, which is not a folder; expected a folder of sound files"
        )
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SOUND_SUFFIXES)
    if not files:
        raise ConfigError(
            f"augment.noise: the folder {str(folder)!r} has no sound files; expected some, such as"
            " hum.wav or street.flac"
        )
    noises, n_samples = [], 0
    for path in files:
        noise = _load_noise(path)
        n_samples += len(noise)
        noises.append(noise if n_samples <= _MAX_CACHED_SAMPLES else path)
    return noises


def _load_noise(path: Path) -> Float32[np.ndarray, " N"]:
    try:
        return load_audio(path, max_duration_s=_MAX_NOISE_S)
    except AudioError as error:
        raise ConfigError(f"augment.noise: {error}, or remove the file from the folder") from error
