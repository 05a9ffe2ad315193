"""The encoding of text that users hand over: UTF-8, with or without the mark that Windows programs write before it."""

import codecs
from pathlib import Path

_MARK = codecs.BOM_UTF8
_UTF_32, _UTF_16 = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE), (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_WIDE = ((0, 2), (1, 3), (0, 1, 2), (1, 2, 3))
"""The zeros among the first four bytes of two or one Latin letters."""


def read_text_file(path: Path) -> str:
    """Returns the text of a UTF-8 file without its byte order mark.

    Raises:
        OSError: the file cannot be read
        ValueError: it is in another encoding; the message is the end of a sentence about the file
    """
    content = path.read_bytes()
    for name, marks in (("UTF-32", _UTF_32), ("UTF-16", _UTF_16)):
        if content.startswith(marks):
            raise ValueError(f"it is in {name}, expected UTF-8: save it as UTF-8")
    try:
        text = decode_text(content)
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 (byte {error.start}): save it as UTF-8") from error
    if "\0" in text[:4]:
        raise ValueError("it begins with a zero byte, which no text has: save it as UTF-8")
    return text


def decode_text(content: bytes) -> str:
    """Returns UTF-8 text without its byte order mark.

    Raises:
        ValueError: another encoding; the message says which, if it can be told
    """
    check_encoding(content)
    return content.decode("utf-8-sig")


def count_mark_bytes(content: bytes) -> int:
    """Returns the bytes of the byte order mark at the beginning of UTF-8 text: three or none."""
    return len(_MARK) if content.startswith(_MARK) else 0


def check_encoding(start: bytes) -> None:
    """Raises ValueError for the start of text in UTF-16 or UTF-32, in which Latin letters have zero bytes."""
    is_marked = start.startswith(_UTF_16) and b"\0" in start[:100]
    if is_marked or tuple(index for index, byte in enumerate(start[:4]) if not byte) in _WIDE:
        raise ValueError("it is in UTF-16 or UTF-32: save it as UTF-8")
