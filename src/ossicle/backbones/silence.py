"""The silence behind a clip as a constant: what a Whisper's encoder makes of it, computed once.

A published Whisper is itself only with its whole window. Most of that is silence, for clips of a few seconds, and the
encoder makes nearly the same of it whatever was said before. So it is computed once and stored: one row for every 20
positions, and one for each position that stands out, in which encoders keep what belongs to no place of their own. The
positions of a clip attend to themselves and to those rows, as in a whole window.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor, nn
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from ossicle.audio.mel import log_mel_spectrogram
from ossicle.audio.waveform import SAMPLE_RATE

_MAX_POSITIONS_PER_ROW = 20
_POSITIONS_PER_OUTLIER = 15
"""One position of so many has a row of its own: 100 in published Whispers."""
_SOUND_S = 0.7
"""Duration of the sounds in front of the silence that is stored."""
_MIN_POSITIONS = 60
"""Where the stored silence begins, after 1.2 s: the echo of those sounds has faded."""
_N_SOUNDS = 4
_N_HARMONICS = 20


@dataclass(frozen=True)
class SilentRows:
    """The rows of silence behind the clips of a batch."""

    first: int
    """The first row that a clip of the batch needs."""
    bias: Float[Tensor, "B 1 1 K"]
    """Added to the logits of attention: for each clip's own positions, and for the rows from `first` on."""


@dataclass(frozen=True)
class Silence:
    """What the encoder makes of a silent window: each row is the mean of the positions that it stands for."""

    keys: Float[Tensor, "L R E"]
    """Of each layer's attention."""
    values: Float[Tensor, "L R E"]
    states: Float[Tensor, "R E"]
    """After the last layer's norm."""
    starts: Int[Tensor, " R"]
    """The first position that each row stands for, ascending; on the host."""
    counts: Int[Tensor, " R"]
    """How many positions each row stands for; on the host."""

    def fits(self, encoder: WhisperEncoder) -> bool:
        """Whether it has the sizes of an encoder's."""
        config, n_rows = encoder.config, len(self.starts)
        sizes = (config.encoder_layers, n_rows, config.d_model)
        n_positions = int(self.counts.sum()) if self.counts.shape == (n_rows,) else 0
        is_sized = self.keys.shape == self.values.shape == sizes and self.states.shape == sizes[1:]
        return is_sized and n_positions == config.max_source_positions

    def to(self, weight: Tensor) -> "Silence":
        """Returns it on the device and in the dtype of the encoder's weights."""
        moved = {name: getattr(self, name).to(weight) for name in ("keys", "values", "states")}
        return replace(self, **moved)

    def rows_behind(self, n_positions: Int[Tensor, " B"], n_longest: int) -> SilentRows:
        """Returns the rows behind clips of a number of positions, padded to the longest.

        Args:
            n_positions: as counted by `count_positions`, on the host

        Returns: a row that stands for n positions weighs as much as they do, by log(n) in its bias
        """
        first = int(torch.searchsorted(self.starts, n_positions.min()))
        is_own = torch.arange(n_longest) < n_positions[:, None]
        is_behind = self.starts[first:] >= n_positions[:, None]
        weights = self.counts[first:].log().expand(is_behind.shape)
        bias = torch.cat(
            [
                torch.zeros(is_own.shape).masked_fill(~is_own, -torch.inf),
                weights.masked_fill(~is_behind, -torch.inf),
            ],
            dim=1,
        )
        bias = bias.to(self.states.device, self.states.dtype, non_blocking=True)
        return SilentRows(first=first, bias=bias[:, None, None])

    def to_tensors(self) -> dict[str, Tensor]:
        """Returns the tensors by name, to be stored."""
        return {name: tensor.cpu() for name, tensor in vars(self).items()}

    def append(self, states: Float[Tensor, "B S E"], rows: SilentRows) -> Float[Tensor, "B K E"]:
        """Returns a batch of clips' states with those of the silence behind them."""
        return torch.cat([states, self.states[rows.first :].expand(len(states), -1, -1)], dim=1)

    def layer_cache(self, number: int, rows: SilentRows) -> "_LayerCache":
        """Returns a layer's keys and values in the place of transformers' cache."""
        return _LayerCache(self.keys[number, rows.first :], self.values[number, rows.first :])


@dataclass(frozen=True)
class _LayerCache:
    """Gives an attention further keys and values, as transformers' caches do, behind its own."""

    keys: Float[Tensor, "R E"]
    values: Float[Tensor, "R E"]

    def update(
        self, keys: Float[Tensor, "B H S d"], values: Float[Tensor, "B H S d"], *_: Any, **__: Any
    ) -> tuple[Float[Tensor, "B H K d"], Float[Tensor, "B H K d"]]:
        """Returns keys and values with those of the silence behind them."""
        n_clips, n_heads = keys.shape[:2]

        def append(own: Tensor, rows: Tensor) -> Tensor:
            by_head = rows.unflatten(1, (n_heads, -1)).transpose(0, 1)  # (R, E) -> (H, R, d)
            return torch.cat([own, by_head.expand(n_clips, -1, -1, -1).to(own.dtype)], dim=2)

        return append(keys, self.keys), append(values, self.values)


