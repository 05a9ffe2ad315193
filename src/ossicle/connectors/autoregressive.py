"""Form `autoregressive`, the default: Whisper's decoder writes one audio token after the other.

It differs from the published connector (`query`) in two ways. Each slot sees the token before it, as in any decoder: the
transcript's token in training, its own last audio token at inference. And an audio token is the expected LLM embedding
over the words that Whisper's and the LLM's vocabularies share, plus a learned residual that starts at zero. So an
untrained ear already hears what Whisper would have transcribed, its output softened over those words.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, EncoderDecoderCache, WhisperConfig

from ossicle.backbones.encoder import Features
from ossicle.config import ConnectorSettings
from ossicle.connectors.base import AudioTokens, Transcripts
from ossicle.connectors.layers import build_mlp
from ossicle.connectors.query import QueryConnector
from ossicle.connectors.vocabulary_head import SharedVocabulary, VocabularyHead

FEEDBACK_NORM_EPS = 1e-12
"""Epsilon of the norm before the feedback: the embeddings of LLMs differ in size by a factor of a hundred."""


_REALIGNMENT = 4
"""Tokens of a draft among which one that was written in place of another is sought."""


class _Slot(NamedTuple):
    """What is known of a slot of each clip when the next one is decoded."""

    hidden: Float[Tensor, "B 1 E"]
    end_logit: Float[Tensor, " B"]
    written: Int[Tensor, " B"] | None
    """The token that Whisper would write; None without a shared vocabulary, as what follows."""
    expected: Float[Tensor, "B 1 D"] | None
    """The expected embedding, to which the projection of the hidden state is added."""
    log_prob: Float[Tensor, " B"] | None
    """Of the likeliest of all tokens and the end."""


class _Hypothesis:
    """What a batch of clips has said so far.

    Args:
        max_tokens: audio tokens that each clip may have
    """

    def __init__(self, max_tokens: Int[Tensor, " B"]) -> None:
        self.max_tokens = max_tokens
        self.n_tokens = torch.zeros_like(max_tokens)
        self.slots: list[_Slot] = []
        self.n_written: list[Int[Tensor, " B"]] = []
        """Audio tokens of each slot; 0 behind the end of a clip."""
        self._has_ended = torch.zeros_like(max_tokens, dtype=torch.bool)
        self._log_probs: list[Float[Tensor, " B"]] = []
        self._n_steps = torch.zeros_like(max_tokens)

    def add(self, slot: _Slot, n_pieces: Int[Tensor, " B"] | int) -> bool:
        """Adds a slot to the clips that go on; returns whether all have ended.

        Args:
            n_pieces: audio tokens that the slot has
        """
        if slot.log_prob is not None:
            self._log_probs.append(slot.log_prob.where(~self._has_ended, 0.0))
        self._n_steps = self._n_steps + ~self._has_ended
        self._has_ended = self._has_ended | ((slot.end_logit > 0) & (self.n_tokens > 0))
        if bool(self._has_ended.all()):
            return True
        n_written = ~self._has_ended * n_pieces
        self.slots.append(slot)
        self.n_written.append(n_written)
        self.n_tokens = self.n_tokens + n_written
        self._has_ended = self._has_ended | (slot.end_logit > 0) | (self.n_tokens >= self.max_tokens)
        return bool(self._has_ended.all())

    @property
    def written(self) -> Int[Tensor, "B S"] | None:
        """The token that Whisper would write at each slot, if there is a shared vocabulary."""
        written = [slot.written for slot in self.slots if slot.written is not None]
        return torch.stack(written, dim=1) if written else None

    @property
    def mean_log_prob(self) -> Float[Tensor, " B"] | None:
        """See `AudioTokens`."""
        return torch.stack(self._log_probs).sum(0) / self._n_steps if self._log_probs else None


class AutoregressiveConnector(QueryConnector):
    """Whisper's decoder over learned queries plus the previous token, then a projection and a vocabulary head.

    Args:
        vocabulary: the tokens that Whisper and the LLM have in common; without it everything is learned
    """

    def __init__(
        self,
        whisper: WhisperConfig,
        settings: ConnectorSettings,
        d_llm: int,
        vocabulary: SharedVocabulary | None = None,
    ) -> None:
        super().__init__(whisper, settings, d_llm)
        d_encoder = whisper.d_model
        self.end_head: nn.Linear
        # One linear layer, as published, is too weak here: the decoder starts as Whisper's and should change little.
        self.projection = build_mlp(d_encoder, 4 * d_encoder, d_llm)
        self.feedback = nn.Sequential()
        self.feedback.add_module("norm", nn.LayerNorm(d_llm, eps=FEEDBACK_NORM_EPS))
        self.feedback.add_module("token", build_mlp(d_llm, 4 * d_encoder, d_encoder))
        self.prompt_embeddings: nn.Parameter | None = None
        if vocabulary is not None:
            self._init_from_vocabulary(vocabulary)

    def _init_from_vocabulary(self, vocabulary: SharedVocabulary) -> None:
        """Adds the vocabulary head and sets the learned parts to zero, so that at first only shared tokens count."""
        self.vocabulary_head = VocabularyHead(vocabulary)
        for part in (self.projection, self.feedback, self.end_head):
            last = _last_linear(part)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        prompt = vocabulary.prompt_embeddings.float().to(self.positions.device)
        before, start = prompt[:-1], prompt[-1]
        self.prompt_embeddings = nn.Parameter(before.clone())
        self.positions = nn.Parameter(torch.cat([torch.zeros_like(before), self.positions.detach()]))
        with torch.no_grad():
            self.queries.zero_()
            self.queries[0].copy_(start)

    def learning_rate_scales(self) -> dict[str, float]:
        """Scales the rate of the two learned residuals to the embeddings that they are added to.

        Adam moves every weight by about the learning rate, whatever the loss. Embeddings of LLMs and Whispers have
        standard deviations of 0.02 to 1: at the same rate, a residual to small ones would drown them in a few steps.
        """
        head = self.vocabulary_head
        if head is None:
            return {}
        spreads = {"projection": head.llm_embeddings.std(), "feedback": head.decoder_embeddings.std()}
        last = {id(_last_linear(self.get_submodule(name))): float(std) for name, std in spreads.items()}
        return {
            f"{name}.{kind}": last[id(module)]
            for name, module in self.named_modules()
            if id(module) in last
            for kind in ("weight", "bias")
        }

    def init_queries(self, token_embeddings: Float[Tensor, "V E"]) -> None:
        """Draws queries as the published form does, unless the previous token replaces them."""
        if self.vocabulary_head is None:
            super().init_queries(token_embeddings)

    @property
    def _head(self) -> VocabularyHead:
        assert self.vocabulary_head is not None
        return self.vocabulary_head

    @property
    def n_prompt(self) -> int:
        """Decoder positions before the first slot."""
        return 0 if self.prompt_embeddings is None else len(self.prompt_embeddings)

    @property
    def vocabulary_shapes(self) -> SharedVocabulary | None:
        """The sizes of the shared vocabulary as tensors on the meta device."""
        if self.vocabulary_head is None or self.prompt_embeddings is None:
            return None
        n_words, d_llm = self.vocabulary_head.llm_embeddings.shape
        n_prompt, d_encoder = self.prompt_embeddings.shape
        return SharedVocabulary.empty(
            n_words=n_words,
            n_others=len(self.vocabulary_head.other_decoder_embeddings),
            n_prompt=n_prompt + 1,
            n_languages=len(self.vocabulary_head.language_embeddings),
            d_encoder=d_encoder,
            d_llm=d_llm,
        )

    def forward(
        self,
        features: Features,
        transcripts: Transcripts | None = None,
        draft: Int[Tensor, " T"] | None = None,
    ) -> AudioTokens:
        """Returns the audio tokens of a batch of clips: in training all slots in one pass, else one after the other.

        Args:
            draft: what a single clip may be expected to say, as in `AudioTokens.written` of a part of it: it is checked
                in one pass, and the audio tokens are the same as without it
        """
        n_slots = self.count_slots(features, transcripts)
        if transcripts is None:
            return self._decode_greedily(features, n_slots, draft)
        return self._decode_teacher_forced(features, transcripts, n_slots)

    def _decode_teacher_forced(
        self, features: Features, transcripts: Transcripts, n_slots: int
    ) -> AudioTokens:
        """Decodes all slots in one pass, each with the transcript's token before it."""
        head, prompt = self.vocabulary_head, self._embed_prompt(features)
        n_before = prompt.shape[1] + 1  # the first slot has no token before it
        targets = transcripts.targets[:, : n_slots - 1]
        previous = self.feedback(transcripts.candidates.to(self.queries.dtype))[targets]
        nearest = None
        if head is not None:
            found = head.recall_nearest_tokens(transcripts.candidates, transcripts.candidate_ids)
            nearest = found.select(targets)
        if head is not None and nearest is not None:
            previous = previous + head.decoder_embeddings[nearest.index]
        seen = functional.pad(previous, (0, 0, n_before, 0))
        queries = torch.cat([prompt, self._slot_queries(n_slots).expand(len(previous), -1, -1)], dim=1)
        hidden = self.decode(queries + seen, features.states, features.attention_mask)
        tokens, end_logits, logits = self._output_heads(hidden)
        tokens, end_logits = tokens[:, n_before - 1 :], end_logits[:, n_before - 1 :]
        n_tokens = self.count_tokens(end_logits, features, n_slots, transcripts)
        if head is None or nearest is None or logits is None:
            return AudioTokens(tokens=tokens, n_tokens=n_tokens, end_logits=end_logits, log_likelihood=None)
        logits = logits[:, n_before - 1 : -1]
        return AudioTokens(
            tokens=tokens,
            n_tokens=n_tokens,
            end_logits=end_logits,
            log_likelihood=head.log_likelihood(logits, nearest, transcripts.n_tokens),
            word_logits=logits,
        )

    def _decode_greedily(
        self, features: Features, n_slots: int, draft: Int[Tensor, " T"] | None
    ) -> AudioTokens:
        """Decodes slot after slot until every clip has ended or has all the tokens that it may have.

        A slot gives one audio token, or several where Whisper writes a token that the LLM has only in pieces.
        """
        hypothesis = _Hypothesis(self.max_tokens(features))
        for slot in self._generate_slots(features, n_slots, draft):
            n_pieces = 1 if slot.written is None else self._head.count_pieces(slot.written)
            if hypothesis.add(slot, n_pieces):
                break
        return AudioTokens(
            tokens=self._embed_slots(hypothesis),
            n_tokens=hypothesis.n_tokens.minimum(hypothesis.max_tokens),
            end_logits=None,
            log_likelihood=None,
            written=hypothesis.written,
            mean_log_prob=hypothesis.mean_log_prob,
        )

    def _generate_slots(
        self, features: Features, n_slots: int, draft: Int[Tensor, " T"] | None
    ) -> Iterator[_Slot]:
        """Yields slots, each decoded after what the one before has written.

        The slots of a draft are decoded in one pass, and hold up to the first one that writes another token than it
        says; what is left of the draft is then checked in the next pass.
        """
        sound_cache = DynamicCache()  # the layers' keys and values of the sound, computed once
        prompt = self._embed_prompt(features, EncoderDecoderCache(DynamicCache(), sound_cache))
        cache = EncoderDecoderCache(DynamicCache(), sound_cache)
        queries = self._slot_queries(n_slots).expand(len(features.states), -1, -1)
        expected = [] if draft is None or self.vocabulary_head is None else draft.tolist()
        query, n_before = torch.cat([prompt, queries[:, :1]], dim=1), prompt.shape[1]
        step = 0
        while step < n_slots:
            query = torch.cat([query, *self._embed_draft(queries[:, step + 1 :], expected)], dim=1)
            hidden = self.decode(query, features.states, features.attention_mask, cache)[:, n_before:]
            slots = self._read_slots(hidden)
            for n_ahead, slot in zip(reversed(range(len(slots))), slots, strict=True):
                yield slot
                step += 1
                if not n_ahead or slot.written is None:
                    break
                written = int(slot.written)
                if written != expected[0]:
                    cache.self_attention_cache.crop(-n_ahead)
                    expected = _realign(expected, written)
                    break
                expected = expected[1:]
            if step < n_slots:
                query, n_before = queries[:, step, None] + self._embed_written(slot.hidden, slot.written), 0

    def _read_slots(self, hidden: Float[Tensor, "B Q E"]) -> list[_Slot]:
        """Computes what decides on the next slot, for all slots of a pass."""
        end_logits, n_slots = self.end_head(hidden)[..., 0], hidden.shape[1]
        columns: list[Any] = [[None] * n_slots] * 3
        if self.vocabulary_head is not None:
            head = self.vocabulary_head
            logits = head.search_logits(hidden)
            end_logits = end_logits + head.end_logits(hidden, logits)
            columns = [
                head.likeliest_tokens(logits).unbind(1),
                head.expected_embedding_of_likeliest(logits).split(1, dim=1),
                head.log_prob_of_likeliest(hidden, logits).unbind(1),
            ]
        rows = zip(hidden.split(1, dim=1), end_logits.unbind(1), *columns, strict=True)
        return [_Slot(*row) for row in rows]

    def _embed_slots(self, hypothesis: _Hypothesis) -> Float[Tensor, "B Q D"]:
        """Computes the audio tokens of all slots in one pass, with pieces in place of tokens that the LLM lacks."""
        slots = hypothesis.slots
        n_written = torch.stack(hypothesis.n_written, dim=1).flatten()  # (B S)
        source = torch.arange(len(n_written), device=n_written.device).repeat_interleave(n_written)  # (N,)
        tokens = self.projection(torch.cat([slot.hidden for slot in slots], dim=1))  # (B, S, D)
        written = hypothesis.written
        if written is not None:
            tokens = tokens + torch.cat([slot.expected for slot in slots if slot.expected is not None], dim=1)
        tokens = tokens.flatten(0, 1)[source]  # (N, D)
        if written is not None:
            numbers = (
                torch.arange(len(source), device=source.device) - (n_written.cumsum(0) - n_written)[source]
            )
            tokens = self._head.replace_unshared(tokens, written.flatten()[source], numbers)
        return pad_sequence(tokens.split(hypothesis.n_tokens.tolist()), batch_first=True)

    def _embed_draft(
        self, queries: Float[Tensor, "B Q E"], draft: Sequence[int]
    ) -> list[Float[Tensor, "B T E"]]:
        """Returns the queries of the slots that follow a draft's tokens, as far as there are any."""
        written = torch.tensor(draft[: queries.shape[1]], device=queries.device, dtype=torch.long)
        if not len(written):
            return []
        return [queries[:, : len(written)] + self._embed_written(None, written).transpose(0, 1)]

    def _embed_written(
        self, hidden: Float[Tensor, "B 1 E"] | None, written: Int[Tensor, " B"] | None
    ) -> Float[Tensor, "B 1 E"]:
        """Turns what a step has written into the decoder's next input, as in training.

        That is Whisper's own token plus a residual learned from the LLM's; without a shared vocabulary, what was
        learned from the audio token.
        """
        if written is None:
            assert hidden is not None
            return self.feedback(self.projection(hidden))
        in_llm, in_whisper = self._head.embed_written(written)
        return (self.feedback(in_llm.to(self.queries.dtype)) + in_whisper)[:, None]

    def _slot_queries(self, n_slots: int) -> Float[Tensor, "Q E"]:
        """Queries at their positions, which come after those of the prompt."""
        return (self.queries + self.positions[len(self.positions) - len(self.queries) :])[:n_slots]

    def _embed_prompt(
        self, features: Features, cache: EncoderDecoderCache | None = None
    ) -> Float[Tensor, "B P E"]:
        """Embeds Whisper's decoder prompt before the first slot, with the language that it detects in the sound.

        Args:
            cache: filled if the first row is decoded, for the language
        """
        if self.vocabulary_head is None or self.prompt_embeddings is None:
            return features.states.new_zeros(len(features.states), 0, features.states.shape[2])
        rows = self.prompt_embeddings + self.positions[: len(self.prompt_embeddings)]
        rows = rows.expand(len(features.states), -1, -1)
        if not len(self.vocabulary_head.language_embeddings):
            return rows
        with torch.no_grad():
            first = self.decode(rows[:, :1], features.states, features.attention_mask, cache)
        language = self.vocabulary_head.detect_language(first[:, 0])[:, None]
        return torch.cat([rows[:, :1], rows[:, 1:2] + language, rows[:, 2:]], dim=1)

    def _output_heads(
        self, hidden: Float[Tensor, "B Q E"]
    ) -> tuple[Float[Tensor, "B Q D"], Float[Tensor, "B Q"], Float[Tensor, "B Q C"] | None]:
        """Returns audio tokens, logits of the end, and logits of the shared words if there are any."""
        tokens, end_logits = self.projection(hidden), self.end_head(hidden)[..., 0]
        if self.vocabulary_head is None:
            return tokens, end_logits, None
        head = self.vocabulary_head
        logits = head.logits(hidden)
        return tokens + head.expected_embedding(logits), end_logits + head.end_logits(hidden, logits), logits


def _realign(draft: Sequence[int], written: int) -> list[int]:
    """Returns how a draft may go on after another token than its first was written: behind that token if it comes soon,
    else with its second token.
    """
    nearby = list(draft[1 : 1 + _REALIGNMENT])
    return list(draft[nearby.index(written) + 2 :] if written in nearby else draft[1:])


def _last_linear(part: nn.Module) -> nn.Linear:
    return [layer for layer in part.modules() if isinstance(layer, nn.Linear)][-1]
