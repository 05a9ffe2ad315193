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

from earshot.audio import HOP_LENGTH, SAMPLE_RATE, log_mel

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


def n_frames_for(n_samples: int) -> int:
    """Mel frames that hold the sound and a short margin, a whole number of encoder positions."""
    frames = -(-n_samples // HOP_LENGTH) + _MARGIN_FRAMES
    return frames + frames % FRAMES_PER_POSITION


def clip_mel(
    sound: Float32[np.ndarray, " N"], n_mels: int, window_frames: int, full_window: bool
) -> Float32[Tensor, "M F"]:
    """Log-mel of one sound over its own frames, or over the whole window.

    Raises:
        AudioError: the sound is longer than the window
    """
    n_frames = window_frames if full_window else min(n_frames_for(len(sound)), window_frames)
    return log_mel(sound, n_mels, n_frames)


def pad_mels(
    mels: Sequence[Float32[Tensor, "M _"]],
) -> tuple[Float32[Tensor, "B M F"], Int[Tensor, " B"]]:
    """Spectrograms side by side, zero beyond each one's own frames, and how many those are."""
    padded = pad_sequence([mel.T for mel in mels], batch_first=True).transpose(1, 2)  # (B, F, M) -> (B, M, F)
    return padded, torch.tensor([mel.shape[1] for mel in mels])


def mel_batch(
    sounds: Sequence[Float32[np.ndarray, " _"]], n_mels: int, window_frames: int, full_window: bool
) -> tuple[Float32[Tensor, "B M F"], Int[Tensor, " B"]]:
    """`clip_mel` of several sounds, as `pad_mels` puts them side by side.

    Raises:
        AudioError: a sound is longer than the window
    """
    return pad_mels([clip_mel(sound, n_mels, window_frames, full_window) for sound in sounds])


def encode(encoder: WhisperEncoder, mel: Float[Tensor, "B M F"], n_frames: Int[Tensor, " B"]) -> Features:
    """The encoder's last hidden states for clips of different lengths, each as if it were alone.

    Args:
        mel: F is at most the encoder's window
        n_frames: frames that belong to each clip; what lies beyond is ignored
    """
    frame_mask = torch.arange(mel.shape[2], device=mel.device) < n_frames[:, None]
    mask = frame_mask[:, ::FRAMES_PER_POSITION]
    dtype = encoder.conv1.weight.dtype
    # The convolutions must meet zeros behind each clip, as they do at the end of a window.
    heard = mel.to(dtype) * frame_mask[:, None]
    heard = functional.gelu(encoder.conv1(heard)) * frame_mask[:, None]
    hidden = functional.gelu(encoder.conv2(heard)).transpose(1, 2)  # (B, E, S) -> (B, S, E)
    hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
    hidden = functional.dropout(hidden, p=encoder.dropout, training=encoder.training)
    attention_mask = attention_bias(mask, dtype)
    for layer in encoder.layers:
        hidden = layer(hidden, attention_mask)
    return Features(states=encoder.layer_norm(hidden), mask=mask)


def attention_bias(mask: Bool[Tensor, "B S"], dtype: torch.dtype) -> Float[Tensor, "B 1 1 S"] | None:
    """What to add to attention scores so that only the mask is attended to; None where that is everything."""
    if mask.all():
        return None
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return bias.masked_fill(~mask, torch.finfo(dtype).min)[:, None, None]