def count_positions(n_positions: int, n_window: int) -> int:
    """Returns the positions of a sound in front of stored silence, whole rows up to the window."""
    per_row = _choose_positions_per_row(n_window)
    n_least = max(n_positions, _MIN_POSITIONS)
    return min(-(-n_least // per_row) * per_row, n_window)


def count_rows(n_window: int) -> int:
    """Returns the rows of a silent window, unless one has outliers only."""
    return n_window // _choose_positions_per_row(n_window) + n_window // _POSITIONS_PER_OUTLIER


def _choose_positions_per_row(n_window: int) -> int:
    """Returns the positions that a row stands for: the largest divisor of the window's up to 20."""
    return max(n for n in range(1, _MAX_POSITIONS_PER_ROW + 1) if n_window % n == 0)


@torch.inference_mode()
def compute_silence(encoder: WhisperEncoder) -> Silence:
    """Returns what an encoder makes of the silence behind short sounds like voices, the mean over four of them."""
    n_window = encoder.config.max_source_positions
    recorded: list[list[Tensor]] = []
    layers: list[Any] = list(encoder.layers)
    projections = [part for layer in layers for part in (layer.self_attn.k_proj, layer.self_attn.v_proj)]
    for seed in range(_N_SOUNDS):
        sound = synthesize_voice(seed, _SOUND_S)
        mel = log_mel_spectrogram(sound, encoder.config.num_mel_bins, 2 * n_window)
        with _record_outputs(projections) as outputs:
            states = encoder(mel[None].to(encoder.conv1.weight)).last_hidden_state
        recorded.append([output[0].float().cpu() for output in (*outputs, states)])
    tables = [torch.stack(tables).mean(0) for tables in zip(*recorded, strict=True)]  # S E each
    outliers = _find_outliers(tables, _choose_positions_per_row(n_window))
    starts, counts, rows = _average_rows(tables, _choose_positions_per_row(n_window), outliers)
    return Silence(
        keys=torch.stack(rows[:-1:2]),
        values=torch.stack(rows[1:-1:2]),
        states=rows[-1],
        starts=starts,
        counts=counts,
    )


def _find_outliers(tables: Sequence[Float32[Tensor, "S E"]], per_row: int) -> Int[Tensor, " O"]:
    """Returns the positions that differ most from the mean of their row, in any table."""
    scores = []
    for table in tables:
        means = table.unflatten(0, (-1, per_row)).mean(1).repeat_interleave(per_row, 0)
        distances = (table - means).norm(dim=1)
        scores.append(distances / distances.median().clamp(min=torch.finfo(table.dtype).tiny))
    score = torch.stack(scores).amax(0)
    n_least = count_positions(0, len(score))
    score[:n_least] = 0.0
    return score.topk(len(score) // _POSITIONS_PER_OUTLIER).indices


def _average_rows(
    tables: Sequence[Float32[Tensor, "S E"]], per_row: int, outliers: Int[Tensor, " O"]
) -> tuple[Int[Tensor, " R"], Int[Tensor, " R"], list[Float32[Tensor, "R E"]]]:
    """Returns the rows' first positions and numbers of positions, and each table's mean over them."""
    n_window = len(tables[0])
    row_of = torch.arange(n_window) // per_row
    row_of[outliers] = n_window // per_row + torch.arange(len(outliers))
    _, row_of, counts = row_of.unique(return_inverse=True, return_counts=True)
    firsts = torch.full((len(counts),), n_window).scatter_reduce(0, row_of, torch.arange(n_window), "amin")
    is_single = counts == 1
    starts = torch.where(is_single, firsts, firsts // per_row * per_row)
    order = starts.argsort(stable=True)
    means = [
        torch.zeros(len(counts), table.shape[1]).index_add(0, row_of, table) / counts[:, None]
        for table in tables
    ]
    return starts[order], counts[order], [mean[order] for mean in means]


@contextmanager
def _record_outputs(modules: Sequence[nn.Module]) -> Generator[list[Tensor]]:
    """Records the output of each module, in the order in which they are called."""
    outputs: list[Tensor] = []

    def record(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        outputs.append(output)

    hooks = [module.register_forward_hook(record) for module in modules]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def synthesize_voice(seed: int, duration_s: float) -> Float32[np.ndarray, " N"]:
    """Returns a buzz of a voice's pitch and loudness that swells and fades, and a little noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(duration_s * SAMPLE_RATE)) / SAMPLE_RATE
    pitch_hz = rng.uniform(90.0, 220.0)
    harmonics = np.arange(1, _N_HARMONICS)
    phases = rng.uniform(0.0, 2 * np.pi, len(harmonics))
    waves = np.sin(2 * np.pi * pitch_hz * harmonics[:, None] * time + phases[:, None]) / harmonics[:, None]
    syllables = 1 + 0.9 * np.sin(2 * np.pi * 4.0 * time)
    sound = (waves.sum(0) * syllables + 0.02 * rng.standard_normal(len(time))) * np.hanning(len(time))
    return (0.5 * sound / np.abs(sound).max()).astype(np.float32)
