"""Recordings of people, from a folder of JSONL manifests, and the word errors of transcripts in their languages."""

import json
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import jiwer
import numpy as np
import pytest
from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from ossicle.audio.waveform import SAMPLE_RATE, load_audio

ENGLISH = "en"
_PAUSE_S = 0.5
"""Silence between two recordings that follow each other, in seconds."""


@dataclass(frozen=True)
class Clip:
    """One recording and what was said."""

    audio: Path
    text: str
    language: str = ENGLISH


def read_clips(folder: Path, language: str = ENGLISH) -> list[list[Clip]]:
    """Returns the clips of each manifest in a language, which its name begins with: german-NAME.jsonl, else English."""
    return [
        [
            Clip(folder / row["audio"], row["text"], language)
            for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())
        ]
        for path in sorted(folder.glob("*.jsonl"))
        if TO_LANGUAGE_CODE.get(path.stem.split("-")[0].lower(), ENGLISH) == language
    ]


def select_clips(folder: Path, n: int, language: str = ENGLISH) -> list[Clip]:
    """Returns n clips, as many of each manifest as it has, up to an equal part, spread evenly over it.

    A test that needs more than the folder has is skipped.
    """
    manifests = read_clips(folder, language)
    if sum(map(len, manifests)) < n:
        pytest.skip(f"{folder} has fewer than {n} recordings in {language!r}")
    counts = [0] * len(manifests)
    while sum(counts) < n:
        for number, clips in enumerate(manifests):
            if counts[number] < len(clips) and sum(counts) < n:
                counts[number] += 1
    spread = [
        [clips[position * len(clips) // count] for position in range(count)]
        for clips, count in zip(manifests, counts, strict=True)
        if count
    ]
    return [clip for row in zip_longest(*spread) for clip in row if clip is not None]


def concatenate_clips(clips: Iterable[Clip], duration_s: float) -> tuple[np.ndarray, str]:
    """Returns recordings one after the other, as samples at 16 kHz of at least this duration, and what was said."""
    samples, texts, n_samples = [], [], 0
    for clip in clips:
        if n_samples >= duration_s * SAMPLE_RATE:
            return np.concatenate(samples), " ".join(texts)
        samples += [load_audio(clip.audio), np.zeros(int(_PAUSE_S * SAMPLE_RATE), np.float32)]
        texts.append(clip.text)
        n_samples += len(samples[-1]) + len(samples[-2])
    pytest.skip(f"the recordings are shorter than {duration_s:.0f} s")


def write_manifest(path: Path, clips: Iterable[Clip]) -> None:
    """Writes clips as a manifest with absolute paths."""
    rows = [json.dumps({"audio": str(clip.audio), "text": clip.text}) for clip in clips]
    path.write_text("\n".join(rows), encoding="utf-8")


def speak(folder: Path, texts: Sequence[str], voice: str, words_per_minute: int = 150) -> list[Path]:
    """Returns the texts spoken by espeak-ng; without it, the test is skipped."""
    if not shutil.which("espeak-ng"):
        pytest.skip("espeak-ng is not installed")
    paths = []
    for number, text in enumerate(texts):
        paths.append(folder / f"{voice}-{number}.wav")
        command = ["espeak-ng", "-v", voice, "-s", str(words_per_minute), "-w", str(paths[-1]), text]
        subprocess.run(command, check=True)
    return paths


def word_error_rate(given: Sequence[str], expected: Sequence[str], language: str = ENGLISH) -> float:
    """Returns the word errors of transcripts per word of the expected ones, after Whisper's normalization."""
    is_english = language == ENGLISH
    normalize = EnglishTextNormalizer({}) if is_english else BasicTextNormalizer()
    n_errors = n_words = 0
    for ours, theirs in zip(map(normalize, given), map(normalize, expected), strict=True):
        if not theirs:  # all words are insertions
            n_errors += len(ours.split())
            continue
        words = jiwer.process_words(theirs, ours)
        n_errors += words.substitutions + words.deletions + words.insertions
        n_words += len(theirs.split())
    return n_errors / n_words
