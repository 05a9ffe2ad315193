"""Throats, tempos, rooms, microphones and noise, all of it on log-mel spectrograms.

On spectrograms, because there a batch costs a hundredth of the training step it feeds; on samples it cost a quarter.
"""

import functools
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers.audio_utils import hertz_to_mel, mel_to_hertz

from earshot.audio import SAMPLE_RATE

_FLOOR_DECADES = 8.0
"""Whisper's log-mel keeps so many decades of power below each clip's loudest bin."""
_ECHO_FRAMES = 24


@functools.cache
def _centres(n_mels: int) -> tuple[Float[Tensor, " M"], float]:
    """Centre of each mel bin in hertz, and the distance between two of them in mel."""
    top = hertz_to_mel(SAMPLE_RATE / 2, mel_scale="slaney")
    step = top / (n_mels + 1)
    mels = [step * (number + 1) for number in range(n_mels)]
    hertz = [float(mel_to_hertz(mel, mel_scale="slaney")) for mel in mels]
    return torch.tensor(hertz), float(step)


def _throat(n_mels: int, factor: float) -> Float[Tensor, "M M"]:
    """Interpolates between mel bins so that every formant moves to `factor` times its frequency."""
    hertz, step = _centres(n_mels)
    from_mel = torch.tensor([float(hertz_to_mel(f, mel_scale="slaney")) for f in (hertz / factor).tolist()])
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


def augment(
    mel: Float[Tensor, "M F"], babble: Float[Tensor, "M F2"], seed: int, max_frames: int
) -> Float[Tensor, "M G"]:
    """One clip from another throat, at another tempo, in a room, through a microphone, most with some noise.

    Args:
        mel: Whisper's log-mel
        babble: that of another clip, which at times speaks in the background
        max_frames: a slower tempo makes no clip longer than this
    """
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
        if draw < 0.15:
            noise = 10 ** (babble.repeat(1, -(-n_frames // babble.shape[1]))[:, :n_frames] * 4 - 4)
        snr_db = _uniform(6.0 if draw >= 0.15 else 10.0, 38.0, generator)
        power = power + noise * (power.mean() / noise.mean() * 10 ** (-snr_db / 10))
    decades = torch.log10(power.clamp(min=1e-10))
    return (decades.clamp(min=float(decades.max()) - _FLOOR_DECADES) + 4) / 4


def augment_batch(
    mel: Float[Tensor, "B M F"], n_frames: Int[Tensor, " B"], seeds: Sequence[int], max_frames: int
) -> tuple[Float[Tensor, "B M G"], Int[Tensor, " B"]]:
    """Each clip of a batch augmented and masked by its own seed, its neighbour speaking in the background at times.

    Args:
        n_frames: frames that belong to each clip
        max_frames: a slower tempo makes no clip longer than this

    Returns: as given, for the new lengths; zero beyond each clip's own frames
    """
    clips = [row[:, :n] for row, n in zip(mel, n_frames.tolist(), strict=True)]
    heard = [
        augment(clip, clips[number - 1], seed, max_frames)
        for number, (clip, seed) in enumerate(zip(clips, seeds, strict=True))
    ]
    for clip, seed in zip(heard, seeds, strict=True):
        mask_patches(clip, seed + 1)
    lengths = torch.tensor([clip.shape[1] for clip in heard])
    return pad_sequence([clip.T for clip in heard], batch_first=True).transpose(1, 2), lengths  # -> (B, M, G)


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
