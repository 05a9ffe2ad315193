"""WebSockets of the Realtime protocol that try to break a server: handshakes, frames, events, vanishing clients."""

import base64
import json
import random
from typing import Any

from benchmarks.security.attack_kinds import AttackInputs, AttackKinds, AttackRequest

KINDS = AttackKinds()
_TEXT, _BINARY, _CLOSE, _PING = 1, 2, 8, 9
_PATH = "/v1/realtime?model=pocket/ear"
_HANDSHAKE = {
    "Host": "localhost",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
_MANUAL = {"type": "session.update", "session": {"audio": {"input": {"turn_detection": None}}}}
_WRONG_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1e308, "", "x", "x" * 3_000, [], {}, [[]], {"type": "x"}, "\ud800", "../../etc/passwd",
)  # fmt: skip
_NAMES = (
    "session", "audio", "item", "item_id", "previous_item_id", "content_index", "audio_end_ms", "response", "event_id",
    "response_id", "type",
)  # fmt: skip
_EVENTS = (
    "session.update", "input_audio_buffer.append", "input_audio_buffer.commit", "input_audio_buffer.clear",
    "conversation.item.create", "conversation.item.retrieve", "conversation.item.truncate",
    "conversation.item.delete", "response.create", "response.cancel", "output_audio_buffer.clear", "session.created",
)  # fmt: skip


def build_handshake(path: str = _PATH, **changed: str) -> bytes:
    """Builds the request that opens a socket; a header that is changed to nothing is left out."""
    headers = {**_HANDSHAKE, **{name.replace("_", "-"): value for name, value in changed.items()}}
    lines = [f"{name}: {value}\r\n" for name, value in headers.items() if value]
    return f"GET {path} HTTP/1.1\r\n{''.join(lines)}\r\n".encode("latin-1")


def build_frame(payload: bytes, opcode: int = _TEXT, *, first: int = 0x80, mask: int = 0x80) -> bytes:
    """Builds a frame; the mask is zero, so that the payload is sent as it is."""
    n = len(payload)
    if n < 126:
        length = bytes([mask | n])
    elif n < 1 << 16:
        length = bytes([mask | 126]) + n.to_bytes(2, "big")
    else:
        length = bytes([mask | 127]) + n.to_bytes(8, "big")
    return bytes([first | opcode]) + length + (bytes(4) if mask else b"") + payload


def build_event(**fields: Any) -> bytes:
    """Builds the frame of an event."""
    return build_frame(json.dumps(fields).encode())


def attack_with_frames(*frames: bytes | float, **options: Any) -> AttackRequest:
    """Builds an attack with frames on an open socket, which then is closed."""
    end = build_frame((1000).to_bytes(2, "big"), _CLOSE)
    return AttackRequest(
        sends=(build_handshake(), *frames, end), may_be_answered=True, may_be_dropped=True, **options
    )


