"""The tokens that Whisper and the LLM have in common, as a head on the decoder: decoder states <-> LLM embeddings.

It knows tensors only, not the models or tokenizers that they come from.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ossicle.connectors.layers import upcast
from ossicle.connectors.quantized_table import QuantizedTable, is_quantization_available

_SHARPNESS = 20.0
"""Inverse temperature of the softmax over words, untrained: the LLM reads the very words that Whisper would write."""
_TRAINING_SHARPNESS = 3.0
"""The same where training begins, which adjusts it: between single words there would be next to no gradient."""
_N_LIKELIEST = 64
"""Words that count for an audio token at inference; to all others together a Whisper gives next to nothing."""
_UNKNOWN = -1
_N_EXACT = 64
"""Tokens whose logits are exact where those of all others are found in 8 bits."""
_MAX_DIFFERENCE = 80.0
"""Nats below the likeliest token from which a probability does not count: smaller ones are slow on CPUs."""
_EXACT = 1e-3
"""Largest squared distance between an embedding and its copy in another dtype, relative to the mean squared norm."""


@dataclass(frozen=True)
class SharedVocabulary:
    """Embeddings of the tokens that Whisper and the LLM both have, and of those around Whisper's transcript."""

    decoder_embeddings: Float[Tensor, "C E"]
    """Whisper's own embeddings of the shared tokens, for input and output alike."""
    other_decoder_embeddings: Float[Tensor, "U E"]
    """Whisper's embeddings of tokens that it may write and the LLM does not have."""
    other_pieces: Int[Tensor, "U K"]
    """The LLM's tokens for the same bytes as each of those: rows of `llm_embeddings` and, behind them, of
    `piece_embeddings`; -1 behind the last one, and in the whole row where the LLM cannot write those bytes."""
    piece_embeddings: Float[Tensor, "X D"]
    """The LLM's input embeddings of pieces that are no shared tokens."""
    llm_embeddings: Float[Tensor, "C D"]
    """The LLM's input embeddings of the shared tokens, scaled as its first layer gets them."""
    prompt_embeddings: Float[Tensor, "P E"]
    """Whisper's decoder prompt; if it knows several languages, the second row is a zero that the language replaces."""
    end_embedding: Float[Tensor, " E"]
    """Whisper's end-of-text token."""
    language_embeddings: Float[Tensor, "N E"]
    """Whisper's language tokens to choose from; none if there is only one language."""

    ids: Mapping[str, Tensor] = field(default_factory=dict)
    """The ids behind these embeddings, as they are stored with an ear."""

    @classmethod
    def empty(
        cls, *, n_words: int, n_others: int, n_prompt: int, n_languages: int, d_encoder: int, d_llm: int
    ) -> "SharedVocabulary":
        """Returns tensors of these sizes on the meta device."""
        sizes = {
            "decoder_embeddings": (n_words, d_encoder),
            "other_decoder_embeddings": (n_others, d_encoder),
            "other_pieces": (n_others, 1),
            "piece_embeddings": (0, d_llm),
            "llm_embeddings": (n_words, d_llm),
            "prompt_embeddings": (n_prompt, d_encoder),
            "end_embedding": (d_encoder,),
            "language_embeddings": (n_languages, d_encoder),
        }
        tensors: dict[str, Any] = {name: torch.empty(size, device="meta") for name, size in sizes.items()}
        return cls(**tensors | {"other_pieces": tensors["other_pieces"].long()})


@dataclass(frozen=True)
class NearestTokens:
    """The shared token nearest to each point of the LLM's embedding space."""

    index: Int[Tensor, "*N"]
    is_exact: Bool[Tensor, "*N"]
    """Whether the point is that token's embedding, not only near it."""

    def select(self, rows: Int[Tensor, "*M"]) -> "NearestTokens":
        """Returns those of some points."""
        return NearestTokens(self.index[rows], self.is_exact[rows])


