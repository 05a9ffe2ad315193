"""Requests of clients: questions of the pocket suite, in sounds that no two requests share.

This module knows OpenAI's fields and no servers. A request depends on its number alone, so that it can be sent again.
"""

import base64
import io
import json
import random
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import soundfile

from ossicle.audio.waveform import SAMPLE_RATE, load_audio
from ossicle.evaluation import Item, load_suite

MODEL = "pocket/ear"
_HISS = 1e-4
"""Amplitude relative to full scale: inaudible, but each file is different, so that none is in the server's cache."""
_N_LONG_QUESTIONS = 3
"""Questions in a long sound, which is sometimes longer than the pocket encoder's window of 6 s."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request for an answer, and when its client disconnects."""

    number: int
    body: bytes
    is_streamed: bool
    leaves_after_s: float | None = None
    """The client disconnects after this time, whatever has arrived by then."""
    leaves_after_chunks: int | None = None
    """The client disconnects in the middle of a stream, after this many chunks."""


def load_question(number: int, seed: int) -> np.ndarray:
    """Returns a question of the suite at 16 kHz, with a hiss of its own for each seed."""
    return _add_hiss(_get_item(number), np.random.default_rng(seed))


def build_question_wav(number: int) -> bytes:
    """Returns a question of the suite as a WAV file."""
    return _encode_wav(load_question(number, number))


def build_audio_request(number: int) -> Request:
    """Returns a request with one spoken question of 0.5 to 3.3 s; its answer is greedy, and streamed to its end."""
    return _build_request(
        number, [_build_user_message(_build_audio_part(build_question_wav(number)))], {"stream": True}
    )


def build_text_request(number: int, transcript: str) -> Request:
    """Returns a request with the same question as text."""
    return _build_request(
        number, [_build_user_message({"type": "text", "text": transcript})], {"stream": True}
    )


def build_mixed_request(number: int) -> Request:
    """Returns a request with sound and text in one to three turns and all kinds of options.

    One client in seven disconnects early.
    """
    draw = random.Random(number)
    hiss = np.random.default_rng(number)
    messages: list[dict[str, Any]] = []
    if draw.random() < 0.2:
        messages.append({"role": "system", "content": "Answer in one word."})
    for turn in range(n_turns := draw.choice((1, 1, 1, 2, 3))):
        messages.append(_build_user_message(*_draw_parts(draw, hiss)))
        if turn < n_turns - 1:
            messages.append({"role": "assistant", "content": _get_item(draw.randrange(1 << 20)).answer})
    leaving = draw.choice((*[{}] * 12, {"leaves_after_s": draw.uniform(0, 0.5)}, {"leaves_after_chunks": 2}))
    return _build_request(number, messages, _draw_options(draw), **leaving)


def _draw_parts(draw: random.Random, hiss: np.random.Generator) -> list[dict[str, Any]]:
    """Draws the parts of one turn: a short sound or a long one, two, one with a text, or a text alone."""
    kind = draw.choice(("short", "short", "long", "two", "with text", "text"))
    items = [_get_item(draw.randrange(1 << 20)) for _ in range(_N_LONG_QUESTIONS)]
    if kind == "text":
        return [{"type": "text", "text": items[0].text}]
    samples = [_add_hiss(item, hiss) for item in items]
    sounds = {"long": [np.concatenate(samples)], "two": samples[:2]}.get(kind, samples[:1])
    texts = [{"type": "text", "text": "Answer in Spanish."}] if kind == "with text" else []
    return [*(_build_audio_part(_encode_wav(sound)) for sound in sounds), *texts]


def _draw_options(draw: random.Random) -> dict[str, Any]:
    options: dict[str, Any] = {
        "max_tokens": draw.choice((1, 4, 16, 64)),
        "n": draw.choice((1, 1, 1, 2, 3)),
        "stop": draw.choice(([], [], [], ["."], [" is", "Tokyo"])),
        "stream": draw.random() < 0.5,
    }
    if draw.random() < 0.5:
        options |= {"temperature": draw.choice((0.7, 1.0, 1.5)), "seed": draw.randrange(1 << 31)}
        options |= draw.choice(({}, {"top_p": 0.9}))
    return options


def _build_request(number: int, messages: list[Any], options: dict[str, Any], **leaving: Any) -> Request:
    usage = {"stream_options": {"include_usage": True}} if options["stream"] else {}
    body = {"model": MODEL, "messages": messages, **options, **usage}
    return Request(number=number, body=json.dumps(body).encode(), is_streamed=options["stream"], **leaving)


def _build_user_message(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def _build_audio_part(data: bytes) -> dict[str, Any]:
    return {
        "type": "input_audio",
        "input_audio": {"data": base64.b64encode(data).decode(), "format": "wav"},
    }


def _add_hiss(item: Item, hiss: np.random.Generator) -> np.ndarray:
    assert isinstance(item.audio, bytes)
    clean = _decode(item.audio)
    return clean + _HISS * hiss.standard_normal(len(clean), dtype=np.float32)


def _encode_wav(samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


def _get_item(number: int) -> Item:
    items = _load_questions()
    return items[number % len(items)]


@cache
def _load_questions() -> list[Item]:
    return [item for item in load_suite("pocket") if item.instruction is None]


@cache
def _decode(audio: bytes) -> np.ndarray:
    return load_audio(audio)
