"""What clients ask a server: questions of the pocket suite, in sounds that no two requests share.

It knows OpenAI's fields and nothing of servers. A request is made from its number alone, so that it can be asked again.
"""

import base64
import io
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import soundfile

from ossicle.audio.waveform import SAMPLE_RATE, load_audio
from ossicle.evaluation import Item, load_suite

MODEL = "pocket/ear"
_HISS = 1e-4
"""Of full scale: too quiet to hear, but no file is the same as another, so that none was heard before."""
_IN_A_ROW = 3
"""Questions in a long sound, which is longer than the pocket encoder's window of 6 s now and then."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request for an answer, and what its client does."""

    number: int
    body: bytes
    is_streamed: bool
    leaves_after_s: float | None = None
    """The client goes away when so much time has passed, whatever is there by then."""
    leaves_after_pieces: int | None = None
    """The client goes away in the middle of a stream."""


def build_question_wav(number: int) -> bytes:
    """One question of the suite as a WAV file."""
    return _wav(_samples(_item(number), np.random.default_rng(number)))


def build_audio_request(number: int) -> Request:
    """One spoken question, 0.5 to 3.3 s long; the answer is streamed, greedy, and ends where the LLM ends it."""
    return _request(number, [_turn(_sound(build_question_wav(number)))], {"stream": True})


def build_text_request(number: int, transcript: str) -> Request:
    """The same question in letters."""
    return _request(number, [_turn({"type": "text", "text": transcript})], {"stream": True})


def build_mixed_request(number: int) -> Request:
    """Sound and text in one to three turns, with options of all kinds; one client in seven goes away early."""
    draw = random.Random(number)
    hiss = np.random.default_rng(number)
    messages: list[dict[str, Any]] = []
    if draw.random() < 0.2:
        messages.append({"role": "system", "content": "Answer in one word."})
    for turn in range(n_turns := draw.choice((1, 1, 1, 2, 3))):
        messages.append(_turn(*_parts(draw, hiss)))
        if turn < n_turns - 1:
            messages.append({"role": "assistant", "content": _item(draw.randrange(1 << 20)).answer})
    leaving = draw.choice((*[{}] * 12, {"leaves_after_s": draw.uniform(0, 0.5)}, {"leaves_after_pieces": 2}))
    return _request(number, messages, _options(draw), **leaving)


def _parts(draw: random.Random, hiss: np.random.Generator) -> list[dict[str, Any]]:
    """Of one turn: a short sound or a long one, two, one with a text, or a text alone."""
    kind = draw.choice(("short", "short", "long", "two", "with text", "text"))
    items = [_item(draw.randrange(1 << 20)) for _ in range(_IN_A_ROW)]
    if kind == "text":
        return [{"type": "text", "text": items[0].text}]
    samples = [_samples(item, hiss) for item in items]
    sounds = {"long": [np.concatenate(samples)], "two": samples[:2]}.get(kind, samples[:1])
    asked = [{"type": "text", "text": "Answer in Spanish."}] if kind == "with text" else []
    return [*(_sound(_wav(sound)) for sound in sounds), *asked]


def _options(draw: random.Random) -> dict[str, Any]:
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


def _request(number: int, messages: list[Any], options: dict[str, Any], **leaving: Any) -> Request:
    usage = {"stream_options": {"include_usage": True}} if options["stream"] else {}
    body = {"model": MODEL, "messages": messages, **options, **usage}
    return Request(number=number, body=json.dumps(body).encode(), is_streamed=options["stream"], **leaving)


def _turn(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def _sound(data: bytes) -> dict[str, Any]:
    return {
        "type": "input_audio",
        "input_audio": {"data": base64.b64encode(data).decode(), "format": "wav"},
    }


def _samples(item: Item, hiss: np.random.Generator) -> np.ndarray:
    clean = _decoded(item.audio)
    return clean + _HISS * hiss.standard_normal(len(clean), dtype=np.float32)


def _wav(samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


def _item(number: int) -> Item:
    items = _questions()
    return items[number % len(items)]


@cache
def _questions() -> list[Item]:
    return [item for item in load_suite("pocket") if item.instruction is None]


_decoded: Callable[[bytes], np.ndarray] = cache(load_audio)
