"""The published connector: learned queries cross-attend to the encoder's features through Whisper's decoder.

    hidden       = decoder(queries + positions, features)      (B, Q, E)
    audio tokens = projection(hidden)                           (B, Q, D)

Form `diva` is the paper's: all Q slots are always read and the transcript is aligned to their right end. Form `query` is
the same with as many slots as the transcript has tokens, aligned to the left, and a head that learns where it ends.

Source: DiVA, arXiv 2410.02678.
"""

import copy
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import EncoderDecoderCache, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperDecoder

from ossicle.backbones.causal_lm import CACHE_NAME
from ossicle.backbones.encoder import POSITIONS_PER_SECOND, Features
from ossicle.config import ConnectorSettings, ObjectiveSettings
from ossicle.connectors.base import AudioTokens, Connector, Transcripts
from ossicle.errors import ConfigError

SPARE_SLOTS = 2
"""Slots that even the shortest clip may have beyond what its duration allows."""


class QueryConnector(Connector):
    """Whisper's decoder stack over learned queries in place of token embeddings, then a projection."""

    def __init__(self, whisper: WhisperConfig, settings: ConnectorSettings, d_llm: int) -> None:
        super().__init__(settings)
        decoder = WhisperDecoder(decoder_config(whisper, settings))  # weights are random here
        self.layers, self.layer_norm = decoder.layers, decoder.layer_norm
        self.queries = nn.Parameter(torch.randn(settings.n_queries, whisper.d_model) * whisper.init_std)
        self.positions = nn.Parameter(decoder.embed_positions.weight[: settings.n_queries].detach().clone())
        self.projection: nn.Module = nn.Linear(whisper.d_model * (settings.n_merged or 1), d_llm)
        self.end_head = nn.Linear(whisper.d_model, 1) if settings.learns_end else None
        self.alignment: Literal["left", "right"] = "right" if settings.form == "diva" else "left"

    def forward(self, features: Features, transcripts: Transcripts | None = None) -> AudioTokens:
        """Returns the audio tokens of a batch of clips, all slots in one pass; see `Connector.forward`."""
        n_slots = self.count_slots(features, transcripts)
        queries = (self.queries + self.positions)[:n_slots]  # (Q, E)
        queries = queries.expand(len(features.states), -1, -1)  # (B, Q, E)
        hidden = self.decode(queries, features.states, features.attention_mask)  # (B, Q, E)
        end_logits = None if self.end_head is None else self.end_head(hidden)[..., 0]  # (B, Q)
        if self.settings.n_merged:
            hidden = hidden.unflatten(1, (-1, self.settings.n_merged)).flatten(
                2
            )  # (B, Q, E) -> (B, Q/n, n E)
            n_slots = hidden.shape[1]
        return AudioTokens(
            tokens=self.projection(hidden),  # (B, Q, D)
            n_tokens=self.count_tokens(end_logits, features, n_slots, transcripts),
            end_logits=end_logits,
            log_likelihood=None,
        )

    def decode(
        self,
        queries: Float[Tensor, "B Q E"],
        states: Float[Tensor, "B S E"],
        attention_mask: Bool[Tensor, "B 1 1 S"] | Float[Tensor, "B 1 1 S"] | None,
        cache: EncoderDecoderCache | None = None,
    ) -> Float[Tensor, "B Q E"]:
        """Runs the decoder: causal self-attention among the queries, unmasked cross-attention to the sound."""
        hidden, n_queries = queries, queries.shape[1]
        n_before = 0 if cache is None else cache.get_seq_length()
        causal = None  # alone, or behind nothing, the queries need no mask
        if n_before and n_queries > 1:
            seen = torch.ones(n_queries, n_before + n_queries, dtype=torch.bool, device=queries.device)
            causal = seen.tril(n_before)[None, None]
        for layer in self.layers:
            hidden = layer(
                hidden,
                attention_mask=causal,
                encoder_hidden_states=states,
                encoder_attention_mask=attention_mask,
                use_cache=cache is not None,
                **{CACHE_NAME: cache},
            )
        return self.layer_norm(hidden)

    def count_slots(self, features: Features, transcripts: Transcripts | None) -> int:
        """Counts the slots to decode for this batch."""
        if self.alignment == "right":
            return self.settings.n_queries
        if transcripts is None:
            return int(self.max_tokens(features).max())
        return min(transcripts.targets.shape[1] + 1, self.settings.n_queries)

    def count_tokens(
        self,
        end_logits: Float[Tensor, "B Q"] | None,
        features: Features,
        n_slots: int,
        transcripts: Transcripts | None,
    ) -> Int[Tensor, " B"]:
        """Counts the slots of each clip that the LLM is given.

        Without an end head these are all. With one, they are as many as the transcript has tokens in training, and
        those before the end at inference.
        """
        if end_logits is None:
            return torch.full((len(features.mask),), n_slots, device=features.mask.device)
        if transcripts is not None:
            return transcripts.n_tokens.clamp(max=n_slots)
        n_before_end = (end_logits <= 0).cumprod(1).sum(1)
        return n_before_end.clamp(min=1).minimum(self.max_tokens(features))

    def max_tokens(self, features: Features) -> Int[Tensor, " B"]:
        """Returns the most audio tokens that each clip may have, from the duration of its sound."""
        duration_s = features.mask.sum(1) / POSITIONS_PER_SECOND
        n_tokens = (duration_s * self.settings.slots_per_second).long() + SPARE_SLOTS
        return n_tokens.clamp(max=self.settings.n_queries)

    def init_from_decoder(self, decoder: WhisperDecoder) -> None:
        """Copies the layers, the final norm and the positions of the encoder's own decoder.

        A stack of fewer layers takes the first, the last and those at even distances between. Queries replace token
        embeddings and start at their scale: close to the mean of all tokens when aligned to the left, where positions
        alone tell slots apart; as different from each other as tokens are when aligned to the right.
        """
        taken = torch.linspace(0, len(decoder.layers) - 1, len(self.layers)).round().long().tolist()
        for layer, number in zip(self.layers, taken, strict=True):
            layer.load_state_dict(decoder.layers[number].state_dict())
        self.layer_norm.load_state_dict(decoder.layer_norm.state_dict())
        positions = decoder.embed_positions.weight
        rows = torch.arange(len(self.positions), device=positions.device).clamp(max=len(positions) - 1)
        with torch.no_grad():
            self.positions.copy_(positions[rows])
            self.init_queries(decoder.embed_tokens.weight.detach().float())

    def init_queries(self, token_embeddings: Float[Tensor, "V E"]) -> None:
        """Draws queries at the scale of the decoder's token embeddings."""
        mean, std = token_embeddings.mean(0).to(self.queries), token_embeddings.std().to(self.queries)
        noise = torch.randn_like(self.queries) * std
        self.queries.copy_(mean + 0.1 * noise if self.alignment == "left" else noise)

    def modules_without_gradient(self, objective: ObjectiveSettings) -> tuple[str, ...]:
        """Names the end head, if the loss of the end has no weight."""
        return ("end_head",) if self.end_head is not None and not objective.end_weight else ()


def decoder_config(whisper: WhisperConfig, settings: ConnectorSettings) -> WhisperConfig:
    """Returns the config of the connector's decoder stack: that of the encoder's own decoder, with `settings.n_layers`.

    Raises:
        ConfigError: more queries than that decoder has positions, or more layers than it has
    """
    if settings.n_queries > whisper.max_target_positions:
        raise ConfigError(
            f"connector.n_queries is {settings.n_queries}, but the encoder's decoder has positions for"
            f" {whisper.max_target_positions}; expected at most that"
        )
    n_layers = whisper.decoder_layers if settings.n_layers is None else settings.n_layers
    if n_layers > whisper.decoder_layers:
        raise ConfigError(
            f"connector.n_layers is {n_layers}, but the encoder's decoder has {whisper.decoder_layers};"
            " expected at most that"
        )
    config = copy.deepcopy(whisper)
    config.vocab_size, config.pad_token_id = 1, 0  # its token embeddings are not used
    config.decoder_layers = n_layers
    config._attn_implementation = "sdpa"
    config.attention_dropout = config.activation_dropout = config.decoder_layerdrop = 0.0
    config.dropout = settings.dropout
    return config
