"""Whether an LLM reads embeddings as it reads ids, and any others between them, which audio tokens are: tried out."""

import contextlib
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from ossicle.backbones.causal_lm import (
    compute_logits,
    get_input_embeddings,
    get_tolerance,
    set_logits_by_forward,
)
from ossicle.backbones.model_files import format_one_line
from ossicle.errors import CheckpointError

_IDS = ((1, 2, 3), (1, 2, 0))
_N_PAIRS = 7
"""Pairs of tokens between whose embeddings blends are read, spread over the vocabulary: the first tokens are often all
alike, and rounding then moves states as far as the way from one to the next."""
_STEP = {torch.float32: 1e-3, torch.float16: 5e-3, torch.bfloat16: 2e-2}
"""Distance between two blends, relative to that of the two embeddings, by the LLM's dtype."""
_MAX_JUMP = 0.25
"""Largest change over such a step, relative to that between the two embeddings: those of real LLMs are far smaller."""


@torch.inference_mode()
def check_reads_embeddings(name: str, llm: PreTrainedModel) -> None:
    """Refuses an LLM that reads embeddings differently from ids, recovers ids from them, or looks ahead.

    Raises:
        CheckpointError: with the reason, in one line
    """
    ids = torch.tensor(_IDS, device=llm.device)
    try:
        by_ids = llm(input_ids=ids).logits.float()
        embeds = get_input_embeddings(llm)(ids)
        by_embeds = llm(inputs_embeds=embeds).logits.float()
        d_states = llm.base_model(inputs_embeds=embeds[:1]).last_hidden_state.shape[2]
    except Exception as error:
        raise CheckpointError(
            f"LLM {name!r} cannot be given embeddings ({format_one_line(error)}), expected one whose layers need"
            " nothing else"
        ) from error
    if not bool(by_ids.isfinite().all()):
        raise CheckpointError(
            f"LLM {name!r} gives numbers that are not finite in {str(llm.dtype).removeprefix('torch.')}: expected an"
            " undamaged LLM, in a dtype that holds its values (--dtype bfloat16 or float32)"
        )
    tolerance = get_tolerance(llm) * float(by_ids.abs().max())
    if d_states != embeds.shape[2] or not (by_ids - by_embeds).abs().max() <= tolerance:
        raise CheckpointError(
            f"LLM {name!r} does not read embeddings as it reads ids (its layers use the ids, too), so it"
            " cannot hear: expected one whose layers need nothing else"
        )
    if (by_ids[0, :2] - by_ids[1, :2]).abs().max() > tolerance:
        raise CheckpointError(
            f"LLM {name!r} reads in both directions, expected a causal LM, which never looks ahead"
        )
    _check_reads_blends(name, llm)
    _choose_logits(name, llm, by_embeds, embeds)


@torch.inference_mode()
def find_logits(name: str, llm: PreTrainedModel) -> None:
    """Finds out how the logits are computed of an LLM that was checked before, at a third of the check's cost.

    Raises:
        CheckpointError: as `check_reads_embeddings`
    """
    embeds = get_input_embeddings(llm)(torch.tensor(_IDS, device=llm.device))
    _choose_logits(name, llm, llm(inputs_embeds=embeds).logits.float(), embeds)


def _check_reads_blends(name: str, llm: PreTrainedModel) -> None:
    """Refuses an LLM that looks up which token an embedding is: audio tokens are none.

    Where ids are recovered, by equality or as the nearest one, the logits jump from one blend to the next.
    """
    table, step = get_input_embeddings(llm), _STEP[llm.dtype]
    weights = torch.tensor(
        [0, step, 0.5 - step / 2, 0.5 + step / 2, 1], device=llm.device, dtype=torch.float32
    )
    low, high = (table(ids.to(llm.device)) for ids in _choose_pairs(table.num_embeddings))
    blends = torch.lerp(low[:, None].float(), high[:, None].float(), weights[:, None]).to(
        low.dtype
    )  # (P, 5, D)
    context = table(torch.tensor([1, 3], device=llm.device)).expand(*blends.shape[:2], 2, -1)
    rows = torch.cat([context[:, :, :1], blends[:, :, None], context[:, :, 1:]], 2).flatten(0, 1)
    try:
        states = llm.base_model(inputs_embeds=rows).last_hidden_state[:, -1].float()
    except Exception as error:
        raise CheckpointError(
            f"LLM {name!r} looks up which token an embedding is, and audio tokens are none"
            f" ({format_one_line(error)}): expected one whose layers need the embeddings alone"
        ) from error
    if _find_jumps(states.unflatten(0, blends.shape[:2])).float().mean() >= 0.5:
        raise CheckpointError(
            f"LLM {name!r} looks up which token an embedding is, and audio tokens are none: expected one whose"
            " layers need the embeddings alone"
        )


def _choose_pairs(n_tokens: int) -> tuple[Int[Tensor, " P"], Int[Tensor, " P"]]:
    """Returns the first and the second tokens of the pairs."""
    ids = torch.linspace(0, n_tokens - 1, _N_PAIRS + 3).long()[1:-1]  # without the ends, which may be padding
    return ids[:-1], ids[1:]


def _find_jumps(states: Float[Tensor, "P 5 D"]) -> Bool[Tensor, " P"]:
    """Whether the states of each pair change more over a small step than a continuous function would."""
    low, after_low, before_middle, after_middle, high = states.unbind(1)
    jump = torch.maximum((after_low - low).norm(dim=1), (after_middle - before_middle).norm(dim=1))
    return ~(jump <= _MAX_JUMP * (high - low).norm(dim=1))


def _choose_logits(
    name: str,
    llm: PreTrainedModel,
    logits: Float[Tensor, "B L V"],
    embeds: Float[Tensor, "B L D"],
) -> None:
    """Finds out how an LLM's logits are computed from its states, for `compute_logits`.

    Raises:
        CheckpointError: in no known way
    """
    states: Any = llm.base_model(inputs_embeds=embeds).last_hidden_state
    tolerance = get_tolerance(llm) * float(logits.abs().max())
    for is_by_forward in (False, True):
        with contextlib.suppress(Exception):
            set_logits_by_forward(llm, is_by_forward)
            if (compute_logits(llm, states).float() - logits).abs().max() <= tolerance:
                return
    raise CheckpointError(
        f"LLM {name!r} computes logits from more than its final hidden states, expected a head on top of them"
    )
