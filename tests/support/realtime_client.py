"""A client of /v1/realtime that checks every event as strictly as the official client's own models can."""

import base64
import json
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, get_args

import numpy as np
import openai
import soxr
from openai.types.realtime import RealtimeServerEvent
from pydantic import BaseModel
from websockets.sync.client import ClientConnection, connect

from ossicle.audio.waveform import load_audio
from ossicle.evaluation import Item

FRAME_BYTES = 4_800
"""100 ms of PCM at 24 kHz."""
SILENCE = bytes(FRAME_BYTES)
_TIMEOUT_S = 60
_SESSION_FIELDS = {"id", "object", "expires_at"}
"""What OpenAI's own server sends of a session beyond its client's model."""
_MODELS: dict[str, type[BaseModel]] = {
    get_args(model.model_fields["type"].annotation)[0]: model
    for model in get_args(get_args(RealtimeServerEvent)[0])
}


def check_event(event: dict[str, Any]) -> None:
    """Fails for an event that is unknown to the official client, lacks a field, or has one too many."""
    model = _MODELS[event["type"]].model_validate(event, strict=True)
    _check_extra(model, event["type"])
    assert event["event_id"].startswith("event_")


def _check_extra(value: Any, where: str) -> None:
    if isinstance(value, BaseModel):
        extra = set(value.model_extra or ())
        assert extra <= (_SESSION_FIELDS if where.endswith(".session") else set()), (where, extra)
        for name in type(value).model_fields:
            _check_extra(getattr(value, name), f"{where}.{name}")
    elif isinstance(value, list):
        for element in value:
            _check_extra(element, where)


class Client:
    """A session from the client's side."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.events: list[dict[str, Any]] = []
        """All that were received."""

    def send(self, kind: str, **fields: Any) -> None:
        """Sends an event."""
        self.socket.send(json.dumps({"type": kind, **fields}))

    def receive(self, timeout_s: float = _TIMEOUT_S) -> dict[str, Any]:
        """Returns the next event."""
        event = json.loads(self.socket.recv(timeout_s))
        check_event(event)
        self.events.append(event)
        return event

    def receive_until(self, kind: str) -> list[dict[str, Any]]:
        """Returns the next events up to one of a type."""
        events = [self.receive()]
        while events[-1]["type"] != kind:
            assert events[-1]["type"] != "error", events[-1]
            events.append(self.receive())
        return events

    def update(self, **session: Any) -> dict[str, Any]:
        """Changes the session and returns it."""
        self.send("session.update", session={"type": "realtime", **session})
        return self.receive_until("session.updated")[-1]["session"]

    def use_manual_turns(self, **audio_input: Any) -> None:
        """Turns the detection of turns off."""
        self.update(audio={"input": {"turn_detection": None, **audio_input}})

    def append(self, data: bytes) -> None:
        """Sends sound in frames of 100 ms."""
        for start in range(0, len(data), FRAME_BYTES):
            frame = base64.b64encode(data[start : start + FRAME_BYTES]).decode()
            self.send("input_audio_buffer.append", audio=frame)

    def say(self, text: str) -> str:
        """Adds a message of the user's and returns its id."""
        content = [{"type": "input_text", "text": text}]
        self.send("conversation.item.create", item={"type": "message", "role": "user", "content": content})
        return self.receive_until("conversation.item.done")[-1]["item"]["id"]

    def answer(self, **response: Any) -> dict[str, Any]:
        """Asks for a response and returns it when it is done."""
        self.send("response.create", response=response)
        return self.receive_until("response.done")[-1]["response"]


@contextmanager
def open_session(url: str, *, key: str = "none", **options: Any) -> Generator[Client]:
    """Yields a client that was greeted."""
    address = url.replace("http://", "ws://") + "/v1/realtime?model=pocket/ear"
    headers = {"Authorization": f"Bearer {key}"}
    with connect(address, additional_headers=headers, max_size=None, **options) as socket:
        client = Client(socket)
        assert client.receive()["type"] == "session.created"
        yield client


def wait_until(is_true: Callable[[], bool]) -> None:
    """Waits until something is true, at most half a minute."""
    deadline = time.monotonic() + 30
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def to_pcm(samples: np.ndarray) -> bytes:
    """Returns samples at 16 kHz as PCM at 24 kHz."""
    resampled = soxr.resample(samples.astype(np.float32), 16_000, 24_000)
    return np.rint(resampled * 32_767).clip(-32_768, 32_767).astype("<i2").tobytes()


def load_pcm(item: Item) -> bytes:
    """Returns an item's sound as PCM at 24 kHz."""
    return to_pcm(load_audio(item.audio))


def from_pcm(data: bytes) -> np.ndarray:
    """Returns what the server hears in PCM at 24 kHz: samples at 16 kHz."""
    samples = np.frombuffer(data, "<i2").astype(np.float32) / 32_768
    return soxr.resample(samples, 24_000, 16_000)


def list_types(events: Sequence[dict[str, Any]]) -> list[str]:
    """Returns the types of events, each once where it repeats."""
    types = [event["type"] for event in events]
    return [kind for i, kind in enumerate(types) if i == 0 or kind != types[i - 1]]


def join_deltas(events: Sequence[dict[str, Any]]) -> str:
    """Returns the text of a response's deltas."""
    return "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")


def build_official_client(url: str) -> openai.AsyncOpenAI:
    """Returns the official client."""
    return openai.AsyncOpenAI(api_key="none", base_url=f"{url}/v1", max_retries=0)
