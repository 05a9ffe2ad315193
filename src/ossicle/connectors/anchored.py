"""Form `anchored`: each query is anchored to the stretch of sound in which its token is spoken.

A detector finds those stretches by a CTC-like alignment, all of them in one pass, and gives as many queries as there are
stretches. The decoder is then the published one (`query`).

Source: Paraformer-v2, An et al., arXiv 2409.17746: CTC's spikes below a non-autoregressive decoder. Here a spike lies in
the LLM's own embedding space.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

from ossicle.backbones.encoder import Features
from ossicle.config import ConnectorSettings, ObjectiveSettings
from ossicle.connectors.base import AudioTokens, Transcripts
from ossicle.connectors.layers import build_mlp, token_logits, upcast
from ossicle.connectors.monotonic_alignment import align, detect_tokens
from ossicle.connectors.query import QueryConnector, decoder_config


@dataclass(frozen=True)
class Anchors:
    """The stretch of sound that each slot stands for."""

    weights: Float[Tensor, "B Q S"]
    """Weight of each encoder position in a slot; they sum to one, or to zero where there is no token."""
    queries: Float[Tensor, "B Q E"]
    """Made of each slot's stretch of sound and the one before it: the decoder is used to seeing the word before."""
    n_tokens: Int[Tensor, " B"]
    log_likelihood: Float[Tensor, " B"] | None
    """In training: log-likelihood of each transcript under the alignment, in nats."""


class TokenDetector(nn.Module):
    """Predicts for each encoder position whether a token is being spoken there, and roughly which one.

    A convolution over neighboring positions and one more encoder layer over all of them make up for what the frozen
    encoder was not trained for. Consecutive tokens are told apart by the pause that `monotonic_alignment` requires
    between them, even if it is one position long.
    """

    def __init__(self, whisper: WhisperConfig, d_llm: int) -> None:
        super().__init__()
        d_encoder = whisper.d_model
        self.convolution = nn.Conv1d(d_encoder, d_encoder, kernel_size=5, padding=2)
        self.is_spoken = nn.Linear(d_encoder, 1)
        self.token = build_mlp(d_encoder, 4 * d_encoder, d_llm)
        self.to_query = build_mlp(2 * d_encoder, 4 * d_encoder, d_encoder)
        self.dropout = nn.Dropout(whisper.dropout)
        self.context = WhisperEncoderLayer(whisper)
        nn.init.constant_(self.is_spoken.bias, -2.5)  # about four of fifty positions a second speak

    def contextualize(
        self,
        states: Float[Tensor, "B S E"],
        mask: Bool[Tensor, "B S"],
        attention_mask: Bool[Tensor, "B 1 1 S"] | None,
    ) -> Float[Tensor, "B S E"]:
        """Adds its context to each position."""
        masked = (states * mask[..., None]).transpose(1, 2)  # (B, S, E) -> (B, E, S)
        neighbors = functional.gelu(self.convolution(masked)).transpose(1, 2)  # (B, E, S) -> (B, S, E)
        states = states.to(next(self.parameters()).dtype)  # sums are precise, whatever products are
        return self.context(self.dropout(states + neighbors), attention_mask)

    def forward(
        self,
        states: Float[Tensor, "B S E"],
        mask: Bool[Tensor, "B S"],
        attention_mask: Bool[Tensor, "B 1 1 S"] | None,
        max_tokens: Int[Tensor, " B"],
        transcripts: Transcripts | None = None,
    ) -> Anchors:
        """Locates the tokens of known transcripts; without them, the likeliest number of tokens.

        Args:
            attention_mask: the mask as attention takes it
            max_tokens: without transcripts, an upper limit for each clip
        """
        states = self.contextualize(states, mask, attention_mask)
        logits = upcast(self.is_spoken(states)[..., 0])
        log_spoken, log_pause = functional.logsigmoid(logits), functional.logsigmoid(-logits)
        log_likelihood = None
        if transcripts is None:
            detected = detect_tokens(log_spoken, log_pause, max_tokens, mask)
            n_tokens, posterior = detected.n_tokens, detected.posterior
        else:
            n_tokens = transcripts.n_tokens
            log_tokens = token_logits(self.token(states), transcripts.candidates).log_softmax(-1)  # (B, S, C)
            targets = transcripts.targets[:, None].expand(-1, log_tokens.shape[1], -1)
            log_targets = log_spoken[..., None] + log_tokens.gather(2, targets)  # (B, S, T)
            found = align(log_targets, log_pause, n_tokens, mask)
            log_likelihood, posterior = found.log_likelihood, found.posterior
        weights = posterior / posterior.sum(2, keepdim=True).clamp(min=1e-6)
        current = weights.to(states.dtype) @ states
        previous = functional.pad(current[:, :-1], (0, 0, 1, 0))
        return Anchors(
            weights=weights,
            queries=self.to_query(torch.cat([previous, current], dim=2)),
            n_tokens=n_tokens,
            log_likelihood=log_likelihood,
        )


class AnchoredConnector(QueryConnector):
    """The published connector whose queries know where in the sound their token is spoken."""

    def __init__(self, whisper: WhisperConfig, settings: ConnectorSettings, d_llm: int) -> None:
        super().__init__(whisper, settings, d_llm)
        self.token_detector = TokenDetector(decoder_config(whisper, settings), d_llm)

    def forward(self, features: Features, transcripts: Transcripts | None = None) -> AudioTokens:
        """Returns the audio tokens of a batch of clips, one for each detected stretch; see `Connector.forward`."""
        states, attention_mask = features.states, features.attention_mask
        limit = self.max_tokens(features)
        anchors = self.token_detector(states, features.mask, attention_mask, limit, transcripts)
        n_slots = min(anchors.queries.shape[1], self.settings.n_queries)
        queries = (self.queries + self.positions)[:n_slots].expand(len(states), -1, -1)
        queries = queries + anchors.queries[:, :n_slots]
        return AudioTokens(
            tokens=self.projection(self.decode(queries, states, attention_mask)),
            n_tokens=anchors.n_tokens.clamp(max=n_slots),
            end_logits=None,
            log_likelihood=anchors.log_likelihood,
        )

    def modules_without_gradient(self, objective: ObjectiveSettings) -> tuple[str, ...]:
        """Names the detector's heads, if the likelihood of the transcript has no weight."""
        return () if objective.asr_weight else ("token_detector.is_spoken", "token_detector.token")
