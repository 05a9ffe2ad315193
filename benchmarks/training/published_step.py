"""A training step of the method exactly as published: the reference that the fast step is held to.

It needs torch and transformers alone. Every clip is 30 s for the encoder and 448 audio tokens for the LLM, the teacher
reads the transcript in the same step, and the whole batch is one. Attention is fused and logits are not computed.

Source: DiVA, arXiv 2410.02678.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaForCausalLM
from transformers.models.whisper.modeling_whisper import WhisperDecoder, WhisperEncoder

from benchmarks.meters import RecordPart, record_nothing


@dataclass(frozen=True)
class PublishedBatch:
    """A batch on the host."""

    mel: Float[Tensor, "B M F"]
    ids: Int[Tensor, "B T"]
    n_text: list[int]
    """Tokens of each transcript; those behind are padding."""


class PublishedConnector(nn.Module):
    """Whisper's decoder on learned queries in place of token embeddings, then a projection to the LLM's width."""

    def __init__(self, queries: Float[Tensor, "Q E"], decoder: WhisperDecoder, projection: nn.Linear) -> None:
        super().__init__()
        self.queries, self.decoder, self.projection = nn.Parameter(queries), decoder, projection
        decoder.embed_tokens.requires_grad_(False)  # unused

    def forward(self, features: Float[Tensor, "B S E"]) -> Float[Tensor, "B Q D"]:
        queries = self.queries.expand(len(features), -1, -1)  # (B, Q, E); the decoder adds its positions
        hidden = self.decoder(inputs_embeds=queries, encoder_hidden_states=features, use_cache=False)
        return self.projection(hidden.last_hidden_state)


class PublishedStep:
    """The published step between a frozen encoder and a frozen LLM.

    Args:
        prefix: tokens of the chat template before the user's content
        suffix: tokens after it, up to where the answer begins
    """

    def __init__(
        self,
        encoder: WhisperEncoder,
        connector: PublishedConnector,
        llm: LlamaForCausalLM,
        prefix: Sequence[int],
        suffix: Sequence[int],
    ) -> None:
        self.encoder, self.connector, self.llm = encoder, connector, llm
        self.prefix, self.suffix = (
            self.embed(torch.tensor(ids, device=llm.device)) for ids in (prefix, suffix)
        )
        self.optimizer = torch.optim.AdamW(
            [weight for weight in connector.parameters() if weight.requires_grad],
            lr=5e-5,
            betas=(0.9, 0.999),
            weight_decay=0.1,
            fused=True,
        )

    def compute_loss(self, batch: PublishedBatch, record: RecordPart = record_nothing) -> Float[Tensor, ""]:
        """Returns the L2 distance of the final hidden states plus that of the aligned input embeddings."""
        device, dtype = self.llm.device, self.llm.dtype
        mel, ids = (tensor.to(device, non_blocking=True) for tensor in (batch.mel, batch.ids))
        text = self.embed(ids)  # (B, T, D)
        with record("teacher"), torch.no_grad():
            transcripts = [row[:n] for row, n in zip(text, batch.n_text, strict=True)]
            teacher = self.compute_last_states(transcripts)  # (B, D)
        with record("encoder"), torch.no_grad():
            features = self.encoder(mel.to(dtype)).last_hidden_state  # (B, S, E)
        with record("connector"), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            audio = self.connector(features)  # (B, Q, D)
            align_l2 = compute_aligned_l2(
                audio, text, torch.tensor(batch.n_text).to(device, non_blocking=True)
            )
        with record("student"):
            student = self.compute_last_states(list(audio.to(dtype)))  # (B, D)
            hidden_l2 = torch.linalg.vector_norm(student.float() - teacher.float(), dim=-1).mean()
        return hidden_l2 + align_l2

    def run_step(self, batch: PublishedBatch, record: RecordPart = record_nothing) -> Float[Tensor, ""]:
        """Takes one optimizer step; returns the loss before it."""
        loss = self.compute_loss(batch, record)
        with record("backward"):
            loss.backward()
        with record("optimizer"):
            nn.utils.clip_grad_norm_(self.connector.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss.detach()

    def embed(self, ids: Int[Tensor, "... T"]) -> Float[Tensor, "... T D"]:
        """Returns the LLM's input embeddings of tokens, without gradients."""
        return self.llm.get_input_embeddings()(ids).detach()

    def compute_last_states(self, contents: Sequence[Float[Tensor, "_ D"]]) -> Float[Tensor, "B D"]:
        """Returns the LLM's state, after the final norm, at the last position of [prefix; content; suffix]."""
        rows = [torch.cat([self.prefix, content, self.suffix]) for content in contents]
        lengths = torch.tensor([len(row) for row in rows])
        inputs_embeds = pad_sequence(rows, batch_first=True)  # (B, L, D), padded on the right
        attention_mask = None
        if int(lengths.min()) < inputs_embeds.shape[1]:
            attention_mask = (
                (torch.arange(inputs_embeds.shape[1]) < lengths[:, None]).long().to(self.llm.device)
            )
        states = self.llm.model(
            inputs_embeds=inputs_embeds, attention_mask=attention_mask, use_cache=False
        ).last_hidden_state
        return states[torch.arange(len(rows)), lengths - 1]

    @property
    def weights(self) -> list[Tensor]:
        """All weights of the three models."""
        models = (self.connector, self.llm, self.encoder)
        return [weight for model in models for weight in model.parameters()]


def compute_aligned_l2(
    audio: Float[Tensor, "B Q D"], text: Float[Tensor, "B T D"], n_text: Int[Tensor, " B"]
) -> Float[Tensor, ""]:
    """Returns the mean L2 distance of each transcript token's embedding to its audio token, aligned right.

    The last audio token stands for the last token of the transcript: token t of T for audio token Q - T + t.
    """
    token = torch.arange(text.shape[1], device=text.device)  # (T,)
    slots = (audio.shape[1] - n_text[:, None] + token).clamp(max=audio.shape[1] - 1)  # (B, T)
    aligned = audio.gather(1, slots[..., None].expand(-1, -1, audio.shape[2]))  # (B, T, D)
    distances = torch.linalg.vector_norm(aligned.float() - text.float(), dim=-1)  # (B, T)
    return (distances * (token < n_text[:, None])).sum() / n_text.sum()
