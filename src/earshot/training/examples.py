"""From utterances to what a training step needs: encoder features and transcript ids."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
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

    @property
    def tokens(self) -> Int[Tensor, " C"]:
        """Every token that stands in one of the transcripts, once, in ascending order."""
        place = torch.arange(self.text_ids.shape[1], device=self.n_text.device)
        return self.text_ids[place < self.n_text[:, None]].unique()


class Examples:
    """The utterances of a run, tokenised, and encoded when asked for or once for all.

    An utterance has `n_views`: view 0 is the clip as it is, the others are augmented, each in its own way.

    Raises:
        DataError: a transcript that cannot be learned from
    """

    def __init__(self, ear: Ear, utterances: Sequence[Utterance], n_views: int = 1) -> None:
        self.ear, self.utterances, self.n_views = ear, utterances, n_views
        self.text_ids = [self._ids(utterance) for utterance in utterances]
        self.kept: dict[tuple[int, int], Float[Tensor, "_ E"]] | None = None
        """Encoder features by utterance and view, on the CPU in bfloat16, if `keep_features` ran."""
        _check_lengths(self)

    def _ids(self, utterance: Utterance) -> Int[Tensor, " T"]:
        try:
            split = self.ear.template.split(utterance.text)
        except DataError as error:
            raise DataError(f"{utterance.name}: {error}") from error
        if not split.text or not split.is_framed:
            trouble = "merges with the chat template around it" if split.text else "has no tokens"
            raise DataError(
                f"{utterance.name}: the transcript {utterance.text!r} {trouble};"
                " write it another way or leave it out"
            )
        return torch.tensor(split.text)

    def _sounds(self, numbers: Sequence[int]) -> list[np.ndarray]:
        sounds = []
        for number in numbers:
            try:
                sounds.append(self.ear.load(self.utterances[number].audio))
            except AudioError as error:
                raise DataError(f"{self.utterances[number].name}: {error}") from error
        return sounds

    def keep_features(self, progress: Callable[[int, int], None]) -> None:
        """Encodes every clip once, like lengths together, for all batches to come.

        Args:
            progress: told how many of how many clips are done

        Raises:
            DataError: a clip that cannot be heard
        """
        n, kept = len(self.utterances), {}
        order = sorted(range(n), key=lambda number: self.utterances[number].n_bytes)
        for first in range(0, n, _ENCODED_AT_ONCE):
            numbers = order[first : first + _ENCODED_AT_ONCE]
            sounds = self._sounds(numbers)
            for view in range(self.n_views):
                features = self._encoded(sounds, numbers, view)
                states, mask = features.states.to("cpu", torch.bfloat16), features.mask.cpu()
                kept.update(((number, view), states[row, mask[row]]) for row, number in enumerate(numbers))
            progress(first + len(numbers), n)
        self.kept = kept

    def _encoded(self, sounds: Sequence[np.ndarray], numbers: Sequence[int], view: int) -> Features:
        seeds = [number * self.n_views + view for number in numbers] if view else None
        return self.ear.features(sounds, seeds)

    def batch(self, numbers: Sequence[int], view: int = 0) -> Batch:
        """One batch, on the ear's device.

        Raises:
            DataError: a clip that cannot be heard
        """
        ids = [self.text_ids[number] for number in numbers]
        return Batch(
            features=self._features(numbers, view),
            text_ids=pad_sequence(ids, batch_first=True).to(self.ear.device),
            n_text=torch.tensor([len(row) for row in ids], device=self.ear.device),
        )

    def _features(self, numbers: Sequence[int], view: int) -> Features:
        if self.kept is None:
            return self._encoded(self._sounds(numbers), numbers, view)
        rows = [self.kept[number, view] for number in numbers]
        mask = torch.arange(max(map(len, rows))) < torch.tensor([len(row) for row in rows])[:, None]
        states = pad_sequence(rows, batch_first=True)
        return Features(states.to(self.ear.device), mask.to(self.ear.device))


def _check_lengths(examples: Examples) -> None:
    """A learned end needs a slot behind the last token, or there is nothing to learn it by."""
    connector = examples.ear.settings.connector
    longest = max(range(len(examples.text_ids)), key=lambda number: len(examples.text_ids[number]))
    n_text = len(examples.text_ids[longest])
    if connector.form == "left" and n_text >= connector.n_queries:
        raise DataError(
            f"{examples.utterances[longest].name}: the transcript has {n_text} tokens, but"
            f" connector.n_queries is {connector.n_queries}; expected at least one query more than tokens"
        )