class VocabularyHead(nn.Module):
    """The shared tokens' embeddings, frozen: what is learned about some of them cannot spoil the others.

    Whisper's output layer gives the likelihood of each token; the expectation of the LLM's embeddings under it is an
    audio token. So an untrained connector gives the LLM what Whisper would have transcribed, as far as the LLM has the
    same tokens, and a blend of embeddings where Whisper is in doubt.

    Likelihoods and distances are computed in float32 at least, even under autocast: with many tokens they differ by
    little.
    """

    decoder_embeddings: Tensor
    other_decoder_embeddings: Tensor
    other_pieces: Tensor
    piece_embeddings: Tensor
    llm_embeddings: Tensor
    llm_square_norms: Tensor
    end_embedding: Tensor
    language_embeddings: Tensor

    def __init__(self, shared: SharedVocabulary) -> None:
        super().__init__()
        # Not stored in a checkpoint: they come from the backbones.
        for name in (
            "decoder_embeddings",
            "other_decoder_embeddings",
            "llm_embeddings",
            "piece_embeddings",
            "end_embedding",
            "language_embeddings",
        ):
            self.register_buffer(name, getattr(shared, name).detach().float(), persistent=False)
        self.register_buffer("other_pieces", shared.other_pieces, persistent=False)
        square_norms = torch.linalg.vector_norm(self.llm_embeddings, dim=1).square()
        self.register_buffer("llm_square_norms", square_norms, persistent=False)
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(_SHARPNESS)))
        self.ids = shared.ids
        self._nearest = _empty_memory(self.llm_embeddings.device)
        self._quantized: tuple[Tensor, Tensor, Tensor, QuantizedTable] | None = None

    def soften(self) -> None:
        """Sets the sharpness from which it is trained."""
        nn.init.constant_(self.log_sharpness, math.log(_TRAINING_SHARPNESS))

    def logits(self, hidden: Float[Tensor, "B Q E"]) -> Float[Tensor, "B Q W"]:
        """Computes Whisper's own logits from decoder states: the shared words first, then its other tokens."""
        with _no_autocast(hidden):
            hidden = upcast(hidden)
            products = [
                hidden @ upcast(rows).T for rows in (self.decoder_embeddings, self.other_decoder_embeddings)
            ]
            return upcast(torch.cat(products, dim=-1))

    def search_logits(self, hidden: Float[Tensor, "B Q E"]) -> Float[Tensor, "B Q W"]:
        """Computes logits as `logits` does, on CPUs exactly for the likeliest tokens only and close to it for others."""
        if hidden.device.type != "cpu" or hidden.dtype != torch.float32 or not is_quantization_available():
            return self.logits(hidden)
        tables = (self.decoder_embeddings, self.other_decoder_embeddings)
        if self._quantized is None or any(
            a is not b for a, b in zip(self._quantized[:2], tables, strict=True)
        ):
            rows = torch.cat(tables)
            self._quantized = (*tables, rows, QuantizedTable(rows))
        *_, rows, quantized = self._quantized
        logits = quantized.multiply(hidden.flatten(0, 1)).unflatten(0, hidden.shape[:2])
        likeliest = logits.topk(min(_N_EXACT, len(rows))).indices
        exact = (rows[likeliest] @ hidden[..., None])[..., 0]
        return logits.scatter(2, likeliest, exact)

    def expected_embedding(self, logits: Float[Tensor, "B Q W"]) -> Float[Tensor, "B Q D"]:
        """Computes the expected LLM embedding under the sharpened distribution over shared words."""
        probabilities = (self.log_sharpness.exp() * logits[..., : len(self.llm_embeddings)]).softmax(-1)
        return probabilities.to(self.llm_embeddings.dtype) @ self.llm_embeddings

    def expected_embedding_of_likeliest(self, logits: Float[Tensor, "B Q W"]) -> Float[Tensor, "B Q D"]:
        """Computes the expectation over the likeliest words only, at a fiftieth of the memory traffic."""
        words = logits[..., : len(self.llm_embeddings)]
        likeliest = words.topk(min(_N_LIKELIEST, words.shape[-1]), dim=-1)
        probabilities = (self.log_sharpness.exp() * likeliest.values).softmax(-1)
        embeddings = self.llm_embeddings[likeliest.indices]
        return (probabilities.to(embeddings.dtype)[..., None, :] @ embeddings)[..., 0, :]

    def end_logits(
        self, hidden: Float[Tensor, "B Q E"], logits: Float[Tensor, "B Q W"]
    ) -> Float[Tensor, "B Q"]:
        """Computes the log-odds of the end of the text against all tokens together."""
        sharpness = self.log_sharpness.exp()
        with _no_autocast(hidden):
            end = upcast(hidden) @ upcast(self.end_embedding)
        return sharpness * end - _logsumexp(sharpness * logits)

    def log_prob_of_likeliest(
        self, hidden: Float[Tensor, "B Q E"], logits: Float[Tensor, "B Q W"]
    ) -> Float[Tensor, "B Q"]:
        """Computes the log-probability of the likeliest of all tokens and the end, in nats, as Whisper gives it."""
        with _no_autocast(hidden):
            end = upcast(hidden) @ upcast(self.end_embedding)
        return torch.maximum(logits.amax(-1), end) - torch.logaddexp(_logsumexp(logits), end)

    def log_likelihood(
        self, logits: Float[Tensor, "B Q W"], targets: NearestTokens, n_tokens: Int[Tensor, " B"]
    ) -> Float[Tensor, " B"]:
        """Computes the log-likelihood of each transcript in nats, over those of its tokens that are shared."""
        slots = torch.arange(logits.shape[1], device=logits.device)
        is_scored = targets.is_exact & (slots < n_tokens[:, None])
        log_probs = logits.log_softmax(-1).gather(2, targets.index[..., None])[..., 0]
        return (log_probs * is_scored).sum(1)

    @torch.no_grad()
    def nearest_tokens(self, points: Float[Tensor, "*N D"]) -> NearestTokens:
        """Finds the shared token nearest to each audio token or LLM embedding."""
        with _no_autocast(points):
            points, norms = upcast(points), upcast(self.llm_square_norms)
            best = (2 * points @ upcast(self.llm_embeddings).T - norms).max(-1)
            distances = points.square().sum(-1) - best.values
        return NearestTokens(best.indices, distances < _EXACT * norms.mean())

    def recall_nearest_tokens(
        self, candidates: Float[Tensor, "C D"], ids: Int[Tensor, " C"] | None
    ) -> NearestTokens:
        """Finds the shared tokens nearest to tokens of the LLM, once for each of their ids."""
        if ids is None or not len(ids):
            return self.nearest_tokens(candidates)
        if ids.is_meta:  # a plan: it counts what a step costs once they are found
            return NearestTokens(ids, torch.ones_like(ids, dtype=torch.bool))
        memory, n_ids = self._nearest, int(ids.max()) + 1
        if memory.index.device != ids.device or len(memory.index) < n_ids:
            larger = _empty_memory(ids.device, n_ids)
            n = len(memory.index)
            larger.index[:n], larger.is_exact[:n] = memory.index, memory.is_exact
            self._nearest = memory = larger
        unknown = memory.index[ids] == _UNKNOWN
        if bool(unknown.any()):
            found = self.nearest_tokens(candidates[unknown])
            memory.index[ids[unknown]], memory.is_exact[ids[unknown]] = found.index, found.is_exact
        return memory.select(ids)

    def likeliest_tokens(self, logits: Float[Tensor, "*N W"]) -> Int[Tensor, "*N"]:
        """Returns the token that Whisper would write, among those that the LLM has, whole or in pieces.

        Returns: numbers of shared words, and behind them those of unshared tokens, in the order of the logits
        """
        n_words = len(self.llm_embeddings)
        best = logits[..., :n_words].max(-1)
        if not len(self.other_pieces):
            return best.indices
        others = logits[..., n_words:].masked_fill(self.other_pieces[:, 0] < 0, -torch.inf).max(-1)
        return torch.where(others.values > best.values, n_words + others.indices, best.indices)

    def is_unshared(self, tokens: Int[Tensor, " B"]) -> Bool[Tensor, " B"]:
        """Returns which of Whisper's tokens the LLM has only in pieces."""
        return tokens >= len(self.llm_embeddings)

    def embed_pieces(self, tokens: Int[Tensor, " B"]) -> tuple[Float[Tensor, "B K D"], Int[Tensor, " B"]]:
        """Returns the LLM's embeddings of the pieces of unshared tokens, and the number of pieces of each."""
        n_words = len(self.llm_embeddings)
        pieces = self._list_pieces(tokens)
        embeddings = self.llm_embeddings[pieces.clamp(0, n_words - 1)]
        if len(self.piece_embeddings):
            others = self.piece_embeddings[(pieces - n_words).clamp(min=0)]
            embeddings = torch.where((pieces >= n_words)[..., None], others, embeddings)
        return embeddings, (pieces >= 0).sum(1)

    def replace_unshared(
        self, embeddings: Float[Tensor, "N D"], tokens: Int[Tensor, " N"], numbers: Int[Tensor, " N"]
    ) -> Float[Tensor, "N D"]:
        """Returns embeddings with a piece in place of each that is of an unshared token.

        Args:
            tokens: what Whisper would write
            numbers: which piece of its token each row is
        """
        rows = self.is_unshared(tokens).nonzero()[:, 0]
        if not len(rows):
            return embeddings
        pieces, _ = self.embed_pieces(tokens[rows])  # (M, K, D)
        pieces = pieces[torch.arange(len(rows), device=rows.device), numbers[rows]]
        return embeddings.index_copy(0, rows, pieces.to(embeddings.dtype))

    def count_pieces(self, tokens: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
        """Counts the LLM's tokens for each of Whisper's: one for a shared one, else its pieces."""
        if not len(self.other_pieces):
            return torch.ones_like(tokens)
        return (self._list_pieces(tokens) >= 0).sum(1).where(self.is_unshared(tokens), 1)

    def _list_pieces(self, tokens: Int[Tensor, " B"]) -> Int[Tensor, "B K"]:
        """Looks up the pieces of unshared tokens; anything for others."""
        return self.other_pieces[(tokens - len(self.llm_embeddings)).clamp(min=0)]

    def embed_written(self, tokens: Int[Tensor, " B"]) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B E"]]:
        """Looks up the LLM's embeddings of tokens, or of their last pieces, and Whisper's."""
        is_unshared = self.is_unshared(tokens)
        words = tokens.where(~is_unshared, 0)
        in_llm, in_whisper = self.llm_embeddings[words], self.decoder_embeddings[words]
        if not bool(is_unshared.any()):
            return in_llm, in_whisper
        pieces, n_pieces = self.embed_pieces(tokens)
        last = pieces[torch.arange(len(pieces)), (n_pieces - 1).clamp(min=0)]
        others = self.other_decoder_embeddings[(tokens - len(self.llm_embeddings)).clamp(min=0)]
        return (
            torch.where(is_unshared[:, None], last, in_llm),
            torch.where(is_unshared[:, None], others, in_whisper),
        )

    @torch.no_grad()
    def detect_language(self, first: Float[Tensor, "B E"]) -> Float[Tensor, "B E"]:
        """Returns the embedding of the spoken language, by the decoder's state at the first row of its prompt."""
        with _no_autocast(first):
            likeliest = (upcast(first) @ upcast(self.language_embeddings).T).argmax(-1)
        return self.language_embeddings[likeliest]


def _empty_memory(device: torch.device, n_ids: int = 0) -> NearestTokens:
    """Returns a memory of the tokens nearest to those of the LLM, by their ids: none found yet."""
    index = torch.full((n_ids,), _UNKNOWN, device=device)
    return NearestTokens(index, torch.zeros_like(index, dtype=torch.bool))


def _logsumexp(logits: Float[Tensor, "*N W"]) -> Float[Tensor, "*N"]:
    """Returns torch's logsumexp; without a gradient, in a tenth of its time on CPUs, where tiny numbers are slow."""
    if logits.requires_grad:
        return logits.logsumexp(-1)
    largest = logits.amax(-1, keepdim=True)
    return (logits - largest).clamp(min=-_MAX_DIFFERENCE).exp().sum(-1).log() + largest[..., 0]


def _no_autocast(tensor: Tensor) -> torch.autocast:
    """Disables autocast; tensors on the meta device are under the CPU's."""
    return torch.autocast("cpu" if tensor.is_meta else tensor.device.type, enabled=False)
