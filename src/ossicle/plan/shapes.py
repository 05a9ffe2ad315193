"""The three models of an ear as shapes without weights, from their configs alone."""

import copy
from dataclasses import dataclass
from typing import Any

import torch

from ossicle.backbones.causal_lm import get_input_embeddings
from ossicle.backbones.pretrained import build_meta_llm, build_meta_whisper, load_tokenizer
from ossicle.chat.template import ChatTemplate
from ossicle.config import ConnectorSettings, Recipe
from ossicle.connectors import Connector, build_connector
from ossicle.connectors.vocabulary_head import SharedVocabulary
from ossicle.connectors.vocabulary_overlap import match_tokens
from ossicle.ear import Ear
from ossicle.errors import CheckpointError

ASSUMED_PREFIX, ASSUMED_SUFFIX = 25, 5
"""Tokens of a chat template before and after what is said, where no tokenizer tells: with a short system prompt."""
_LONGEST_PROMPT = 4
"""Of a Whisper: the start, the language, the task and that no times are wanted."""


@dataclass(frozen=True, kw_only=True)
class ModelShapes:
    """Encoder, connector and LLM on the meta device: every operation has its shapes, none is computed."""

    whisper: Any
    """The whole Whisper, as it is loaded: the encoder listens, its decoder only starts the connector."""
    llm: Any
    connector: Connector
    n_prefix: int
    n_suffix: int
    is_frame_known: bool
    """Whether the chat template was read, or its length assumed."""
    shares_prefix: bool = True
    """Whether the LLM can be read behind a prefix computed once; most can."""
    picks: bool = True
    """Whether its last layer can be left out where no states are wanted; most can."""

    @property
    def encoder(self) -> Any:
        """What hears."""
        return self.whisper.model.encoder

    @property
    def settings(self) -> ConnectorSettings:
        """Of the connector."""
        return self.connector.settings

    @property
    def shared(self) -> SharedVocabulary | None:
        """What the connector knows of both vocabularies."""
        return self.connector.vocabulary_shapes

    @property
    def n_prompt(self) -> int:
        """Rows of the connector's decoder before the first slot."""
        return self.connector.n_prompt

    @property
    def d_encoder(self) -> int:
        """E."""
        return self.whisper.config.d_model

    @property
    def d_llm(self) -> int:
        """D."""
        return get_input_embeddings(self.llm).embedding_dim

    @property
    def n_vocabulary(self) -> int:
        """V."""
        return get_input_embeddings(self.llm).num_embeddings

    @property
    def window_positions(self) -> int:
        """Encoder positions of the full window."""
        return self.whisper.config.max_source_positions

    @property
    def n_frame(self) -> int:
        """Positions of the LLM's sequence around what is said."""
        return self.n_prefix + self.n_suffix


def read_shapes(recipe: Recipe, n_frame: int | None = None) -> ModelShapes:
    """The shapes of a recipe's models: of each base no more than the config is needed, no weight is read.

    Args:
        n_frame: tokens of the chat template around what is said; read from the tokenizer, where there is one, if
            not given

    Raises:
        CheckpointError: a base that cannot be found or is of the wrong kind
        ConfigError: connector settings that do not fit the encoder
    """
    base = recipe.base
    try:
        whisper = build_meta_whisper(base.encoder, base.encoder_revision)
        llm = build_meta_llm(base.llm, base.llm_revision)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error} (a plan needs nothing but its config.json: a folder with that alone will do, named by"
            " --base.encoder or --base.llm)"
        ) from error
    n_prefix, n_suffix, is_known = _frame(recipe, n_frame)
    shared, d_llm = _shared(recipe, whisper, llm), get_input_embeddings(llm).embedding_dim
    return ModelShapes(
        whisper=whisper,
        llm=llm,
        connector=build_meta_connector(whisper.config, recipe.connector, d_llm, shared),
        n_prefix=n_prefix,
        n_suffix=n_suffix,
        is_frame_known=is_known,
    )


def _frame(recipe: Recipe, n_frame: int | None) -> tuple[int, int, bool]:
    """Tokens before and after what is said, and whether a tokenizer told."""
    if n_frame is not None:
        n_suffix = min(ASSUMED_SUFFIX, n_frame)
        return n_frame - n_suffix, n_suffix, False
    try:
        frame = ChatTemplate(load_tokenizer(recipe.base.llm, recipe.base.llm_revision), recipe.prompt).frame
    except CheckpointError:
        return ASSUMED_PREFIX, ASSUMED_SUFFIX, False
    return len(frame.prefix), len(frame.suffix), True


def build_shapes(ear: Ear) -> ModelShapes:
    """The shapes of an ear that is there, whatever its weights are rounded to or spread over."""
    with torch.device("meta"):
        whisper = type(ear.whisper.model)(copy.deepcopy(ear.whisper.config))
        llm = type(ear.llm)(copy.deepcopy(ear.llm.config))
    frame, d_llm = ear.template.frame, get_input_embeddings(llm).embedding_dim
    shared = ear.connector.vocabulary_shapes
    return ModelShapes(
        whisper=whisper.bfloat16().requires_grad_(False).eval(),
        llm=llm.bfloat16().requires_grad_(False).eval(),
        connector=build_meta_connector(whisper.config, ear.settings.connector, d_llm, shared),
        n_prefix=len(frame.prefix),
        n_suffix=len(frame.suffix),
        is_frame_known=True,
        shares_prefix=ear.packed_llm.prefix_cache is not None,
        picks=ear.packed_llm.gathers_last_layer,
    )


def _shared(recipe: Recipe, whisper: Any, llm: Any) -> SharedVocabulary | None:
    """What the connector knows; where no tokenizers tell, all that the smaller vocabulary has."""
    base, n_rows = recipe.base, get_input_embeddings(llm).num_embeddings
    if not recipe.connector.uses_shared_vocabulary:
        return None
    try:
        recogniser = load_tokenizer(base.encoder, base.encoder_revision)
        tokenizer = load_tokenizer(base.llm, base.llm_revision)
    except CheckpointError:
        n_words = min(whisper.config.vocab_size, n_rows)
    else:
        n_words = len(match_tokens(recogniser, tokenizer, n_rows))
    if not n_words:
        return None
    return SharedVocabulary.empty(
        n_words=n_words,
        n_others=whisper.config.vocab_size - n_words,
        n_prompt=_LONGEST_PROMPT,
        n_languages=0,
        d_encoder=whisper.config.d_model,
        d_llm=get_input_embeddings(llm).embedding_dim,
    )


def build_meta_connector(
    whisper: Any, settings: ConnectorSettings, d_llm: int, shared: SharedVocabulary | None
) -> Connector:
    """A connector's shapes for a Whisper of that config."""
    with torch.device("meta"):
        return build_connector(whisper, settings, d_llm, shared).train()
