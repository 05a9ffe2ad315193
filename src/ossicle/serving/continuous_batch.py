"""Answers decoded side by side, which join and leave between two tokens; it knows embeddings and tokens, no requests.

transformers' continuous batching takes ids alone (5.23), and its generate takes no newcomers. What is left to do is
small: every row ends at the same position, a newcomer is read by itself and laid beside the others, a row that has
ended is taken out. The LLM is called as in any other batch that is padded to the left.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedModel

from ossicle.backbones.causal_lm import RELATIVE_TOLERANCE, compute_logits, embed
from ossicle.errors import CheckpointError


class ContinuousBatch:
    """Rows in the middle of being answered; each is computed as it would be alone."""

    def __init__(self, llm: PreTrainedModel) -> None:
        self.llm = llm
        self.cache = DynamicCache()  # with no config it keeps all positions: windows are the mask's business
        self.lengths: list[int] = []
        """Positions of each row so far."""

    def __len__(self) -> int:
        return len(self.lengths)

    @torch.inference_mode()
    def add(self, prompts: Sequence[Float[Tensor, "_ D"]]) -> Float[Tensor, "B V"]:
        """Takes prompts in as the last rows; the logits of their first tokens."""
        lengths = [len(prompt) for prompt in prompts]
        longest = max(lengths)
        embeds = torch.stack([pad(prompt, (0, 0, longest - len(prompt), 0)) for prompt in prompts])
        places = torch.arange(longest) - (longest - torch.tensor(lengths))[:, None]
        cache, logits = self._read(embeds, DynamicCache(), lengths, places.clamp(min=0))
        self.cache = _beside(self.cache, cache) if self.lengths else cache
        self.lengths += lengths
        return logits

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> Float[Tensor, "B V"]:
        """Takes the next token of every row in; the logits of those that follow."""
        places = torch.tensor(self.lengths)[:, None]
        self.lengths = [n + 1 for n in self.lengths]
        embeds = embed(self.llm, list(tokens))[:, None]
        self.cache, logits = self._read(embeds, self.cache, self.lengths, places)
        return logits

    @torch.inference_mode()
    def keep(self, rows: Sequence[int]) -> None:
        """Takes all other rows out, and the room that only they needed."""
        if len(rows) == len(self.lengths):
            return
        self.lengths = [self.lengths[row] for row in rows]
        longest = max(self.lengths, default=0)
        picked = torch.tensor(list(rows), dtype=torch.long, device=self.llm.device)
        self.cache = (
            _mapped(lambda states: _last(states[picked], longest), self.cache) if rows else DynamicCache()
        )

    def _read(
        self,
        embeds: Float[Tensor, "B L D"],
        cache: DynamicCache,
        lengths: Sequence[int],
        places: Int[Tensor, "B L"],
    ) -> tuple[DynamicCache, Float[Tensor, "B V"]]:
        longest = max(lengths)
        mask = torch.arange(longest) >= longest - torch.tensor(lengths)[:, None]
        device = self.llm.device
        read: Any = self.llm.base_model(
            inputs_embeds=embeds,
            attention_mask=mask.long().to(device),
            position_ids=places.to(device),
            past_key_values=cache,
            use_cache=True,
        )
        return read.past_key_values, compute_logits(self.llm, read.last_hidden_state[:, -1])


def _beside(first: DynamicCache, then: DynamicCache) -> DynamicCache:
    """The rows of two caches as those of one, ending together."""
    longest = max(first.get_seq_length(), then.get_seq_length())
    return _mapped(lambda *states: torch.cat([_ending_at(longest, one) for one in states]), first, then)


def _mapped(call: Callable[..., Tensor], *caches: Any) -> DynamicCache:
    """What `call` makes of the keys and of the values in each layer."""
    made = DynamicCache()
    for number, layers in enumerate(zip(*(cache.layers for cache in caches), strict=True)):
        keys = call(*(layer.keys for layer in layers))
        made.update(keys, call(*(layer.values for layer in layers)), number)
    return made


def _ending_at(longest: int, states: Float[Tensor, "B H L K"]) -> Float[Tensor, "B H _ K"]:
    return pad(states, (0, 0, longest - states.shape[2], 0))


def _last(states: Float[Tensor, "B H L K"], n: int) -> Float[Tensor, "B H _ K"]:
    return states[:, :, states.shape[2] - n :]


@torch.inference_mode()
def supports_continuous_batching(llm: PreTrainedModel) -> bool:
    """Whether an LLM's rows are the same in company as alone: tried, as not every family keeps keys and values alone.

    Raises:
        CheckpointError: not even alone
    """
    texts = [[1, 2, 3, 2, 1], [2, 1], [3, 3, 1, 2, 2, 1, 3]]
    alone = [[_logits(llm, text), _logits(llm, [*text, 1])] for text in texts]
    same = RELATIVE_TOLERANCE[llm.dtype] * max(float(logits.abs().max()) for pair in alone for logits in pair)

    def is_same(found: Tensor, row: int, step: int) -> bool:
        return bool((found - alone[row][step]).abs().max() <= same)

    try:
        by_itself = ContinuousBatch(llm)
        first, then = by_itself.add([embed(llm, texts[2])]), by_itself.step([1])
        if not (is_same(first[0], 2, 0) and is_same(then[0], 2, 1)):
            raise CheckpointError(
                "this LLM does not go on from its keys and values as it reads the whole, so it cannot be served from"
                " here: serve it with vLLM and use --engine vllm"
            )
        batch = ContinuousBatch(llm)
        joined = [batch.add([embed(llm, text)])[0] for text in texts[:2]]
        both = batch.step([1, 1])
        last = batch.add([embed(llm, texts[2])])[0]
        batch.keep([1, 2])
        after = batch.step([1, 1])
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, NotImplementedError):
        return False
    is_right = [is_same(joined[row], row, 0) and is_same(both[row], row, 1) for row in (0, 1)]
    twice = _logits(llm, [*texts[1], 1, 1])
    return (
        all(is_right)
        and is_same(last, 2, 0)
        and is_same(after[1], 2, 1)
        and bool((after[0] - twice).abs().max() <= same)
    )


def _logits(llm: PreTrainedModel, ids: Sequence[int]) -> Float[Tensor, " V"]:
    """Of the token after a text that is read whole."""
    read: Any = llm.base_model(inputs_embeds=embed(llm, list(ids))[None], use_cache=False)
    return compute_logits(llm, read.last_hidden_state[0, -1])
