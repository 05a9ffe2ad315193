"""Log-mel frames through a frozen Whisper encoder, for as many seconds as there is sound.

transformers' own forward insists on the full window. Here the window may be cut: positions are a prefix of
the full ones, and in a batch each clip sees only itself: its features do not depend on its neighbours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from ossicle.audio.waveform import HOP_LENGTH, SAMPLE_RATE, log_mel_spectrogram

FRAMES_PER_POSITION = 2
"""Mel frames to an encoder position: the second convolution's stride."""
POSITIONS_PER_SECOND = SAMPLE_RATE // (HOP_LENGTH * FRAMES_PER_POSITION)  # 50
_MARGIN_FRAMES = 4
"""Silent frames kept behind the sound, so that the last word does not stand at the very edge."""


@dataclass(frozen=True)
class Features:
    """What the encoder heard in a batch of clips; `mask` is true where a position belongs to the clip."""

    states: Float[Tensor, "B S E"]
    mask: Bool[Tensor, "B S"]
    is_unpadded: bool | None = None
    """Whether every position belongs to its clip; not given, the device is asked, and waited for."""

    @property
    def attention_mask(self) -> Bool[Tensor, "B 1 1 S"] | None:
        """The mask as attention takes it; None where it hides nothing, for which kernels are faster."""
        return expand_attention_mask(self.mask, self.is_unpadded)


def count_frames(n_samples: int) -> int:
    """Mel frames that hold the sound and a short margin, a whole number of encoder positions."""
    frames = -(-n_samples // HOP_LENGTH) + _MARGIN_FRAMES
    return frames + frames % FRAMES_PER_POSITION


def compute_clip_mel(
    sound: Float32[np.ndarray, " N"], n_mels: int, window_frames: int, full_window: bool
) -> Float32[Tensor, "M F"]:
    """Log-mel of one sound over its own frames, or over the whole window.

    Raises:
        AudioError: the sound is longer than the window
    """
    n_frames = window_frames if full_window else min(count_frames(len(sound)), window_frames)
    return log_mel_spectrogram(sound, n_mels, n_frames)


def pad_mels(
    mels: Sequence[Float32[Tensor, "M _"]],
) -> tuple[Float32[Tensor, "B M F"], Int[Tensor, " B"]]:
    """Spectrograms side by side, zero beyond each one's own frames, and how many those are."""
    padded = pad_sequence([mel.T for mel in mels], batch_first=True).transpose(1, 2)  # (B, F, M) -> (B, M, F)
    return padded, torch.tensor([mel.shape[1] for mel in mels])


def build_mel_batch(
    sounds: Sequence[Float32[np.ndarray, " _"]], n_mels: int, window_frames: int, full_window: bool
) -> tuple[Float32[Tensor, "B M F"], Int[Tensor, " B"]]:
    """`clip_mel` of several sounds, as `pad_mels` puts them side by side.

    Raises:
        AudioError: a sound is longer than the window
    """
    return pad_mels([compute_clip_mel(sound, n_mels, window_frames, full_window) for sound in sounds])


def encode(encoder: WhisperEncoder, mel: Float[Tensor, "B M F"], n_frames: Int[Tensor, " B"]) -> Features:
    """The encoder's last hidden states for clips of different lengths, each as if it were alone.

    Args:
        mel: F is at most the encoder's window
        n_frames: frames that belong to each clip; what lies beyond is ignored. Best on the CPU: on a GPU they are
            waited for
    """
    is_whole = bool((n_frames >= mel.shape[2]).all())
    on_device = n_frames.to(mel.device, non_blocking=True)
    frame_mask = torch.arange(mel.shape[2], device=mel.device) < on_device[:, None]
    mask = frame_mask[:, ::FRAMES_PER_POSITION]
    dtype = encoder.conv1.weight.dtype
    # The convolutions must meet zeros behind each clip, as they do at the end of a window.
    heard = mel.to(dtype) * frame_mask[:, None]
    heard = functional.gelu(encoder.conv1(heard)) * frame_mask[:, None]
    hidden = functional.gelu(encoder.conv2(heard)).transpose(1, 2)  # (B, E, S) -> (B, S, E)
    hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
    hidden = functional.dropout(hidden, p=encoder.dropout, training=encoder.training)
    hides = expand_attention_mask(mask, is_whole)
    for layer in encoder.layers:
        hidden = layer(hidden, hides)
    return Features(states=encoder.layer_norm(hidden), mask=mask, is_unpadded=is_whole)


def expand_attention_mask(
    mask: Bool[Tensor, "B S"], is_whole: bool | None = None
) -> Bool[Tensor, "B 1 1 S"] | None:
    """A mask of positions as attention takes it; None where it hides nothing.

    Args:
        is_whole: whether that is so, if it is known; else the device is asked
    """
    hides_nothing = bool(mask.all()) if is_whole is None else is_whole
    return None if hides_nothing else mask[:, None, None]
