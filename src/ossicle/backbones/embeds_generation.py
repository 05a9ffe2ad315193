"""transformers' generate from prompt embeddings, for every class of LLM.

Some classes take no embeddings there, and some compute other tokens with their cache than without it. Both are answered
by the same generate, on a copy of the model that shares all weights and prepares its inputs differently.
"""

import copy
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from ossicle.backbones.causal_lm import embed

Decoding = Literal["generate", "substitute", "recompute"]
"""How the tokens of an answer are computed. generate: by the class's own inputs; substitute: the embeddings take the
place of the prompt's ids in the first step; recompute: prompt and answer are read again for each token, without a cache
and one prompt at a time."""


def generate_from_embeds(
    llm: PreTrainedModel,
    decoding: Decoding,
    *,
    ids: Int[Tensor, "B L"],
    embeds: Float[Tensor, "B L D"],
    mask: Int[Tensor, "B L"],
    **options: Any,
) -> Any:
    """Returns what the LLM's generate returns for prompts of embeddings: the prompt's ids, and the new ones behind."""
    inputs = {"input_ids": ids, "attention_mask": mask}
    if decoding == "generate":
        return llm.generate(**inputs, inputs_embeds=embeds, **options)  # ty: ignore[not-callable]
    generator: Any = copy.copy(llm)
    if decoding == "recompute":
        generator.forward = _build_recomputing_forward(llm, embeds)
        generator.prepare_inputs_for_generation = lambda input_ids, **_: {"input_ids": input_ids}
        return generator.generate(input_ids=ids, **{**options, "use_cache": False})

    def prepare_inputs(input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
        prepared = llm.prepare_inputs_for_generation(input_ids, **kwargs)  # ty: ignore[not-callable]
        if kwargs.get("is_first_iteration"):
            prepared |= {"input_ids": None, "inputs_embeds": _expand(embeds, len(input_ids))}
        return prepared

    generator.prepare_inputs_for_generation = prepare_inputs
    return generator.generate(**inputs, **options)


def _build_recomputing_forward(llm: PreTrainedModel, embeds: Float[Tensor, "B L D"]) -> Any:
    def forward(input_ids: Tensor, **_: Any) -> CausalLMOutput:
        prompts = _expand(embeds, len(input_ids))
        new = embed(llm, input_ids[:, embeds.shape[1] :]).to(embeds.dtype)
        logits = llm(inputs_embeds=torch.cat([prompts, new], 1), use_cache=False).logits
        return CausalLMOutput(logits=logits[:, -1:])

    return forward


def _expand(embeds: Float[Tensor, "B L D"], n_rows: int) -> Float[Tensor, "R L D"]:
    """Repeats each prompt for its beams."""
    return embeds.repeat_interleave(n_rows // len(embeds), 0)
