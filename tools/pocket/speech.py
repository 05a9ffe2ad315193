"""Synthesizes clips from texts and voices: for the speech encoder, the distillation and the evaluation."""

import functools
import io
import json
import multiprocessing
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from ossicle.audio.waveform import SAMPLE_RATE
from tools.pocket import voices, world
from tools.pocket.llm import print_progress

MAX_DURATION_S = 5.9
"""Longest clip that is kept, in seconds: a little less than the pocket Whisper's window of 6 s."""
CLIPS_PER_CHUNK = 500
_MARGIN_S = 0.06


def draw_training_text(rng: random.Random, pair_ratio: float, opening_ratio: float = 0.0) -> str:
    """Returns a text for training: a statement, a fact, an introduction, one word, random words or random word pairs.

    Args:
        pair_ratio: ratio of texts that are random word pairs
        opening_ratio: ratio of those that start with the first two words of a question
    """
    while True:
        text = _draw_text(rng, pair_ratio, opening_ratio)
        if not world.starts_like_question(text) and not world.contains_question(text):
            return text


def _draw_text(rng: random.Random, pair_ratio: float, opening_ratio: float) -> str:
    if pair_ratio and rng.random() < pair_ratio:
        return world.draw_pair_sequence(rng, opening_ratio)
    draw = rng.random()
    if draw < 0.18:
        return world.draw_statement(rng)
    if draw < 0.53:
        return world.draw_fact(rng)
    if draw < 0.56:
        return world.draw_introduction(rng)
    if draw < 0.6:
        return world.draw_single_word(rng)
    return world.draw_word_sequence(rng)


def _trim_silence(samples: np.ndarray) -> np.ndarray:
    """Returns the samples with digital silence at both ends cut to a short margin."""
    loud = np.flatnonzero(np.abs(samples) > 0.005 * np.abs(samples).max())
    margin = int(_MARGIN_S * SAMPLE_RATE)
    return samples[max(0, loud[0] - margin) : loud[-1] + margin]


def finish_clip(samples: np.ndarray, silence_s: float = 0.0) -> np.ndarray | None:
    """Returns a clip as 16-bit samples at a common peak, or None if it is longer than the window.

    Args:
        silence_s: silence to append, in seconds
    """
    samples = np.pad(_trim_silence(samples), (0, int(silence_s * SAMPLE_RATE)))
    if len(samples) > MAX_DURATION_S * SAMPLE_RATE:
        return None
    return (samples / np.abs(samples).max() * 0.7 * 32767).astype(np.int16)


@dataclass(frozen=True, kw_only=True)
class ClipSet:
    """A set of training clips: chunks of `CLIPS_PER_CHUNK` clips, with the ratios of their texts and voices."""

    name: str
    chunks: range
    """Seeds of the chunks. No two clip sets share a seed."""
    pair_ratio: float
    """Ratio of texts that are random word pairs."""
    opening_ratio: float = 0.0
    """Ratio of those that start with the first two words of a question."""
    idiolect_ratio: float = 0.0
    """Ratio of espeak-ng's voices with an individual pronunciation."""
    mbrola_ratio: float = 0.0
    """Ratio of MBROLA's voices among all voices."""
    engines: tuple[str, ...] = ("espeak-ng", "festival", "mbrola", "pico")
    """Speech engines to take voices from. Those of other engines are drawn again."""

    def draw_voice(self, rng: random.Random) -> voices.Voice:
        """Draws a training voice by one of the engines."""
        while True:
            voice = voices.draw_training_voice(rng, self.idiolect_ratio, self.mbrola_ratio)
            if voice.engine in self.engines:
                return voice


def speak_chunk(seed: int, clips: ClipSet) -> list[tuple[np.ndarray, str, voices.Voice]]:
    """Returns samples, text and voice of `CLIPS_PER_CHUNK` training clips, drawn from one seed."""
    rng = random.Random(f"heard {seed}")
    lines = [
        (draw_training_text(rng, clips.pair_ratio, clips.opening_ratio), clips.draw_voice(rng))
        for _ in range(CLIPS_PER_CHUNK)
    ]
    finished = map(finish_clip, speak_lines(lines))
    return [(samples, *line) for samples, line in zip(finished, lines, strict=True) if samples is not None]


