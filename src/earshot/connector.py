"""Learned queries x encoder frames -> audio tokens, in the LLM's embedding space.

It knows the sizes of the encoder's decoder and the width of the LLM, and nothing else of the two. Three forms
share Whisper's complete decoder stack; the frame-stacking MLP is there to be compared with.
"""

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperDecoder

from earshot.config import ConnectorSettings
from earshot.encoder import POSITIONS_PER_SECOND, Features, attention_bias
from earshot.errors import ConfigError

END_SHARPNESS = 4.0
"""How fast the anchored form's end grows certain: its logit gains this much with each token of the count."""
_SPARE_SLOTS = 2
"""Slots that even the shortest clip may have beyond what its duration allows."""


@dataclass(frozen=True)
class AudioTokens:
    """What the connector makes of a batch of clips, slot by slot."""

    tokens: Float[Tensor, "B Q D"]
    n_tokens: Int[Tensor, " B"]
    """How many of a clip's slots, from the first, are meant to be read; at least one."""
    end_logits: Float[Tensor, "B Q"] | None
    """Logit of "this slot is past the last token", for forms that learn their end."""


class Connector(nn.Module):
    """Whisper's decoder stack on learned queries in place of token embeddings, then one linear projection.

    Form left: slot t holds transcript token t and a head says where the sentence is over. Form anchored: the
    same, but each query is first anchored to the stretch of sound that holds its word (`RateHead`), and the
    end is where that has counted all words. Form right: as published, every slot is read, and the last one
    holds the transcript's last token.

    Source: DiVA, arXiv 2410.02678.
    """

    def __init__(self, whisper: WhisperConfig, settings: ConnectorSettings, d_llm: int) -> None:
        super().__init__()
        if settings.n_queries > whisper.max_target_positions:
            raise ConfigError(
                f"connector.n_queries is {settings.n_queries}, but the encoder's decoder has positions for"
                f" {whisper.max_target_positions}; expected at most that"
            )
        self.settings = settings
        config = copy.deepcopy(whisper)
        config.vocab_size, config.pad_token_id = 1, 0  # its token embeddings are not used
        config._attn_implementation = "sdpa"
        config.dropout = config.attention_dropout = config.activation_dropout = config.decoder_layerdrop = 0.0
        stack = WhisperDecoder(config)
        self.layers, self.layer_norm = stack.layers, stack.layer_norm
        self.queries = nn.Parameter(torch.randn(settings.n_queries, config.d_model) * config.init_std)
        self.positions = nn.Parameter(stack.embed_positions.weight[: settings.n_queries].detach().clone())
        self.projection = nn.Linear(config.d_model, d_llm)
        self.end_head = nn.Linear(config.d_model, 1) if settings.form == "left" else None
        self.rate_head = RateHead(config.d_model) if settings.form == "anchored" else None

    @property
    def aligned(self) -> Literal["left", "right"]:
        """The side on which slots and transcript coincide."""
        return "right" if self.settings.form == "right" else "left"

    def start_from(self, decoder: WhisperDecoder) -> None:
        """Takes over the encoder's own decoder: every layer, the final norm, and its positions.

        Queries take the place of token embeddings and start at their scale: close to the mean of all tokens
        when aligned to the left, where positions alone tell slots apart; as unlike each other as tokens are
        when aligned to the right.
        """
        self.layers.load_state_dict(decoder.layers.state_dict())
        self.layer_norm.load_state_dict(decoder.layer_norm.state_dict())
        embeddings = decoder.embed_tokens.weight.detach().float()
        mean, spread = embeddings.mean(0).to(self.queries), embeddings.std().to(self.queries)
        noise = torch.randn_like(self.queries) * spread
        with torch.no_grad():
            self.positions.copy_(decoder.embed_positions.weight[: len(self.positions)])
            self.queries.copy_(mean + 0.1 * noise if self.aligned == "left" else noise)

    def most_tokens(self, features: Features) -> Int[Tensor, " B"]:
        """How many audio tokens each clip may have at most, by the duration that the encoder was given."""
        seconds = features.mask.sum(1) / POSITIONS_PER_SECOND
        n_tokens = (seconds * self.settings.slots_per_second).long() + _SPARE_SLOTS
        return n_tokens.clamp(max=self.settings.n_queries)

    def forward(self, features: Features, n_text: Int[Tensor, " B"] | None = None) -> AudioTokens:
        """Audio tokens of a batch of clips.

        Args:
            n_text: tokens of each transcript where it is known, in training. Aligned to the left, there are
                then as many slots as the longest one needs and one more to learn the end by, as far as there
                are queries. Without it the end is where the connector says.
        """
        states, mask = features.states.to(self.projection.weight.dtype), features.mask
        n_slots = self._n_slots(features, n_text)
        queries = (self.queries + self.positions)[:n_slots].expand(len(states), -1, -1)
        end_logits = None
        if self.rate_head is not None:
            rate = self.rate_head(states, mask)
            end_logits = rate.end_logits(n_slots)
            n_tokens = rate.n_tokens() if n_text is None else n_text
            queries = queries + self.rate_head.anchor(states, rate.scaled_to(n_tokens), n_slots)
        hidden = self._decode(queries, states, attention_bias(mask, states.dtype))
        if self.end_head is not None:
            end_logits = self.end_head(hidden)[..., 0]
        return AudioTokens(
            tokens=self.projection(hidden),
            n_tokens=self._n_tokens(end_logits, features, n_slots, n_text),
            end_logits=end_logits,
        )

    def _n_slots(self, features: Features, n_text: Int[Tensor, " B"] | None) -> int:
        if self.aligned == "right":
            return self.settings.n_queries
        if n_text is None:
            return int(self.most_tokens(features).max())
        return min(int(n_text.max()) + 1, self.settings.n_queries)

    def _decode(
        self,
        hidden: Float[Tensor, "B Q E"],
        states: Float[Tensor, "B S E"],
        bias: Float[Tensor, "B 1 1 S"] | None,
    ) -> Float[Tensor, "B Q E"]:
        for layer in self.layers:
            hidden = layer(hidden, encoder_hidden_states=states, encoder_attention_mask=bias, use_cache=False)
        return self.layer_norm(hidden)

    def _n_tokens(
        self,
        end_logits: Float[Tensor, "B Q"] | None,
        features: Features,
        n_slots: int,
        n_text: Int[Tensor, " B"] | None,
    ) -> Int[Tensor, " B"]:
        """Slots to be read: the transcript's length if known, else those before the first past the end."""
        if end_logits is None:
            return torch.full((len(features.mask),), n_slots, device=features.mask.device)
        if n_text is not None:
            return n_text.clamp(max=n_slots)
        n_before_end = (end_logits <= 0).cumprod(1).sum(1)
        return n_before_end.clamp(min=1).minimum(self.most_tokens(features))


