"""The encoding of text that users hand over: UTF-8, with or without the mark that Windows programs write before it."""

import codecs

_MARK = codecs.BOM_UTF8
_WIDE = ((0, 2), (1, 3), (0, 1, 2), (1, 2, 3))
"""The zeros among the first four bytes of two or one Latin letters."""


def decode_text(content: bytes) -> str:
    """Returns UTF-8 text without its byte order mark.

    Raises:
        ValueError: another encoding; the message says which, if it can be told
    """
    check_encoding(content)
    return content.removeprefix(_MARK).decode()


def count_mark_bytes(content: bytes) -> int:
    """Returns the bytes of the byte order mark at the beginning of UTF-8 text: three or none."""
    return len(_MARK) if content.startswith(_MARK) else 0


def check_encoding(start: bytes) -> None:
    """Raises ValueError for the start of text in UTF-16 or UTF-32, in which Latin letters have zero bytes."""
    is_marked = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and b"\0" in start[:100]
    if is_marked or tuple(index for index, byte in enumerate(start[:4]) if not byte) in _WIDE:
        raise ValueError("it is in UTF-16 or UTF-32: save it as UTF-8")
