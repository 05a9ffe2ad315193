"""From rows of speech to what a training step needs: clips as worker processes leave them, batches on the device."""

import contextlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ossicle.audio.augment import Augmenter
from ossicle.audio.spec_augment import augment_mel
from ossicle.audio.waveform import SAMPLE_RATE, load_audio
from ossicle.backbones.encoder import FRAMES_PER_POSITION, Features, compute_clip_mel, pad_mels
from ossicle.chat.prompt_segments import SplitPrompt
from ossicle.config import AugmentSettings, DataSettings
from ossicle.data.concatenate import concatenate_clips, draw_concat_target
from ossicle.data.dataset import SpeechDataset
from ossicle.data.sampler import SampleIndex
from ossicle.data.source import Utterance
from ossicle.ear import Ear
from ossicle.errors import AudioError, ConfigError, DataError
from ossicle.training.cache.tensor_cache import TensorCache

_TEXTS_KEPT = 65_536
"""Transcripts whose tokens are kept from one pass to the next."""
_MOST_TRIES = 32
"""Clips that are looked at to fill an example of several."""


@dataclass(frozen=True)
class Clip:
    """One example: what is heard and what is said."""

    ids: Int[Tensor, " T"]
    mel: Float[Tensor, "M F"] | None
    """Log-mel, where the sound is yet to be encoded."""
    states: Float[Tensor, "S E"] | None
    """Encoder features, where they were kept."""

    @property
    def n_positions(self) -> int:
        """Encoder positions that belong to the clip."""
        if self.states is not None:
            return len(self.states)
        assert self.mel is not None
        return self.mel.shape[1] // FRAMES_PER_POSITION


@dataclass(frozen=True)
class WorkerBatch:
    """Clips as a worker process leaves them: end to end, as few tensors travel faster than many; and the rows that
    could not be used, with the reason."""

    n_text: list[int]
    n_positions: list[int]
    text_ids: Int[Tensor, " T"]
    mel: Float[Tensor, "F M"] | None
    states: Float[Tensor, "S E"] | None
    skipped: dict[str, str]

    @classmethod
    def from_clips(cls, clips: Sequence[Clip], skipped: dict[str, str]) -> "WorkerBatch":
        """Clips of which all have features, or none has."""
        mels = [clip.mel.T for clip in clips if clip.mel is not None]
        kept = [clip.states for clip in clips if clip.states is not None]
        return cls(
            n_text=[len(clip.ids) for clip in clips],
            n_positions=[clip.n_positions for clip in clips],
            text_ids=torch.cat([torch.zeros(0, dtype=torch.long), *(clip.ids for clip in clips)]),
            mel=torch.cat(mels) if mels else None,
            states=torch.cat(kept) if kept else None,
            skipped=skipped,
        )

    @property
    def clips(self) -> list[Clip]:
        """One by one again."""
        n = len(self.n_text)
        ids = self.text_ids.split(self.n_text)
        n_frames = [FRAMES_PER_POSITION * n for n in self.n_positions]
        mels = [None] * n if self.mel is None else [mel.T for mel in self.mel.split(n_frames)]
        states = [None] * n if self.states is None else self.states.split(self.n_positions)
        return [Clip(ids=ids[row], mel=mels[row], states=states[row]) for row in range(n)]


@dataclass(frozen=True)
class Microbatch:
    """The clips of one part of a batch, padded, on the host."""

    n_text: list[int]
    n_positions: list[int]
    text_ids: Int[Tensor, "B T"]
    mel: Float[Tensor, "B M F"] | None
    states: Float[Tensor, "B S E"] | None

    def __len__(self) -> int:
        return len(self.n_text)

    def pin_memory(self) -> "Microbatch":
        """In memory that a GPU copies from without waiting."""
        return replace(
            self,
            text_ids=self.text_ids.pin_memory(),
            mel=None if self.mel is None else self.mel.pin_memory(),
            states=None if self.states is None else self.states.pin_memory(),
        )


