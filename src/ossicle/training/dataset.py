"""The clips of a run, loaded from rows of speech by whichever process is asked: sound, transcript, augmentation."""

import contextlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from hashlib import blake2b

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from ossicle.audio.augment import Augmenter
from ossicle.audio.spec_augment import augment_mel, pad_with_silence
from ossicle.audio.speech import load_speech
from ossicle.audio.waveform import SAMPLE_RATE
from ossicle.backbones.encoder import FRAMES_PER_POSITION, POSITIONS_PER_SECOND, compute_clip_mel
from ossicle.chat.prompt_segments import SplitPrompt
from ossicle.config import AugmentSettings, DataSettings
from ossicle.connectors.query import SPARE_SLOTS
from ossicle.data.concatenate import concatenate_clips, draw_concat_target
from ossicle.data.dataset import SpeechDataset
from ossicle.data.sampler import SampleIndex
from ossicle.data.source import Utterance
from ossicle.ear import Ear
from ossicle.errors import AudioError, ConfigError, DataError
from ossicle.training.batch import Clip, WorkerBatch
from ossicle.training.cache.tensor_cache import TensorCache

_MAX_TOKENIZED_TEXTS = 65_536
"""Transcripts whose tokens are kept in memory from one epoch to the next."""
_MAX_TRIES = 32
"""Clips that are drawn to fill an example of several, or to find a voice in the background."""


