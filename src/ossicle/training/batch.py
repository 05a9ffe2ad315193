"""The clips of a training step in their stages: as workers send them, divided into microbatches, on the device."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ossicle.backbones.encoder import FRAMES_PER_POSITION, Features, pad_mels
from ossicle.ear import Ear
from ossicle.plan import MicrobatchMemory, PaddedLengths, estimate_n_distinct_tokens
from ossicle.training.distributed import Ranks


@dataclass(frozen=True)
class Clip:
    """One training example: sound and transcript."""

    ids: Int[Tensor, " T"]
    mel: Float[Tensor, "M F"] | None
    """Log-mel spectrogram, where the sound is yet to be encoded."""
    states: Float[Tensor, "S E"] | None
    """Encoder features, where they were cached."""
    clean_mel: Float[Tensor, "M C"] | None = None
    """Log-mel spectrogram of the same sound before augmentation, where the objective has an anchor."""

    @property
    def n_positions(self) -> int:
        """Encoder positions of the clip."""
        if self.states is not None:
            return len(self.states)
        assert self.mel is not None
        return self.mel.shape[1] // FRAMES_PER_POSITION


@dataclass(frozen=True)
class WorkerBatch:
    """Clips as a worker process sends them, concatenated: few tensors are sent faster than many."""

    n_text: list[int]
    n_positions: list[int]
    text_ids: Int[Tensor, " T"]
    mel: Float[Tensor, "F M"] | None
    states: Float[Tensor, "S E"] | None
    clean_mel: Float[Tensor, "C M"] | None
    n_clean_frames: list[int]
    skipped: dict[str, str]
    """Rows that could not be used, with the reason."""

    @classmethod
    def from_clips(cls, clips: Sequence[Clip], skipped: dict[str, str]) -> "WorkerBatch":
        """Concatenates clips; either all of them have encoder features, or none has."""
        mels = [clip.mel.T for clip in clips if clip.mel is not None]
        states = [clip.states for clip in clips if clip.states is not None]
        clean_mels = [clip.clean_mel.T for clip in clips if clip.clean_mel is not None]
        return cls(
            n_text=[len(clip.ids) for clip in clips],
            n_positions=[clip.n_positions for clip in clips],
            text_ids=torch.cat([torch.zeros(0, dtype=torch.long), *(clip.ids for clip in clips)]),
            mel=torch.cat(mels) if mels else None,
            states=torch.cat(states) if states else None,
            clean_mel=torch.cat(clean_mels) if clean_mels else None,
            n_clean_frames=list(map(len, clean_mels)),
            skipped=skipped,
        )

    @property
    def clips(self) -> list[Clip]:
        """The single clips."""
        n = len(self.n_text)
        ids = self.text_ids.split(self.n_text)
        n_frames = [FRAMES_PER_POSITION * n for n in self.n_positions]
        mels = [None] * n if self.mel is None else [mel.T for mel in self.mel.split(n_frames)]
        states = [None] * n if self.states is None else self.states.split(self.n_positions)
        clean = self.clean_mel
        clean_mels = [None] * n if clean is None else [mel.T for mel in clean.split(self.n_clean_frames)]
        return [
            Clip(ids=ids[row], mel=mels[row], states=states[row], clean_mel=clean_mels[row])
            for row in range(n)
        ]


@dataclass(frozen=True)
class Microbatch:
    """Clips that are run together, padded, on the host."""

    n_text: list[int]
    n_positions: list[int]
    text_ids: Int[Tensor, "B T"]
    mel: Float[Tensor, "B M F"] | None
    states: Float[Tensor, "B S E"] | None
    clean_mel: Float[Tensor, "B M C"] | None
    n_clean_frames: list[int]

    def __len__(self) -> int:
        return len(self.n_text)

    @property
    def transcripts(self) -> list[Int[Tensor, " _"]]:
        """The tokens of each transcript, without padding."""
        return [row[:n] for row, n in zip(self.text_ids, self.n_text, strict=True)]

    def pin_memory(self) -> "Microbatch":
        """Returns a copy in memory that a GPU reads from without waiting."""
        return replace(
            self,
            text_ids=self.text_ids.pin_memory(),
            mel=None if self.mel is None else self.mel.pin_memory(),
            states=None if self.states is None else self.states.pin_memory(),
            clean_mel=None if self.clean_mel is None else self.clean_mel.pin_memory(),
        )


def build_microbatch(clips: Sequence[Clip]) -> Microbatch:
    """Pads clips to the longest; either all of them have encoder features, or none has."""
    states = [clip.states for clip in clips if clip.states is not None]
    mels = [clip.mel for clip in clips if clip.mel is not None]
    clean_mels = [clip.clean_mel for clip in clips if clip.clean_mel is not None]
    ids = [clip.ids for clip in clips]
    return Microbatch(
        n_text=list(map(len, ids)),
        n_positions=[clip.n_positions for clip in clips],
        text_ids=pad_sequence(ids, batch_first=True) if ids else torch.zeros(0, 1, dtype=torch.long),
        mel=pad_mels(mels)[0] if mels else None,
        states=pad_sequence(states, batch_first=True) if states else None,
        clean_mel=pad_mels(clean_mels)[0] if clean_mels else None,
        n_clean_frames=[mel.shape[1] for mel in clean_mels],
    )


def plan_microbatches(
    clips: Sequence[Clip], memory_model: MicrobatchMemory, budget: float
) -> list[list[Clip]]:
    """Divides clips into microbatches of similar lengths, each as large as the budget allows, at least one clip.

    Args:
        budget: predicted bytes of a microbatch
    """
    n_candidates = estimate_n_distinct_tokens(float(sum(len(clip.ids) for clip in clips)))
    groups: list[list[Clip]] = []
    n_tokens = 0
    for clip in sorted(clips, key=lambda clip: (clip.n_positions, len(clip.ids))):
        n_tokens = max(n_tokens, len(clip.ids)) if groups else 0
        lengths = PaddedLengths(n_positions=clip.n_positions, n_tokens=n_tokens, n_candidates=n_candidates)
        if groups and memory_model.estimate_total(len(groups[-1]) + 1, lengths) <= budget:
            groups[-1].append(clip)
        else:
            groups.append([clip])
            n_tokens = len(clip.ids)
    return groups


@dataclass(frozen=True)
class RankBatch:
    """What one rank learns from in a step."""

    microbatches: list[Microbatch]
    """Run one after the other; all ranks have the same number of them, and some may be empty."""
    skipped: dict[str, str]
    """Rows that could not be used, with the reason."""


def build_rank_batch(
    worker_batches: Sequence[WorkerBatch],
    memory_model: MicrobatchMemory,
    budget: float,
    ranks: Ranks,
    *,
    pin_memory: bool,
) -> RankBatch:
    """Divides what workers sent for a step into microbatches; all ranks call it together.

    Args:
        budget: predicted bytes of a microbatch
    """
    clips = [clip for batch in worker_batches for clip in batch.clips]
    microbatches = [build_microbatch(group) for group in plan_microbatches(clips, memory_model, budget)]
    n_microbatches = max(ranks.all_gather(len(microbatches)))
    microbatches += [build_microbatch([])] * (n_microbatches - len(microbatches))
    if pin_memory:
        microbatches = [microbatch.pin_memory() for microbatch in microbatches]
    skipped = {name: reason for batch in worker_batches for name, reason in batch.skipped.items()}
    return RankBatch(microbatches=microbatches, skipped=skipped)


@dataclass(frozen=True)
class Batch:
    """A microbatch on the ear's device, its sound encoded."""

    features: Features
    text_ids: Int[Tensor, "B T"]
    """Padded on the right; values from n_text on do not matter."""
    n_text: Int[Tensor, " B"]
    text_lengths: Sequence[int]
    """n_text, on the host."""
    audio_lengths: Sequence[int]
    """Encoder positions of each clip, on the host."""
    clean_features: Features | None = None
    """Of the sound before augmentation, where the objective has an anchor and no features were cached."""

    @property
    def unique_ids(self) -> Int[Tensor, " C"]:
        """The tokens of all transcripts, each once, in ascending order."""
        position = torch.arange(self.text_ids.shape[1], device=self.n_text.device)
        return self.text_ids[position < self.n_text[:, None]].unique()


def build_batch(ear: Ear, microbatch: Microbatch) -> Batch:
    """Moves a microbatch to the ear's device, and encodes its sound unless features were cached."""
    device = ear.device
    if microbatch.states is not None:
        states = microbatch.states.to(device, non_blocking=True).to(ear.whisper.model.dtype)
        features = ear.wrap_states(states, torch.tensor(microbatch.n_positions))
    else:
        assert microbatch.mel is not None
        features = ear.encode_mels(microbatch.mel, torch.tensor(microbatch.n_positions) * FRAMES_PER_POSITION)
    clean_mel, clean_features = microbatch.clean_mel, None
    if clean_mel is not None:
        clean_features = ear.encode_mels(clean_mel, torch.tensor(microbatch.n_clean_frames))
    return Batch(
        features=features,
        text_ids=microbatch.text_ids.to(device, non_blocking=True),
        n_text=torch.tensor(microbatch.n_text).to(device, non_blocking=True),
        text_lengths=microbatch.n_text,
        audio_lengths=microbatch.n_positions,
        clean_features=clean_features,
    )