@dataclass(frozen=True)
class Rate:
    """Tokens per encoder position, as logarithms; their sum over a clip is the length of its transcript.

    Logarithms, so that a rate can be stretched to any length however close to zero it is.
    """

    log_values: Float[Tensor, "B S"]
    """Minus infinity outside the clip."""

    @property
    def total(self) -> Float[Tensor, " B"]:
        """Expected number of tokens."""
        return self.log_values.exp().sum(1)

    def n_tokens(self) -> Int[Tensor, " B"]:
        """The nearest whole number of tokens (of two, the greater), at least one."""
        return (self.total.detach() + 0.5).long().clamp(min=1)

    def end_logits(self, n_slots: int) -> Float[Tensor, "B Q"]:
        """Positive for the slots at which, by count, everything has been said."""
        slots = torch.arange(n_slots, device=self.log_values.device)
        return END_SHARPNESS * (slots + 0.5 - self.total[:, None])

    def scaled_to(self, n_tokens: Int[Tensor, " B"]) -> Float[Tensor, "B S"]:
        """The rate stretched so that it counts exactly so many tokens."""
        return self.log_values.softmax(1) * n_tokens[:, None]


def slot_shares(rate: Float[Tensor, "B S"], n_slots: int) -> Float[Tensor, "B Q S"]:
    """How much of each slot's token passes in each encoder position, by a rate in tokens per position.

    Slot t stands for the stretch in which the count goes from t to t + 1: its shares sum to one if the rate
    counts that far, and to zero if it ends before.

    Source: continuous integrate-and-fire, Dong and Xu, arXiv 1905.11235.
    """
    passed = rate.cumsum(1)
    before = passed - rate
    slot = torch.arange(n_slots, device=rate.device, dtype=rate.dtype)[:, None]
    return (torch.minimum(passed[:, None], slot + 1) - torch.maximum(before[:, None], slot)).clamp(min=0)


