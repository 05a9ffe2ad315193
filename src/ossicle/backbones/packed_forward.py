"""The frozen LLM's forward in training: short texts behind one prefix, with states needed at their ends only.

Constants are computed once, and unused results are not computed:

- the keys and values of the prefix are constant: they are computed once and put in front of those of every text;
- several texts share a row of the batch, each masked from the others, so that short ones are not padded to long ones;
- the last layer computes keys and values at all positions, and everything else only where states are needed.

All of it is exact, and uses only what transformers' LLMs have in common: a cache that attention updates with its keys
and values, masks with four axes, and position ids. Whether an LLM supports this is tried once; one that does not gets
the plain forward.
"""

import contextlib
from collections.abc import Generator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from ossicle.backbones.causal_lm import CACHE_NAME, embed, get_layers, get_tolerance
from ossicle.backbones.packed_layout import PackedLayout, build_layout

ROW_LENGTH = 64
"""Target length of a packed row, which may be half as long again: short enough that attention costs next to nothing."""
MAX_GATHER_RATIO = 0.5
"""If more of the positions are needed, the last layer computes all of them: most of its work is keys and values."""
_UNSUPPORTED = (RuntimeError, ValueError, TypeError, AttributeError, IndexError, NotImplementedError)
"""Errors that an LLM may raise if it lacks one of the features above."""


