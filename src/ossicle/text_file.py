"""A text file that a user wrote, in the encodings that editors save it in."""

import codecs
from pathlib import Path

_UTF_32, _UTF_16 = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE), (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text_file(path: Path) -> str:
    """Returns the text of a UTF-8 file, without the byte order mark that some editors put in front.

    Raises:
        OSError: the file cannot be read
        ValueError: it is in another encoding; the message is the end of a sentence about the file
    """
    content = path.read_bytes()
    for name, marks in (("UTF-32", _UTF_32), ("UTF-16", _UTF_16)):
        if content.startswith(marks):
            raise ValueError(f"it is in {name}, expected UTF-8: save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 (byte {error.start}): save it as UTF-8") from error
    if "\0" in text[:4]:
        raise ValueError("it has zero bytes, as UTF-16 without a byte order mark has: save it as UTF-8")
    return text
