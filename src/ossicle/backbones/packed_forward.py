"""How the frozen LLM is read in training: short texts behind one prefix, states wanted at the ends of them.

Whatever is constant is computed once, and what nobody looks at is not computed:

- the prefix's keys and values are an LLM's constants: computed once, in front of those of every text;
- several texts share a row of the batch, each blind to the others, so that short ones are not padded to long ones;
- the last layer computes keys and values of all positions, and everything else only where states are wanted.

All of it is exact, and works through nothing but what transformers' LLMs have in common: the cache that their
attention asks for keys and values, masks of four axes, and places. Whether an LLM has these is tried once; one that has
not is read plainly.
"""

import contextlib
import heapq
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from ossicle.backbones.causal_lm import RELATIVE_TOLERANCE, embed, get_layers

ROW_LENGTH = 64
"""Positions to a row that texts are put together to, or half as many more: few enough that attention among them costs
next to nothing."""
MAX_GATHER_RATIO = 0.5
"""If more of the positions are wanted, the last layer computes all of them: keys and values are the more work to it."""
_UNLIKE = (RuntimeError, ValueError, TypeError, AttributeError, IndexError, NotImplementedError)
"""What an LLM may raise that does not have what all others have in common."""


class PrefixCache(Cache):
    """Keys and values of a prefix in front of those of each row; nothing is kept of the rows."""

    def __init__(self, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        super().__init__(layer_class_to_replicate=DynamicLayer)
        self.keys, self.values = keys, values

    @classmethod
    @torch.no_grad()
    def compute(cls, llm: PreTrainedModel, prefix: Sequence[int]) -> "PrefixCache":
        """What the LLM makes of so many ids, at least one."""
        read: Any = llm.base_model(
            inputs_embeds=embed(llm, prefix)[None], past_key_values=DynamicCache(), use_cache=True
        )
        layers = read.past_key_values.layers
        return cls([layer.keys for layer in layers], [layer.values for layer in layers])

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """The rows' keys and values in one layer, behind the prefix's."""
        return (
            _behind(self.keys[layer_idx], key_states),
            _behind(self.values[layer_idx], value_states),
        )

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions of the prefix."""
        return self.keys[layer_idx].shape[-2]

    def to_dynamic_cache(self, n_rows: int) -> DynamicCache:
        """The prefix at the beginning of a cache that grows."""
        cache = DynamicCache()
        for number, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            cache.update(keys.repeat(n_rows, 1, 1, 1), values.repeat(n_rows, 1, 1, 1), number)
        return cache


def _behind(first: Float[Tensor, "1 H P K"], then: Float[Tensor, "R H L K"]) -> Float[Tensor, "R H _ K"]:
    return torch.cat([first.expand(len(then), -1, -1, -1), then], dim=-2)


class _Asked(Exception):
    """The last layer has its keys and values, and need not go on."""


class _AllRows(Cache):
    """Catches the keys and values of all positions, and then gives them to the few that are wanted."""

    def __init__(self, past: Cache) -> None:
        super().__init__(layer_class_to_replicate=DynamicLayer)
        self.past, self.found = past, None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """First of all positions, then for some of them."""
        if self.found is None:
            self.found = self.past.update(key_states, value_states, *args, **kwargs)
            raise _Asked
        return self.found


@dataclass(frozen=True)
class PackedLayout:
    """Which position of which row is what of which text, on the host."""

    embedding_index: Int[np.ndarray, "R L"]
    """Which row of the table stands there."""
    positions: Int[np.ndarray, "R L"]
    """How many of its text stand before it."""
    text_numbers: Int[np.ndarray, "R L"]
    """Which text it belongs to; -1 where there is none."""
    output_index: Int[np.ndarray, "R W"]
    """Positions of each row whose states are wanted; rows with fewer repeat one."""
    gather_index: Int[np.ndarray, "B P"]
    """For each text, where its last states stand among the wanted ones, row after row."""

    @property
    def shape(self) -> tuple[int, int]:
        """R, L."""
        return self.embedding_index.shape[0], self.embedding_index.shape[1]


@dataclass(frozen=True)
class _SharedOut:
    """Texts by row, and how long the longest row is."""

    texts: list[list[int]]
    length: int


class PackedLlm:
    """A frozen LLM that reads texts behind a prefix which is always the same.

    Args:
        prefix: the ids; may be none
    """

    def __init__(self, llm: PreTrainedModel, prefix: Sequence[int]) -> None:
        self.llm, self.prefix = llm, list(prefix)

    def compute_last_states(
        self, embeddings: Float[Tensor, "N D"], texts: Sequence[Int[np.ndarray, " _"]], n_last: Sequence[int]
    ) -> Float[Tensor, "B P D"]:
        """The LLM's final hidden states, after its last norm, at each text's last so many positions.

        They end together: a text of fewer than P has something without meaning before its first. Gradients flow to the
        table.

        Args:
            table: embeddings that the texts are made of
            texts: which of them, in order
            n_last: how many states of each are wanted, at least one
        """
        shared, picks = self._way if self.attends_to_all(max(map(len, texts))) else (None, False)
        with self._own_type():
            return self.forward(embeddings, texts, n_last, shared, gathers_last_layer=picks)

    @property
    def prefix_cache(self) -> PrefixCache | None:
        """The prefix's keys and values, if the LLM can be read behind them."""
        return self._way[0]

    @property
    def gathers_last_layer(self) -> bool:
        """Whether its last layer can be left out where no states are wanted."""
        return self._way[1]

    @cached_property
    def _way(self) -> tuple[PrefixCache | None, bool]:
        """How the LLM can be read, found by trying beside the plain way."""
        if not self.prefix or not self.attends_to_all(ROW_LENGTH):
            return None, False
        table = embed(self.llm, torch.arange(8) + 1)
        texts, n_last = [np.arange(5), np.arange(5, 8)], [2, 1]
        with torch.no_grad(), self._own_type(), contextlib.suppress(*_UNLIKE):
            plain = self.forward(table, texts, n_last, None, gathers_last_layer=False)
            shared = PrefixCache.compute(self.llm, self.prefix)
            for picks in (True, False):
                with contextlib.suppress(*_UNLIKE):
                    found = self.forward(table, texts, n_last, shared, gathers_last_layer=picks)
                    if (found - plain).abs().max() <= RELATIVE_TOLERANCE[self.llm.dtype] * plain.abs().max():
                        return shared, picks
        return None, False

    def _own_type(self) -> torch.autocast:
        """The LLM computes in its own type, as it does when it answers."""
        return torch.autocast(self.llm.device.type, enabled=False)

    def attends_to_all(self, n: int) -> bool:
        """Whether so many positions see all of the prefix, and of themselves: some have a window."""
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
        """`last_states` in a given way: plainly without a shared prefix."""
        if prefix_cache is None:
            own = np.arange(len(self.prefix))
            texts = [np.concatenate([own, text + len(own)]) for text in texts]
            embeddings = torch.cat([embed(self.llm, self.prefix).to(embeddings.dtype), embeddings])
        layout = build_layout(texts, n_last, 0 if prefix_cache is None else ROW_LENGTH)
        place, wanted, index, found = (
            torch.from_numpy(each).to(embeddings.device, non_blocking=True)
            for each in (layout.positions, layout.output_index, layout.embedding_index, layout.gather_index)
        )
        embeds = embeddings.index_select(0, index.flatten()).unflatten(0, layout.shape)  # (R, L, D)
        if prefix_cache is None:
            mask = torch.from_numpy(layout.text_numbers >= 0).to(embeddings.device, non_blocking=True)
            states = self._states(inputs_embeds=embeds, attention_mask=mask.long(), use_cache=False)
            return _rows(states, wanted).flatten(0, 1)[found]
        given = {
            "inputs_embeds": embeds,
            "attention_mask": self._mask(layout, embeddings.device),
            "position_ids": place + len(self.prefix),
            "past_key_values": prefix_cache,
        }
        if not gathers_last_layer or wanted.numel() > MAX_GATHER_RATIO * index.numel():
            return _rows(self._states(**given), wanted).flatten(0, 1)[found]
        with _picking(get_layers(self.llm.base_model)[-1], wanted):
            return self._states(**given).flatten(0, 1)[found]

    def _states(self, **given: Any) -> Float[Tensor, "R _ D"]:
        read: Any = self.llm.base_model(**given)
        return read.last_hidden_state

    def _mask(self, layout: PackedLayout, device: torch.device) -> Tensor:
        """Each position sees the prefix and what stands before it in its own text: (R, 1, L, P + L)."""
        text = torch.from_numpy(layout.text_numbers).to(device, non_blocking=True)
        n_rows, length = layout.shape
        before = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        own = (text[:, :, None] == text[:, None]) & before  # (R, L, L)
        seen = torch.cat([own.new_ones(n_rows, length, len(self.prefix)), own], dim=2)[:, None]
        if self.llm.config.get_text_config(decoder=True)._attn_implementation == "sdpa":
            return seen
        lowest = torch.finfo(self.llm.dtype).min
        return torch.zeros(seen.shape, dtype=self.llm.dtype, device=device).masked_fill(~seen, lowest)


def build_layout(texts: Sequence[Int[np.ndarray, " _"]], n_last: Sequence[int], row: int) -> PackedLayout:
    """Texts put together into rows of about so many positions, one behind the other; 0 for one to a row."""
    shared_out = _shared_out([len(text) for text in texts], row)
    rows, length = shared_out.texts, shared_out.length
    index, place = np.zeros((len(rows), length), np.int64), np.zeros((len(rows), length), np.int64)
    text = np.full((len(rows), length), -1)
    most = max(sum(n_last[number] for number in row) for row in rows)
    wanted = np.zeros((len(rows), most), np.int64)
    found = np.zeros((len(texts), max(n_last)), np.int64)
    for at, numbers in enumerate(rows):
        start = n_wanted = 0
        for number in numbers:
            size, n = len(texts[number]), n_last[number]
            end = start + size
            index[at, start:end], place[at, start:end] = texts[number], np.arange(size)
            text[at, start:end] = number
            wanted[at, n_wanted : n_wanted + n] = np.arange(end - n, end)
            found[number, -n:] = at * most + np.arange(n_wanted, n_wanted + n)
            start, n_wanted = end, n_wanted + n
    return PackedLayout(
        embedding_index=index, positions=place, text_numbers=text, output_index=wanted, gather_index=found
    )


def _shared_out(lengths: Sequence[int], row: int) -> _SharedOut:
    """Which texts stand in which row, so that rows are about as long as each other and little is padding."""
    if not row:
        return _SharedOut([[number] for number in range(len(lengths))], max(lengths))
    longest, total = max(lengths), sum(lengths)
    most_long = max(longest, 3 * row // 2)
    fewest, most = -(-total // most_long), max(1, -(-2 * total // row))
    tried = [_evenly(lengths, n_rows) for n_rows in range(fewest, min(len(lengths), most) + 1)]
    return min(tried, key=lambda rows: (rows.length > most_long, len(rows.texts) * rows.length))


def _evenly(lengths: Sequence[int], n_rows: int) -> _SharedOut:
    """The longest text first, each into the row that is shortest so far."""
    rows: list[list[int]] = [[] for _ in range(n_rows)]
    shortest = [(0, at) for at in range(n_rows)]
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        size, at = heapq.heappop(shortest)
        rows[at].append(number)
        heapq.heappush(shortest, (size + lengths[number], at))
    return _SharedOut(rows, max(size for size, _ in shortest))


@contextlib.contextmanager
def _picking(layer: nn.Module, wanted: Int[Tensor, "R W"]) -> Generator[None]:
    """Within the block a layer gives the wanted positions alone, which attend to all."""
    forward = layer.forward

    def picked(*args: Any, **kwargs: Any) -> Any:
        states = args[0] if args else kwargs["hidden_states"]
        past = next(each for each in (*args, *kwargs.values()) if isinstance(each, Cache))
        every = _AllRows(past)
        length = states.shape[1]

        def pick(thing: Any, wanted: Int[Tensor, "R W"] | None) -> Any:
            if isinstance(thing, Cache):
                return every
            if wanted is None:
                return thing
            if isinstance(thing, tuple):
                return tuple(pick(each, wanted) for each in thing)
            return _picked(thing, wanted, length) if isinstance(thing, Tensor) else thing

        def call(wanted: Int[Tensor, "R W"] | None) -> Any:
            return forward(
                *(pick(each, wanted) for each in args),
                **{name: pick(each, wanted) for name, each in kwargs.items()},
            )

        with contextlib.suppress(_Asked):
            call(None)
        return call(wanted)

    own = vars(layer).get("forward")
    layer.forward = picked
    try:
        yield
    finally:
        if own is None:
            del layer.forward
        else:
            layer.forward = own


def _picked(tensor: Tensor, wanted: Int[Tensor, "R W"], length: int) -> Tensor:
    """The wanted positions of whatever has an axis for them: a mask's third, all others' second."""
    axis = 2 if tensor.ndim == 4 else 1
    if not 2 <= tensor.ndim <= 4 or tensor.shape[axis] != length:
        return tensor
    tensor = tensor.expand(len(wanted), *tensor.shape[1:])
    index = wanted.reshape(len(wanted), *[1] * (axis - 1), -1, *[1] * (tensor.ndim - axis - 1))
    shape = [*tensor.shape]
    shape[axis] = wanted.shape[1]
    return tensor.gather(axis, index.expand(shape))


def _rows(states: Float[Tensor, "B L D"], index: Int[Tensor, "B N"]) -> Float[Tensor, "B N D"]:
    return states.gather(1, index[..., None].expand(-1, -1, states.shape[2]))
