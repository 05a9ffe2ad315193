"""Samples at 16 kHz -> the log-mel spectrogram that Whisper reads; it knows no model."""

import math
from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from ossicle.audio.waveform import HOP_LENGTH, N_FFT, SAMPLE_RATE
from ossicle.errors import AudioError, ConfigError

MAX_FREQUENCY_HZ = SAMPLE_RATE / 2
_MEL_PER_LOG_HZ = 27.0 / math.log(6.4)


def log_mel_spectrogram(
    samples: Float[Tensor, " N"] | Float[np.ndarray, " N"], n_mels: int, n_frames: int
) -> Float32[Tensor, "M F"]:
    """Returns the log-mel spectrogram of `WhisperFeatureExtractor` for a window of `n_frames`, padded with zeros.

    No value is more than 2 below the maximum, so each value depends on the whole window.

    Args:
        samples: at 16 kHz; the result is on their device.
        n_frames: 100 per second, at least 2.

    Raises:
        AudioError: audio longer than the window; it is never cut silently.
        ConfigError: a window too short for one frame, or no mel bins.

    Source: Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision", 2022, section 2.2.
    """
    window_samples = n_frames * HOP_LENGTH
    if window_samples <= N_FFT // 2:
        raise ConfigError(
            f"n_frames={n_frames}: expected at least 2, the shortest window that can be analyzed"
        )
    waveform = torch.as_tensor(samples, dtype=torch.float32)
    if len(waveform) > window_samples:
        raise AudioError(
            f"got {_format_duration(len(waveform))} of audio; expected at most the window of"
            f" {_format_duration(window_samples)}: split the audio or use a longer window"
        )
    window = torch.nn.functional.pad(waveform, (0, window_samples - len(waveform)))
    taper = torch.hann_window(N_FFT, device=window.device)
    spectrum = torch.stft(window, N_FFT, HOP_LENGTH, window=taper, return_complex=True)  # K F+1
    # Frames are centered on hops, from the first sample to the one after the last; Whisper drops that one.
    power = spectrum[:, :-1].abs().square().contiguous()
    level = (mel_filters(n_mels).to(window.device) @ power).clamp(min=1e-10).log10()
    return (torch.maximum(level, level.max() - 8.0) + 4.0) / 4.0


@cache
def mel_filters(n_mels: int) -> Float32[Tensor, "M K"]:
    """Returns triangular filters from the K = 201 FFT bins to mel bins from 0 to 8 kHz, all of the same area."""
    if n_mels < 1:
        raise ConfigError(f"n_mels={n_mels}: expected a positive number of mel bins, such as 80 or 128")
    corner_hz = mel_to_hz(np.linspace(0.0, float(hz_to_mel(MAX_FREQUENCY_HZ)), n_mels + 2))
    bin_hz = np.linspace(0.0, MAX_FREQUENCY_HZ, N_FFT // 2 + 1)
    low, middle, high = corner_hz[:-2, None], corner_hz[1:-1, None], corner_hz[2:, None]
    rising = (bin_hz - low) / (middle - low)
    falling = (high - bin_hz) / (high - middle)
    triangles = np.maximum(0.0, np.minimum(rising, falling)) * 2.0 / (high - low)
    return torch.from_numpy(triangles.astype(np.float32))


def mel_to_hz(mel: Float[np.ndarray, " M"]) -> Float[np.ndarray, " M"]:
    """Returns the frequency of a pitch on the mel scale.

    Source: Slaney, "Auditory Toolbox", 1998: 15 mel up to 1 kHz, linear; then 27 mel for a factor of 6.4.
    """
    return np.where(mel < 15.0, mel * 200.0 / 3.0, 1000.0 * np.exp((mel - 15.0) / _MEL_PER_LOG_HZ))


def hz_to_mel(hz: Float[np.ndarray, "..."] | float) -> Float[np.ndarray, "..."]:
    """Returns the pitch of a frequency on the mel scale of `mel_to_hz`."""
    above = 15.0 + _MEL_PER_LOG_HZ * np.log(np.maximum(hz, 1000.0) / 1000.0)
    return np.where(np.asarray(hz) < 1000.0, np.asarray(hz) * 3.0 / 200.0, above)


def _format_duration(n_samples: int) -> str:
    return f"{n_samples / SAMPLE_RATE:.2f} s ({n_samples} samples)"
