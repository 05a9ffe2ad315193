"""Text of users is read with and without a byte order mark, and other encodings are named."""

import codecs
from pathlib import Path

import pytest

from ossicle.cli.serve import read_keys
from ossicle.cli.verify import _read_prompts
from ossicle.config import load_recipe
from ossicle.errors import ConfigError
from ossicle.text_encoding import check_encoding, decode_text, read_text_file

TEXT = 'out = "runs/hören"\n'


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


# Files


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path, mark: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(mark + TEXT.encode())
    assert read_text_file(path) == TEXT
    assert load_recipe(path).out == "runs/hören"
    path.write_bytes(mark + b"first\r\n\r\n second \n")
    assert read_keys(path) == _read_prompts(path) == ("first", "second")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be", "latin-1"])
def test_other_encodings_are_named_and_refused(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "file"
    path.write_text(TEXT, encoding=encoding)
    for read in (load_recipe, read_keys, _read_prompts):
        with pytest.raises(ConfigError, match=r"cannot be read.*save it as UTF-8") as caught:
            read(path)
        assert "\n" not in str(caught.value)
    if encoding in ("utf-16", "utf-32"):
        assert f"it is in {encoding.upper()}, expected UTF-8" in str(caught.value)