class RateHead(nn.Module):
    """Says how many tokens pass in each encoder position, and so which stretch of sound each slot stands for.

    Source: Paraformer, Gao et al., arXiv 2206.08317: integrate-and-fire below a non-autoregressive decoder.
    """

    def __init__(self, d_encoder: int) -> None:
        super().__init__()
        self.neighbourhood = nn.Conv1d(d_encoder, d_encoder, kernel_size=5, padding=2)
        self.rate = nn.Linear(d_encoder, 1)
        self.to_query = nn.Linear(d_encoder, d_encoder)
        nn.init.constant_(self.rate.bias, -2.5)  # about four tokens a second before anything is learned

    def forward(self, states: Float[Tensor, "B S E"], mask: Bool[Tensor, "B S"]) -> Rate:
        """The rate at which the clip's tokens pass, in float32: sums of many small numbers."""
        heard = (states * mask[..., None]).transpose(1, 2)  # (B, S, E) -> (B, E, S)
        around = functional.gelu(self.neighbourhood(heard)).transpose(1, 2)  # (B, E, S) -> (B, S, E)
        log_values = functional.logsigmoid(self.rate(around)[..., 0].float())
        return Rate(log_values.masked_fill(~mask, -torch.inf))

    def anchor(
        self, states: Float[Tensor, "B S E"], rate: Float[Tensor, "B S"], n_slots: int
    ) -> Float[Tensor, "B Q E"]:
        """The sound of each slot: encoder states, weighted by how much of the slot's token passes in each."""
        return self.to_query(slot_shares(rate, n_slots).to(states.dtype) @ states)


class StackingConnector(nn.Module):
    """Encoder positions side by side, n at a time, through an MLP: an audio token for each such stretch.

    The usual connector elsewhere (SLAM-LLM, arXiv 2402.08846; Ultravox), here for comparison; aligned to the
    right.
    """

    aligned: Literal["right"] = "right"

    def __init__(self, whisper: WhisperConfig, settings: ConnectorSettings, d_llm: int) -> None:
        super().__init__()
        self.settings = settings
        self.mlp = nn.Sequential(
            nn.Linear(whisper.d_model * settings.n_stacked, 4 * whisper.d_model),
            nn.GELU(),
            nn.Linear(4 * whisper.d_model, d_llm),
        )

    def start_from(self, decoder: WhisperDecoder) -> None:
        """Nothing to take over: an MLP has no counterpart in the decoder."""

    def forward(self, features: Features, n_text: Int[Tensor, " B"] | None = None) -> AudioTokens:
        """Audio tokens of a batch of clips, from the first slot of each; the transcript changes nothing."""
        n_stacked = self.settings.n_stacked
        states = features.states.to(next(self.parameters()).dtype) * features.mask[..., None]
        states = functional.pad(states, (0, 0, 0, -states.shape[1] % n_stacked))  # S to a multiple of n
        stacked = states.reshape(len(states), -1, n_stacked * states.shape[2])  # (B, S, E) -> (B, Q, n E)
        n_tokens = -(-features.mask.sum(1) // n_stacked)
        return AudioTokens(tokens=self.mlp(stacked), n_tokens=n_tokens, end_logits=None)


def new_connector(
    whisper: WhisperConfig, settings: ConnectorSettings, d_llm: int
) -> Connector | StackingConnector:
    """The connector that the settings ask for, with random weights.

    Raises:
        ConfigError: more queries than the encoder's decoder has positions
    """
    kind = StackingConnector if settings.form == "stack" else Connector
    return kind(whisper, settings, d_llm)
