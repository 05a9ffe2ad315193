"""Sounds that chat messages name by path or address, in transformers' ways of writing them."""

import base64
import binascii
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import httpx2

from ossicle.errors import AudioError

_MAX_BYTES = 256 * 2**20
_TIMEOUT_S = 30.0
_MAX_PATH_CHARACTERS = 4_096
"""No path is longer: `transformers serve` gives sound of an unnamed format as bare base64 in place of an address."""


def read_audio_part(part: Any) -> Any:
    """Returns a part of a message with its sound under "audio": a path, or the bytes at an address or in a data: URL.

    Raises:
        AudioError: an address or data: URL that cannot be read
    """
    if not isinstance(part, Mapping) or part.get("type") != "audio":
        return part
    found = [part[name] for name in ("audio", "path", "url") if part.get(name) is not None]
    if len(found) != 1:
        return part  # the messages' own check says what is wrong
    sound = found[0]
    if isinstance(sound, str) and sound.startswith(("http://", "https://")):
        sound = _download(sound)
    elif isinstance(sound, str) and sound.startswith("file://"):
        sound = url2pathname(urlsplit(sound).path)
    elif isinstance(sound, str) and sound.startswith("data:"):
        sound = _decode(sound.partition(",")[2])
    elif isinstance(sound, str) and len(sound) > _MAX_PATH_CHARACTERS:
        sound = _decode(sound)
    return {"type": "audio", "audio": sound}


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise AudioError(
            f"a sound in a message is no base64 ({error}): write data:audio/wav;base64,..."
        ) from error


def _download(address: str) -> bytes:
    try:
        with httpx2.stream("GET", address, follow_redirects=True, timeout=_TIMEOUT_S) as answer:
            answer.raise_for_status()
            content = bytearray()
            for piece in answer.iter_bytes():
                content += piece
                if len(content) > _MAX_BYTES:
                    raise AudioError(f"{address} has more than {_MAX_BYTES >> 20} MB: send a shorter sound")
    except httpx2.HTTPError as error:
        raise AudioError(f"{address} cannot be read ({error}): check the address, or give a file") from error
    return bytes(content)
