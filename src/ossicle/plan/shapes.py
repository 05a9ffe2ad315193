"""Builds the three models of an ear on the meta device, without weights, from their configs alone."""

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
"""Assumed template tokens before and after the user's content, if no tokenizer is available: a short system prompt."""
_MAX_WHISPER_PROMPT = 4
"""Most tokens of a Whisper prompt: the start, the language, the task and "no timestamps"."""


@dataclass(frozen=True, kw_only=True)
class ModelShapes:
    """Encoder, connector and LLM on the meta device: operations have shapes, and nothing is computed."""

    whisper: Any
    """The whole Whisper, as it is loaded; its decoder is only used to initialize the connector."""
    llm: Any
    connector: Connector
    n_prefix: int
    n_suffix: int
    is_template_known: bool
    """Whether the chat template was read from the tokenizer; otherwise its length is assumed."""
    can_share_prefix: bool = True
    """Whether the LLM can run after a prefix that is computed once; most can."""
    can_gather_last_layer: bool = True
    """Whether the LLM's last layer can be computed at selected positions only; most can."""

    @property
    def encoder(self) -> Any:
        """The speech encoder."""
        return self.whisper.model.encoder

    @property
    def settings(self) -> ConnectorSettings:
        """The connector's settings."""
        return self.connector.settings

    @property
    def vocabulary(self) -> SharedVocabulary | None:
        """The vocabulary that encoder and LLM share, if the connector uses it."""
        return self.connector.vocabulary_shapes

    @property
    def n_prompt(self) -> int:
        """Positions of the connector's decoder before the first slot."""
        return self.connector.n_prompt

    @property
    def d_encoder(self) -> int:
        """Width of the encoder, E."""
        return self.whisper.config.d_model

    @property
    def d_llm(self) -> int:
        """Width of the LLM, D."""
        return get_input_embeddings(self.llm).embedding_dim

    @property
    def n_vocabulary(self) -> int:
        """Size of the LLM's vocabulary, V."""
        return get_input_embeddings(self.llm).num_embeddings

    @property
    def window_positions(self) -> int:
        """Encoder positions of the full window."""
        return self.whisper.config.max_source_positions

    @property
    def n_template_tokens(self) -> int:
        """Tokens of the chat template before and after the user's content."""
        return self.n_prefix + self.n_suffix


def read_shapes(recipe: Recipe, n_template_tokens: int | None = None) -> ModelShapes:
    """Returns the shapes of a recipe's models. Only the configs of the backbones are read, no weights.

    Args:
        n_template_tokens: tokens of the chat template around the user's content; if not given, they are read from the
            tokenizer, if there is one

    Raises:
        CheckpointError: a backbone that cannot be found or is of the wrong kind
        ConfigError: connector settings that do not fit the encoder
    """
    base = recipe.base
    try:
        whisper = build_meta_whisper(base.encoder, base.encoder_revision)
        llm = build_meta_llm(base.llm, base.llm_revision)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error} (a plan needs only its config.json; name a folder with that file by --base.encoder or"
            " --base.llm)"
        ) from error
    n_prefix, n_suffix, is_known = _count_template_tokens(recipe, n_template_tokens)
    vocabulary, d_llm = _build_vocabulary(recipe, whisper, llm), get_input_embeddings(llm).embedding_dim
    return ModelShapes(
        whisper=whisper,
        llm=llm,
        connector=build_meta_connector(whisper.config, recipe.connector, d_llm, vocabulary),
        n_prefix=n_prefix,
        n_suffix=n_suffix,
        is_template_known=is_known,
    )


def _count_template_tokens(recipe: Recipe, n_template_tokens: int | None) -> tuple[int, int, bool]:
    """Returns the template tokens before and after the user's content, and whether they were read from a tokenizer."""
    if n_template_tokens is not None:
        n_suffix = min(ASSUMED_SUFFIX, n_template_tokens)
        return n_template_tokens - n_suffix, n_suffix, False
    try:
        frame = ChatTemplate(load_tokenizer(recipe.base.llm, recipe.base.llm_revision), recipe.prompt).frame
    except CheckpointError:
        return ASSUMED_PREFIX, ASSUMED_SUFFIX, False
    return len(frame.prefix), len(frame.suffix), True


def build_shapes(ear: Ear) -> ModelShapes:
    """Returns the shapes of a loaded ear, however its weights are quantized or sharded."""
    with torch.device("meta"):
        whisper = type(ear.whisper.model)(copy.deepcopy(ear.whisper.config))
        llm = type(ear.llm)(copy.deepcopy(ear.llm.config))
    frame, d_llm = ear.template.frame, get_input_embeddings(llm).embedding_dim
    vocabulary = ear.connector.vocabulary_shapes
    return ModelShapes(
        whisper=whisper.bfloat16().requires_grad_(False).eval(),
        llm=llm.bfloat16().requires_grad_(False).eval(),
        connector=build_meta_connector(whisper.config, ear.settings.connector, d_llm, vocabulary),
        n_prefix=len(frame.prefix),
        n_suffix=len(frame.suffix),
        is_template_known=True,
        can_share_prefix=ear.packed_llm.prefix_cache is not None,
        can_gather_last_layer=ear.packed_llm.gathers_last_layer,
    )


def _build_vocabulary(recipe: Recipe, whisper: Any, llm: Any) -> SharedVocabulary | None:
    """Returns the shared vocabulary; without tokenizers, all of the smaller vocabulary is assumed to be shared."""
    base, n_rows = recipe.base, get_input_embeddings(llm).num_embeddings
    if not recipe.connector.uses_shared_vocabulary:
        return None
    try:
        whisper_tokenizer = load_tokenizer(base.encoder, base.encoder_revision)
        llm_tokenizer = load_tokenizer(base.llm, base.llm_revision)
    except CheckpointError:
        n_words = min(whisper.config.vocab_size, n_rows)
    else:
        n_words = len(match_tokens(whisper_tokenizer, llm_tokenizer, n_rows))
    if not n_words:
        return None
    return SharedVocabulary.empty(
        n_words=n_words,
        n_others=whisper.config.vocab_size - n_words,
        n_prompt=_MAX_WHISPER_PROMPT,
        n_languages=0,
        d_encoder=whisper.config.d_model,
        d_llm=get_input_embeddings(llm).embedding_dim,
    )


def build_meta_connector(
    whisper: Any, settings: ConnectorSettings, d_llm: int, vocabulary: SharedVocabulary | None
) -> Connector:
    """Builds a connector on the meta device, for a Whisper with this config."""
    with torch.device("meta"):
        return build_connector(whisper, settings, d_llm, vocabulary).train()
