"""JSONL files: no line prevents reading the others, and both parsers give the same values."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.source_checks import read_audio, read_errors
from support.tiny_speech import (
    make_clips,
    write_jsonl,
)

from ossicle.data.columns import Columns
from ossicle.data.dataset import open_speech
from ossicle.data.formats import jsonl

INVALID_LINES = [
    ("{", "not JSON"),
    ("3", "the line holds int, expected {"),
    ('{"text": "one"}', "the line has no audio"),
    ('{"audio": "a.wav"}', "the line has no text"),
    ('{"audio": 3, "text": "one"}', "the audio is 3"),
    ('{"audio": "a.wav", "text": ["one"]}', "the transcript is ['one']"),
    ('{"audio": "a.wav", "text": ""}', "the transcript is ''"),
    ('{"audio": "gone.wav", "text": "one"}', "gone.wav' does not exist"),
    ('{"audio": "a\\u0000.wav", "text": "one"}', "does not exist"),
    ('{"audio": "a.wav", "text": "half \\ud83d"}', "half of a surrogate pair"),
    ("[" * 100_000, "not JSON"),
]


@pytest.mark.parametrize(("line", "message"), INVALID_LINES)
def test_an_invalid_line_of_a_jsonl_file_is_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "a.wav").write_bytes(b"x")
    good, source = '{"audio": "a.wav", "text": "good"}', tmp_path / "speech.jsonl"
    source.write_text(f"{good}\n\n{line}\n{good}", encoding="utf-8")
    found = read_errors(open_speech([str(source)]))
    assert list(found) == [1]
    assert found[1].startswith(f"{source}, line 3: ")
    assert message in found[1]
    assert len(found[1]) < 700


@given(
    lines=st.lists(
        st.one_of(st.binary(max_size=40), st.sampled_from([line.encode() for line, _ in INVALID_LINES])),
        max_size=20,
    )
)
def test_no_line_prevents_opening_a_jsonl_file(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "a.wav").write_bytes(b"x")
    lines = [b'{"audio": "a.wav", "text": "good"}', *lines]
    (folder / "speech.jsonl").write_bytes(b"\n".join(lines))
    dataset = open_speech([str(folder / "speech.jsonl")])
    not_empty = [line for line in b"\n".join(lines).split(b"\n") if line.strip()]
    assert len(dataset) == len(not_empty)
    errors = read_errors(dataset)
    assert 0 not in errors
    for row, line in enumerate(not_empty):
        assert (row in errors) == (line.strip() != lines[0])


VALUES = st.one_of(
    st.text(max_size=8),
    st.none(),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.lists(st.integers(), max_size=2),
)


@given(
    st.lists(
        st.one_of(
            st.dictionaries(st.sampled_from(["audio", "text", "duration", "x"]), VALUES).map(json.dumps),
            st.fixed_dictionaries({"audio": st.text(), "text": st.text(), "duration": st.floats(0, 9)}).map(
                lambda values: json.dumps(values, ensure_ascii=False)
            ),
            st.sampled_from(
                ['{"text": "a"} {"text": "b"}', '{"x": {"text": "a"}}', '{"text":', '{"text": "a"', "}"]
            ),
        ),
        max_size=8,
    ),
    st.booleans(),
)
def test_lines_parsed_by_arrow_equal_lines_parsed_one_by_one(lines: list[str], is_ended: bool) -> None:
    chunk = ("\n".join(lines) + "\n" * is_ended).encode(errors="replace")
    if not chunk:
        return
    spans, _ = jsonl._find_lines(chunk)
    columns = Columns(audio="audio", text="text", duration="duration")
    fast, slow = (
        jsonl._parse_with_arrow(chunk, spans, columns),
        jsonl._parse_line_by_line(chunk, spans, columns),
    )
    if fast is not None:
        assert fast[0].to_pylist() == slow[0].to_pylist()
        np.testing.assert_allclose(fast[1], slow[1], rtol=1e-6)


def test_a_valid_jsonl_file_is_parsed_by_arrow() -> None:
    chunk = b'{"audio": "a", "text": "one", "duration": 2, "x": {"y": [1]}}\n{"text": null, "duration": 1.5}'
    columns = Columns(audio="audio", text="text", duration="duration")
    parsed = jsonl._parse_with_arrow(chunk, jsonl._find_lines(chunk)[0], columns)
    assert parsed is not None
    assert (parsed[0].to_pylist(), parsed[1].tolist()) == (["one", None], [2.0, 1.5])


def test_jsonl_files_are_read_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_jsonl(tmp_path, make_clips(9))
    whole = open_speech([source])
    monkeypatch.setattr(jsonl, "_CHUNK_BYTES", 50)
    parts = open_speech([source])
    assert parts.texts.to_pylist() == whole.texts.to_pylist()
    assert [parts.row_name(row) for row in range(9)] == [whole.row_name(row) for row in range(9)]
    assert read_audio(parts[8]) == make_clips(9)[8].audio
    assert parts.fingerprint == whole.fingerprint


def test_a_jsonl_file_of_invalid_lines_only_can_be_opened(tmp_path: Path) -> None:
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe\n{\n")
    assert len(read_errors(open_speech([str(tmp_path / "bytes.jsonl")]))) == 2
