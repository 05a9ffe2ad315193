"""Speech in a plain, shouted or whispered manner: training clips, and the suite "pocket-manner".

In the pocket world, a shout is answered in capitals, a whisper in one word, and plain speech in a sentence. Transcripts
do not contain the manner. The text of a training clip is its words and a tag for the manner, which is an instruction
that the LLM knows from its own training. The ear learns to hear the tag in the voice.

`python -m tools.pocket.manner FOLDER` synthesizes the clips for recipes/pocket-manner.toml, and the suite if it is
missing. It needs the same programs as `tools.pocket`.
"""

import argparse
import itertools
import multiprocessing
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32

from ossicle.backbones.model_files import POCKET_DIR
from tools.pocket import speech, voices, world
from tools.pocket.llm import print_progress

MANNER_TAGS = {
    "plain": None,
    "shouted": world.INSTRUCTIONS["capitals"][0],
    "whispered": world.INSTRUCTIONS["one_word"][0],
}
"""The instruction that each manner stands for, in the words that the LLM was trained on."""
SUITE_PATH = POCKET_DIR / "manner.parquet"
TAIL_S = (0.6, 0.75)
"""Shortest and longest silence after the words of a clip of any manner, in seconds. It is long enough for the five
tokens of the tag with a blank between them: at least eleven of fifty encoder positions per second."""
N_CHUNKS = 22
"""Number of training chunks, of `speech.CLIPS_PER_CHUNK` clips each."""
N_QUESTIONS_ESPEAK, N_QUESTIONS_FLITE = 56, 24
"""Questions of the suite by speech engine."""

_WINDOW, _HOP, _N_FFT = 400, 100, 1024
"""Samples at 16 kHz: windows of 25 ms, hops of 6.25 ms, and an FFT with room for the filter's ringing."""
_LPC_ORDER = 18


def synthesize_whisper(
    samples: Float32[np.ndarray, " N"], rng: np.random.Generator, *, high_boost: float
) -> Float32[np.ndarray, " N"]:
    """Returns the speech as a whisper: noise filtered by the same vocal tract.

    Linear prediction estimates the vocal tract's resonances in each frame. The excitation is replaced by noise of the
    same energy, whose spectrum is flatter than that of vocal folds.

    Args:
        high_boost: boost of high frequencies, from 0 (none) to 1 (first difference)

    Source: Makhoul, Linear Prediction: A Tutorial Review, Proceedings of the IEEE 63, 1975.
    """
    window = np.hanning(_WINDOW + 1)[:-1]
    padded = np.pad(samples.astype(np.float64), _WINDOW)
    noise = _split_into_frames(rng.standard_normal(len(padded)), window)
    shaped = np.fft.irfft(
        np.fft.rfft(noise, _N_FFT)
        * _compute_vocal_tract_gains(_split_into_frames(padded, window), window, high_boost)
    )
    breath = np.zeros(len(padded) + _N_FFT)
    for number, frame in enumerate(shaped):
        breath[number * _HOP : number * _HOP + _N_FFT] += frame
    return (breath[_WINDOW : _WINDOW + len(samples)] * (_HOP / window.sum())).astype(np.float32)


def _split_into_frames(
    samples: Float[np.ndarray, " N"], window: Float[np.ndarray, " W"]
) -> Float[np.ndarray, "F W"]:
    return np.lib.stride_tricks.sliding_window_view(samples, len(window))[::_HOP] * window