class ClipDataset:
    """The clips of a run, each a function of its row and epoch.

    View 0 of a clip has what the augmentation settings ask for; the other views are transformed on top of that, each in
    its own way: another throat, tempo, room, microphone and noise.

    Args:
        feature_cache: encoder features that are used instead of the sound
        needs_clean_sound: whether clips come with their sound before augmentation too

    Raises:
        ConfigError: noise files that cannot be used, or settings that need random access to a streamed source
    """

    def __init__(
        self,
        ear: Ear,
        speech: SpeechDataset,
        data: DataSettings,
        augment_settings: AugmentSettings,
        seed: int,
        feature_cache: TensorCache | None = None,
        *,
        needs_clean_sound: bool = False,
    ) -> None:
        _check_random_access(speech, data, augment_settings)
        self.speech, self.data, self.seed, self.feature_cache = speech, data, seed, feature_cache
        self.needs_clean_sound = needs_clean_sound
        self.template, self.connector = ear.template, ear.settings.connector
        self.n_mels = ear.whisper.config.num_mel_bins
        self.window_frames, self.window_samples = ear.whisper.window_frames, ear.whisper.window_samples
        self.window, self._own_window = ear.window, replace(ear.window, kind="sound")
        self.augmenter = Augmenter(augment_settings, self.window_samples, self._draw_voice)
        self._split_prompts: dict[str, SplitPrompt] = {}

    @property
    def n_workers(self) -> int:
        """Worker processes that load clips.

        At most one for a stream: `datasets` would divide its shards among several, so that each had other rows under
        the same numbers. None on a CPU with cached features, where a look-up takes less time than sending its result.
        """
        if self.feature_cache is not None and not torch.cuda.is_available():
            return 0
        return min(self.data.n_workers, 1) if self.speech.is_sequential else self.data.n_workers

    def load_clips(self, indices: Sequence[SampleIndex]) -> WorkerBatch:
        """Loads clips; those that cannot be used are left out and named with the reason."""
        clips, skipped = [], {}
        for index in indices:
            try:
                clips.append(self.load_clip(index))
            except DataError as error:
                skipped[self.speech.row_name(index.row)] = str(error)
        return WorkerBatch.from_clips(clips, skipped)

    def load_clip(self, index: SampleIndex) -> Clip:
        """Loads one clip in the view of its epoch, from the feature cache if there is one.

        Raises:
            DataError: the row cannot be used; the message names it and the reason
        """
        view = index.epoch % self.data.n_augmented_views
        if self.feature_cache is not None:
            return self._load_cached_clip(self.feature_cache, index.row, view)
        utterance = self.speech[index.row]
        sound, ids = self._load_sound(utterance), self._tokenize(utterance.name, utterance.text)
        seed = _combine_seeds(self.seed, index.row, index.epoch)
        n_samples = draw_concat_target(seed, self.data.concat_ratio, self.window_samples)
        if n_samples is not None:
            sound, ids = self._append_clips(utterance, sound, ids, n_samples, seed)
        mel = self._augment(sound, index.row, view, seed)
        self._check_slots(utterance.name, len(ids), mel.shape[1] // FRAMES_PER_POSITION)
        clean_mel = self._compute_mel(sound) if self.needs_clean_sound else None
        return Clip(ids=ids, mel=mel, states=None, clean_mel=clean_mel)

    def load_view_mel(self, row: int, view: int) -> Float[Tensor, "M F"]:
        """Returns the log-mel of a view for the feature cache: its random augmentation is the same in all epochs.

        Raises:
            DataError: the row cannot be used; the message names it and the reason
        """
        return self._augment(
            self._load_sound(self.speech[row]), row, view, _combine_seeds(self.seed, row, view)
        )

    def has_text(self, row: int) -> bool:
        """Whether a row has a transcript."""
        try:
            return bool(self._load_text(row))
        except DataError:
            return False

    def compute_feature_key(self, row: int, view: int) -> bytes:
        """Returns the key of a view's features in the cache; only for rows with a transcript."""
        content = (
            f"{self.speech.row_name(row)}\n{self._load_text(row)}\n{self.speech.audio_version(row)}\n{view}"
        )
        if view:
            content += f"\n{self._compute_view_seed(row, view)}"
        if self.augmenter.is_active:
            content += f"\n{self.augmenter.fingerprint}\n{_combine_seeds(self.seed, row, view)}"
        if view or self.augmenter.settings.babble_ratio:  # the speech from which voices are drawn
            content += f"\n{self.speech.fingerprint}"
        return blake2b(content.encode(), digest_size=16).digest()

    def _load_text(self, row: int) -> str:
        """Returns the transcript of a row, without reading its sound where the source lists transcripts."""
        text = self.speech.texts[row].as_py()
        return self.speech[row].text if text is None else text

    def _load_cached_clip(self, cache: TensorCache, row: int, view: int) -> Clip:
        ids = self._tokenize(self.speech.row_name(row), self._load_text(row))
        entry = cache.get(self.compute_feature_key(row, view))
        if entry is None:
            self._load_sound(self.speech[row])  # raises the reason why it could not be encoded
            raise DataError(
                f"{self.speech.row_name(row)}: the feature cache does not have its sound; remove the cache's folder"
            )
        self._check_slots(self.speech.row_name(row), len(ids), len(entry.states))
        return Clip(ids=ids, mel=None, states=entry.states)

    def _tokenize(self, name: str, text: str) -> Int[Tensor, " T"]:
        """Returns the transcript's tokens, as they are inside the chat template."""
        try:
            prompt = self._split_prompt(text)
        except DataError as error:
            raise DataError(f"{name}: {error}") from error
        if not prompt.text or not prompt.is_framed:
            problem = "merges with the chat template around it" if prompt.text else "has no tokens"
            raise DataError(f"{name}: the transcript {text!r} {problem}; rewrite it or leave the row out")
        n_spare = int(self.connector.learns_end)  # the end is learned at the slot behind the last token
        if self.connector.is_one_to_one and len(prompt.text) + n_spare > self.connector.n_queries:
            raise DataError(
                f"{name}: the transcript has {len(prompt.text)} tokens, but connector.n_queries is"
                f" {self.connector.n_queries}; expected at least {'one query more than' if n_spare else 'as many as'}"
                " tokens"
            )
        return torch.tensor(prompt.text)

    def _check_slots(self, name: str, n_tokens: int, n_positions: int) -> None:
        """Refuses a transcript whose end the ear could learn and never write."""
        duration_s = n_positions / POSITIONS_PER_SECOND
        most = int(duration_s * self.connector.slots_per_second) + SPARE_SLOTS
        if self.connector.is_one_to_one and n_tokens > most:
            raise DataError(
                f"{name}: the transcript has {n_tokens} tokens in {duration_s:.1f} s, but"
                f" connector.slots_per_second of {self.connector.slots_per_second:g} allows {most}; raise it, or correct"
                " the transcript"
            )

    def _split_prompt(self, text: str) -> SplitPrompt:
        prompt = self._split_prompts.get(text) or self.template.split_prompt(text)
        if len(self._split_prompts) < _MAX_TOKENIZED_TEXTS:
            self._split_prompts[text] = prompt
        return prompt

    def _load_sound(self, utterance: Utterance) -> Float32[np.ndarray, " N"]:
        try:
            sound = load_speech(utterance.audio)
        except AudioError as error:
            raise DataError(f"{utterance.name}: {error}") from error
        if len(sound) > self.window_samples:
            raise DataError(
                f"{utterance.name}: it has {len(sound)} samples at 16 kHz, but the encoder's window holds"
                f" {self.window_samples} ({self.window_samples / SAMPLE_RATE:g} s): cut it into shorter clips"
            )
        return sound

    def _append_clips(
        self, first: Utterance, sound: np.ndarray, ids: Tensor, n_samples: int, seed: int
    ) -> tuple[np.ndarray, Int[Tensor, " T"]]:
        """Appends random clips as long as there are queries for their tokens; returns the first one alone if none fits.

        Args:
            n_samples: target length
        """
        max_tokens = self.connector.n_queries - 1
        rng, n_tokens = random.Random(seed), len(ids)

        def draw_others() -> Iterator[tuple[np.ndarray, str]]:
            nonlocal n_tokens
            for _ in range(_MAX_TRIES):
                try:
                    other = self.speech[self._draw_row(rng)]
                    n_tokens += len(self._tokenize(other.name, other.text))
                    if n_tokens > max_tokens:
                        return
                    yield self._load_sound(other), other.text
                except DataError:  # raised again when it is that row's turn
                    continue

        sounds, texts = concatenate_clips(
            sound, first.text, draw_others(), n_samples, self.window_samples, seed
        )
        try:
            return sounds, self._tokenize(first.name, " ".join(texts))
        except DataError:  # tokens merge where two texts meet
            return sound, ids

    def _augment(self, sound: np.ndarray, row: int, view: int, seed: int) -> Float[Tensor, "M F"]:
        """Returns the log-mel of an augmented view; what is masked lies within the sound, not in silence behind it."""
        sound = self.augmenter.augment_samples(sound, seed)
        if view == 0:
            return self.augmenter.augment_mel(
                self._compute_mel(sound), self._own_window.count_frames(len(sound)), seed
            )
        view_seed = self._compute_view_seed(row, view)
        mel = augment_mel(
            self._compute_own_mel(sound),
            view_seed,
            self.window_frames,
            lambda: self._draw_background_mel(view_seed),
        )
        mel = self.augmenter.augment_mel(mel, mel.shape[1], seed)
        return pad_with_silence(mel, self.window.count_padded_frames(mel.shape[1]))

    def _compute_view_seed(self, row: int, view: int) -> int:
        return row * self.data.n_augmented_views + view

    def _draw_background_mel(self, seed: int) -> Float[Tensor, "M F"]:
        """Returns the log-mel of a random clip, as a voice in the background."""
        return self._compute_own_mel(self._draw_voice(random.Random(seed)))

    def _draw_voice(self, rng: random.Random) -> Float32[np.ndarray, " _"]:
        """Returns the sound of a random clip."""
        for _ in range(_MAX_TRIES):
            with contextlib.suppress(DataError):
                return self._load_sound(self.speech[self._draw_row(rng)])
        raise DataError(f"{_MAX_TRIES} clips drawn from the speech cannot be used: see skipped.jsonl")

    def _draw_row(self, rng: random.Random) -> int:
        """Draws a row of any source, by the weights of the sources."""
        ranges = self.speech.source_ranges
        weights = [source.n_rows if source.weight is None else source.weight for source in ranges]
        source = rng.choices(ranges, weights)[0]
        return source.first_row + rng.randrange(source.n_rows)

    def _compute_mel(self, sound: np.ndarray) -> Float[Tensor, "M F"]:
        return compute_clip_mel(sound, self.n_mels, self.window)

    def _compute_own_mel(self, sound: np.ndarray) -> Float[Tensor, "M F"]:
        """Returns the log-mel of a sound without the silence that fills the window."""
        return compute_clip_mel(sound, self.n_mels, self._own_window)


def _check_random_access(speech: SpeechDataset, data: DataSettings, augment: AugmentSettings) -> None:
    """Refuses settings that draw clips from anywhere for a source that is read in order.

    Raises:
        ConfigError: clips are concatenated, or get voices in the background, from a stream
    """
    for name, value, least in (
        ("data.concat_ratio", data.concat_ratio, 0),
        ("data.n_augmented_views", data.n_augmented_views, 1),
        ("augment.babble_ratio", augment.babble_ratio, 0),
    ):
        if speech.is_sequential and value > least:
            raise ConfigError(
                f"{name} is {value}, which draws clips from anywhere, but a streamed source is read"
                " from front to back: leave the setting out, or pack the source first (ossicle data pack)"
            )


def _combine_seeds(*numbers: int) -> int:
    """Returns a seed that depends on all numbers, the same on every machine."""
    return int.from_bytes(blake2b(repr(numbers).encode(), digest_size=7).digest(), "big")
