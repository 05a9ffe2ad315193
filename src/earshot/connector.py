"""Learned queries x encoder frames -> audio tokens, in the LLM's embedding space.

The connector knows the encoder's and the LLM's widths and nothing else of them. Three forms share Whisper's complete
decoder stack; the frame-stacking MLP is there to be compared with.
"""

import copy
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperDecoder

from earshot.config import ConnectorSettings
from earshot.encoder import Features, attention_bias
from earshot.errors import ConfigError

ENCODER_POSITIONS_PER_SECOND = 50


@dataclass(frozen=True)
class AudioTokens:
    """What the connector makes of a batch of clips, slot by slot."""

    tokens: Float[Tensor, "B Q D"]
    n_tokens: Int[Tensor, " B"]
    """How many of a clip's slots, from the left, are meant to be read."""
    end_logits: Float[Tensor, "B Q"] | None
    """Logit of "this slot is past the last token", for forms that learn their end."""


class Connector(nn.Module):
    """Whisper's decoder stack on learned queries in place of token embeddings, then one linear projection.

    Form left: slot t holds transcript token t and a head says where the sentence is over. Form anchored: the same,
    but each query is first anchored to the stretch of sound that holds its word (`RateHead`). Form right: as
    published, every slot is read and the transcript's last token stands in the last one.

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
    def aligned(self) -> str:
        """The side on which slots and transcript begin together."""
        return "right" if self.settings.form == "right" else "left"

    def start_from(self, decoder: WhisperDecoder) -> None:
        """Takes over the encoder's own decoder: every layer, the final norm, and its positions.

        Queries start at the scale of the token embeddings whose place they take.
        """
        self.layers.load_state_dict(decoder.layers.state_dict())
        self.layer_norm.load_state_dict(decoder.layer_norm.state_dict())
        with torch.no_grad():
            self.positions.copy_(decoder.embed_positions.weight[: len(self.positions)])
            embeddings = decoder.embed_tokens.weight.float()
            noise = torch.randn_like(self.queries) * embeddings.std()
            self.queries.copy_(embeddings.mean(0) + 0.1 * noise if self.aligned == "left" else noise)

    def n_slots(self, features: Features) -> Int[Tensor, " B"]:
        """The most audio tokens that each clip may have, by its duration."""
        seconds = features.mask.sum(1) / ENCODER_POSITIONS_PER_SECOND
        return (seconds * self.settings.slots_per_second + 2).long().clamp(max=self.settings.n_queries)

    def forward(self, features: Features, n_text: Int[Tensor, " B"] | None = None) -> AudioTokens:
        """Audio tokens of a batch of clips.

        Args:
            n_text: tokens of each transcript where it is known, in training: there are then at least as many slots,
                and one more to learn the end by. Without it the end is where the connector says.
        """
        states, mask = features.states.to(self.projection.weight.dtype), features.mask
        caps = self.n_slots(features)
        if self.aligned == "right":
            n_slots = self.settings.n_queries
        elif n_text is None:
            n_slots = int(caps.max())
        else:
            n_slots = min(int(n_text.max()) + 1, self.settings.n_queries)
        queries = (self.queries + self.positions)[:n_slots].expand(len(states), -1, -1)
        end_logits = None
        if self.rate_head is not None:
            rate = self.rate_head(states, mask)
            end_logits = rate.end_logits(n_slots)
            total = rate.n_words() if n_text is None else n_text
            queries = queries + self.rate_head.anchor(states, rate.scaled_to(total), n_slots)
        hidden = self._decode(queries, states, attention_bias(mask, states.dtype))
        if self.end_head is not None:
            end_logits = self.end_head(hidden)[..., 0]
        return AudioTokens(
            tokens=self.projection(hidden),
            n_tokens=self._count(end_logits, caps, n_slots, n_text),
            end_logits=end_logits,
        )

    def _decode(self, hidden: Tensor, states: Tensor, bias: Tensor | None) -> Float[Tensor, "B Q E"]:
        for layer in self.layers:
            hidden = layer(hidden, encoder_hidden_states=states, encoder_attention_mask=bias, use_cache=False)
        return self.layer_norm(hidden)

    def _count(self, end_logits: Tensor | None, caps: Tensor, n_slots: int, n_text: Tensor | None) -> Tensor:
        """Slots to be read: the transcript's length if known, else those before the first past the end."""
        if n_text is not None:
            return n_text.clamp(max=n_slots) if self.aligned == "left" else torch.full_like(n_text, n_slots)
        if end_logits is None:
            return torch.full_like(caps, n_slots)
        n_before_end = (end_logits <= 0).cumprod(1).sum(1)
        return n_before_end.clamp(min=1).minimum(caps)


