"""What a request to break a server is, and the parts that all of them are made of.

It knows OpenAI's protocol and HTTP as bytes on a socket; each request is made from a generator of its own.
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
    """One request."""

    sends: tuple[bytes | float, ...]
    """What goes out; a number is that many seconds of doing nothing."""
    then: Literal["reads", "half-closes", "vanishes", "reads nothing"] = "reads"
    """What the client does afterwards; it vanishes when the first bytes are there."""
    may_be_answered: bool = False
    """Odd, but nothing to refuse."""
    may_be_dropped: bool = False
    """The connection may be closed without a word."""


@dataclass(frozen=True, kw_only=True)
class AttackInputs:
    """What requests are made of."""

    sounds: dict[str, bytes]
    """Whole files by format."""
    marker: str
    """A file of speech on this machine, which nobody may hear."""
    trap: str
    """An address that nobody may ask."""
    waits_s: float
    """Longer than the server's patience."""


BuildAttack = Callable[[random.Random, AttackInputs], AttackRequest]


@dataclass(frozen=True)
class AttackKind:
    """A kind of request, and how many of them there are at most: some take their time."""

    make: BuildAttack
    max_requests: int


class AttackKinds(dict[str, AttackKind]):
    """Kinds by name."""

    def add(self, name: str, most: int = 1 << 30) -> Callable[[BuildAttack], BuildAttack]:
        """Takes in a maker."""

        def put(make: BuildAttack) -> BuildAttack:
            self[name] = AttackKind(make, most)
            return make

        return put

    def requests(self, n: int, seed: int, world: AttackInputs) -> Iterator[tuple[str, AttackRequest]]:
        """So many requests of all kinds in turn, each made from the seed and its number alone."""
        left = {name: kind.max_requests for name, kind in self.items()}
        number = 0
        while number < n:
            for name in [name for name, most in left.items() if most][: n - number]:
                left[name] -= 1
                yield name, self[name].make(random.Random(f"{seed}/{number}"), world)
                number += 1


def build_post(
    body: bytes, *, path: str = CHAT, content_type: str = "application/json", more: bytes = CLOSE
) -> bytes:
    """A whole request over HTTP."""
    head = f"POST {path} HTTP/1.1\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + HOST + more + END + body


def build_chat_body(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a request for an answer to a short question, those given put in."""
    question = {"role": "user", "content": "what is the capital of japan"}
    return {"model": MODEL, "messages": [question], **fields}


def build_chat_request(more: bytes = CLOSE, **fields: Any) -> bytes:
    """A request for an answer."""
    return build_post(json.dumps(build_chat_body(fields)).encode(), more=more)


def build_audio_part(data: bytes, form: Any = "wav") -> dict[str, Any]:
    """Sound in a message."""
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": form}}


def build_user_message(*parts: Any) -> dict[str, Any]:
    """A message of the user's."""
    return {"role": "user", "content": list(parts)}


def attack_with_message(message: Any) -> AttackRequest:
    """A request with one message, which is not to be answered."""
    return AttackRequest(sends=(build_chat_request(messages=[message]),))


def attack_with_audio(data: bytes, form: Any = "wav") -> AttackRequest:
    """A request with one sound, which is not to be heard."""
    return attack_with_message(build_user_message(build_audio_part(data, form)))


def build_form(*parts: tuple[str, bytes], end: bytes = b"--") -> bytes:
    """A multipart body, of what stands in each part's head and its content."""
    lines = b"".join(
        f"--{BOUNDARY}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + content + END
        for head, content in parts
    )
    return lines + f"--{BOUNDARY}".encode() + end + END


def build_transcription_request(
    body: bytes, content_type: str = f"multipart/form-data; boundary={BOUNDARY}"
) -> bytes:
    """A request for a transcript."""
    return build_post(body, path=TRANSCRIPTIONS, content_type=content_type)
