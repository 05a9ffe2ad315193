"""Requests that try to break a server, and the parts that all of them share.

This module knows OpenAI's protocol and HTTP as bytes on a socket. Each request is drawn from a generator of its own.
"""

import base64
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

MODEL = "pocket/ear"
CHAT, TRANSCRIPTIONS = "/v1/chat/completions", "/v1/audio/transcriptions"
HOST, CLOSE, END = b"Host: localhost\r\n", b"Connection: close\r\n", b"\r\n"
BOUNDARY = "----boundary"


@dataclass(frozen=True, kw_only=True)
class AttackRequest:
    """A request that tries to break a server."""

    sends: tuple[bytes | float, ...]
    """Bytes to send; a number is a pause of as many seconds."""
    then: Literal["reads", "half-closes", "disconnects", "reads nothing"] = "reads"
    """The client's action afterwards; "disconnects" means when the first bytes arrive."""
    may_be_answered: bool = False
    """The server may answer it: it is odd, but valid."""
    may_be_plain: bool = False
    """It may be refused below the API, without an error object: it is no WebSocket."""
    may_be_dropped: bool = False
    """The server may close the connection without an answer."""


@dataclass(frozen=True, kw_only=True)
class AttackInputs:
    """Values that requests are built from."""

    sounds: dict[str, bytes]
    """Valid files by format."""
    marker: str
    """A file of speech on this machine, which the server must not read."""
    trap: str
    """An address that the server must not contact."""
    waits_s: float
    """A time longer than the server's timeouts."""


BuildAttack = Callable[[random.Random, AttackInputs], AttackRequest]


@dataclass(frozen=True)
class AttackKind:
    """A kind of request, and the most of it in one attack: some take long."""

    build: BuildAttack
    max_requests: int


class AttackKinds(dict[str, AttackKind]):
    """Kinds of requests by name."""

    def add(self, name: str, max_requests: int = 1 << 30) -> Callable[[BuildAttack], BuildAttack]:
        """Registers the function that builds requests of a kind."""

        def register(build: BuildAttack) -> BuildAttack:
            self[name] = AttackKind(build, max_requests)
            return build

        return register

    def requests(self, n: int, seed: int, world: AttackInputs) -> Iterator[tuple[str, AttackRequest]]:
        """Yields n requests of all kinds in turn; each depends only on the seed and its number."""
        left = {name: kind.max_requests for name, kind in self.items()}
        number = 0
        while number < n:
            for name in [name for name, n_left in left.items() if n_left][: n - number]:
                left[name] -= 1
                yield name, self[name].build(random.Random(f"{seed}/{number}"), world)
                number += 1


def build_post(
    body: bytes, *, path: str = CHAT, content_type: str = "application/json", more: bytes = CLOSE
) -> bytes:
    """Builds a POST request over HTTP."""
    head = f"POST {path} HTTP/1.1\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + HOST + more + END + body


def build_chat_body(fields: dict[str, Any]) -> dict[str, Any]:
    """Returns the JSON fields of a short question, with the given ones added or replaced."""
    question = {"role": "user", "content": "what is the capital of japan"}
    return {"model": MODEL, "messages": [question], **fields}


def build_chat_request(more: bytes = CLOSE, **fields: Any) -> bytes:
    """Builds a request for an answer."""
    return build_post(json.dumps(build_chat_body(fields)).encode(), more=more)


def build_audio_part(data: bytes, form: Any = "wav") -> dict[str, Any]:
    """Returns the part of a message with a sound."""
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": form}}


def build_user_message(*parts: Any) -> dict[str, Any]:
    """Returns a message of the user."""
    return {"role": "user", "content": list(parts)}


def attack_with_message(message: Any) -> AttackRequest:
    """Builds an attack with one message, which must be refused."""
    return AttackRequest(sends=(build_chat_request(messages=[message]),))


def attack_with_audio(data: bytes, form: Any = "wav") -> AttackRequest:
    """Builds an attack with one sound, which must be refused."""
    return attack_with_message(build_user_message(build_audio_part(data, form)))


def build_form(*parts: tuple[str, bytes], end: bytes = b"--") -> bytes:
    """Builds a multipart body from the header and the content of each part."""
    lines = b"".join(
        f"--{BOUNDARY}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + content + END
        for head, content in parts
    )
    return lines + f"--{BOUNDARY}".encode() + end + END


def build_transcription_request(
    body: bytes, content_type: str = f"multipart/form-data; boundary={BOUNDARY}"
) -> bytes:
    """Builds a request for a transcript."""
    return build_post(body, path=TRANSCRIPTIONS, content_type=content_type)