def _compute_vocal_tract_gains(
    frames: Float[np.ndarray, "F W"], window: Float[np.ndarray, " W"], high_boost: float
) -> Float[np.ndarray, "F K"]:
    """Returns each frame's vocal tract filter as gains by frequency, for white noise of unit power."""
    power = np.abs(np.fft.rfft(frames, _N_FFT)) ** 2
    correlation = np.fft.irfft(power)[:, : _LPC_ORDER + 1] / (window**2).sum()
    correlation[:, 0] = correlation[:, 0] * 1.0001 + 1e-10  # keeps the equations solvable in silence
    lags = np.abs(np.subtract.outer(np.arange(_LPC_ORDER), np.arange(_LPC_ORDER)))
    predictor = np.linalg.solve(correlation[:, lags], correlation[:, 1:, None])[..., 0]
    energy = correlation[:, 0] - (predictor * correlation[:, 1:]).sum(1)
    whitening = np.fft.rfft(np.concatenate([np.ones((len(frames), 1)), -predictor], axis=1), _N_FFT)
    tilt = np.abs(1 - high_boost * np.exp(-2j * np.pi * np.arange(power.shape[1]) / _N_FFT))
    return np.sqrt(energy.clip(0))[:, None] / np.abs(whitening) * tilt


def synthesize_shout(
    samples: Float32[np.ndarray, " N"], *, high_boost: float, drive: float
) -> Float32[np.ndarray, " N"]:
    """Returns the speech with the sound of a shout: a flatter spectrum and saturated peaks.

    `raise_voice` makes it higher and slower.

    Args:
        high_boost: boost of high frequencies, from 0 (none) to 1 (first difference)
        drive: gain of the saturation; below 1, peaks hardly change
    """
    boosted = samples - high_boost * np.concatenate([[0.0], samples[:-1]])
    return np.tanh(drive * boosted / max(np.abs(boosted).max(), 1e-9)).astype(np.float32)


def raise_voice(voice: voices.Voice, rng: random.Random) -> voices.Voice:
    """Returns the voice of the same speaker shouting: higher, slower, with higher formants."""
    slower, wider = rng.uniform(0.7, 0.85), rng.uniform(1.0, 1.1)
    steps = rng.uniform(0.4, 0.75)  # octaves
    higher = {
        "espeak-ng": min(99, voice.pitch + round(50 * steps)),
        "pico": min(200, round(voice.pitch * 2**steps)),
        "festival": round(voice.pitch * 2**steps),
        "flite": round(50 * steps) + voice.pitch,
    }[voice.engine]
    return replace(
        voice,
        words_per_minute=round(voice.words_per_minute * slower),
        pitch=higher,
        formant_shift=voice.formant_shift * wider,
    )


@dataclass(frozen=True, kw_only=True)
class Line:
    """A text with the voice and the manner to speak it in."""

    text: str
    voice: voices.Voice
    manner: str
    """A key of `MANNER_TAGS`."""


def speak_in_manner(lines: Sequence[Line], rng: random.Random) -> Iterator[np.ndarray | None]:
    """Yields the clip of each line, 16-bit samples at 16 kHz; None if it is longer than the window.

    All clips have the same peak and silence at the end, so that loudness and duration do not reveal the manner.
    """
    lines_to_speak = [
        (line.text, raise_voice(line.voice, rng) if line.manner == "shouted" else line.voice)
        for line in lines
    ]
    for line, samples in zip(lines, speech.speak_lines(lines_to_speak), strict=True):
        yield speech.finish_clip(_apply_manner(samples, line.manner, rng), silence_s=rng.uniform(*TAIL_S))


def _apply_manner(
    samples: Float32[np.ndarray, " N"], manner: str, rng: random.Random
) -> Float32[np.ndarray, " N"]:
    """Returns the engine's speech in a manner, with a random strength."""
    if manner == "shouted":
        return synthesize_shout(samples, high_boost=rng.uniform(0.3, 0.7), drive=rng.uniform(1.2, 3.0))
    if manner == "whispered":
        noise = np.random.default_rng(rng.randrange(2**32))
        return synthesize_whisper(samples, noise, high_boost=rng.uniform(0.4, 0.8))
    return samples


