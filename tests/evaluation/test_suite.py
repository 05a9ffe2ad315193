"""Suites are read from JSONL and parquet files, and an error names the line or row."""

import datetime
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from support.fake_ear import TONE

from ossicle.errors import DataError
from ossicle.evaluation import (
    Item,
    load_suite,
    open_suite,
)


@pytest.fixture
def write_suite(tmp_path: Path) -> Callable[..., Path]:
    soundfile.write(tmp_path / "a.wav", TONE, 16_000)

    def write(*lines: object) -> Path:
        path = tmp_path / "suite.jsonl"
        texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
        path.write_text("\n".join(texts) + "\n", encoding="utf-8")
        return path

    return write


def test_a_jsonl_suite_is_read(write_suite: Callable[..., Path]) -> None:
    path = write_suite(
        {"audio": "a.wav", "text": "One\u2028two", "voice": "anna", "duration": 1.5},
        "",
        {
            "audio": "a.wav",
            "text": "Hola",
            "instruction": "Answer in Spanish.",
            "answer": "Sí",
            "id": "x",
            "group": "g",
        },
        {"audio": "a.wav", "text": "Yes", "instruction": None, "answer": None},
    )
    first, second, third = load_suite(path)
    assert (first.id, first.text, first.answer, first.audio) == (
        "0001",
        "One\u2028two",
        None,
        path.parent / "a.wav",
    )
    assert (second.id, second.instruction, second.answer, second.group) == (
        "x",
        "Answer in Spanish.",
        "Sí",
        "g",
    )
    assert (third.id, third.instruction) == ("0004", None)
    assert load_suite(str(path))[0] == first


GOOD = {"audio": "a.wav", "text": "Yes"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON at column 2"),
        ("[1]", "this is a list"),
        ("[" * 100_000, "not JSON"),
        ("9" * 5_000, "not JSON"),
        ("null", "this is null"),
        ({"text": "Yes"}, "no 'audio'"),
        ({"audio": "a.wav"}, "no 'text'"),
        ({"audio": "b.wav", "text": "Yes"}, "b.wav; paths are relative"),
        ({"audio": "", "text": "Yes"}, "no audio file"),
        (GOOD | {"text": " "}, "give the words"),
        (GOOD | {"text": "..."}, "give the words"),
        (GOOD | {"answer": 4}, "answer is 4, a number; write it as a string"),
        (GOOD | {"answer": ""}, "answer is empty"),
        (GOOD | {"anwser": "No"}, "unknown key 'anwser'; did you mean 'answer'?"),
        (GOOD | {"Instruction": "No"}, "did you mean 'instruction'?"),
        (GOOD | {"id": "0001"}, "item id '0001' is already used"),
    ],
)
def test_an_invalid_line_is_named(write_suite: Callable[..., Path], line: object, message: str) -> None:
    path = write_suite(GOOD, line)
    with pytest.raises(DataError) as caught:
        load_suite(path)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_a_suite_is_an_error(tmp_path: Path, write_suite: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="no such suite file"):
        load_suite(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="no such suite file"):
        load_suite(tmp_path)
    with pytest.raises(DataError, match="not UTF-8"):
        load_suite(tmp_path / "a.wav" if write_suite() else tmp_path)
    with pytest.raises(DataError, match="no items"):
        load_suite(write_suite("", " "))


def test_an_open_file_as_audio_is_an_error() -> None:
    with pytest.raises(DataError, match="open file"):
        Item(id="1", audio=io.BytesIO(b"RIFF"), text="Yes")


def write_parquet_suite(path: Path, **changes: Any) -> Path:
    encoded = io.BytesIO()
    soundfile.write(encoded, TONE, 16_000, format="WAV")
    row = {"audio": {"bytes": encoded.getvalue(), "path": "a.wav"}, "text": "hello", "skill": "x"} | changes
    pq.write_table(pa.Table.from_pylist([row, row]), path)
    return path


def test_a_parquet_suite_contains_its_audio(tmp_path: Path) -> None:
    first, second = load_suite(write_parquet_suite(tmp_path / "suite.parquet", answer="hi", group="a"))
    assert (first.id, second.id, first.text, first.answer, first.group) == (
        "0001",
        "0002",
        "hello",
        "hi",
        "a",
    )
    assert first.instruction is None
    assert isinstance(first.audio, bytes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": None}, "row 1: no 'text'"),
        ({"text": 5}, "row 1: text is 5, a number"),
        ({"text": datetime.date(2024, 1, 1)}, "row 1: text is datetime.date(2024, 1, 1), a date"),
        ({"text": b"hi"}, "row 1: text is b'hi', a bytes"),
        ({"audio": "a.wav"}, "row 1: audio holds no bytes"),
        ({"anwser": "hi"}, "did you mean 'answer'"),
        ({"id": "same"}, "row 2: item id 'same' is already used"),
    ],
)
def test_an_invalid_row_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=r"suite\.parquet") as caught:
        load_suite(write_parquet_suite(tmp_path / "suite.parquet", **changes))
    assert message in str(caught.value)


def test_a_parquet_file_that_is_not_a_suite_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "suite.parquet"
    path.write_text("no table")
    with pytest.raises(DataError, match="not a parquet file"):
        load_suite(path)
    pq.write_table(pa.table({"audio": [b"x"]}), path)
    with pytest.raises(DataError, match="no column 'text'"):
        load_suite(path)


@pytest.mark.parametrize("name", ["pocket", "suite.jsonl"])
def test_data_for_a_suite_that_has_its_own_is_refused(name: str) -> None:
    with pytest.raises(
        DataError, match=rf"data is 'other', but the suite '{name}' has its own: leave it out"
    ):
        open_suite(name, "other")


def test_an_unknown_suite_name_is_an_error_that_lists_the_suites() -> None:
    with pytest.raises(DataError, match=r"no suite 'pocketx'; expected one of pocket, .*voicebench"):
        open_suite("pocketx")
