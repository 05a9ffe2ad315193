"""Augmentation of log-mel spectrograms: vocal tract length, tempo, reverberation, channel, noise and SpecAugment.

It works on spectrograms because that is far cheaper than on samples.
"""

import functools
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ossicle.audio.mel import MAX_FREQUENCY_HZ, hz_to_mel, mel_to_hz

_FLOOR_DECADES = 8.0
"""Decades of power below each clip's loudest bin that Whisper's log-mel keeps."""
_ECHO_FRAMES = 24


@functools.cache
def _compute_mel_centers(n_mels: int) -> tuple[Float[Tensor, " M"], float]:
    """Returns the center of each mel bin in hertz, and the distance between two of them in mel."""
    step = float(hz_to_mel(MAX_FREQUENCY_HZ)) / (n_mels + 1)
    hertz = mel_to_hz(step * np.arange(1, n_mels + 1))
    return torch.from_numpy(hertz.astype(np.float32)), step


def _build_vocal_tract_matrix(n_mels: int, factor: float) -> Float[Tensor, "M M"]:
    """Returns the interpolation between mel bins that moves every formant to `factor` times its frequency."""
    hertz, step = _compute_mel_centers(n_mels)
    from_mel = torch.from_numpy(hz_to_mel((hertz / factor).double().numpy()).astype(np.float32))
    positions = (from_mel / step - 1).clamp(0, n_mels - 1)
    return (1 - (positions[:, None] - torch.arange(n_mels)).abs()).clamp(min=0)


def _draw_uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _draw_channel_response(n_mels: int, generator: torch.Generator) -> Float[Tensor, " M"]:
    """Returns a smooth frequency response in decades of power, sometimes limited to the band of a telephone."""
    knots = torch.randn(1, 1, 7, generator=generator) * _draw_uniform(0.0, 0.6, generator)
    response = functional.interpolate(knots, size=n_mels, mode="linear", align_corners=True)[0, 0]
    if _draw_uniform(0.0, 1.0, generator) < 0.1:
        hertz, _ = _compute_mel_centers(n_mels)
        low, high = _draw_uniform(80.0, 350.0, generator), _draw_uniform(3e3, 5.5e3, generator)
        response = response - torch.log10(1 + (low / hertz) ** 8) - torch.log10(1 + (hertz / high) ** 12)
    return response


def _add_reverberation(power: Float[Tensor, "M F"], generator: torch.Generator) -> Float[Tensor, "M F"]:
    """Returns the spectrogram with each frame decaying over the next ones."""
    decay = torch.exp(-torch.arange(_ECHO_FRAMES) / _draw_uniform(1.5, 7.0, generator))
    kernel = decay * _draw_uniform(0.05, 0.35, generator)
    kernel[0] = 1.0
    return functional.conv1d(
        functional.pad(power, (_ECHO_FRAMES - 1, 0))[:, None], kernel.flip(0)[None, None]
    )[:, 0]


def _draw_noise(n_mels: int, n_frames: int, generator: torch.Generator) -> Float[Tensor, "M F"]:
    """Returns steady noise with a random spectrum, varying from bin to bin as noise does."""
    tilt = torch.linspace(0, _draw_uniform(-2.5, 1.0, generator), n_mels) + _draw_channel_response(
        n_mels, generator
    )
    return torch.exp(2.3 * tilt[:, None] + 0.6 * torch.randn(n_mels, n_frames, generator=generator))


def augment_mel(
    mel: Float[Tensor, "M F"],
    seed: int,
    max_frames: int,
    babble: Callable[[], Float[Tensor, "M _"]] | None = None,
) -> Float[Tensor, "M G"]:
    """Returns a clip with another vocal tract, tempo, room and channel, mostly with noise, and masked by SpecAugment.

    Args:
        mel: Whisper's log-mel
        max_frames: even; a slower tempo makes no clip longer than this
        babble: returns the log-mel of another clip, which speaks in the background of one clip in seven; without it,
            these clips get steady noise, too
    """
    augmented = _augment_acoustics(mel, seed, max_frames, babble)
    mask_patches(augmented, seed + 1)
    return augmented


def _augment_acoustics(
    mel: Float[Tensor, "M F"], seed: int, max_frames: int, babble: Callable[[], Float[Tensor, "M _"]] | None
) -> Float[Tensor, "M G"]:
    generator = torch.Generator().manual_seed(seed)
    n_mels = len(mel)
    mel = _build_vocal_tract_matrix(n_mels, _draw_uniform(0.9, 1.1, generator)) @ mel
    n_frames = min(round(mel.shape[1] / _draw_uniform(0.88, 1.14, generator) / 2) * 2, max_frames)
    mel = functional.interpolate(mel[None], size=n_frames, mode="linear", align_corners=True)[0]
    power = 10 ** (mel * 4 - 4 + _draw_channel_response(n_mels, generator)[:, None])
    if _draw_uniform(0.0, 1.0, generator) < 0.2:
        power = _add_reverberation(power, generator)
    draw = _draw_uniform(0.0, 1.0, generator)
    if draw < 0.6:
        noise = _draw_noise(n_mels, n_frames, generator)
        if draw < 0.15 and babble is not None:
            voice = babble()
            noise = 10 ** (voice.repeat(1, -(-n_frames // voice.shape[1]))[:, :n_frames] * 4 - 4)
        snr_db = _draw_uniform(6.0 if draw >= 0.15 else 10.0, 38.0, generator)
        power = power + noise * (power.mean() / noise.mean() * 10 ** (-snr_db / 10))
    decades = torch.log10(power.clamp(min=1e-10))
    return (decades.clamp(min=float(decades.max()) - _FLOOR_DECADES) + 4) / 4


def pad_with_silence(mel: Float[Tensor, "M F"], n_frames: int) -> Float[Tensor, "M G"]:
    """Returns a log-mel with digital silence behind it, the least that Whisper's log-mel has."""
    return functional.pad(mel, (0, n_frames - mel.shape[1]), value=float(mel.max()) - _FLOOR_DECADES / 4)


def mask_patches(mel: Float[Tensor, "M F"], seed: int) -> None:
    """Applies SpecAugment in place: sets two stretches of time and two bands of frequency to the mean."""
    generator = torch.Generator().manual_seed(seed)
    mean = mel.mean()
    for size, widest, axis in (
        (mel.shape[1], 8, 1),
        (mel.shape[1], 8, 1),
        (len(mel), 9, 0),
        (len(mel), 9, 0),
    ):
        width = int(torch.randint(widest + 1, (), generator=generator))
        first = int(torch.randint(size, (), generator=generator))
        mel.narrow(axis, first, min(width, size - first)).fill_(mean)
