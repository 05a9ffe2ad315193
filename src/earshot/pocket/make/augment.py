"""Rooms, microphones and noise for the pocket Whisper's training: batches of samples in, batches of samples out."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from earshot.audio import SAMPLE_RATE


def _noise_like(
    samples: Float[Tensor, "B N"], colour: Float[Tensor, " B"], generator: torch.Generator
) -> Tensor:
    """Noise whose power falls as frequency ** -colour: 0 is white, 1 pink, 2 brown."""
    n_padded = -(-samples.shape[1] // 8_192) * 8_192
    white = torch.fft.rfft(torch.randn(len(samples), n_padded, generator=generator))
    frequency = torch.arange(1, white.shape[1] + 1) / white.shape[1]
    return torch.fft.irfft(white * frequency ** (-colour[:, None] / 2), n=n_padded)[:, : samples.shape[1]]


def _mix(samples: Tensor, noise: Tensor, snr_db: Tensor) -> Tensor:
    power = samples.square().mean(dim=1, keepdim=True)
    noise_power = noise.square().mean(dim=1, keepdim=True).clamp(min=1e-12)
    return samples + noise * (power / noise_power * 10 ** (-snr_db[:, None] / 10)).sqrt()


def _filters(n_clips: int, n_bins: int, generator: torch.Generator, rng: np.random.Generator) -> Tensor:
    """A smooth random colouring of the spectrum for each clip, at times narrowed to a telephone's band."""
    frequency = torch.linspace(0, SAMPLE_RATE / 2, n_bins)
    knots_db = (
        torch.randn(n_clips, 1, 7, generator=generator)
        * 4.0
        * (torch.rand(n_clips, 1, 1, generator=generator))
    )
    curve = torch.nn.functional.interpolate(knots_db, size=n_bins, mode="linear", align_corners=True)[:, 0]
    gain = 10 ** (curve / 20)
    for clip in range(n_clips):
        if rng.random() < 0.1:
            low, high = rng.uniform(50, 350), rng.uniform(3_000, 5_500)
            gain[clip] *= (1 + (low / frequency.clamp(min=1)) ** 8).rsqrt() * (
                1 + (frequency / high) ** 12
            ).rsqrt()
    return gain


def _rooms(n_clips: int, n_samples: int, generator: torch.Generator, rng: np.random.Generator) -> Tensor:
    """Impulse responses, as spectra: the direct sound, and for some clips an echo that dies away."""
    n_echo = int(0.3 * SAMPLE_RATE)
    response = torch.zeros(n_clips, n_samples)
    response[:, 0] = 1.0
    seconds = torch.arange(n_echo) / SAMPLE_RATE
    for clip in range(n_clips):
        if rng.random() < 0.15:
            decay = torch.exp(-seconds / rng.uniform(0.015, 0.09))
            echo = torch.randn(n_echo, generator=generator) * decay
            response[clip, 1 : n_echo + 1] = echo / echo.norm() * rng.uniform(0.1, 0.5)
    return torch.fft.rfft(response)


def augment(samples: Float[Tensor, "B N"], seed: int) -> Float[Tensor, "B N"]:
    """Each clip through a room and a microphone of its own, and most with some noise or other people's babble."""
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    n_clips, n_samples = samples.shape
    n_padded = (
        -(-(n_samples + SAMPLE_RATE // 3) // 8_192) * 8_192
    )  # room for the echo, and quick to transform
    spectrum = torch.fft.rfft(samples, n=n_padded)
    spectrum *= _filters(n_clips, spectrum.shape[1], generator, rng)
    spectrum *= _rooms(n_clips, n_padded, generator, rng)
    heard = torch.fft.irfft(spectrum, n=n_padded)[:, :n_samples]
    colour = torch.from_numpy(rng.uniform(0, 2, n_clips)).float()
    babble = heard.roll(1, 0) + heard.roll(3, 0)
    is_babble = torch.from_numpy(rng.random(n_clips) < 0.2)
    noise = torch.where(is_babble[:, None], babble, _noise_like(heard, colour, generator))
    snr_db = torch.from_numpy(np.where(rng.random(n_clips) < 0.5, rng.uniform(8, 35, n_clips), 60.0)).float()
    return _mix(heard, noise, torch.where(is_babble, snr_db + 5, snr_db))
