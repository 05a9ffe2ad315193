"""Ultravox's own training step on clips that are described on stdin, in the environment where Ultravox is installed.

`benchmarks.training.peers` runs it; it knows nothing of ossicle, whose transformers is another. The first line of stdin
names the backbones, each further line is a request: {"clips": [...]} sets the batch and counts its operations, and
{"step": true} takes a step. Each answer is a line of JSON.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from ultravox.model.ultravox_config import (  # ty: ignore[import-not-found]
    LossConfig,
    LossFunction,
    UltravoxConfig,
)
from ultravox.model.ultravox_model import UltravoxModel  # ty: ignore[import-not-found]

from benchmarks.meters import FlopCounter, measure_seconds

FRAMES_PER_TOKEN = 16
"""Mel frames of an audio token: the encoder halves them, and the projector stacks eight positions."""
IGNORED = -100
"""Label of a token that is not compared."""


@dataclass(frozen=True)
class TokenBatch:
    """Token ids of a batch, padded on the left as Ultravox does."""

    ids: Tensor
    mask: Tensor
    labels: Tensor


def pad_left(rows: Sequence[Sequence[int]], n_compared: Sequence[int], pad_id: int) -> TokenBatch:
    """Returns rows of ids as a batch; of each row, the last tokens are compared."""
    longest = max(map(len, rows))
    ids, mask, labels = (torch.full((len(rows), longest), fill) for fill in (pad_id, 0, IGNORED))
    for number, (row, n) in enumerate(zip(rows, n_compared, strict=True)):
        ids[number, longest - len(row) :] = torch.tensor(row)
        mask[number, longest - len(row) :] = 1
        labels[number, longest - n :] = torch.tensor(row[len(row) - n :])
    return TokenBatch(ids, mask, labels)


class UltravoxStep:
    """Ultravox with a frozen encoder and a frozen LLM, as it is trained: the KL divergence on the response."""

    def __init__(self, encoder: str, llm: str, device: str, dtype: str) -> None:
        config = UltravoxConfig(
            audio_model_id=encoder, text_model_id=llm, torch_dtype=dtype, projector_ln_mid=True
        )
        config.text_config._attn_implementation = "sdpa"
        self.model = UltravoxModel(config).to(device).train()
        self.model.set_loss_config(LossConfig(loss_function=LossFunction.KL_Divergence))
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4)
        self.n_trained = sum(weight.numel() for weight in trained)
        self.device, self.dtype = device, getattr(torch, dtype)
        self.batch: dict[str, Tensor] = {}

    def set_batch(self, clips: Sequence[dict[str, Any]]) -> None:
        """Prepares the inputs of clips: their frames, and the ids of prompt, transcript and response."""
        n_frames = [clip["n_frames"] for clip in clips]
        n_tokens = [-(-n // FRAMES_PER_TOKEN) for n in n_frames]
        n_compared = [len(clip["response"]) for clip in clips]
        heard = [
            [*clip["prefix"], *[clip["prefix"][-1]] * n, *clip["suffix"], *clip["response"]]
            for clip, n in zip(clips, n_tokens, strict=True)
        ]
        read = [[*clip["prefix"], *clip["text"], *clip["suffix"], *clip["response"]] for clip in clips]
        pad_id = clips[0]["prefix"][0]
        student, teacher = pad_left(heard, n_compared, pad_id), pad_left(read, n_compared, pad_id)
        starts = [
            student.ids.shape[1] - len(row) + len(clip["prefix"])
            for row, clip in zip(heard, clips, strict=True)
        ]
        n_mels = self.model.audio_tower.config.num_mel_bins
        batch = {
            "input_ids": student.ids,
            "attention_mask": student.mask,
            "labels": student.labels,
            "alt_input_ids": teacher.ids,
            "alt_attention_mask": teacher.mask,
            "alt_labels": teacher.labels,
            "audio_values": torch.randn(len(clips), n_mels, max(n_frames), dtype=self.dtype),
            "audio_lens": torch.tensor(n_frames),
            "audio_token_len": torch.tensor(n_tokens),
            "audio_token_start_idx": torch.tensor(starts),
            "audio_batch_size": torch.ones(len(clips), dtype=torch.long),
        }
        self.batch = {name: tensor.to(self.device) for name, tensor in batch.items()}

    def run_step(self) -> float:
        """Takes one optimizer step; returns the loss before it."""
        loss = self.model(**self.batch).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())


def answer(step: UltravoxStep, request: dict[str, Any]) -> dict[str, Any]:
    """Returns the answer to a request."""
    if "clips" in request:
        step.set_batch(request["clips"])
        with FlopCounter() as counter:
            loss = step.run_step()
        n_compared = int((step.batch["labels"] != IGNORED).sum())
        return {"flops": counter.total, "n_compared": n_compared, "loss": loss}
    return {"seconds": measure_seconds(step.run_step, torch.device(step.device))}


def main() -> None:
    """Answers requests until stdin ends."""
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    torch.manual_seed(0)
    step = UltravoxStep(**json.loads(sys.stdin.readline()))
    answers = sys.stdout
    answers.write(json.dumps({"n_trained": step.n_trained}) + "\n")
    answers.flush()
    for line in sys.stdin:
        answers.write(json.dumps(answer(step, json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
