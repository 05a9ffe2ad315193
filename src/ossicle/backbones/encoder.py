"""Log-mel frames through a frozen Whisper encoder, for as many seconds as there is sound.

transformers' own forward requires the full window. Here the window may be shorter: positions are a prefix of
the full ones, and in a batch each clip attends only to itself, and to the silence behind it where that is stored: its
features do not depend on the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from ossicle.audio.mel import log_mel_spectrogram
from ossicle.audio.waveform import HOP_LENGTH, SAMPLE_RATE
from ossicle.backbones.causal_lm import CACHE_NAME
from ossicle.backbones.silence import Silence, count_positions
from ossicle.config import BaseSettings, WindowKind

FRAMES_PER_POSITION = 2
"""Mel frames per encoder position: the stride of the second convolution."""
POSITIONS_PER_SECOND = SAMPLE_RATE // (HOP_LENGTH * FRAMES_PER_POSITION)  # 50
_MARGIN_FRAMES = 4
"""Silent frames kept behind the sound, so that the last word is not at the very edge."""


@dataclass(frozen=True)
class Features:
    """The encoder's states of a batch of clips; `mask` is true where a position belongs to the clip."""

    states: Float[Tensor, "B K E"]
    """Of the clips' S positions and, with the window "sound+silence", of the silence behind them."""
    mask: Bool[Tensor, "B S"]
    is_unpadded: bool | None = None
    """Whether every position belongs to its clip; None reads it from the mask, which waits for the device."""
    silence_bias: Float[Tensor, "B 1 1 K"] | None = None
    """Added to the logits of attention, where there is silence behind the clips."""

    def upcast(self) -> "Features":
        """Returns them in float32, if they are in half precision."""
        if self.states.dtype.itemsize > 2:
            return self
        bias = self.silence_bias
        return replace(self, states=self.states.float(), silence_bias=None if bias is None else bias.float())

    @property
    def attention_mask(self) -> Bool[Tensor, "B 1 1 S"] | Float[Tensor, "B 1 1 K"] | None:
        """The mask in the shape that attention takes; None where it hides nothing, which has faster kernels."""
        if self.silence_bias is not None:
            return self.silence_bias
        return expand_attention_mask(self.mask, self.is_unpadded)


@dataclass(frozen=True)
class EncoderWindow:
    """How many mel frames the encoder gets of a sound."""

    n_frames: int
    """Frames of the full window."""
    kind: WindowKind
    silence_margin_s: float = 0.0
    """Silence that is encoded with the sound, in front of the stored one."""

    @classmethod
    def build(cls, n_frames: int, base: BaseSettings) -> "EncoderWindow":
        """Returns the window that the settings ask for, of an encoder with so many frames."""
        return cls(n_frames, base.encoder_window, base.silence_margin_s)

    def describe(self) -> str:
        """Returns what tells its features from those of another window."""
        margin = (
            f"+{self.silence_margin_s:g}s" if self.kind == "sound+silence" and self.silence_margin_s else ""
        )
        return self.kind + margin

    def count_frames(self, n_samples: int) -> int:
        """Returns the mel frames of a sound: a whole number of encoder positions, or of rows of silence."""
        return self.count_padded_frames(count_frames(n_samples))

    def count_padded_frames(self, n_frames: int) -> int:
        """Returns the mel frames of a sound, from those that it has itself."""
        if self.kind == "full":
            return self.n_frames
        if self.kind == "sound+silence":
            n_positions = n_frames // FRAMES_PER_POSITION + round(
                self.silence_margin_s * POSITIONS_PER_SECOND
            )
            n_window = self.n_frames // FRAMES_PER_POSITION
            n_frames = FRAMES_PER_POSITION * count_positions(n_positions, n_window)
        return min(n_frames, self.n_frames)


