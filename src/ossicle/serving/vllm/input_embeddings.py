"""What the LLM's first layer is given for ids, be the LLM here or elsewhere."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from jaxtyping import Float
from torch import Tensor

from ossicle.backbones.causal_lm import get_input_embeddings
from ossicle.backbones.embedding_table import open_embedding_table
from ossicle.ear import Ear

EmbedIds: TypeAlias = Callable[[Sequence[int]], Float[Tensor, "T D"]]


def input_embeddings(ear: Ear) -> EmbedIds:
    """The LLM's input embeddings by id: its own where it is here, else those in its files.

    Raises:
        CheckpointError: an outline of an LLM, in whose files the table is not found
    """
    if not get_input_embeddings(ear.llm).weight.is_meta:
        return lambda ids: ear.embed(ids)
    return open_embedding_table(ear.llm, ear.settings.base.llm, ear.settings.base.llm_revision)