def build_microbatch(clips: Sequence[Clip]) -> Microbatch:
    """Clips side by side; all of them have features, or none has."""
    kept = [clip.states for clip in clips if clip.states is not None]
    mels = [clip.mel for clip in clips if clip.mel is not None]
    return Microbatch(
        n_text=[len(clip.ids) for clip in clips],
        n_positions=[clip.n_positions for clip in clips],
        text_ids=pad_sequence([clip.ids for clip in clips], batch_first=True)
        if clips
        else torch.zeros(0, 1, dtype=torch.long),
        mel=pad_mels(mels)[0] if mels else None,
        states=pad_sequence(kept, batch_first=True) if kept else None,
    )


@dataclass(frozen=True)
class Batch:
    """Clips as the encoder hears them, with their transcripts, on the ear's device."""

    features: Features
    text_ids: Int[Tensor, "B T"]
    """Padded on the right; what stands beyond n_text does not matter."""
    n_text: Int[Tensor, " B"]
    text_lengths: Sequence[int]
    """n_text, on the host."""
    audio_lengths: Sequence[int]
    """Encoder positions of each clip, on the host."""

    @property
    def unique_ids(self) -> Int[Tensor, " C"]:
        """Every token that stands in one of the transcripts, once, in ascending order."""
        place = torch.arange(self.text_ids.shape[1], device=self.n_text.device)
        return self.text_ids[place < self.n_text[:, None]].unique()


def build_batch(ear: Ear, microbatch: Microbatch) -> Batch:
    """A portion on the ear's device, encoded if it is not yet."""
    device = ear.device
    if microbatch.states is not None:
        n_positions = torch.tensor(microbatch.n_positions)
        mask = torch.arange(microbatch.states.shape[1]) < n_positions[:, None]
        features = Features(
            states=microbatch.states.to(device, non_blocking=True).to(ear.whisper.model.dtype),
            mask=mask.to(device, non_blocking=True),
            is_unpadded=bool(mask.all()),
        )
    else:
        assert microbatch.mel is not None
        features = ear.encode_mels(microbatch.mel, torch.tensor(microbatch.n_positions) * FRAMES_PER_POSITION)
    return Batch(
        features=features,
        text_ids=microbatch.text_ids.to(device, non_blocking=True),
        n_text=torch.tensor(microbatch.n_text).to(device, non_blocking=True),
        text_lengths=microbatch.n_text,
        audio_lengths=microbatch.n_positions,
    )


