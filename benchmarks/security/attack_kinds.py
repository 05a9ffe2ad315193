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
CHAT, WRITE = "/v1/chat/completions", "/v1/audio/transcriptions"
HOST, CLOSE, END = b"Host: localhost\r\n", b"Connection: close\r\n", b"\r\n"
BOUNDARY = "----boundary"


@dataclass(frozen=True, kw_only=True)
class Hostile:
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
class World:
    """What requests are made of."""

    sounds: dict[str, bytes]
    """Whole files by format."""
    marker: str
    """A file of speech on this machine, which nobody may hear."""
    trap: str
    """An address that nobody may ask."""
    waits_s: float
    """Longer than the server's patience."""


Maker = Callable[[random.Random, World], Hostile]


@dataclass(frozen=True)
class Kind:
    """A kind of request, and how many of them there are at most: some take their time."""

    make: Maker
    most: int


class Kinds(dict[str, Kind]):
    """Kinds by name."""

    def add(self, name: str, most: int = 1 << 30) -> Callable[[Maker], Maker]:
        """Takes in a maker."""

        def put(make: Maker) -> Maker:
            self[name] = Kind(make, most)
            return make

        return put

    def requests(self, n: int, seed: int, world: World) -> Iterator[tuple[str, Hostile]]:
        """So many requests of all kinds in turn, each made from the seed and its number alone."""
        left = {name: kind.most for name, kind in self.items()}
        number = 0
        while number < n:
            for name in [name for name, most in left.items() if most][: n - number]:
                left[name] -= 1
                yield name, self[name].make(random.Random(f"{seed}/{number}"), world)
                number += 1


def posted(
    body: bytes, *, path: str = CHAT, content_type: str = "application/json", more: bytes = CLOSE
) -> bytes:
    """A whole request over HTTP."""
    head = f"POST {path} HTTP/1.1\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + HOST + more + END + body


def asked(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a request for an answer to a short question, those given put in."""
    question = {"role": "user", "content": "what is the capital of japan"}
    return {"model": MODEL, "messages": [question], **fields}


def chat(more: bytes = CLOSE, **fields: Any) -> bytes:
    """A request for an answer."""
    return posted(json.dumps(asked(fields)).encode(), more=more)


def part(data: bytes, form: Any = "wav") -> dict[str, Any]:
    """Sound in a message."""
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": form}}


def spoken(*parts: Any) -> dict[str, Any]:
    """A message of the user's."""
    return {"role": "user", "content": list(parts)}


def said(message: Any) -> Hostile:
    """A request with one message, which is not to be answered."""
    return Hostile(sends=(chat(messages=[message]),))


def heard(data: bytes, form: Any = "wav") -> Hostile:
    """A request with one sound, which is not to be heard."""
    return said(spoken(part(data, form)))


def form(*parts: tuple[str, bytes], end: bytes = b"--") -> bytes:
    """A multipart body, of what stands in each part's head and its content."""
    lines = b"".join(
        f"--{BOUNDARY}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + content + END
        for head, content in parts
    )
    return lines + f"--{BOUNDARY}".encode() + end + END


def written(body: bytes, content_type: str = f"multipart/form-data; boundary={BOUNDARY}") -> bytes:
    """A request for a transcript."""
    return posted(body, path=WRITE, content_type=content_type)