@dataclass(frozen=True)
class Rate:
    """Words (tokens) per encoder position; its sum over a clip is the length of the transcript."""

    values: Float[Tensor, "B S"]

    @property
    def total(self) -> Float[Tensor, " B"]:
        """Expected number of tokens."""
        return self.values.sum(1)

    def n_words(self) -> Int[Tensor, " B"]:
        """The nearest whole number of tokens, at least one."""
        return self.total.detach().round().long().clamp(min=1)

    def end_logits(self, n_slots: int) -> Float[Tensor, "B Q"]:
        """Positive for the slots at which, by count, everything has been said."""
        slots = torch.arange(n_slots, device=self.values.device)
        return END_SHARPNESS * (slots + 0.5 - self.total[:, None])

    def scaled_to(self, n_tokens: Int[Tensor, " B"]) -> Float[Tensor, "B S"]:
        """The rate stretched so that it counts exactly so many tokens."""
        return self.values * (n_tokens / self.total.clamp(min=1e-4))[:, None]


END_SHARPNESS = 4.0
"""How fast the end's certainty grows with the count: logits 2 away from the boundary half a token off."""


class RateHead(nn.Module):
    """Says how many tokens pass in each encoder position, and so which stretch of sound each slot stands for.

    Source: continuous integrate-and-fire, Dong and Xu, arXiv 1905.11235; with a non-autoregressive decoder on top,
    Paraformer, arXiv 2206.08317.
    """

    def __init__(self, d_encoder: int) -> None:
        super().__init__()
        self.neighbourhood = nn.Conv1d(d_encoder, d_encoder, kernel_size=5, padding=2)
        self.rate = nn.Linear(d_encoder, 1)
        self.to_query = nn.Linear(d_encoder, d_encoder)
        nn.init.constant_(self.rate.bias, -2.5)  # about four tokens a second before anything is learned

    def forward(self, states: Float[Tensor, "B S E"], mask: Bool[Tensor, "B S"]) -> Rate:
        """Tokens per encoder position, zero outside the clip."""
        heard = (states * mask[..., None]).transpose(1, 2)  # (B, S, E) -> (B, E, S)
        around = functional.gelu(self.neighbourhood(heard)).transpose(1, 2)  # (B, E, S) -> (B, S, E)
        return Rate(values=torch.sigmoid(self.rate(around))[..., 0] * mask)

    def anchor(
        self, states: Float[Tensor, "B S E"], rate: Float[Tensor, "B S"], n_slots: int
    ) -> Float[Tensor, "B Q E"]:
        """The sound of each slot: encoder states weighted by how much of the slot's token passes in each position."""
        passed = rate.cumsum(1)
        before = passed - rate
        slot = torch.arange(n_slots, device=rate.device, dtype=rate.dtype)[:, None]
        share = (torch.minimum(passed[:, None], slot + 1) - torch.maximum(before[:, None], slot)).clamp(min=0)
        return self.to_query(share @ states)


class StackingConnector(nn.Module):
    """Encoder positions side by side, n at a time, through an MLP: as many audio tokens as there are stretches.

    The usual connector elsewhere (SLAM-LLM, arXiv 2402.08846; Ultravox), here for comparison; aligned to the right.
    """

    def __init__(self, whisper: WhisperConfig, settings: ConnectorSettings, d_llm: int) -> None:
        super().__init__()
        self.settings = settings
        self.mlp = nn.Sequential(
            nn.Linear(whisper.d_model * settings.n_stacked, 4 * whisper.d_model),
            nn.GELU(),
            nn.Linear(4 * whisper.d_model, d_llm),
        )

    aligned = "right"

    def start_from(self, decoder: WhisperDecoder) -> None:
        """Nothing to take over: an MLP has no counterpart in the decoder."""

    def forward(self, features: Features, n_text: Int[Tensor, " B"] | None = None) -> AudioTokens:
        """Audio tokens of a batch of clips, each clip's own from the left."""
        n_stacked = self.settings.n_stacked
        states = features.states.to(self.mlp[0].weight.dtype) * features.mask[..., None]
        states = functional.pad(states, (0, 0, 0, -states.shape[1] % n_stacked))
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
