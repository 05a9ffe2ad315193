"""Throats, tempos, rooms, microphones and noise, all of it on log-mel spectrograms.

On spectrograms, because there it costs a small part of what it costs on samples.
"""

import functools
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ossicle.audio.waveform import MAX_FREQUENCY_HZ, hz_to_mel, mel_to_hz

_FLOOR_DECADES = 8.0
"""Whisper's log-mel keeps so many decades of power below each clip's loudest bin."""
_ECHO_FRAMES = 24


@functools.cache
def _centres(n_mels: int) -> tuple[Float[Tensor, " M"], float]:
    """Centre of each mel bin in hertz, and the distance between two of them in mel."""
    step = float(hz_to_mel(MAX_FREQUENCY_HZ)) / (n_mels + 1)
    hertz = mel_to_hz(step * np.arange(1, n_mels + 1))
    return torch.from_numpy(hertz.astype(np.float32)), step


def _throat(n_mels: int, factor: float) -> Float[Tensor, "M M"]:
    """Interpolates between mel bins so that every formant moves to `factor` times its frequency."""
    hertz, step = _centres(n_mels)
    from_mel = torch.from_numpy(hz_to_mel((hertz / factor).double().numpy()).astype(np.float32))
    place = (from_mel / step - 1).clamp(0, n_mels - 1)
    return (1 - (place[:, None] - torch.arange(n_mels)).abs()).clamp(min=0)


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _microphone(n_mels: int, generator: torch.Generator) -> Float[Tensor, " M"]:
    """A smooth colouring in decades of power, at times narrowed to a telephone's band."""
    knots = torch.randn(1, 1, 7, generator=generator) * _uniform(0.0, 0.6, generator)
    colour = functional.interpolate(knots, size=n_mels, mode="linear", align_corners=True)[0, 0]
    if _uniform(0.0, 1.0, generator) < 0.1:
        hertz, _ = _centres(n_mels)
        low, high = _uniform(80.0, 350.0, generator), _uniform(3e3, 5.5e3, generator)
        colour = colour - torch.log10(1 + (low / hertz) ** 8) - torch.log10(1 + (hertz / high) ** 12)
    return colour


def _echoed(power: Float[Tensor, "M F"], generator: torch.Generator) -> Float[Tensor, "M F"]:
    """Each frame's sound dies away over the next ones."""
    decay = torch.exp(-torch.arange(_ECHO_FRAMES) / _uniform(1.5, 7.0, generator))
    kernel = decay * _uniform(0.05, 0.35, generator)
    kernel[0] = 1.0
    return functional.conv1d(
        functional.pad(power, (_ECHO_FRAMES - 1, 0))[:, None], kernel.flip(0)[None, None]
    )[:, 0]


def _noise(n_mels: int, n_frames: int, generator: torch.Generator) -> Float[Tensor, "M F"]:
    """Steady noise of a random colour, restless from bin to bin as noise is."""
    tilt = torch.linspace(0, _uniform(-2.5, 1.0, generator), n_mels) + _microphone(n_mels, generator)
    return torch.exp(2.3 * tilt[:, None] + 0.6 * torch.randn(n_mels, n_frames, generator=generator))


def augment_mel(
    mel: Float[Tensor, "M F"],
    seed: int,
    max_frames: int,
    babble: Callable[[], Float[Tensor, "M _"]] | None = None,
) -> Float[Tensor, "M G"]:
    """One clip from another throat, at another tempo, in a room, through a microphone, most with some noise, masked.

    Args:
        mel: Whisper's log-mel
        max_frames: even; a slower tempo makes no clip longer than this
        babble: gives that of another clip, when it is to speak in the background: one time in seven; without, the
            noise of those is steady too
    """
    heard = _elsewhere(mel, seed, max_frames, babble)
    mask_patches(heard, seed + 1)
    return heard


def _elsewhere(
    mel: Float[Tensor, "M F"], seed: int, max_frames: int, babble: Callable[[], Float[Tensor, "M _"]] | None
) -> Float[Tensor, "M G"]:
    generator = torch.Generator().manual_seed(seed)
    n_mels = len(mel)
    mel = _throat(n_mels, _uniform(0.9, 1.1, generator)) @ mel
    n_frames = min(round(mel.shape[1] / _uniform(0.88, 1.14, generator) / 2) * 2, max_frames)
    mel = functional.interpolate(mel[None], size=n_frames, mode="linear", align_corners=True)[0]
    power = 10 ** (mel * 4 - 4 + _microphone(n_mels, generator)[:, None])
    if _uniform(0.0, 1.0, generator) < 0.2:
        power = _echoed(power, generator)
    draw = _uniform(0.0, 1.0, generator)
    if draw < 0.6:
        noise = _noise(n_mels, n_frames, generator)
        if draw < 0.15 and babble is not None:
            voice = babble()
            noise = 10 ** (voice.repeat(1, -(-n_frames // voice.shape[1]))[:, :n_frames] * 4 - 4)
        snr_db = _uniform(6.0 if draw >= 0.15 else 10.0, 38.0, generator)
        power = power + noise * (power.mean() / noise.mean() * 10 ** (-snr_db / 10))
    decades = torch.log10(power.clamp(min=1e-10))
    return (decades.clamp(min=float(decades.max()) - _FLOOR_DECADES) + 4) / 4


def mask_patches(mel: Float[Tensor, "M F"], seed: int) -> None:
    """SpecAugment, in place: two stretches of time and two bands of frequency set to the mean."""
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
