"""Compares what an exported Whisper writes with what its ear writes, on transcribed clips.

    python -m benchmarks.exported_whisper EAR --speech SPEECH.jsonl --n-clips 60

The ear writes the words nearest to its audio tokens. The Whisper is written by `ossicle export whisper`, loaded by
transformers alone, and decoded greedily. All texts are normalized as Whisper's paper does. The last line is JSON.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from ossicle import checkpoint
from ossicle.audio.augment import add_noise
from ossicle.audio.waveform import SAMPLE_RATE, load_audio
from ossicle.ear import Ear
from ossicle.evaluation.scoring.wer import count_word_errors
from ossicle.evaluation.suite import load_suite
from ossicle.exchange.whisper import export_whisper

_BATCH_SIZE = 8


def transcribe(folder: Path, sounds: Sequence[np.ndarray]) -> list[str]:
    """Returns what transformers' own Whisper writes, greedily."""
    model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor: Any = WhisperProcessor.from_pretrained(folder)
    texts: list[str] = []
    for start in range(0, len(sounds), _BATCH_SIZE):
        batch = list(sounds[start : start + _BATCH_SIZE])
        inputs = processor(batch, sampling_rate=SAMPLE_RATE, return_tensors="pt", return_attention_mask=True)
        ids = model.generate(**inputs, do_sample=False, num_beams=1)
        texts += processor.batch_decode(ids, skip_special_tokens=True)
    return [text.strip() for text in texts]


def compute_wer(texts: Sequence[str], references: Sequence[str]) -> float:
    """Returns word errors per word of the references."""
    scores = [count_word_errors(text, reference) for text, reference in zip(texts, references, strict=True)]
    errors, words = (sum(column) for column in zip(*scores, strict=True))
    return errors / words


def compare(ear: Ear, sounds: Sequence[np.ndarray], references: Sequence[str]) -> dict[str, float]:
    """Returns the word error rates of ear, exported Whisper and base Whisper, and between the first two."""
    own = [text for sound in sounds for text in ear.transcribe_audio_tokens([(sound, SAMPLE_RATE)])]
    with tempfile.TemporaryDirectory() as folder:
        export_whisper(ear, Path(folder) / "whisper")
        exported = transcribe(Path(folder) / "whisper", sounds)
    base = [text for sound in sounds for text in ear.transcribe([(sound, SAMPLE_RATE)])]
    for text, other in zip(own, exported, strict=True):
        if count_word_errors(other, text)[0]:
            print(f"  ear      {text}\n  exported {other}")
    return {
        "ear": compute_wer(own, references),
        "exported": compute_wer(exported, references),
        "base": compute_wer(base, references),
        "exported against ear": compute_wer(exported, own),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ear")
    parser.add_argument("--speech", required=True, help="a suite, such as a JSONL file")
    parser.add_argument("--n-clips", type=int, default=60)
    parser.add_argument("--snr-db", type=float, default=None, help="white noise in every clip")
    args = parser.parse_args()
    items = load_suite(args.speech)
    items = items[:: max(1, len(items) // args.n_clips)][: args.n_clips]
    sounds = [load_audio(item.audio) for item in items]
    if args.snr_db is not None:
        rng = np.random.default_rng(0)
        sounds = [
            add_noise(sound, rng.standard_normal(len(sound), np.float32), args.snr_db) for sound in sounds
        ]
    result = compare(checkpoint.load(args.ear, device="cpu"), sounds, [item.text for item in items])
    for name, value in result.items():
        print(f"{name:22} {value:7.1%}")
    print(json.dumps({"ear": args.ear, "n": len(items), "snr_db": args.snr_db, **result}))


if __name__ == "__main__":
    main()