def speak_lines(lines: list[tuple[str, voices.Voice]]) -> Iterator[np.ndarray]:
    """Yields the speech of each (text, voice), float32 at 16 kHz."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        by_festival = [line for line in lines if line[1].engine == "festival"]
        spoken = dict(
            zip(map(id, by_festival), voices.speak_with_festival(by_festival, scratch), strict=True)
        )
        for line in lines:
            yield spoken[id(line)] if id(line) in spoken else voices.speak(*line, scratch)


def write_clip_set(folder: Path, clips: ClipSet) -> None:
    """Writes a clip set: `samples.i16` with all samples in a row, and `clips.jsonl` with the position of each clip."""
    folder.mkdir(parents=True, exist_ok=True)
    with (
        (folder / "samples.i16").open("wb") as samples_file,
        (folder / "clips.jsonl").open("w") as index,
        multiprocessing.Pool(2) as pool,
    ):
        start = 0
        spoken = pool.imap(functools.partial(speak_chunk, clips=clips), clips.chunks)
        for done, chunk in enumerate(spoken, 1):
            for samples, text, voice in chunk:
                samples_file.write(samples.tobytes())
                index.write(
                    json.dumps({"start": start, "n": len(samples), "text": text, **asdict(voice)}) + "\n"
                )
                start += len(samples)
            samples_file.flush()
            index.flush()
            print_progress(
                f"{clips.name}: {done}/{len(clips.chunks)} chunks, {start / SAMPLE_RATE / 3600:.1f} h"
            )


@dataclass(frozen=True, kw_only=True)
class EvaluationQuestion:
    """A question of the evaluation, with its voice and the expected answer."""

    text: str
    instruction: str | None
    answer: str
    group: str
    skill: str
    voice: voices.Voice


def draw_evaluation_questions(
    seed: str,
    n_plain: int,
    n_instructed: int,
    draw_voice: Callable[[random.Random], voices.Voice],
    group: str,
) -> Iterator[EvaluationQuestion]:
    """Yields questions with expected answers, skills in turn. The last `n_instructed` have an instruction."""
    rng = random.Random(seed)
    for number in range(n_plain + n_instructed):
        kind = None if number < n_plain else rng.choice(list(world.INSTRUCTIONS))
        skill = number % len(world.SKILLS)
        while True:
            exchange = world.SKILLS[skill](rng)
            answer = exchange.answer if kind is None else exchange.answer_for(kind)
            if answer:
                break
            skill = (skill + 1) % len(world.SKILLS)
        yield EvaluationQuestion(
            text=exchange.question,
            instruction=world.INSTRUCTIONS[kind][0] if kind else None,
            answer=answer,
            group=group,
            skill=exchange.skill,
            voice=draw_voice(rng),
        )


def encode_opus(samples: np.ndarray) -> bytes:
    """Returns samples as Ogg Opus at 14 kbit/s, about 4 kB per clip."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="ogg") as container:
        options = {"compression_level": "5", "application": "voip"}
        stream = container.add_stream("libopus", rate=SAMPLE_RATE, layout="mono", options=options)
        stream.bit_rate = 14_000
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples)[None], format="s16", layout="mono")
        frame.rate = SAMPLE_RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def write_table(path: Path, rows: list[dict[str, object]]) -> None:
    """Writes rows as parquet, with `audio` as a struct {bytes, path}, which Hugging Face datasets reads as Audio."""
    audio = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {
        name: pa.array([row[name] for row in rows], type=audio if name == "audio" else pa.string())
        for name in rows[0]
    }
    pq.write_table(pa.table(columns), path, compression="zstd", row_group_size=500)


def _read_clips(clips_dir: Path) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Yields the entry and the samples of each clip in a clip set's folder."""
    samples = np.memmap(clips_dir / "samples.i16", dtype=np.int16, mode="r")
    with (clips_dir / "clips.jsonl").open() as index:
        for clip in map(json.loads, index):
            yield clip, samples[clip["start"] : clip["start"] + clip["n"]]


def write_distillation_table(clips_dir: Path, path: Path, n_clips: int) -> None:
    """Writes the first clips of a clip set as the table that the distillation reads."""
    rows = []
    for number, (clip, samples) in enumerate(islice(_read_clips(clips_dir), n_clips)):
        voice = f"{clip['engine']}:{clip['name']}"
        audio = {"bytes": encode_opus(samples), "path": f"{number:05d}.opus"}
        rows.append({"id": f"{number:05d}", "audio": audio, "text": clip["text"], "voice": voice})
    write_table(path, rows)


def write_jsonl_source(clips_dir: Path) -> Path:
    """Writes all clips of a clip set as WAV files, and a JSONL file with their paths and texts. Returns its path."""
    jsonl_path = clips_dir / "speech.jsonl"
    with jsonl_path.with_suffix(".part").open("w") as lines:
        for number, (clip, samples) in enumerate(_read_clips(clips_dir)):
            name = f"{number // 1000:03d}/{number:06d}.wav"
            (clips_dir / name).parent.mkdir(exist_ok=True)
            soundfile.write(clips_dir / name, samples, SAMPLE_RATE)
            lines.write(json.dumps({"audio": name, "text": clip["text"]}) + "\n")
    return jsonl_path.with_suffix(".part").rename(jsonl_path)


def write_suite_table(path: Path) -> None:
    """Writes the pocket suite: questions by unseen voices of a training engine, and by an unseen engine."""
    lines = [
        *draw_evaluation_questions(
            "espeak", 432, 144, voices.draw_evaluation_voice, "unseen voices (espeak-ng)"
        ),
        *draw_evaluation_questions("flite", 198, 54, voices.draw_flite_voice, "unseen engine (flite)"),
    ]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number, line in enumerate(lines):
            samples = finish_clip(voices.speak(line.text, line.voice, Path(folder)))
            assert samples is not None, f"{line.text!r} is longer than the window"
            audio = {"bytes": encode_opus(samples), "path": f"{number:04d}.opus"}
            voice = f"{line.voice.engine}:{line.voice.name}"
            rows.append(asdict(line) | {"id": f"{number:04d}", "audio": audio, "voice": voice})
    write_table(path, rows)
