"""What an ear does with clips it has not learned from: how far hearing is from reading, in L2, KL and first words."""

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

_HEARD_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class HeldOutResult:
    """What an ear does with the held-out clips, at the position that predicts the answer's first token."""

    student: Float[Tensor, "N D"]
    teacher: Float[Tensor, "N D"]
    head: Float[Tensor, "V D"]

    @cached_property
    def l2(self) -> Float[Tensor, " N"]:
        """Distance of each clip's states."""
        return torch.linalg.vector_norm(self.student - self.teacher, dim=-1)

    @cached_property
    def kl(self) -> Float[Tensor, " N"]:
        """KL(teacher || student) of each clip's next-token distributions, in nats."""
        return compute_kl(self.head, self.teacher, self.student)

    @cached_property
    def agrees(self) -> Float[Tensor, " N"]:
        """Whether the likeliest first token is the same."""
        return ((self.student @ self.head.T).argmax(-1) == (self.teacher @ self.head.T).argmax(-1)).double()


@dataclass(frozen=True)
class HeldOutSet:
    """Spoken questions, encoded once, and what the LLM makes of their transcripts."""

    batches: list[tuple[list[int], Features]]
    """Places and sound of clips of like length."""
    teacher: Float[Tensor, "N D"]

    @classmethod
    def of(cls, ear: Ear, n_clips: int) -> "HeldOutSet":
        """Every so-manieth item of the pocket suite, its spoken part alone."""
        items = load_suite("pocket")
        chosen = [items[len(items) * number // n_clips] for number in range(n_clips)]
        sounds = [load_audio(item.audio) for item in chosen]
        order = sorted(range(n_clips), key=lambda place: len(sounds[place]))
        batches = [order[first : first + _HEARD_AT_ONCE] for first in range(0, n_clips, _HEARD_AT_ONCE)]
        ids = [torch.tensor(ear.template.split_prompt(item.text).text) for item in chosen]
        read = Teacher(ear, ObjectiveSettings(hidden_positions="last")).compute_targets(ids)
        heard = [(places, ear.encode_sounds([sounds[place] for place in places])) for places in batches]
        return cls(heard, read.states[:, -1].double())

    @torch.no_grad()
    def look(self, ear: Ear) -> HeldOutResult:
        """Hears all of it; how many tokens there are the ear says itself, as when it is asked."""
        student = torch.zeros_like(self.teacher)
        for places, features in self.batches:
            audio = ear.connector(features)
            lengths = audio.n_tokens.tolist()
            tokens = pad_sequence(
                [row[:n] for row, n in zip(audio.tokens, lengths, strict=True)], batch_first=True
            )
            student[places] = ear.llm_states(tokens, lengths, [1] * len(places))[:, -1].double()
        return HeldOutResult(student=student, teacher=self.teacher, head=get_lm_head(ear))


def get_lm_head(ear: Ear) -> Float[Tensor, "V D"]:
    """The matrix that makes logits of the LLM's final states."""
    return ear.llm.get_output_embeddings().weight.detach().double()
