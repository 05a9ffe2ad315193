"""Realtime sessions of the soak: spoken turns, some of which interrupt the answer before them.

This module knows OpenAI's events and no server. A session depends on its number alone, so that it can be held again.
"""

import asyncio
import base64
import json
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import soxr
from websockets.asyncio.client import ClientConnection, connect

from benchmarks.serving.requests import MODEL, load_question
from ossicle.audio.waveform import SAMPLE_RATE

_PCM_RATE = 24_000
_FRAME_BYTES = 4_800
"""A tenth of a second."""
_SPEED = 10
"""How much faster than speech the sound comes."""
_TIMEOUT_S = 120.0
"""A turn that takes longer is stuck."""


class SessionFailed(Exception):
    """The server sent an error, or ended a session that was in use."""


@dataclass
class SessionResult:
    """What a session was told."""

    answers: list[str] = field(default_factory=list)
    """Of each turn that was not interrupted."""
    transcripts: list[str] = field(default_factory=list)
    n_interrupted: int = 0


async def hold_session(url: str, number: int) -> SessionResult:
    """Holds a session of one to three spoken questions; every other one speaks into each answer but its last.

    Raises:
        SessionFailed: the server sent an error, or the end of a response did not come
    """
    draw, result = random.Random(number), SessionResult()
    n_turns, interrupts = draw.choice((1, 2, 3)), bool(number % 2)
    sounds = [_build_pcm(draw.randrange(1 << 20), number) for _ in range(n_turns)]
    address = f"{url.replace('http', 'ws', 1)}/v1/realtime?model={MODEL}"
    try:
        async with (
            connect(address, max_size=None, close_timeout=5) as socket,
            asyncio.timeout(n_turns * _TIMEOUT_S),
        ):
            events = _read_events(socket)
            await _set_manual_turns(socket)
            for sound in sounds:
                await _speak(socket, sound)
                await _send(socket, "response.create")
                await _read_answer(
                    socket, events, result, is_interrupted=interrupts and sound is not sounds[-1]
                )
    except SessionFailed:
        raise
    except Exception as error:  # a connection that ends, a refusal, a time that is up
        raise SessionFailed(f"{error!r}") from error
    return result


async def _read_events(socket: ClientConnection) -> AsyncIterator[dict[str, Any]]:
    async for message in socket:
        event = json.loads(message)
        if event["type"] == "error" and event["error"].get("code") != "response_cancel_not_active":
            raise SessionFailed(json.dumps(event["error"]))
        yield event
    raise SessionFailed("the server ended the session")


async def _set_manual_turns(socket: ClientConnection) -> None:
    audio = {"input": {"turn_detection": None, "transcription": {"model": MODEL}}}
    await _send(socket, "session.update", session={"type": "realtime", "audio": audio})


async def _speak(socket: ClientConnection, pcm: bytes) -> None:
    for start in range(0, len(pcm), _FRAME_BYTES):
        frame = base64.b64encode(pcm[start : start + _FRAME_BYTES]).decode()
        await _send(socket, "input_audio_buffer.append", audio=frame)
        await asyncio.sleep(0.1 / _SPEED)
    await _send(socket, "input_audio_buffer.commit")


async def _read_answer(
    socket: ClientConnection,
    events: AsyncIterator[dict[str, Any]],
    result: SessionResult,
    *,
    is_interrupted: bool,
) -> None:
    """Reads up to the end of the response and of the transcript of its turn."""
    text, status, is_transcribed = "", None, False
    while status is None or not is_transcribed:
        event = await anext(events)
        match event["type"]:
            case "response.created" if is_interrupted:
                await _send(socket, "response.cancel")
            case "response.output_text.delta":
                text += event["delta"]
            case "conversation.item.input_audio_transcription.completed":
                is_transcribed = True
                if not is_interrupted:
                    result.transcripts.append(event["transcript"])
            case "response.done":
                status = event["response"]["status"]
    if is_interrupted:
        result.n_interrupted += 1
    elif status == "completed":
        result.answers.append(text)
    else:
        raise SessionFailed(f"a response ended as {status!r}")


async def _send(socket: ClientConnection, kind: str, **fields: Any) -> None:
    await socket.send(json.dumps({"type": kind, **fields}))


def _build_pcm(question: int, number: int) -> bytes:
    samples = load_question(question, number)
    resampled = soxr.resample(samples, SAMPLE_RATE, _PCM_RATE)
    return np.rint(resampled * 32_767).clip(-32_768, 32_767).astype("<i2").tobytes()
