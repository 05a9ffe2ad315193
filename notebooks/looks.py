"""Evaluates an ear on held-out clips: L2, KL and first tokens of the LLM on sound and on text."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from notebooks.heads import compute_kl
from ossicle.audio.waveform import load_audio
from ossicle.backbones.encoder import Features
from ossicle.config import ObjectiveSettings
from ossicle.ear import Ear
from ossicle.evaluation.suite import load_suite
from ossicle.training.teacher import Teacher

_BATCH_SIZE = 64


@dataclass(frozen=True, kw_only=True)
class HeldOutResult:
    """Final hidden states on the held-out clips, at the position that predicts the answer's first token."""

    student: Float[Tensor, "N D"]
    teacher: Float[Tensor, "N D"]
    head: Float[Tensor, "V D"]

    @cached_property
    def l2(self) -> Float[Tensor, " N"]:
        """L2 distance of each clip's states."""
        return torch.linalg.vector_norm(self.student - self.teacher, dim=-1)

    @cached_property
    def kl(self) -> Float[Tensor, " N"]:
        """KL(teacher || student) of each clip's next-token distributions, in nats."""
        return compute_kl(self.head, self.teacher, self.student)

    @cached_property
    def agrees(self) -> Float[Tensor, " N"]:
        """1 where the likeliest first token is the same, else 0."""
        return ((self.student @ self.head.T).argmax(-1) == (self.teacher @ self.head.T).argmax(-1)).double()


@dataclass(frozen=True)
class HeldOutSet:
    """Spoken questions, encoded once, and the teacher's states on their transcripts."""

    batches: list[tuple[list[int], Features]]
    """Indices and features of clips of similar lengths."""
    teacher: Float[Tensor, "N D"]

    @classmethod
    def build(cls, ear: Ear, n_clips: int) -> "HeldOutSet":
        """Builds the set from items at equal distances of the pocket suite, without their instructions."""
        items = load_suite("pocket")
        chosen = [items[len(items) * number // n_clips] for number in range(n_clips)]
        sounds = [load_audio(item.audio) for item in chosen]
        order = sorted(range(n_clips), key=lambda index: len(sounds[index]))
        batches = [order[first : first + _BATCH_SIZE] for first in range(0, n_clips, _BATCH_SIZE)]
        ids = [torch.tensor(ear.template.split_prompt(item.text).text) for item in chosen]
        targets = Teacher(ear, ObjectiveSettings(hidden_positions="last")).compute_targets(ids)
        features = [(indices, ear.encode_sounds([sounds[index] for index in indices])) for indices in batches]
        return cls(features, targets.states[:, -1].double())

    @torch.no_grad()
    def evaluate(self, ear: Ear) -> HeldOutResult:
        """Evaluates an ear, which decides the number of audio tokens itself, as at inference."""
        student = torch.zeros_like(self.teacher)
        for indices, features in self.batches:
            audio = ear.connector(features)
            lengths = audio.n_tokens.tolist()
            tokens = pad_sequence(
                [row[:n] for row, n in zip(audio.tokens, lengths, strict=True)], batch_first=True
            )
            student[indices] = ear.llm_states(tokens, lengths, [1] * len(indices))[:, -1].double()
        return HeldOutResult(student=student, teacher=self.teacher, head=get_lm_head(ear))


def get_lm_head(ear: Ear) -> Float[Tensor, "V D"]:
    """Returns the LLM's output matrix, which maps final states to logits."""
    return ear.llm.get_output_embeddings().weight.detach().double()
