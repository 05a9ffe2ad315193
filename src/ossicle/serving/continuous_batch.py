"""A batch of completions that are added and evicted between two tokens; it knows embeddings and tokens, no requests.

transformers' own continuous batching takes ids alone (5.23), and its generate adds nothing to a running batch. The rest
is small: all rows end at the same position, new rows are computed in a batch of their own and then concatenated, and
finished rows are evicted. The LLM is called as for any batch that is padded on the left.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedModel

from ossicle.backbones.causal_lm import CACHE_NAME, compute_logits, embed, get_tolerance


class ContinuousBatch:
    """The rows that are being decoded; each is computed as it would be alone."""

    def __init__(self, llm: PreTrainedModel) -> None:
        self.llm = llm
        self.cache = (
            DynamicCache()
        )  # without a config it keeps all positions; the mask handles sliding windows
        self.lengths: list[int] = []
        """Number of positions of each row so far."""

    def __len__(self) -> int:
        return len(self.lengths)

    @torch.inference_mode()
    def add(self, prompts: Sequence[Float[Tensor, "_ D"]]) -> Float[Tensor, "B V"]:
        """Adds prompts as the last rows and returns the logits of their first tokens."""
        lengths = [len(prompt) for prompt in prompts]
        longest = max(lengths)
        embeds = torch.stack([pad(prompt, (0, 0, longest - len(prompt), 0)) for prompt in prompts])
        positions = torch.arange(longest) - (longest - torch.tensor(lengths))[:, None]
        cache, logits = self._forward(embeds, DynamicCache(), lengths, positions.clamp(min=0))
        self.cache = _concatenate(self.cache, cache) if self.lengths else cache
        self.lengths += lengths
        return logits

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> Float[Tensor, "B V"]:
        """Appends the next token of every row and returns the logits of the token after it."""
        positions = torch.tensor(self.lengths)[:, None]
        self.lengths = [n + 1 for n in self.lengths]
        embeds = embed(self.llm, list(tokens))[:, None]
        self.cache, logits = self._forward(embeds, self.cache, self.lengths, positions)
        return logits

    @torch.inference_mode()
    def evict(self, rows: Collection[int]) -> None:
        """Removes rows, and the padding that only they needed; the others keep their order."""
        if not rows:
            return
        kept = [row for row in range(len(self.lengths)) if row not in rows]
        self.lengths = [self.lengths[row] for row in kept]
        longest = max(self.lengths, default=0)
        index = torch.tensor(kept, dtype=torch.long, device=self.llm.device)
        self.cache = (
            _map_cache(lambda states: _keep_last(states[index], longest), self.cache)
            if kept
            else DynamicCache()
        )

    def _forward(
        self,
        embeds: Float[Tensor, "B L D"],
        cache: DynamicCache,
        lengths: Sequence[int],
        positions: Int[Tensor, "B L"],
    ) -> tuple[DynamicCache, Float[Tensor, "B V"]]:
        longest = max(lengths)
        mask = torch.arange(longest) >= longest - torch.tensor(lengths)[:, None]
        device = self.llm.device
        output: Any = self.llm.base_model(
            inputs_embeds=embeds,
            attention_mask=mask.long().to(device),
            position_ids=positions.to(device),
            use_cache=True,
            **{CACHE_NAME: cache},
        )
        return getattr(output, CACHE_NAME), compute_logits(self.llm, output.last_hidden_state[:, -1])


def _concatenate(first: DynamicCache, second: DynamicCache) -> DynamicCache:
    """Returns one cache with the rows of both, which end at the same position."""
    longest = max(first.get_seq_length(), second.get_seq_length())
    return _map_cache(lambda *states: torch.cat([_pad_left(one, longest) for one in states]), first, second)


def _map_cache(transform: Callable[..., Tensor], *caches: Any) -> DynamicCache:
    """Returns a cache of the transformed keys and values of each layer."""
    result = DynamicCache()
    for index, layers in enumerate(zip(*(cache.layers for cache in caches), strict=True)):
        keys = transform(*(layer.keys for layer in layers))
        result.update(keys, transform(*(layer.values for layer in layers)), index)
    return result


def _pad_left(states: Float[Tensor, "B H L K"], length: int) -> Float[Tensor, "B H _ K"]:
    return pad(states, (0, 0, length - states.shape[2], 0))


def _keep_last(states: Float[Tensor, "B H L K"], n: int) -> Float[Tensor, "B H _ K"]:
    return states[:, :, states.shape[2] - n :]


@torch.inference_mode()
def supports_continuous_batching(llm: PreTrainedModel) -> bool:
    """Whether an LLM computes a row in a batch as it computes it alone.

    It is tried out, because some families keep more than keys and values.
    """
    texts = [[1, 2, 3, 2, 1], [2, 1], [3, 3, 1, 2, 2, 1, 3]]
    expected = [[_compute_logits(llm, text), _compute_logits(llm, [*text, 1])] for text in texts]
    scale = max(float(logits.abs().max()) for pair in expected for logits in pair)
    tolerance = get_tolerance(llm) * scale

    def is_expected(logits: Tensor, row: int, step: int) -> bool:
        return bool((logits - expected[row][step]).abs().max() <= tolerance)

    try:
        single = ContinuousBatch(llm)
        first, second = single.add([embed(llm, texts[2])]), single.step([1])
        if not (is_expected(first[0], 2, 0) and is_expected(second[0], 2, 1)):
            return False
        batch = ContinuousBatch(llm)
        added = [batch.add([embed(llm, text)])[0] for text in texts[:2]]
        stepped = batch.step([1, 1])
        last = batch.add([embed(llm, texts[2])])[0]
        batch.evict({0})
        after_evict = batch.step([1, 1])
    except Exception:  # a family may fail in any way
        return False
    are_expected = [is_expected(added[row], row, 0) and is_expected(stepped[row], row, 1) for row in (0, 1)]
    two_steps = _compute_logits(llm, [*texts[1], 1, 1])
    return (
        all(are_expected)
        and is_expected(last, 2, 0)
        and is_expected(after_evict[1], 2, 1)
        and bool((after_evict[0] - two_steps).abs().max() <= tolerance)
    )


def _compute_logits(llm: PreTrainedModel, ids: Sequence[int]) -> Float[Tensor, " V"]:
    """Returns the logits of the token after a text, computed without a cache."""
    output: Any = llm.base_model(inputs_embeds=embed(llm, list(ids))[None], use_cache=False)
    return compute_logits(llm, output.last_hidden_state[0, -1])