class ClipDataset:
    """The clips of a run, each made from its row and the pass it is in, by whichever process is asked.

    View 0 of a clip is what the augmenter's settings make of it; the others are heard from elsewhere besides, each in
    its own way.

    Args:
        kept: encoder features to take in place of the sound

    Raises:
        ConfigError: noise that cannot be used, or settings by which a stream would be read from its front again and
            again
    """

    def __init__(
        self,
        ear: Ear,
        speech: SpeechDataset,
        data: DataSettings,
        augment_settings: AugmentSettings,
        seed: int,
        feature_cache: TensorCache | None = None,
    ) -> None:
        _check_is_in_order(speech, data)
        self.speech, self.data, self.seed, self.feature_cache = speech, data, seed, feature_cache
        self.template, self.connector = ear.template, ear.settings.connector
        self.n_mels = ear.whisper.config.num_mel_bins
        self.window_frames, self.window_samples = ear.whisper.window_frames, ear.whisper.window_samples
        self.is_full_window = ear.settings.base.encoder_window == "full"
        self.augmenter = Augmenter(augment_settings, self.window_samples)
        self._splits: dict[str, SplitPrompt] = {}

    @property
    def n_workers(self) -> int:
        """Processes that make clips: no more than one for a stream, whose shards `datasets` would deal out among
        several, so that each had other rows under the same numbers; and none where a CPU only has to look up what
        was kept, which takes it less than to hand it over."""
        if self.feature_cache is not None and not torch.cuda.is_available():
            return 0
        return min(self.data.n_workers, 1) if self.speech.is_sequential else self.data.n_workers

    def load_clips(self, draws: Sequence[SampleIndex]) -> WorkerBatch:
        """The clips that were drawn, without those that cannot be used."""
        clips, skipped = [], {}
        for draw in draws:
            try:
                clips.append(self.load_clip(draw))
            except DataError as error:
                skipped[self.speech.row_name(draw.row)] = str(error)
        return WorkerBatch.from_clips(clips, skipped)

    def load_clip(self, draw: SampleIndex) -> Clip:
        """One example.

        Raises:
            DataError: a row that cannot be used, named with the reason
        """
        view = draw.epoch % self.data.n_augmented_views
        if self.feature_cache is not None:
            return self._kept_clip(draw.row, view)
        utterance = self.speech[draw.row]
        sound, ids = self._sound(utterance), self._ids(utterance.name, utterance.text)
        seed = _seed(self.seed, draw.row, draw.epoch)
        length = draw_concat_target(seed, self.data.concat_ratio, self.window_samples)
        if length is not None:
            sound, ids = self._joined(utterance, sound, ids, length, seed)
        mel = self._mel(self.augmenter.augment_samples(sound, seed), draw.row, view)
        return Clip(ids=ids, mel=self.augmenter.augment_mel(mel, seed), states=None)

    def load_view_mel(self, row: int, view: int) -> Float[Tensor, "M F"]:
        """What a view of a row sounds like, for features that are kept: all that is drawn is drawn once.

        Raises:
            DataError: a row that cannot be used, named with the reason
        """
        seed = _seed(self.seed, row, view)
        sound = self.augmenter.augment_samples(self._sound(self.speech[row]), seed)
        return self.augmenter.augment_mel(self._mel(sound, row, view), seed)

    def has_text(self, row: int) -> bool:
        """Whether a row says what is said in it."""
        try:
            return bool(self._text(row))
        except DataError:
            return False

    def compute_feature_key(self, row: int, view: int) -> bytes:
        """What a row's kept features are found by; only for rows with a transcript."""
        about = f"{self.speech.row_name(row)}\n{self._text(row)}\n{self.speech.audio_version(row)}\n{view}"
        if view:  # what it is drawn from, and among how many rows the voice behind it is found
            about += f"\n{self._view_seed(row, view)}\n{len(self.speech)}"
        if self.augmenter.is_active:
            about += f"\n{self.augmenter.fingerprint}\n{self.seed}"
        return blake2b(about.encode(), digest_size=16).digest()

    def _text(self, row: int) -> str:
        """The transcript, without a look at the sound where it is known ahead."""
        text = self.speech.texts[row].as_py()
        return self.speech[row].text if text is None else text

    def _kept_clip(self, row: int, view: int) -> Clip:
        assert self.feature_cache is not None
        ids = self._ids(self.speech.row_name(row), self._text(row))
        found = self.feature_cache.get(self.compute_feature_key(row, view))
        if found is None:
            self._sound(self.speech[row])  # says what is wrong with it
            raise DataError(
                f"{self.speech.row_name(row)}: its sound is not among the kept features; remove their folder"
            )
        return Clip(ids=ids, mel=None, states=found.states)

    def _ids(self, name: str, text: str) -> Int[Tensor, " T"]:
        """The transcript's tokens, as the chat template frames them."""
        try:
            split = self._split(text)
        except DataError as error:
            raise DataError(f"{name}: {error}") from error
        if not split.text or not split.is_framed:
            trouble = "merges with the chat template around it" if split.text else "has no tokens"
            raise DataError(
                f"{name}: the transcript {text!r} {trouble}; write it another way or leave it out"
            )
        if self.connector.learns_end and len(split.text) >= self.connector.n_queries:
            raise DataError(  # a learned end needs a slot behind the last token, or there is nothing to learn it by
                f"{name}: the transcript has {len(split.text)} tokens, but connector.n_queries is"
                f" {self.connector.n_queries}; expected at least one query more than tokens"
            )
        return torch.tensor(split.text)

    def _split(self, text: str) -> SplitPrompt:
        found = self._splits.get(text) or self.template.split_prompt(text)
        if len(self._splits) < _TEXTS_KEPT:
            self._splits[text] = found
        return found

    def _sound(self, utterance: Utterance) -> Float32[np.ndarray, " N"]:
        try:
            sound = load_audio(utterance.audio)
        except AudioError as error:
            raise DataError(f"{utterance.name}: {error}") from error
        if len(sound) > self.window_samples:
            raise DataError(
                f"{utterance.name}: it has {len(sound)} samples at 16 kHz, but the encoder's window holds"
                f" {self.window_samples} ({self.window_samples / SAMPLE_RATE:g} s): cut it into shorter clips"
            )
        return sound

    def _joined(
        self, first: Utterance, sound: np.ndarray, ids: Tensor, length: int, seed: int
    ) -> tuple[np.ndarray, Int[Tensor, " T"]]:
        """Several clips in a row, as long as their tokens find slots; the first alone where nothing fits behind it."""
        most = self.connector.n_queries - 1
        rng, n_tokens = random.Random(seed), len(ids)

        def others() -> Iterator[tuple[np.ndarray, str]]:
            nonlocal n_tokens
            for _ in range(_MOST_TRIES):
                try:
                    other = self.speech[self._any_row(rng)]
                    n_tokens += len(self._ids(other.name, other.text))
                    if n_tokens > most:
                        return
                    yield self._sound(other), other.text
                except DataError:  # its own turn will come, and say why
                    continue

        joined, texts = concatenate_clips(sound, first.text, others(), length, self.window_samples, seed)
        try:
            return joined, self._ids(first.name, " ".join(texts))
        except DataError:  # tokens that merge where two texts meet
            return sound, ids

    def _mel(self, sound: np.ndarray, row: int, view: int) -> Float[Tensor, "M F"]:
        mel = self._plain_mel(sound)
        if view == 0:
            return mel
        seed = self._view_seed(row, view)
        return augment_mel(mel, seed, self.window_frames, lambda: self._babble(seed))

    def _view_seed(self, row: int, view: int) -> int:
        return row * self.data.n_augmented_views + view

    def _babble(self, seed: int) -> Float[Tensor, "M F"]:
        """Somebody else's clip, to speak in the background."""
        rng = random.Random(seed)
        for _ in range(_MOST_TRIES):
            with contextlib.suppress(DataError):
                return self._plain_mel(self._sound(self.speech[self._any_row(rng)]))
        raise DataError(f"{_MOST_TRIES} clips drawn from the speech cannot be used: see skipped.jsonl")

    def _any_row(self, rng: random.Random) -> int:
        """A row of any source, by the sources' weights."""
        sections = self.speech.source_ranges
        weights = [section.n_rows if section.weight is None else section.weight for section in sections]
        section = rng.choices(sections, weights)[0]
        return section.first_row + rng.randrange(section.n_rows)

    def _plain_mel(self, sound: np.ndarray) -> Float[Tensor, "M F"]:
        return compute_clip_mel(sound, self.n_mels, self.window_frames, full_window=self.is_full_window)


def _check_is_in_order(speech: SpeechDataset, data: DataSettings) -> None:
    """Clips are joined to, and views spoken over by, others from anywhere in the speech."""
    for name, is_elsewhere in {
        "concat_ratio": data.concat_ratio > 0,
        "n_augmented_views": data.n_augmented_views > 1,
    }.items():
        if speech.is_sequential and is_elsewhere:
            raise ConfigError(
                f"data.{name} is {getattr(data, name)}, which takes clips from anywhere, but a streamed source is read"
                " from front to back: leave it out, or pack the source first (ossicle data pack)"
            )


def _seed(*numbers: int) -> int:
    """A number drawn from several, the same on every machine."""
    return int.from_bytes(blake2b(repr(numbers).encode(), digest_size=7).digest(), "big")
