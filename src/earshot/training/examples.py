"""From utterances to what a training step needs: encoder features and transcript ids."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from earshot.data.sources import Utterance
from earshot.encoder import Features
from earshot.errors import AudioError, DataError
from earshot.model import Ear

_ENCODED_AT_ONCE = 32


@dataclass(frozen=True)
class Batch:
    """Clips as the encoder hears them, with their transcripts."""

    features: Features
    text_ids: Int[Tensor, "B T"]
    """Padded on the right; what stands beyond n_text does not matter."""
    n_text: Int[Tensor, " B"]


class Examples:
    """The utterances of a run, tokenised, and encoded when asked for or once for all."""

    def __init__(self, ear: Ear, utterances: Sequence[Utterance], *, cache_features: bool) -> None:
        self.ear, self.utterances = ear, utterances
        self.text_ids = [self._ids(utterance) for utterance in utterances]
        self.cache: list[Tensor | None] | None = [None] * len(utterances) if cache_features else None
        self.lengths = [self._length(number) for number in range(len(utterances))]

    def _ids(self, utterance: Utterance) -> Tensor:
        ids = self.ear.template.split(utterance.text).text
        if not ids:
            raise DataError(f"{utterance.name}: the transcript {utterance.text!r} has no tokens")
        return torch.tensor(ids)

    def _length(self, number: int) -> int:
        """What orders clips by length: the size of the encoded file, near enough, or else the transcript's tokens."""
        audio = self.utterances[number].audio
        return len(audio) if isinstance(audio, bytes) else len(self.text_ids[number])

    def _sounds(self, numbers: Sequence[int]) -> list[np.ndarray]:
        sounds = []
        for number in numbers:
            try:
                sounds.append(self.ear.load(self.utterances[number].audio))
            except AudioError as error:
                raise DataError(f"{self.utterances[number].name}: {error}") from error
        return sounds

    def fill_cache(self, progress: Callable[[int, int], None]) -> None:
        """Encodes every clip once, like lengths together, when features are to be kept."""
        if self.cache is None:
            return
        order = sorted(range(len(self.utterances)), key=self.lengths.__getitem__)
        for first in range(0, len(order), _ENCODED_AT_ONCE):
            numbers = order[first : first + _ENCODED_AT_ONCE]
            features = self.ear.features(self._sounds(numbers))
            for number, states, mask in zip(numbers, features.states, features.mask, strict=True):
                self.cache[number] = states[mask].to(torch.bfloat16)
            progress(first + len(numbers), len(order))

    def batch(self, numbers: Sequence[int]) -> Batch:
        """One batch, on the ear's device."""
        device = self.ear.device
        ids = [self.text_ids[number] for number in numbers]
        return Batch(
            features=self._features(numbers),
            text_ids=pad_sequence(ids, batch_first=True).to(device),
            n_text=torch.tensor([len(row) for row in ids], device=device),
        )

    def _features(self, numbers: Sequence[int]) -> Features:
        if self.cache is None:
            return self.ear.features(self._sounds(numbers))
        rows = [states.float() for number in numbers if (states := self.cache[number]) is not None]
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        return Features(pad_sequence(rows, batch_first=True).to(self.ear.device), mask.to(self.ear.device))