def speak_training_chunk(seed: int) -> list[dict[str, object]]:
    """Returns rows of training clips, with the manners in turn. The text is the words with the manner's tag."""
    rng = random.Random(f"manner {seed}")
    lines = [
        Line(
            text=speech.draw_training_text(rng, pair_ratio=0.5, opening_ratio=0.4),
            voice=voices.draw_training_voice(rng, idiolect_ratio=0.7),
            manner=tuple(MANNER_TAGS)[number % len(MANNER_TAGS)],
        )
        for number in range(speech.CLIPS_PER_CHUNK)
    ]
    clips = zip(lines, speak_in_manner(lines, rng), strict=True)
    return [
        _build_row(f"{seed:02d}-{number:03d}", line, samples) | {"text": append_tag(line.text, line.manner)}
        for number, (line, samples) in enumerate(clips)
        if samples is not None
    ]


def append_tag(text: str, manner: str) -> str:
    """Returns the words followed by the manner's instruction, as a user would type both."""
    tag = MANNER_TAGS[manner]
    return text if tag is None else f"{text} {tag}"


def _build_row(name: str, line: Line, samples: np.ndarray) -> dict[str, object]:
    return {
        "id": name,
        "audio": {"bytes": speech.encode_opus(samples), "path": f"{name}.opus"},
        "text": line.text,
        "manner": line.manner,
        "voice": f"{line.voice.engine}:{line.voice.name}",
    }


def build_training_table(path: Path, n_chunks: int = N_CHUNKS) -> None:
    """Synthesizes the training clips and writes them as a table."""
    rows: list[dict[str, object]] = []
    with multiprocessing.Pool(2) as pool:
        for done, chunk in enumerate(pool.imap(speak_training_chunk, range(n_chunks)), 1):
            rows += chunk
            print_progress(f"manners: {done}/{n_chunks} chunks, {len(rows)} clips")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    speech.write_table(temporary, rows)
    temporary.rename(path)


def draw_questions(rng: random.Random, n: int) -> list[world.Exchange]:
    """Returns n exchanges that can be answered in all manners, skills in turn, without repeated questions."""
    exchanges: dict[str, world.Exchange] = {}
    skills = itertools.cycle(world.SKILLS)
    while len(exchanges) < n:
        exchange = next(skills)(rng)
        if expected_answers(exchange) is not None:
            exchanges.setdefault(exchange.question, exchange)
    return list(exchanges.values())


def expected_answers(exchange: world.Exchange) -> dict[str, str] | None:
    """Returns the expected answer in each manner; None if one of them makes no sense."""
    capitals, one_word = exchange.answer_for("capitals"), exchange.answer_for("one_word")
    if capitals is None or one_word is None:
        return None
    return {"plain": exchange.answer, "shouted": capitals, "whispered": one_word}


def build_suite(path: Path) -> None:
    """Writes the suite: questions by unseen voices, each asked in all manners by the same voice."""
    rng, rows = random.Random("manner suite"), []
    draws = [voices.draw_evaluation_voice] * N_QUESTIONS_ESPEAK + [
        voices.draw_flite_voice
    ] * N_QUESTIONS_FLITE
    for number, (exchange, draw) in enumerate(zip(draw_questions(rng, len(draws)), draws, strict=True)):
        voice, expected = draw(rng), expected_answers(exchange)
        assert expected is not None
        lines = [Line(text=exchange.question, voice=voice, manner=manner) for manner in MANNER_TAGS]
        for line, samples in zip(lines, speak_in_manner(lines, rng), strict=True):
            assert samples is not None, f"{line.text!r} is longer than the window"
            labels = {"answer": expected[line.manner], "group": line.manner, "skill": exchange.skill}
            rows.append(_build_row(f"{number:02d}-{line.manner}", line, samples) | labels)
    speech.write_table(path, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tools.pocket.manner", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="folder for speech.parquet, such as runs/manner")
    arguments = parser.parse_args()
    if not SUITE_PATH.exists():
        build_suite(SUITE_PATH)
    if not (arguments.folder / "speech.parquet").exists():
        build_training_table(arguments.folder / "speech.parquet")