@KINDS.add("handshakes")
def _draw_handshakes(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    name = draw.choice(list(_HANDSHAKE))
    value = draw.choice(("", "x", "12", "h2c", "\xff", "a" * 9_000, "websocket, x", "dGhlIHNhbXBsZQ=="))
    path = draw.choice((_PATH, "/v1/realtime?model=other", "/", "/v1/models", "/v1/realtime?model=%ff"))
    more = {"Sec_WebSocket_Protocol": draw.choice(("", "x", "realtime", ", ,", "openai-insecure-api-key."))}
    if draw.random() < 0.3:
        more["Origin"] = draw.choice(("https://evil.example", "null", "x" * 3_000))
    changed = {"Connection": "close, Upgrade", name.replace("-", "_"): value, **more}
    request = build_handshake(path, **changed)
    end = build_frame((1000).to_bytes(2, "big"), _CLOSE)
    return AttackRequest(
        sends=(request, end),
        may_be_answered=True,
        may_be_plain=True,
        may_be_dropped=True,
        then="half-closes",
    )


@KINDS.add("broken frames")
def _draw_frames(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    payload = draw.randbytes(draw.choice((0, 1, 125, 126, 70_000)))
    frame = draw.choice(
        (
            build_frame(payload, draw.randrange(16), first=draw.choice((0, 0x80, 0xC0, 0xF0))),
            build_frame(payload, mask=0),
            build_frame(payload, _BINARY),
            build_frame(payload[:125], _PING) * draw.choice((1, 500)),
            build_frame(b"\xff\xfe"),
            b"\x81\xff" + b"\xff" * 8,
            b"\x81\xff" + (1 << 40).to_bytes(8, "big") + bytes(4),
            build_frame(b"{", first=0) + build_frame(b"}", 0, first=0) * 1_000,
            payload,
        )
    )
    return attack_with_frames(frame)


@KINDS.add("giant events", max_requests=20)
def _draw_giants(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    n = draw.choice((1 << 20, 20 << 20, 30 << 20))
    audio = base64.b64encode(bytes(n * 3 // 4)).decode()
    content = [{"type": "input_audio", "audio": audio}]
    item = {"type": "message", "role": "user", "content": content}
    frame = draw.choice(
        (
            build_event(type="input_audio_buffer.append", audio=audio),
            build_event(type="conversation.item.create", item=item),
            build_event(type="session.update", session={"instructions": "x" * n}),
            build_frame(b"[" * n),
        )
    )
    return attack_with_frames(build_event(**_MANUAL), frame)


@KINDS.add("wrong events")
def _draw_events(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    frames = []
    for _ in range(draw.randrange(1, 30)):
        names = draw.sample(_NAMES, draw.randrange(3))
        fields = {name: draw.choice(_WRONG_VALUES) for name in names}
        frames.append(build_event(**{"type": draw.choice(_EVENTS), **fields}))
    return attack_with_frames(*frames)


@KINDS.add("wrong settings")
def _draw_settings(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    names = (
        "type", "model", "instructions", "tools", "tool_choice", "max_output_tokens", "output_modalities", "audio",
        "truncation", "include", "prompt", "tracing", "reasoning", "parallel_tool_calls", "temperature", "input",
        "metadata", "conversation",
    )  # fmt: skip
    inner = ("format", "turn_detection", "transcription", "noise_reduction")
    spoken = ("format", "voice", "speed")
    settings: dict[str, Any] = {name: draw.choice(_WRONG_VALUES) for name in draw.sample(names, 2)}
    if draw.random() < 0.5:
        settings["audio"] = {"input": {draw.choice(inner): draw.choice(_WRONG_VALUES)}}
    elif draw.random() < 0.5:
        settings["audio"] = {"output": {draw.choice(spoken): draw.choice(_WRONG_VALUES)}}
    name = draw.choice(("session", "response"))
    kind = "session.update" if name == "session" else "response.create"
    return attack_with_frames(build_event(**{"type": kind, name: settings}))


@KINDS.add("wrong sound")
def _draw_sound(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    noise = draw.randbytes(2 * draw.choice((0, 1, 100, 4_800, 48_000)))
    chunks = [base64.b64encode(draw.choice((noise, noise[1:], bytes(4_800)))).decode() for _ in range(8)]
    chunks.append(
        draw.choice(
            ("%", "AAA", "data:audio/wav;base64,AAAA", base64.b64encode(inputs.sounds["wav"]).decode())
        )
    )
    frames = [build_event(type="input_audio_buffer.append", audio=chunk) for chunk in chunks]
    ends = [build_event(type=f"input_audio_buffer.{name}") for name in draw.choices(("commit", "clear"), k=3)]
    start = [build_event(**_MANUAL)] if draw.random() < 0.5 else []
    return attack_with_frames(*start, *frames, *ends, build_event(type="response.create"))


@KINDS.add("sessions that vanish")
def _draw_vanishing(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    say = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "count to ten"}]}
    frames = (
        build_event(type="conversation.item.create", item=say),
        build_event(type="response.create"),
        *[build_event(type="response.create", response={"conversation": "none"})] * draw.choice((0, 30)),
    )
    return AttackRequest(
        sends=(build_handshake(), *frames[: draw.randrange(4)]),
        then=draw.choice(("half-closes", "disconnects")),
        may_be_answered=True,
        may_be_dropped=True,
    )


@KINDS.add("sessions that read nothing", max_requests=4)
def _draw_deaf(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    flood = build_event(type="session.update", session={"instructions": "x" * 60_000}) * 200
    return attack_with_frames(flood, inputs.waits_s, then="reads nothing")
