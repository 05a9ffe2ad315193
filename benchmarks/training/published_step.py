"""A training step of the method exactly as it was published: what everything else is measured against.

    python benchmarks/literal.py                              # small shapes, on a CPU
    python benchmarks/literal.py --shape large-v3 --batch 8   # real ones, on a GPU

Every clip is encoded as 30 s, makes 448 audio tokens aligned to the right end, and the LLM reads all of them with
gradients; the teacher reads the transcript in the same step. Encoder and LLM are transformers' own, attention is fused,
logits are not made, nothing is computed twice, and the whole batch is one. Last, one line of JSON.

Source: DiVA, arXiv 2410.02678.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from benchmarks.meters import Counter, Watch, about, matmul_peak, median, seconds, unwatched
from benchmarks.shapes import SHAPES, Bases, Shape, drawn_batches, full_window
from ossicle.backbones.causal_lm import embed
from ossicle.backbones.encoder import Features
from ossicle.backbones.pretrained import get_default_device
from ossicle.chat.template import ChatTemplate
from ossicle.config import ConnectorSettings, PromptSettings
from ossicle.connectors import Connector, build_connector
from ossicle.losses import alignment_l2, hidden_l2
from ossicle.training.batch import Clip


@dataclass(frozen=True)
class Given:
    """A batch on the host."""

    mel: Float[Tensor, "B M F"]
    ids: Int[Tensor, "B T"]
    n_text: Int[Tensor, " B"]

    @classmethod
    def of(cls, shape: Shape, clips: Sequence[Clip]) -> "Given":
        """Clips side by side, their spectrograms as long as the encoder's window."""
        return cls(
            mel=full_window(shape, clips),
            ids=pad_sequence([clip.ids for clip in clips], batch_first=True),
            n_text=torch.tensor([len(clip.ids) for clip in clips]),
        )


class Literal:
    """The published step: 448 slots, whatever is said; 30 seconds, whatever is heard; the teacher alive."""

    def __init__(self, bases: Bases, shape: Shape, frame: tuple[Sequence[int], Sequence[int]]) -> None:
        self.encoder, self.llm = bases.whisper.model.model.encoder, bases.llm
        self.prefix, self.suffix = (embed(self.llm, ids)[None] for ids in frame)
        torch.manual_seed(1)
        settings = ConnectorSettings(form="diva", n_queries=shape.n_slots)
        connector = build_connector(bases.whisper.config, settings, shape.d_llm)
        assert isinstance(connector, Connector)
        connector.init_from_decoder(bases.whisper.model.model.decoder)
        self.connector = connector.float().to(self.llm.device)
        self.optimizer = torch.optim.AdamW(
            self.connector.parameters(), lr=5e-5, betas=(0.9, 0.999), weight_decay=0.1, fused=True
        )

    @property
    def weights(self) -> list[Tensor]:
        """All that are there anyway."""
        models = (self.connector, self.llm, self.encoder)
        return [weight for model in models for weight in model.parameters()]

    def step(self, given: Given, watch: Watch = unwatched) -> Float[Tensor, ""]:
        """One optimizer step; the loss before it."""
        device = self.llm.device
        mel, ids, n_text = (
            each.to(device, non_blocking=True) for each in (given.mel, given.ids, given.n_text)
        )
        text = embed(self.llm, ids)
        with watch("teacher"), torch.no_grad():
            teacher = self._read(text, n_text)
        with watch("encoder"), torch.no_grad():
            states = self.encoder(mel.to(self.llm.dtype)).last_hidden_state
        with watch("connector"), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            every = torch.ones(states.shape[:2], dtype=torch.bool, device=device)
            audio = self.connector(Features(states, every, is_unpadded=True))
            align = alignment_l2(audio.tokens, text, audio.n_tokens, n_text, "right")
        with watch("student"):
            student = self._read(audio.tokens.to(self.llm.dtype))
            loss = hidden_l2(student, teacher) + align
        with watch("backward"):
            loss.backward()
        with watch("optimizer"):
            nn.utils.clip_grad_norm_(self.connector.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss.detach()

    def _read(
        self, middle: Float[Tensor, "B T D"], n_middle: Int[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B 1 D"]:
        """The LLM's state at the last position of [prefix; middle; suffix], of the middle as much as is its own."""
        prefix, suffix = (each.expand(len(middle), -1, -1) for each in (self.prefix, self.suffix))
        if n_middle is None:
            embeds, mask, last = torch.cat([prefix, middle, suffix], dim=1), None, None
        else:
            table = torch.cat([prefix, middle, suffix], dim=1)
            place = torch.arange(table.shape[1], device=table.device)
            end = prefix.shape[1] + n_middle[:, None]
            index = torch.where(place < end, place, place + middle.shape[1] - n_middle[:, None])
            index = index.clamp(max=table.shape[1] - 1)
            embeds = table.gather(1, index[..., None].expand_as(table))
            mask = (place < end + suffix.shape[1]).long()
            last = end + suffix.shape[1] - 1
        states = self.llm.model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).last_hidden_state
        if last is None:
            return states[:, -1:]
        return states.gather(1, last[..., None].expand(-1, -1, states.shape[2]))


def new_literal(bases: Bases, shape: Shape) -> Literal:
    """The published step between bases."""
    return Literal(bases, shape, ChatTemplate(bases.tokenizer, PromptSettings()).frame)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args(arguments)
    device, shape = get_default_device(), SHAPES[asked.shape]
    bases = Bases.of(shape, device)
    literal = new_literal(bases, shape)
    given = Given.of(shape, drawn_batches(shape, asked.seconds, asked.batch, 1)[0])
    with Counter() as counter:
        losses = [float(literal.step(given))]
    times = []
    for _ in range(asked.rounds):
        times.append(seconds(lambda: losses.append(float(literal.step(given))), device))
    peak = matmul_peak(device, literal.llm.dtype)
    step_s = median(times)
    result = {
        **about("literal", device),
        "shape": shape.name,
        "batch": asked.batch,
        "clips_per_s": asked.batch / step_s,
        "step_s": step_s,
        "tflop_per_clip": counter.total / asked.batch / 1e12,
        "share_of_attention": counter.in_attention / counter.total,
        "utilisation": counter.total / step_s / peak,
        "loss": losses,
    }
    print(f"{shape.name}: {result['clips_per_s']:.2f} clips/s, {result['tflop_per_clip']:.3g} TFLOP a clip")
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
