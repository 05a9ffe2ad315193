"""Noise for training: babble of several talkers, and steady noise of all colors. Evaluations do not use it.

The talkers are training voices. The babble of an evaluation is made of its own items.
"""

import json
import random
from pathlib import Path

import numpy as np
import soundfile

from ossicle.audio.augment import crop_or_loop, generate_colored_noise, measure_speech_power
from ossicle.audio.waveform import SAMPLE_RATE

N_BABBLE_FILES, N_STEADY_FILES = 96, 48
_DURATION_S = 30
_N_TALKERS_RANGE = (3, 8)


def write_noise_files(clips_dir: Path, noise_dir: Path) -> Path:
    """Writes a folder of noise files for `augment.noise`, with babble made of a clip set. Returns the folder."""
    temporary = noise_dir.with_suffix(".part")
    temporary.mkdir(parents=True, exist_ok=True)
    samples = np.memmap(clips_dir / "samples.i16", dtype=np.int16, mode="r")
    clips = [json.loads(line) for line in (clips_dir / "clips.jsonl").read_text().splitlines()]
    rng, draw = random.Random("noise"), np.random.default_rng(11)
    n_samples = _DURATION_S * SAMPLE_RATE
    for number in range(N_BABBLE_FILES):
        talk = sum(
            _build_talker(samples, rng.choices(clips, k=_DURATION_S), n_samples, draw)
            for _ in range(rng.randint(*_N_TALKERS_RANGE))
        )
        _write(temporary / f"babble-{number:02d}.wav", np.asarray(talk))
    for number in range(N_STEADY_FILES):
        _write(temporary / f"steady-{number:02d}.wav", generate_colored_noise(n_samples, draw))
    return temporary.rename(noise_dir)


def _build_talker(
    samples: np.ndarray, clips: list[dict], n_samples: int, draw: np.random.Generator
) -> np.ndarray:
    """Returns clips in a row as one talker without pauses, at a common loudness."""
    speech = np.concatenate([samples[clip["start"] : clip["start"] + clip["n"]] for clip in clips])
    voice = speech.astype(np.float32) / 32768
    return crop_or_loop(voice, n_samples, draw) / np.sqrt(measure_speech_power(voice), dtype=np.float32)


def _write(path: Path, sound: np.ndarray) -> None:
    soundfile.write(path, sound / np.abs(sound).max() * 0.7, SAMPLE_RATE)
