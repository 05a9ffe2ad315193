"""How an LLM can be run, found once by trying it on a few tokens: no family is known by name."""

import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from ossicle.backbones.causal_lm import embed, get_tolerance
from ossicle.backbones.embeds_generation import Decoding, generate_from_embeds
from ossicle.backbones.generation_defaults import with_usual_defaults

_PROMPTS = [[1, 2, 3, 2, 1, 3, 3], [2, 1, 3]]
_N_NEW = 3


@dataclass(frozen=True)
class LlmTraits:
    """How an LLM answers prompts of embeddings."""

    decoding: Decoding
    is_batchable: bool
    """Whether a row that is padded on the left gets the logits that it gets alone."""


_FOUND: "weakref.WeakKeyDictionary[PreTrainedModel, LlmTraits]" = weakref.WeakKeyDictionary()


def find_traits(llm: PreTrainedModel) -> LlmTraits:
    """Returns how an LLM can be run; it is tried out once for each LLM.

    A way of running it is right if all logits equal those of one forward without a cache, alone and unpadded. If none
    is, each token is computed by such a forward.
    """
    if llm not in _FOUND:
        _FOUND[llm] = _try_out(llm)
    return _FOUND[llm]


def _try_out(llm: PreTrainedModel) -> LlmTraits:
    llm = with_usual_defaults(llm)
    llm._forward_pre_hooks, llm._forward_hooks = (
        OrderedDict(),
        OrderedDict(),
    )  # nobody asked for these forwards
    ways: tuple[Decoding, ...] = ("generate", "substitute")
    for decoding in ways:
        if _is_right(llm, decoding, _PROMPTS):
            return LlmTraits(decoding, is_batchable=True)
        if all(_is_right(llm, decoding, [prompt]) for prompt in _PROMPTS):
            return LlmTraits(decoding, is_batchable=False)
    return LlmTraits("recompute", is_batchable=False)


@torch.inference_mode()
def _is_right(llm: PreTrainedModel, decoding: Decoding, prompts: Sequence[Sequence[int]]) -> bool:
    """Whether the logits of generated tokens equal those without a cache and without padding."""
    longest = max(map(len, prompts))
    rows = [[prompt[0]] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    ids, device = torch.tensor(rows, device=llm.device), llm.device
    try:
        output: Any = generate_from_embeds(
            llm,
            decoding,
            ids=ids,
            embeds=embed(llm, ids),
            mask=torch.tensor(mask, device=device),
            max_new_tokens=_N_NEW,
            do_sample=False,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
        )
    except Exception:  # a family may fail in any way: it is run in another one
        return False
    found = torch.stack(output.logits, 1).float()  # (B, new, V)
    new_ids = output.sequences[:, -_N_NEW:].tolist()
    return all(
        _is_close(
            found[row], _compute_logits(llm, [*prompt, *new_ids[row]])[-_N_NEW - 1 : -1], get_tolerance(llm)
        )
        for row, prompt in enumerate(prompts)
    )


def _is_close(found: Float[Tensor, "N V"], expected: Float[Tensor, "N V"], tolerance: float) -> bool:
    largest = tolerance * float(expected.abs().max())
    return found.shape == expected.shape and bool((found - expected).abs().max() <= largest)


def _compute_logits(llm: PreTrainedModel, ids: Sequence[int]) -> Float[Tensor, "L V"]:
    return llm(inputs_embeds=embed(llm, [list(ids)]), use_cache=False).logits[0].float()
