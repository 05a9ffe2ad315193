"""Noise to train in: many people talking at once, and steady noise of all colours; none of it is in an evaluation.

The talkers are voices that training hears anyway; the evaluation's babble is made of its own items.
"""

import json
import random
from pathlib import Path

import numpy as np
import soundfile

from ossicle.audio.augment import crop_or_loop, generate_colored_noise, measure_speech_power
from ossicle.audio.waveform import SAMPLE_RATE

N_BABBLES, N_STEADY = 96, 48
_SECONDS = 30
_TALKERS = (3, 8)


def make_noise(heard: Path, folder: Path) -> Path:
    """A folder of noise for `augment.noise`, the babble made of a folder of clips that training may hear."""
    unfinished = folder.with_suffix(".part")
    unfinished.mkdir(parents=True, exist_ok=True)
    samples = np.memmap(heard / "samples.i16", dtype=np.int16, mode="r")
    clips = [json.loads(line) for line in (heard / "clips.jsonl").read_text().splitlines()]
    rng, draw = random.Random("noise"), np.random.default_rng(11)
    n_samples = _SECONDS * SAMPLE_RATE
    for number in range(N_BABBLES):
        talk = sum(
            _talker(samples, rng.choices(clips, k=_SECONDS), n_samples, draw)
            for _ in range(rng.randint(*_TALKERS))
        )
        _write(unfinished / f"babble-{number:02d}.wav", np.asarray(talk))
    for number in range(N_STEADY):
        _write(unfinished / f"steady-{number:02d}.wav", generate_colored_noise(n_samples, draw))
    return unfinished.rename(folder)


def _talker(samples: np.ndarray, clips: list[dict], n_samples: int, draw: np.random.Generator) -> np.ndarray:
    """Clips in a row as somebody who does not stop, at a common loudness."""
    said = np.concatenate([samples[clip["start"] : clip["start"] + clip["n"]] for clip in clips])
    voice = said.astype(np.float32) / 32768
    return crop_or_loop(voice, n_samples, draw) / np.sqrt(measure_speech_power(voice), dtype=np.float32)


def _write(path: Path, sound: np.ndarray) -> None:
    soundfile.write(path, sound / np.abs(sound).max() * 0.7, SAMPLE_RATE)
