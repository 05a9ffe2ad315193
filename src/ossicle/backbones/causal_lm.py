"""What every causal LM of transformers has, under one name: input embeddings, layers, logits, ids that end an answer.

It takes an LLM that is already loaded, and knows neither where it came from nor what it is asked.
"""

import copy
import weakref
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutputWithPast

_RELATIVE_TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_QUANTIZED_TOLERANCE = 5e-2
CACHE_NAME = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"
"""The name of the key-value cache in the arguments and outputs of models: transformers renamed it in 5.24."""


def get_tolerance(llm: PreTrainedModel) -> float:
    """Returns the largest relative difference between two equivalent computations; real errors are far larger."""
    is_quantized = getattr(llm, "is_quantized", False)
    return _QUANTIZED_TOLERANCE if is_quantized else _RELATIVE_TOLERANCE[llm.dtype]


def get_input_embeddings(llm: PreTrainedModel) -> nn.Embedding:
    """Returns the LLM's table of input embeddings; calling it scales them where the family does.

    Raises:
        TypeError: the input embeddings are not an `nn.Embedding`
    """
    table = llm.get_input_embeddings()
    if not isinstance(table, nn.Embedding):
        raise TypeError(f"the LLM's input embeddings are a {type(table).__name__}, expected an Embedding")
    return table


def embed(llm: PreTrainedModel, ids: Any) -> Float[Tensor, "... D"]:
    """Returns the input embeddings of ids as the first layer takes them, with any scaling of the family."""
    table = get_input_embeddings(llm)
    return table(torch.as_tensor(ids, dtype=torch.long, device=table.weight.device))


def get_layers(model: nn.Module) -> nn.ModuleList:
    """Returns the `ModuleList` that holds most of a model's weights: its layers, whatever the family calls them."""

    def count_weights(layers: nn.ModuleList) -> int:
        return sum(weight.numel() for weight in layers.parameters())

    return max((module for module in model.modules() if isinstance(module, nn.ModuleList)), key=count_weights)


def compute_logits(llm: PreTrainedModel, states: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
    """Returns the next-token logits of final hidden states: the head, then the scaling of Gemma, Cohere and Granite.

    An LLM that computes them in another way does it by its own forward; see `set_logits_by_forward`.
    """
    if llm in _LOGITS_BY_FORWARD:
        return _compute_logits_by_forward(llm, states)
    head = llm.get_output_embeddings()
    assert head is not None, "a causal LM has a head"
    logits = head(states)
    config = llm.config.get_text_config(decoder=True)
    logits = (
        logits
        * (getattr(config, "logit_scale", None) or 1.0)
        / (getattr(config, "logits_scaling", None) or 1.0)
    )
    cap = getattr(config, "final_logit_softcapping", None)
    return torch.tanh(logits / cap) * cap if cap else logits


_LOGITS_BY_FORWARD: "weakref.WeakSet[PreTrainedModel]" = weakref.WeakSet()


def set_logits_by_forward(llm: PreTrainedModel, is_by_forward: bool) -> None:
    """Says whether an LLM's logits are those of its own forward, with the states in place of its body's."""
    (_LOGITS_BY_FORWARD.add if is_by_forward else _LOGITS_BY_FORWARD.discard)(llm)


class _GivenStates(nn.Module):
    """A body that returns the states that it is given as embeddings."""

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> Any:
        return _BodyOutput(last_hidden_state=inputs_embeds)


class _BodyOutput(BaseModelOutputWithPast):
    """Final states; what else some families ask their body for is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def _compute_logits_by_forward(
    llm: PreTrainedModel, states: Float[Tensor, "... D"]
) -> Float[Tensor, "... V"]:
    head: Any = copy.copy(llm)
    head._modules = {**llm._modules, llm.base_model_prefix: _GivenStates()}
    rows = states.reshape(1, -1, states.shape[-1])
    return head(inputs_embeds=rows, use_cache=False).logits.reshape(*states.shape[:-1], -1)


def get_eos_ids(llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns the ids that end an answer: those of the generation config, else the tokenizer's; may be empty."""
    return to_id_list(llm.generation_config.eos_token_id) or to_id_list(tokenizer.eos_token_id)


def to_id_list(ids: Any) -> list[int]:
    """Returns one id, several or none as a list, as transformers' configs hold any of the three.

    What is no id is left out: configs are written by hand, too.
    """
    several = ids if isinstance(ids, list | tuple) else [ids]
    return [id_ for id_ in several if isinstance(id_, int) and not isinstance(id_, bool) and id_ >= 0]


def extract_causal_lm(model: PreTrainedModel) -> PreTrainedModel:
    """Returns the LLM inside a vision-language model as a model of its own, with the same weights; any other unchanged.

    The vision part is not needed, and transformers generates from embeddings with the LLM alone.
    """
    config = model.config.get_text_config(decoder=True)
    if config is model.config or type(config) not in AutoModelForCausalLM._model_mapping:
        return model
    with torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(config)
    decoder = model.get_decoder()
    if type(decoder) is not type(llm.base_model):
        return model
    setattr(llm, llm.base_model_prefix, decoder)
    llm.set_output_embeddings(model.get_output_embeddings())
    llm.generation_config = model.generation_config
    llm.config._commit_hash = getattr(model.config, "_commit_hash", None)
    return llm.requires_grad_(False).eval()