class PrefixCache(Cache):
    """The keys and values of a prefix, put in front of those of each row; those of the rows are not kept."""

    def __init__(self, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        super().__init__(layer_class_to_replicate=DynamicLayer)
        self.keys, self.values = keys, values

    @classmethod
    @torch.no_grad()
    def compute(cls, llm: PreTrainedModel, prefix: Sequence[int]) -> "PrefixCache":
        """Returns the cache of at least one id."""
        output: Any = llm.base_model(
            inputs_embeds=embed(llm, prefix)[None], use_cache=True, **{CACHE_NAME: DynamicCache()}
        )
        layers = getattr(output, CACHE_NAME).layers
        return cls([layer.keys for layer in layers], [layer.values for layer in layers])

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Returns the rows' keys and values in one layer, behind those of the prefix."""
        return (
            _append(self.keys[layer_idx], key_states),
            _append(self.values[layer_idx], value_states),
        )

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Returns the number of positions of the prefix."""
        return self.keys[layer_idx].shape[-2]

    def to_dynamic_cache(self, n_rows: int) -> DynamicCache:
        """Returns a cache that grows, with the prefix at the beginning of each row."""
        cache = DynamicCache()
        for number, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            cache.update(keys.repeat(n_rows, 1, 1, 1), values.repeat(n_rows, 1, 1, 1), number)
        return cache


def _append(prefix: Float[Tensor, "1 H P K"], states: Float[Tensor, "R H L K"]) -> Float[Tensor, "R H _ K"]:
    return torch.cat([prefix.expand(len(states), -1, -1, -1), states], dim=-2)


class PackedLlm:
    """A frozen LLM that reads texts behind a constant prefix.

    Args:
        prefix: ids; may be empty
    """

    def __init__(self, llm: PreTrainedModel, prefix: Sequence[int]) -> None:
        self.llm, self.prefix = llm, list(prefix)

    def compute_last_states(
        self, embeddings: Float[Tensor, "N D"], texts: Sequence[Int[np.ndarray, " _"]], n_last: Sequence[int]
    ) -> Float[Tensor, "B P D"]:
        """Returns the LLM's final hidden states, after its last norm, at the last positions of each text.

        They are aligned at the end: rows of a text with fewer than P begin with meaningless states. Gradients flow to
        the embeddings.

        Args:
            embeddings: a table of input embeddings
            texts: for each text, rows of the table in order
            n_last: the number of states to return for each text, at least one
        """
        fits = self.attends_to_all(max(map(len, texts)))
        prefix_cache, gathers = self._supported if fits else (None, False)
        with self._own_dtype():
            return self.forward(embeddings, texts, n_last, prefix_cache, gathers_last_layer=gathers)

    @property
    def prefix_cache(self) -> PrefixCache | None:
        """The prefix's keys and values, if the LLM can read behind them."""
        return self._supported[0]

    @property
    def gathers_last_layer(self) -> bool:
        """Whether its last layer can be skipped at positions whose states are not needed."""
        return self._supported[1]

    @cached_property
    def _supported(self) -> tuple[PrefixCache | None, bool]:
        """The prefix cache if the LLM supports one, and whether its last layer may gather.

        Both are found by comparison with the plain forward.
        """
        if not self.prefix or not self.attends_to_all(ROW_LENGTH):
            return None, False
        embeddings = embed(self.llm, torch.arange(8) + 1)
        texts, n_last = [np.arange(5), np.arange(5, 8)], [2, 1]
        with torch.no_grad(), self._own_dtype(), contextlib.suppress(*_UNSUPPORTED):
            plain = self.forward(embeddings, texts, n_last, None, gathers_last_layer=False)
            tolerance = get_tolerance(self.llm) * plain.abs().max()
            prefix_cache = PrefixCache.compute(self.llm, self.prefix)
            for gathers in (True, False):
                with contextlib.suppress(*_UNSUPPORTED):
                    states = self.forward(embeddings, texts, n_last, prefix_cache, gathers_last_layer=gathers)
                    if (states - plain).abs().max() <= tolerance:
                        return prefix_cache, gathers
        return None, False

    def _own_dtype(self) -> torch.autocast:
        """Turns autocast off: the LLM computes in its own dtype, as it does when it answers."""
        return torch.autocast(self.llm.device.type, enabled=False)

    def attends_to_all(self, n: int) -> bool:
        """Whether n positions attend to the whole prefix and to each other: some LLMs have a sliding window."""
        config = self.llm.config.get_text_config(decoder=True)
        window = getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None)
        return window is None or len(self.prefix) + n <= window

    def forward(
        self,
        embeddings: Float[Tensor, "N D"],
        texts: Sequence[Int[np.ndarray, " _"]],
        n_last: Sequence[int],
        prefix_cache: PrefixCache | None,
        *,
        gathers_last_layer: bool,
    ) -> Float[Tensor, "B P D"]:
        """Returns `compute_last_states` in a given way: the plain forward without a prefix cache."""
        if prefix_cache is None:
            prefix = np.arange(len(self.prefix))
            texts = [np.concatenate([prefix, text + len(prefix)]) for text in texts]
            embeddings = torch.cat([embed(self.llm, self.prefix).to(embeddings.dtype), embeddings])
        layout = build_layout(texts, n_last, 0 if prefix_cache is None else ROW_LENGTH)
        positions, output_index, embedding_index, gather_index = (
            torch.from_numpy(array).to(embeddings.device, non_blocking=True)
            for array in (layout.positions, layout.output_index, layout.embedding_index, layout.gather_index)
        )
        embeds = embeddings.index_select(0, embedding_index.flatten()).unflatten(0, layout.shape)  # (R, L, D)
        if prefix_cache is None:
            mask = torch.from_numpy(layout.text_numbers >= 0).to(embeddings.device, non_blocking=True)
            states = self._forward(inputs_embeds=embeds, attention_mask=mask.long(), use_cache=False)
            return _gather(states, output_index).flatten(0, 1)[gather_index]
        inputs = {
            "inputs_embeds": embeds,
            "attention_mask": self._build_mask(layout, embeddings.device),
            "position_ids": positions + len(self.prefix),
            CACHE_NAME: prefix_cache,
        }
        if not gathers_last_layer or output_index.numel() > MAX_GATHER_RATIO * embedding_index.numel():
            return _gather(self._forward(**inputs), output_index).flatten(0, 1)[gather_index]
        with _gathering(get_layers(self.llm.base_model)[-1], output_index):
            return self._forward(**inputs).flatten(0, 1)[gather_index]

    def _forward(self, **inputs: Any) -> Float[Tensor, "R _ D"]:
        output: Any = self.llm.base_model(**inputs)
        return output.last_hidden_state

    def _build_mask(self, layout: PackedLayout, device: torch.device) -> Tensor:
        """Returns the mask (R, 1, L, P + L): a position attends to the prefix and to earlier ones of its own text."""
        text_numbers = torch.from_numpy(layout.text_numbers).to(device, non_blocking=True)
        n_rows, length = layout.shape
        is_earlier = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        own = (text_numbers[:, :, None] == text_numbers[:, None]) & is_earlier  # (R, L, L)
        visible = torch.cat([own.new_ones(n_rows, length, len(self.prefix)), own], dim=2)[:, None]
        if self.llm.config.get_text_config(decoder=True)._attn_implementation == "sdpa":
            return visible
        lowest = torch.finfo(self.llm.dtype).min
        return torch.zeros(visible.shape, dtype=self.llm.dtype, device=device).masked_fill(~visible, lowest)


