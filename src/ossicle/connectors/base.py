"""Learned queries x encoder frames -> audio tokens, in the LLM's embedding space.

It knows the sizes of the encoder's decoder and the width of the LLM, and nothing else of the two. Four forms
share Whisper's complete decoder stack; the frame-stacking MLP is there to be compared with.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache, EncoderDecoderCache, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperDecoder, WhisperEncoderLayer

from ossicle.backbones.encoder import POSITIONS_PER_SECOND, Features
from ossicle.config import ConnectorSettings
from ossicle.connectors.monotonic_alignment import (
    Transcripts,
    align,
    likeliest_tokens,
    naming_logits,
    precise,
)
from ossicle.connectors.vocabulary_head import SharedTokens, Spelled, Words
from ossicle.errors import ConfigError

_SPARE_SLOTS = 2
"""Slots that even the shortest clip may have beyond what its duration allows."""


@dataclass(frozen=True)
class AudioTokens:
    """What the connector makes of a batch of clips, slot by slot."""

    tokens: Float[Tensor, "B Q D"]
    n_tokens: Int[Tensor, " B"]
    """How many of a clip's slots, from the first, are meant to be read; at least one."""
    end_logits: Float[Tensor, "B Q"] | None
    """Logit of "this slot is past the last token", in forms left and autoregressive."""
    spotting: Float[Tensor, " B"] | None
    """Log-likelihood of each transcript in nats, in training: in form anchored by what the single positions say, in
    form autoregressive by the words that are known."""


@dataclass(frozen=True)
class Anchors:
    """The stretch of sound that each slot stands for."""

    shares: Float[Tensor, "B Q S"]
    """How much each encoder position weighs in a slot; they sum to one, or to zero where there is no token."""
    queries: Float[Tensor, "B Q E"]
    """What each slot's stretch sounds like, and the one before it: the decoder is used to the word before."""
    n_tokens: Int[Tensor, " B"]
    log_likelihood: Float[Tensor, " B"] | None
    """In training: of the transcript, by what the single positions say, in nats."""


class Spotter(nn.Module):
    """Hears position by position whether a token is being spoken, and roughly which.

    A convolution over the positions beside it and one more layer of the encoder's kind, over all of them, make up for
    what the frozen encoder was not asked for.

    Tokens in a row are told apart by the pause that `monotonic_alignment` wants between them, be it one position long.

    Source: Paraformer-v2, An et al., arXiv 2409.17746: CTC's spikes below a non-autoregressive decoder. Here a spike
    lies in the LLM's own embedding space.
    """

    def __init__(self, whisper: WhisperConfig, d_llm: int) -> None:
        super().__init__()
        d_encoder = whisper.d_model
        self.neighbourhood = nn.Conv1d(d_encoder, d_encoder, kernel_size=5, padding=2)
        self.is_spoken = nn.Linear(d_encoder, 1)
        self.token = _mlp(d_encoder, 4 * d_encoder, d_llm)
        self.to_query = _mlp(2 * d_encoder, 4 * d_encoder, d_encoder)
        self.dropout = nn.Dropout(whisper.dropout)
        self.context = WhisperEncoderLayer(whisper)
        nn.init.constant_(self.is_spoken.bias, -2.5)  # of fifty positions a second about four speak

    def around(
        self,
        states: Float[Tensor, "B S E"],
        mask: Bool[Tensor, "B S"],
        attended: Bool[Tensor, "B 1 1 S"] | None,
    ) -> Float[Tensor, "B S E"]:
        """Each position with what lies around it."""
        inside = (states * mask[..., None]).transpose(1, 2)  # (B, S, E) -> (B, E, S)
        around = functional.gelu(self.neighbourhood(inside)).transpose(1, 2)  # (B, E, S) -> (B, S, E)
        heard = states.to(next(self.parameters()).dtype)  # sums are precise, whatever products are
        return self.context(self.dropout(heard + around), attended)

    def forward(
        self,
        states: Float[Tensor, "B S E"],
        mask: Bool[Tensor, "B S"],
        attended: Bool[Tensor, "B 1 1 S"] | None,
        most: Int[Tensor, " B"],
        transcripts: Transcripts | None = None,
    ) -> Anchors:
        """Where the tokens of known transcripts are spoken; else where any are, as many as is likeliest.

        Args:
            attended: the mask, as attention takes it
            most: without transcripts, no more tokens than this
        """
        around = self.around(states, mask, attended)
        logits = precise(self.is_spoken(around)[..., 0])
        log_spoken, log_pause = functional.logsigmoid(logits), functional.logsigmoid(-logits)
        log_likelihood = None
        if transcripts is None:
            spotted = likeliest_tokens(log_spoken, log_pause, most, mask)
            n_tokens, posterior = spotted.n_tokens, spotted.posterior
        else:
            n_tokens = transcripts.n_tokens
            names = naming_logits(self.token(around), transcripts.candidates).log_softmax(-1)  # (B, S, C)
            wanted = transcripts.wanted[:, None].expand(-1, names.shape[1], -1)
            links = log_spoken[..., None] + names.gather(2, wanted)  # (B, S, T)
            found = align(links, log_pause, n_tokens, mask)
            log_likelihood, posterior = found.log_likelihood, found.posterior
        shares = posterior / posterior.sum(2, keepdim=True).clamp(min=1e-6)
        anchors = shares.to(around.dtype) @ around
        before = functional.pad(anchors[:, :-1], (0, 0, 1, 0))
        return Anchors(
            shares=shares,
            queries=self.to_query(torch.cat([before, anchors], dim=2)),
            n_tokens=n_tokens,
            log_likelihood=log_likelihood,
        )


