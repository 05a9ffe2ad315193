"""The interface of all connector forms. It knows no form, no Whisper and no LLM."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.models.whisper.modeling_whisper import WhisperDecoder

from ossicle.backbones.encoder import Features
from ossicle.config import ConnectorSettings, ObjectiveSettings
from ossicle.connectors.vocabulary_head import SharedVocabulary, VocabularyHead


@dataclass(frozen=True)
class Transcripts:
    """The transcripts of a batch of clips, for training."""

    n_tokens: Int[Tensor, " B"]
    targets: Int[Tensor, "B T"]
    """Index of each token among the candidates, padded to the longest; values from n_tokens on are ignored."""
    candidates: Float[Tensor, "C D"]
    """LLM embeddings to tell from each other, such as those of all tokens in the batch's transcripts."""
    candidate_ids: Int[Tensor, " C"] | None = None
    """Their ids, by which a connector recalls what it has found out about them."""


@dataclass(frozen=True)
class AudioTokens:
    """The connector's output for a batch of clips, slot by slot."""

    tokens: Float[Tensor, "B Q D"]
    n_tokens: Int[Tensor, " B"]
    """How many slots of each clip the LLM is given, from the first; at least one."""
    end_logits: Float[Tensor, "B Q"] | None
    """Logit of "this slot is past the last token" (forms query and autoregressive)."""
    log_likelihood: Float[Tensor, " B"] | None
    """In training: log-likelihood of each transcript in nats, by the alignment (form anchored) or by the shared
    vocabulary (form autoregressive)."""
    written: Int[Tensor, "B S"] | None = None
    """At inference, with a shared vocabulary: the token that Whisper's decoder writes at each step, as its number in the
    vocabulary head; those behind a clip's end do not matter."""
    word_logits: Float[Tensor, "B T W"] | None = None
    """In training, with a shared vocabulary: Whisper's logits of its tokens at each slot of the transcript."""
    mean_log_prob: Float[Tensor, " B"] | None = None
    """At inference, with a shared vocabulary: mean log-probability of each clip's likeliest words and their end, in nats
    a token."""


class Connector(nn.Module):
    """A trained module that turns encoder features into audio tokens, rows in the LLM's embedding space."""

    alignment: Literal["left", "right"] = "left"
    """The side on which slots and transcript tokens coincide: left, slot t holds token t; right, slot Q - T + t."""

    def __init__(self, settings: ConnectorSettings) -> None:
        super().__init__()
        self.settings = settings
        self.vocabulary_head: VocabularyHead | None = None

    def forward(self, features: Features, transcripts: Transcripts | None = None) -> AudioTokens:
        """Returns the audio tokens of a batch of clips.

        Args:
            features: in the dtype of the weights, unless autocast takes care of that
            transcripts: given in training. There are then as many slots as the longest transcript needs (and one more
                to learn the end from, where it is learned), up to n_queries. Without them the connector finds the end.
        """
        raise NotImplementedError

    def init_from_decoder(self, decoder: WhisperDecoder) -> None:
        """Copies what the form can use of Whisper's own decoder; by default nothing."""

    def modules_without_gradient(self, objective: ObjectiveSettings) -> tuple[str, ...]:
        """Names the submodules that get no gradient because the only loss that trains them has no weight."""
        return ()

    def learning_rate_scales(self) -> dict[str, float]:
        """Returns factors of the learning rate, by the name of a weight; by default none differs from 1."""
        return {}

    @property
    def n_prompt(self) -> int:
        """Decoder positions before the first slot."""
        return 0

    @property
    def vocabulary_shapes(self) -> SharedVocabulary | None:
        """The sizes of the shared vocabulary as tensors on the meta device."""
        return None


def count_audio_tokens(
    settings: ConnectorSettings, n_text: Sequence[int], n_positions: Sequence[int]
) -> list[int]:
    """Counts the audio tokens of each clip in training: `AudioTokens.n_tokens`, without a device synchronization.

    Args:
        n_text: tokens of each transcript
        n_positions: encoder positions of each clip
    """
    if settings.form == "diva":
        return [settings.n_queries // (settings.n_merged or 1)] * len(n_text)
    if settings.form == "stack":
        return [-(-n // settings.n_stacked) for n in n_positions]
    return [min(n, settings.n_queries) for n in n_text]
