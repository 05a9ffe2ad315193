"""Connectors: encoder features -> audio tokens in the LLM's embedding space, one file per form."""

from transformers import WhisperConfig

from ossicle.config import ConnectorSettings
from ossicle.connectors.anchored import AnchoredConnector
from ossicle.connectors.autoregressive import AutoregressiveConnector
from ossicle.connectors.base import AudioTokens, Connector, Transcripts, count_audio_tokens
from ossicle.connectors.frame_stacking import FrameStackingConnector
from ossicle.connectors.query import QueryConnector
from ossicle.connectors.vocabulary_head import SharedVocabulary

__all__ = ["AudioTokens", "Connector", "Transcripts", "build_connector", "count_audio_tokens"]


def build_connector(
    whisper: WhisperConfig,
    settings: ConnectorSettings,
    d_llm: int,
    vocabulary: SharedVocabulary | None = None,
) -> Connector:
    """Builds the connector that the settings ask for, with random weights.

    Args:
        vocabulary: the tokens that Whisper and the LLM have in common, for form autoregressive

    Raises:
        ConfigError: more queries than the encoder's decoder has positions, or more layers than it has
    """
    match settings.form:
        case "diva" | "query":
            return QueryConnector(whisper, settings, d_llm)
        case "anchored":
            return AnchoredConnector(whisper, settings, d_llm)
        case "autoregressive":
            return AutoregressiveConnector(whisper, settings, d_llm, vocabulary)
        case "stack":
            return FrameStackingConnector(whisper, settings, d_llm)