class Connector(nn.Module):
    """Whisper's decoder stack on learned queries in place of token embeddings, then a projection.

    Form left: slot t holds transcript token t and a head says where the sentence is over. Form anchored: the
    same, but each query is first anchored to the stretch of sound in which its token is spoken (`Spotter`), and
    there are as many slots as such stretches. Form autoregressive: form left, slot after slot, each told the token
    before it: the transcript's in training, later the audio token of the slot before. It begins as the recogniser that
    the decoder is of, as far as that has `Words` in common with the LLM, and what it learns is added to that. Form
    right: as published, every slot is read, and the last one holds the transcript's last token.

    Source: DiVA, arXiv 2410.02678.
    """

    def __init__(
        self,
        whisper: WhisperConfig,
        settings: ConnectorSettings,
        d_llm: int,
        shared: SharedTokens | None = None,
    ) -> None:
        super().__init__()
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
        self.settings = settings
        config = copy.deepcopy(whisper)
        config.vocab_size, config.pad_token_id = 1, 0  # its token embeddings are not used
        config.decoder_layers = n_layers
        config._attn_implementation = "sdpa"
        config.attention_dropout = config.activation_dropout = config.decoder_layerdrop = 0.0
        config.dropout = settings.dropout
        stack = WhisperDecoder(config)
        self.layers, self.layer_norm = stack.layers, stack.layer_norm
        self.queries = nn.Parameter(torch.randn(settings.n_queries, config.d_model) * config.init_std)
        self.positions = nn.Parameter(stack.embed_positions.weight[: settings.n_queries].detach().clone())
        self.projection: nn.Module = nn.Linear(config.d_model, d_llm)
        self.end_head = nn.Linear(config.d_model, 1) if settings.learns_end else None
        self.spotter = Spotter(config, d_llm) if settings.form == "anchored" else None
        self.feedback, self.words, self.prompt = None, None, None
        if settings.form == "autoregressive":
            # As published one linear layer, which is little for a decoder that is to stay what it was.
            self.projection = _mlp(config.d_model, 4 * config.d_model, d_llm)
            self.feedback = nn.Sequential()
            # LLMs' embeddings differ in size by a hundred times.
            self.feedback.add_module("norm", nn.LayerNorm(d_llm, eps=1e-12))
            self.feedback.add_module("token", _mlp(d_llm, 4 * config.d_model, config.d_model))
        if shared is not None:
            self._know(shared)

    def _know(self, shared: SharedTokens) -> None:
        """Says and is told the words of both vocabularies, to which what it has learned of its own adds nothing yet."""
        assert self.feedback is not None, "of form autoregressive"
        assert self.end_head is not None, "of form autoregressive"
        self.words = Words(shared)
        for part in (self.projection, self.feedback, self.end_head):
            last = [layer for layer in part.modules() if isinstance(layer, nn.Linear)][-1]
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        prompt = shared.prompt.float().to(self.positions.device)
        before, begin = prompt[:-1], prompt[-1]
        self.prompt = nn.Parameter(before.clone())
        self.positions = nn.Parameter(torch.cat([torch.zeros_like(before), self.positions.detach()]))
        with torch.no_grad():
            self.queries.zero_()
            self.queries[0].copy_(begin)

    @property
    def n_prompt(self) -> int:
        """Rows of the decoder before the first slot."""
        return 0 if self.prompt is None else len(self.prompt)

    @property
    def shared(self) -> SharedTokens | None:
        """Outlines of what it knows of the vocabularies."""
        if self.words is None or self.prompt is None:
            return None
        n_words, d_llm = self.words.read.shape
        n_prompt, d_encoder = self.prompt.shape
        return SharedTokens.outline(
            n_words=n_words,
            n_others=len(self.words.others),
            n_prompt=n_prompt + 1,
            n_languages=len(self.words.languages),
            d_encoder=d_encoder,
            d_llm=d_llm,
        )

    @property
    def aligned(self) -> Literal["left", "right"]:
        """The side on which slots and transcript coincide."""
        return "right" if self.settings.form == "right" else "left"

    def start_from(self, decoder: WhisperDecoder) -> None:
        """Takes over the encoder's own decoder: its layers, the final norm, and its positions.

        A stack of fewer layers takes the first, the last and those at even distances between.

        Queries take the place of token embeddings and start at their scale: close to the mean of all tokens
        when aligned to the left, where positions alone tell slots apart; as unlike each other as tokens are
        when aligned to the right. Where the decoder is told words that it knows, they have nothing to add.
        """
        taken = torch.linspace(0, len(decoder.layers) - 1, len(self.layers)).round().long().tolist()
        for layer, number in zip(self.layers, taken, strict=True):
            layer.load_state_dict(decoder.layers[number].state_dict())
        self.layer_norm.load_state_dict(decoder.layer_norm.state_dict())
        places = decoder.embed_positions.weight
        rows = torch.arange(len(self.positions), device=places.device).clamp(max=len(places) - 1)
        with torch.no_grad():
            self.positions.copy_(places[rows])
            if self.words is None:
                self.queries.copy_(self._like_tokens(decoder.embed_tokens.weight.detach().float()))

    def _like_tokens(self, embeddings: Float[Tensor, "V E"]) -> Float[Tensor, "Q E"]:
        mean, spread = embeddings.mean(0).to(self.queries), embeddings.std().to(self.queries)
        noise = torch.randn_like(self.queries) * spread
        return mean + 0.1 * noise if self.aligned == "left" else noise

    def most_tokens(self, features: Features) -> Int[Tensor, " B"]:
        """How many audio tokens each clip may have at most, by the duration that the encoder was given."""
        seconds = features.mask.sum(1) / POSITIONS_PER_SECOND
        n_tokens = (seconds * self.settings.slots_per_second).long() + _SPARE_SLOTS
        return n_tokens.clamp(max=self.settings.n_queries)

    def forward(self, features: Features, transcripts: Transcripts | None = None) -> AudioTokens:
        """Audio tokens of a batch of clips.

        Args:
            features: in the type that the weights are in, unless autocast sees to that
            transcripts: in training, where they are known. There are then as many slots as the longest one needs
                (and one more to learn the end by, where it is learned), as far as there are queries; form right
                always has all. Without them the end is where the connector says.
        """
        if self.settings.form == "autoregressive":
            return self._one_by_one(features, transcripts)
        states, mask, attended = features.states, features.mask, features.attention_mask
        anchors = None
        if self.spotter is not None:
            anchors = self.spotter(states, mask, attended, self.most_tokens(features), transcripts)
        n_slots = self._n_slots(features, anchors, transcripts)
        queries = (self.queries + self.positions)[:n_slots].expand(len(states), -1, -1)
        if anchors is not None:
            queries = queries + anchors.queries[:, :n_slots]
        hidden = self._decode(queries, states, attended)
        end_logits = None if self.end_head is None else self.end_head(hidden)[..., 0]
        return AudioTokens(
            tokens=self.projection(hidden),
            n_tokens=self._n_tokens(anchors, end_logits, features, n_slots, transcripts),
            end_logits=end_logits,
            spotting=None if anchors is None else anchors.log_likelihood,
        )

    def _n_slots(self, features: Features, anchors: Anchors | None, transcripts: Transcripts | None) -> int:
        if self.aligned == "right":
            return self.settings.n_queries
        if anchors is not None:
            return min(anchors.queries.shape[1], self.settings.n_queries)
        if transcripts is None:
            return int(self.most_tokens(features).max())
        return min(transcripts.wanted.shape[1] + 1, self.settings.n_queries)

    def _one_by_one(self, features: Features, transcripts: Transcripts | None) -> AudioTokens:
        """Form autoregressive: in training all slots at once, as what comes before each is known."""
        n_slots, spotting = self._n_slots(features, None, transcripts), None
        if transcripts is None:
            tokens, end_logits = self._slot_after_slot(features, n_slots)
        else:
            prompt = self._prompt(features)
            n_before = prompt.shape[1] + 1  # nothing was said before the first slot
            said = functional.pad(transcripts.candidates[transcripts.wanted], (0, 0, n_before, 0))
            said = said[:, : n_before - 1 + n_slots]
            spelled = None if self.words is None else self.words.spell(said)
            told = functional.pad(self._told(said, spelled)[:, n_before:], (0, 0, n_before, 0))
            slots = self._slots(n_slots).expand(len(said), -1, -1)
            hidden = self._decode(
                torch.cat([prompt, slots], 1) + told, features.states, features.attention_mask
            )
            tokens, end_logits, logits = self._read_off(hidden)
            tokens, end_logits = tokens[:, n_before - 1 :], end_logits[:, n_before - 1 :]
            if self.words is not None and spelled is not None and logits is not None:
                logits, spelled = logits[:, n_before - 1 : -1], spelled.behind(n_before)
                spotting = self.words.log_likelihood(logits, spelled, transcripts.n_tokens)
        return AudioTokens(
            tokens=tokens,
            n_tokens=self._n_tokens(None, end_logits, features, n_slots, transcripts),
            end_logits=end_logits,
            spotting=spotting,
        )

    def _slots(self, n_slots: int) -> Float[Tensor, "Q E"]:
        """Queries at their positions, which are behind those of the prompt."""
        return (self.queries + self.positions[len(self.positions) - len(self.queries) :])[:n_slots]

    def _prompt(self, features: Features) -> Float[Tensor, "B P E"]:
        """What the recogniser is told before it writes, with the language that it takes the sound to be in."""
        if self.words is None or self.prompt is None:
            return features.states.new_zeros(len(features.states), 0, features.states.shape[2])
        rows = (self.prompt + self.positions[: len(self.prompt)]).expand(len(features.states), -1, -1)
        if not len(self.words.languages):
            return rows
        with torch.no_grad():
            first = self._decode(rows[:, :1], features.states, features.attention_mask)
        spoken = self.words.language(first[:, 0])[:, None]
        return torch.cat([rows[:, :1], rows[:, 1:2] + spoken, rows[:, 2:]], dim=1)

    def _told(self, said: Float[Tensor, "B Q D"], spelled: Spelled | None) -> Float[Tensor, "B Q E"]:
        """What the decoder takes for the tokens that it wrote."""
        assert self.feedback is not None, "of form autoregressive"
        told = self.feedback(said.to(self.queries.dtype))
        return told if self.words is None or spelled is None else told + self.words.told(spelled)

    def _read_off(
        self, hidden: Float[Tensor, "B Q E"]
    ) -> tuple[Float[Tensor, "B Q D"], Float[Tensor, "B Q"], Float[Tensor, "B Q C"] | None]:
        """Audio tokens, the logits of the end, and those of the words, if it knows any."""
        assert self.end_head is not None, "form autoregressive learns its end"
        tokens, end_logits = self.projection(hidden), self.end_head(hidden)[..., 0]
        if self.words is None:
            return tokens, end_logits, None
        logits = self.words.logits(hidden)
        return (
            tokens + self.words.expected(logits),
            end_logits + self.words.end_logits(hidden, logits),
            logits,
        )

    def _slot_after_slot(
        self, features: Features, n_slots: int
    ) -> tuple[Float[Tensor, "B Q D"], Float[Tensor, "B Q"]]:
        """Audio tokens and logits of the end, up to the slot at which every clip is over or has all it may have."""
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        queries = self._slots(n_slots).expand(len(features.states), -1, -1)
        most, slots = self.most_tokens(features), []
        is_over = torch.zeros_like(most, dtype=torch.bool)
        query = torch.cat([self._prompt(features), queries[:, :1]], dim=1)
        for slot in range(n_slots):
            hidden = self._decode(query, features.states, features.attention_mask, cache)
            token, end_logit, _ = self._read_off(hidden[:, -1:])
            slots.append((token, end_logit))
            is_over = is_over | (end_logit[:, 0] > 0) | (slot + 1 >= most)
            if bool(is_over.all()):
                break
            spelled = None if self.words is None else self.words.spell(token)
            query = queries[:, slot + 1, None] + self._told(token, spelled)
        tokens, end_logits = zip(*slots, strict=True)
        return torch.cat(tokens, dim=1), torch.cat(end_logits, dim=1)

    def _decode(
        self,
        hidden: Float[Tensor, "B Q E"],
        states: Float[Tensor, "B S E"],
        attended: Bool[Tensor, "B 1 1 S"] | None,
        cache: EncoderDecoderCache | None = None,
    ) -> Float[Tensor, "B Q E"]:
        for layer in self.layers:
            hidden = layer(
                hidden,
                encoder_hidden_states=states,
                encoder_attention_mask=attended,
                past_key_values=cache,
                use_cache=cache is not None,
            )
        return self.layer_norm(hidden)

    def _n_tokens(
        self,
        anchors: Anchors | None,
        end_logits: Float[Tensor, "B Q"] | None,
        features: Features,
        n_slots: int,
        transcripts: Transcripts | None,
    ) -> Int[Tensor, " B"]:
        """Slots to be read: as many as were anchored; else the transcript's length or those before the end."""
        if anchors is not None:
            return anchors.n_tokens.clamp(max=n_slots)
        if end_logits is None:
            return torch.full((len(features.mask),), n_slots, device=features.mask.device)
        if transcripts is not None:
            return transcripts.n_tokens.clamp(max=n_slots)
        n_before_end = (end_logits <= 0).cumprod(1).sum(1)
        return n_before_end.clamp(min=1).minimum(self.most_tokens(features))