class _KeysCollected(Exception):
    """Raised when the last layer has computed its keys and values, and need not continue."""


class _CollectingCache(Cache):
    """Collects the keys and values of all positions in a first call, and returns them in the next."""

    def __init__(self, past: Cache) -> None:
        super().__init__(layer_class_to_replicate=DynamicLayer)
        self.past, self.collected = past, None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Returns the keys and values of all positions, whatever the positions of the second call are."""
        if self.collected is None:
            self.collected = self.past.update(key_states, value_states, *args, **kwargs)
            raise _KeysCollected
        return self.collected


@contextlib.contextmanager
def _gathering(layer: nn.Module, index: Int[Tensor, "R W"]) -> Generator[None]:
    """Inside the block, a layer returns the positions of `index` alone, which attend to all positions."""
    forward = layer.forward

    def gathering_forward(*args: Any, **kwargs: Any) -> Any:
        states = args[0] if args else kwargs["hidden_states"]
        past = next(value for value in (*args, *kwargs.values()) if isinstance(value, Cache))
        cache = _CollectingCache(past)
        length = states.shape[1]

        def select(value: Any, index: Int[Tensor, "R W"] | None) -> Any:
            if isinstance(value, Cache):
                return cache
            if index is None:
                return value
            if isinstance(value, tuple):
                return tuple(select(item, index) for item in value)
            return _select_positions(value, index, length) if isinstance(value, Tensor) else value

        def call(index: Int[Tensor, "R W"] | None) -> Any:
            return forward(
                *(select(value, index) for value in args),
                **{name: select(value, index) for name, value in kwargs.items()},
            )

        with contextlib.suppress(_KeysCollected):
            call(None)
        return call(index)

    own = vars(layer).get("forward")
    layer.forward = gathering_forward
    try:
        yield
    finally:
        if own is None:
            del layer.forward
        else:
            layer.forward = own


def _select_positions(tensor: Tensor, index: Int[Tensor, "R W"], length: int) -> Tensor:
    """Returns the positions of `index` from any tensor that has an axis for them: a mask's third, others' second."""
    axis = 2 if tensor.ndim == 4 else 1
    if not 2 <= tensor.ndim <= 4 or tensor.shape[axis] != length:
        return tensor
    tensor = tensor.expand(len(index), *tensor.shape[1:])
    index = index.reshape(len(index), *[1] * (axis - 1), -1, *[1] * (tensor.ndim - axis - 1))
    shape = [*tensor.shape]
    shape[axis] = index.shape[axis]
    return tensor.gather(axis, index.expand(shape))


def _gather(states: Float[Tensor, "B L D"], index: Int[Tensor, "B N"]) -> Float[Tensor, "B N D"]:
    return states.gather(1, index[..., None].expand(-1, -1, states.shape[2]))