def count_frames(n_samples: int) -> int:
    """Returns the mel frames of a sound and a short margin, a whole number of encoder positions."""
    frames = -(-n_samples // HOP_LENGTH) + _MARGIN_FRAMES
    return frames + frames % FRAMES_PER_POSITION


def compute_clip_mel(
    sound: Float32[np.ndarray, " N"], n_mels: int, window: EncoderWindow
) -> Float32[Tensor, "M F"]:
    """Returns the log-mel spectrogram of one sound over its part of the window.

    Raises:
        AudioError: the sound is longer than the window
    """
    return log_mel_spectrogram(sound, n_mels, window.count_frames(len(sound)))


def pad_mels(
    mels: Sequence[Float32[Tensor, "M _"]],
) -> tuple[Float32[Tensor, "B M F"], Int[Tensor, " B"]]:
    """Returns spectrograms as a batch, padded with zeros, and the number of frames of each."""
    padded = pad_sequence([mel.T for mel in mels], batch_first=True).transpose(1, 2)  # (B, F, M) -> (B, M, F)
    return padded, torch.tensor([mel.shape[1] for mel in mels])


def build_mel_batch(
    sounds: Sequence[Float32[np.ndarray, " _"]], n_mels: int, window: EncoderWindow
) -> tuple[Float32[Tensor, "B M F"], Int[Tensor, " B"]]:
    """Returns `compute_clip_mel` of several sounds as a batch, padded as by `pad_mels`.

    Raises:
        AudioError: a sound is longer than the window
    """
    return pad_mels([compute_clip_mel(sound, n_mels, window) for sound in sounds])


def encode(
    encoder: WhisperEncoder,
    mel: Float[Tensor, "B M F"],
    n_frames: Int[Tensor, " B"],
    silence: Silence | None = None,
) -> Features:
    """Returns the encoder's last hidden states of clips of different lengths, each the same as alone.

    Args:
        mel: F is at most the encoder's window
        n_frames: frames that belong to each clip; those beyond are ignored. Best on the CPU: reading them from a GPU
            waits for it
        silence: stands behind each clip, up to the full window
    """
    is_unpadded = bool((n_frames >= mel.shape[2]).all())
    on_device = n_frames.to(mel.device, non_blocking=True)
    mask = torch.arange(0, mel.shape[2], FRAMES_PER_POSITION, device=mel.device) < on_device[:, None]
    hidden = _convolve(encoder, mel, on_device, continues=silence is not None).transpose(1, 2)
    hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]  # (B, S, E)
    hidden = functional.dropout(hidden, p=encoder.dropout, training=encoder.training)
    if silence is None:
        attention_mask = expand_attention_mask(mask, is_unpadded)
        for layer in encoder.layers:
            hidden = layer(hidden, attention_mask)
        return Features(states=encoder.layer_norm(hidden), mask=mask, is_unpadded=is_unpadded)
    rows = silence.rows_behind(n_frames.cpu() // FRAMES_PER_POSITION, hidden.shape[1])
    for number, layer in enumerate(encoder.layers):
        hidden = layer(hidden, rows.bias, **{CACHE_NAME: silence.layer_cache(number, rows)})
    return Features(
        states=silence.append(encoder.layer_norm(hidden), rows),
        mask=mask,
        is_unpadded=is_unpadded,
        silence_bias=rows.bias,
    )


def _convolve(
    encoder: WhisperEncoder, mel: Float[Tensor, "B M F"], n_frames: Int[Tensor, " B"], *, continues: bool
) -> Float[Tensor, "B E S"]:
    """Runs the two convolutions, which must see behind each clip what a window has there.

    Args:
        continues: whether silence follows, the clip's last frame again and again, unless the clip fills the window; if
            not, the window ends there, and zeros follow
    """
    n_window = FRAMES_PER_POSITION * encoder.config.max_source_positions
    is_followed = (n_frames < n_window)[:, None] & continues
    n_more = FRAMES_PER_POSITION if continues else 0
    frames = torch.arange(mel.shape[2] + n_more, device=mel.device)
    is_own = frames < n_frames[:, None]
    last = mel.gather(2, (n_frames - 1)[:, None, None].expand(-1, mel.shape[1], 1))
    behind = (last * is_followed[:, None]).expand(-1, -1, len(frames))
    padded = torch.where(is_own[:, None], functional.pad(mel, (0, n_more)), behind)
    hidden = functional.gelu(encoder.conv1(padded.to(encoder.conv1.weight.dtype)))
    hidden = functional.gelu(encoder.conv2(hidden * (is_own | is_followed)[:, None]))
    return hidden[:, :, : -(-mel.shape[2] // FRAMES_PER_POSITION)]


def expand_attention_mask(
    mask: Bool[Tensor, "B S"], is_unpadded: bool | None = None
) -> Bool[Tensor, "B 1 1 S"] | None:
    """Returns a mask of positions in the shape that attention takes; None where it hides nothing.

    Args:
        is_unpadded: whether the mask hides nothing, if known; None reads it from the mask, which waits for the device
    """
    hides_nothing = bool(mask.all()) if is_unpadded is None else is_unpadded
    return None if hides_nothing else mask[:, None, None]