class StackingConnector(nn.Module):
    """Encoder positions side by side, n at a time, through an MLP: an audio token for each such stretch.

    The usual connector elsewhere (SLAM-LLM, arXiv 2402.08846; Ultravox), here for comparison; aligned to the
    right.
    """

    aligned: Literal["right"] = "right"

    def __init__(self, whisper: WhisperConfig, settings: ConnectorSettings, d_llm: int) -> None:
        super().__init__()
        self.settings = settings
        self.mlp = _mlp(whisper.d_model * settings.n_stacked, 4 * whisper.d_model, d_llm)

    def start_from(self, decoder: WhisperDecoder) -> None:
        """Nothing to take over: an MLP has no counterpart in the decoder."""

    def forward(self, features: Features, transcripts: Transcripts | None = None) -> AudioTokens:
        """Audio tokens of a batch of clips, from the first slot of each; transcripts change nothing."""
        n_stacked = self.settings.n_stacked
        states = features.states.to(next(self.parameters()).dtype) * features.mask[..., None]
        states = functional.pad(states, (0, 0, 0, -states.shape[1] % n_stacked))  # S to a multiple of n
        stacked = states.reshape(len(states), -1, n_stacked * states.shape[2])  # (B, S, E) -> (B, Q, n E)
        n_tokens = -(-features.mask.sum(1) // n_stacked)
        return AudioTokens(tokens=self.mlp(stacked), n_tokens=n_tokens, end_logits=None, spotting=None)


def n_heard(settings: ConnectorSettings, n_text: Sequence[int], n_positions: Sequence[int]) -> list[int]:
    """How many audio tokens of each clip are read in training: `AudioTokens.n_tokens`, without asking the device.

    Args:
        n_text: tokens of each transcript
        n_positions: encoder positions of each clip
    """
    if settings.form == "right":
        return [settings.n_queries] * len(n_text)
    if settings.form == "stack":
        return [-(-n // settings.n_stacked) for n in n_positions]
    return [min(n, settings.n_queries) for n in n_text]


def new_connector(
    whisper: WhisperConfig, settings: ConnectorSettings, d_llm: int, shared: SharedTokens | None = None
) -> Connector | StackingConnector:
    """The connector that the settings ask for, with random weights.

    Args:
        shared: what the recogniser and the LLM have in common, for form autoregressive

    Raises:
        ConfigError: more queries than the encoder's decoder has positions, or more layers than it has
    """
    if settings.form == "stack":
        return StackingConnector(whisper, settings, d_llm)
    return Connector(whisper, settings, d_llm, shared)


def _mlp(d_in: int, d_hidden: int, d_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(d_in, d_hidden), nn.GELU(), nn.Linear(d_hidden, d_out))
