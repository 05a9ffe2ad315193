"""Text of users is read with and without a byte order mark, and other encodings are named."""

import codecs

import pytest

from ossicle.data.text_encoding import check_encoding, decode_text


@pytest.mark.parametrize("text", ["", "a", '{"a": 1}', "größer", "字", "\n"])
def test_utf_8_is_read_with_and_without_a_mark(text: str) -> None:
    assert decode_text(text.encode()) == decode_text(codecs.BOM_UTF8 + text.encode()) == text


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_other_unicode_encodings_are_named(encoding: str) -> None:
    with pytest.raises(ValueError, match="UTF-16 or UTF-32: save it as UTF-8"):
        decode_text('{"text": "größer"}'.encode(encoding))


@pytest.mark.parametrize("content", [b"\xff\xfe\n", b"RIFF\0\0\0\0", b"\0", b"a\0", bytes(4), b"\xff\xfe"])
def test_other_bytes_are_not_taken_for_them(content: bytes) -> None:
    check_encoding(content)
