"""Sources of speech: one syntax, the same rows from every format, invalid rows reported by name."""

import contextlib
import importlib.util
import json
import os
import pickle
import shutil
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_speech import (
    NORMALIZED_TEXTS,
    SOURCE_WRITERS,
    Clip,
    encode_tone,
    make_clips,
    write_huggingface,
    write_jsonl,
    write_parquet,
    write_tar,
)

from ossicle.data.columns import Columns
from ossicle.data.dataset import SpeechDataset, open_speech
from ossicle.data.formats import jsonl
from ossicle.data.formats.parquet import RowGroupCache
from ossicle.data.source import Utterance
from ossicle.data.source_spec import parse_source_spec
from ossicle.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Converted datasets go into a folder of the test run."""
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))


def table(path: Path, rows: list[dict[str, Any]]) -> str:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def audio(utterance: Utterance) -> bytes:
    assert not isinstance(utterance.audio, np.ndarray)
    return utterance.audio if isinstance(utterance.audio, bytes) else utterance.audio.read_bytes()


def read_errors(speech: SpeechDataset) -> dict[int, str]:
    """Returns the messages of invalid rows, by row number."""
    found = {}
    for row in range(len(speech)):
        try:
            speech[row]
        except DataError as error:
            found[row] = str(error)
    return found


# The same rows from every format


@pytest.mark.parametrize("kind", [*SOURCE_WRITERS, "stream"])
def test_every_format_gives_the_same_rows_in_any_order(kind: str, tmp_path: Path) -> None:
    rows = make_clips(7)
    write = SOURCE_WRITERS["hf" if kind == "stream" else kind]
    speech = open_speech([write(tmp_path, rows) + ("?streaming=true" if kind == "stream" else "")])
    assert len(speech) == len(speech.texts) == len(speech.durations_s) == 7
    assert speech.is_sequential == (kind == "stream")
    for row in (*range(7), 6, 0, 3):
        utterance = speech[row]
        assert audio(utterance) == rows[row].audio
        assert utterance.text == NORMALIZED_TEXTS[row % 5]
        assert utterance.name == speech.row_name(row)
        assert speech.texts[row].as_py() in (utterance.text, None if kind == "stream" else utterance.text)
    assert len({speech.row_name(row) for row in range(7)}) == 7
    with pytest.raises(IndexError):
        speech[7]


@pytest.mark.parametrize("kind", [*SOURCE_WRITERS, "stream"])
def test_a_pickled_copy_reads_the_same_rows(kind: str, tmp_path: Path) -> None:
    rows = make_clips(5)
    write = SOURCE_WRITERS["hf" if kind == "stream" else kind]
    speech = open_speech([write(tmp_path, rows) + ("?streaming=true" if kind == "stream" else "")])
    assert audio(speech[2]) == rows[2].audio
    copy = pickle.loads(pickle.dumps(speech))
    assert copy.fingerprint == speech.fingerprint
    assert [audio(copy[row]) for row in (4, 1)] == [rows[4].audio, rows[1].audio]


@pytest.mark.parametrize("kind", [*SOURCE_WRITERS, "stream"])
def test_a_fork_reads_while_its_parent_reads(kind: str, tmp_path: Path) -> None:
    rows = make_clips(5)
    write = SOURCE_WRITERS["hf" if kind == "stream" else kind]
    speech = open_speech([write(tmp_path, rows) + ("?streaming=true" if kind == "stream" else "")])
    assert audio(speech[2]) == rows[2].audio
    child = os.fork()
    if not child:
        status = 1
        with contextlib.suppress(BaseException):
            status = int([audio(speech[row]) for row in (1, 4)] != [rows[1].audio, rows[4].audio])
        os._exit(status)
    assert [audio(speech[row]) for row in (3, 0)] == [rows[3].audio, rows[0].audio]
    assert os.waitpid(child, 0)[1] == 0


def test_the_embedded_speech_is_a_source() -> None:
    speech = open_speech(["pocket/speech"])
    assert len(speech) == 10_700
    assert speech[10_699].text == speech.texts[10_699].as_py()
    assert not speech.is_sequential


# Mixing


def test_sources_are_concatenated_in_order(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = write_jsonl(tmp_path / "a", make_clips(3)), write_parquet(tmp_path / "b", make_clips(4))
    speech = open_speech([f"{first}?weight=2", f"{second}?weight=0.5"])
    assert [(s.first_row, s.n_rows, s.weight) for s in speech.source_ranges] == [(0, 3, 2.0), (3, 4, 0.5)]
    assert [audio(speech[row]) for row in range(7)] == [c.audio for c in (*make_clips(3), *make_clips(4))]
    fewer = open_speech([first, second], n_clips=4)
    assert [(s.first_row, s.n_rows, s.weight) for s in fewer.source_ranges] == [(0, 3, None), (3, 1, None)]
    assert len(fewer) == len(fewer.texts) == len(fewer.durations_s) == 4
    assert len(open_speech([first, second], n_clips=2).source_ranges) == 1
    with pytest.raises(ConfigError, match="has no weight and others have one"):
        open_speech([first, f"{second}?weight=1"])


def test_the_fingerprint_depends_on_content_and_not_on_location(tmp_path: Path) -> None:
    fingerprints = set()
    for number, rows in enumerate(
        (make_clips(4), make_clips(3), [*make_clips(3), Clip(encode_tone(), "other")], make_clips(4)[::-1])
    ):
        (tmp_path / str(number)).mkdir()
        fingerprints.add(open_speech([write_jsonl(tmp_path / str(number), rows)]).fingerprint)
    whole = open_speech([str(tmp_path / "0" / "speech.jsonl")])
    fingerprints |= {
        open_speech([str(tmp_path / "0" / "speech.jsonl?weight=2")]).fingerprint,
        open_speech([str(tmp_path / "0" / "speech.jsonl")] * 2).fingerprint,
    }
    assert len(fingerprints) == 6
    shutil.copytree(tmp_path / "0", tmp_path / "moved")
    assert open_speech([str(tmp_path / "moved" / "speech.jsonl")]).fingerprint == whole.fingerprint
    assert open_speech([str(tmp_path / "0" / "speech.jsonl")], n_clips=3).fingerprint != whole.fingerprint


# Syntax


def test_options_follow_a_question_mark() -> None:
    spelling = parse_source_spec("user/speech?config=en&split=train&text=raw%20text&weight=2&streaming=true")
    assert (spelling.name, spelling.config, spelling.split) == ("user/speech", "en", "train")
    assert (spelling.text, spelling.weight, spelling.streaming) == ("raw text", 2.0, True)
    assert parse_source_spec("part-???.parquet").name == "part-???.parquet"
    assert parse_source_spec("part-?.parquet?text=a=b").text == "a=b"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a.jsonl?colour=red", "'a.jsonl': unknown key 'colour'; expected one of config, split"),
        ("a.jsonl?weight=", "weight has no value"),
        ("a.jsonl?weight=1&weight=2", "weight is given twice"),
        ("a.jsonl?weight=0", "weight is '0', expected a positive number"),
        ("a.jsonl?weight=nan", "weight is 'nan', expected a positive number"),
        ("a.jsonl?streaming=yes", "streaming is 'yes', expected true or false"),
        ("?weight=1", "'?weight=1'"),
        ("  ", "has no name"),
        ("a.jsonl?split=train", "split is for Hugging Face datasets"),
        ("pocket/speech?streaming=true", "streaming is for Hugging Face datasets"),
    ],
)
def test_an_invalid_source_string_is_rejected(source: str, message: str) -> None:
    with pytest.raises((ConfigError, DataError)) as error:
        open_speech([source])
    assert message in str(error.value)


def test_patterns_expand_in_order(tmp_path: Path) -> None:
    for number in (2, 10, 1):
        write_tar(
            tmp_path / f"s{number:02}.tar", [("a.flac", encode_tone()), ("a.txt", str(number).encode())]
        )
    for pattern in ("s*.tar", "s{01,02,10}.tar", "s?[0-9].tar"):
        assert open_speech([str(tmp_path / pattern)]).texts.to_pylist() == ["1", "2", "10"]
    assert open_speech([str(tmp_path / "s{01..02}.tar")]).texts.to_pylist() == ["1", "2"]
    with pytest.raises(DataError, match=r"no such file \(.*s03\.tar\)"):
        open_speech([str(tmp_path / "s{01..03}.tar")])


def test_what_is_not_a_source_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "speech.csv").write_text("audio,text")
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "text.parquet").write_text("audio,text")
    (tmp_path / "text.tar").write_text("audio,text")
    (tmp_path / "nothing.tar").touch()
    write_tar(tmp_path / "silent.tar", [("a.txt", b"one"), ("b.json", b"{}")])
    table(tmp_path / "nothing.parquet", [{"audio": b"x", "text": "one"}][:0] or [])
    for name, message in {
        "gone.parquet": "no such file",
        "gone-*.jsonl": "no such file",
        "speech.csv": "this file is not a dataset",
        "folder.jsonl": "this is a folder, not a file",
        "text.parquet": "damaged or not a parquet file",
        "nothing.parquet": "(none)",
        "empty.jsonl": "holds no utterances",
        "text.tar": "damaged or not a tar file",
        "nothing.tar": "damaged or not a tar file",
        "silent.tar": "holds no audio",
        "some.tar.gz": "a compressed tar",
    }.items():
        with pytest.raises(DataError) as error:
            open_speech([str(tmp_path / name)])
        assert name in str(error.value)
        assert message in str(error.value)


# Columns


@pytest.mark.parametrize(
    ("row", "options", "found"),
    [
        ({"wav": b"x", "sentence": "one"}, "", (b"x", "one")),
        ({"Audio": b"x", "TEXT": "one", "path": "p"}, "", (b"x", "one")),
        ({"audio": b"x", "raw_text": "One.", "normalized_text": "one"}, "", (b"x", "one")),
        ({"audio": b"x", "raw_text": "One.", "normalized_text": "one"}, "?text=raw_text", (b"x", "One.")),
        ({"clip": {"bytes": b"x", "path": "p"}, "text": "one"}, "", (b"x", "one")),
        ({"audio": 3, "sound": b"x", "text": b"?", "transcript": "one"}, "", (b"x", "one")),
    ],
)
def test_columns_are_found_by_option_or_by_name(
    tmp_path: Path, row: dict[str, Any], options: str, found: tuple[bytes, str]
) -> None:
    speech = open_speech([table(tmp_path / "speech.parquet", [row]) + options])
    assert (speech[0].audio, speech[0].text) == found


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"clip": b"x", "text": "one"}, "", "has the columns clip, text; none has a known name for audio"),
        ({"audio": b"x", "words": "one"}, "", "name the column: ?text=COLUMN"),
        (
            {"audio": b"x", "text": "one"},
            "?text=words",
            "text=words: there is no such column; its columns are audio, text",
        ),
        ({"audio": b"x", "text": "one"}, "?text=audio", "text=audio: that column has another type"),
        ({"AUDIO": b"x", "Audio": b"y", "text": "one"}, "", "AUDIO and Audio could both hold its audio"),
    ],
)
def test_missing_or_ambiguous_columns_are_rejected(
    tmp_path: Path, row: dict[str, Any], options: str, message: str
) -> None:
    with pytest.raises(DataError) as error:
        open_speech([table(tmp_path / "speech.parquet", [row]) + options])
    assert message in str(error.value)


def test_durations_are_read_where_they_are_given_and_estimated_elsewhere(tmp_path: Path) -> None:
    rows = [{"audio": b"x", "text": "a" * 30, "duration": s} for s in (3.5, None, -1.0, float("nan"))]
    assert open_speech([table(tmp_path / "a.parquet", rows)]).durations_s.tolist() == [3.5, 2.0, 2.0, 2.0]
    lines = "".join(json.dumps(row | {"audio": "x"}) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text(lines + '{"audio": "x", "text": "a", "duration": "3"}\n')
    lengths = open_speech([str(tmp_path / "a.jsonl")]).durations_s
    assert lengths[:4].tolist() == [3.5, 2.0, 2.0, 2.0]
    assert lengths.dtype == np.float32
    write_tar(
        tmp_path / "a.tar",
        [
            ("a.wav", bytes(64_000)),
            ("a.txt", b"one"),
            ("b.wav", b"x"),
            ("b.json", b'{"duration": 7, "text": "b"}'),
        ],
    )
    assert open_speech([str(tmp_path / "a.tar")]).durations_s.tolist() == [2.0, 7.0]


# Invalid rows


@pytest.mark.parametrize(
    ("audio", "text", "message"),
    [
        ({"bytes": b"x", "path": None}, "  ", "the transcript is '  ', expected a text"),
        ({"bytes": b"x", "path": None}, "\u200b\x00", "expected a text"),
        ({"bytes": b"x", "path": None}, None, "the transcript is None, expected a text"),
        ({"bytes": None, "path": None}, "one", "the audio is None, expected the path or the bytes"),
        ({"bytes": b"", "path": ""}, "one", "the audio is '', expected the path or the bytes"),
        (None, "one", "the audio is None, expected the path or the bytes"),
        ({"bytes": None, "path": "gone.wav"}, "one", "gone.wav' does not exist"),
        ({"bytes": None, "path": "."}, "one", "does not exist"),
    ],
)
def test_an_invalid_row_of_a_table_is_named(
    tmp_path: Path, audio: object, text: str | None, message: str
) -> None:
    good = {"audio": {"bytes": b"x", "path": "x"}, "text": "good"}
    source = table(tmp_path / "speech.parquet", [good, {"audio": audio, "text": text}, good])
    found = read_errors(open_speech([source]))
    assert list(found) == [1]
    assert found[1].startswith(f"{source}, row 2: ")
    assert message in found[1]


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
    speech = open_speech([str(folder / "speech.jsonl")])
    kept = [line for line in b"\n".join(lines).split(b"\n") if line.strip()]
    assert len(speech) == len(kept)
    bad = read_errors(speech)
    assert 0 not in bad
    for row, line in enumerate(kept):
        assert (row in bad) == (line.strip() != lines[0])


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
    some = ("\n".join(lines) + "\n" * is_ended).encode(errors="replace")
    if not some:
        return
    spans, _ = jsonl._find_lines(some)
    columns = Columns(audio="audio", text="text", duration="duration")
    fast, slow = (
        jsonl._parse_with_arrow(some, spans, columns),
        jsonl._parse_line_by_line(some, spans, columns),
    )
    if fast is not None:
        assert fast[0].to_pylist() == slow[0].to_pylist()
        np.testing.assert_allclose(fast[1], slow[1], rtol=1e-6)


def test_a_valid_jsonl_file_is_parsed_by_arrow() -> None:
    some = b'{"audio": "a", "text": "one", "duration": 2, "x": {"y": [1]}}\n{"text": null, "duration": 1.5}'
    columns = Columns(audio="audio", text="text", duration="duration")
    read = jsonl._parse_with_arrow(some, jsonl._find_lines(some)[0], columns)
    assert read is not None
    assert (read[0].to_pylist(), read[1].tolist()) == (["one", None], [2.0, 1.5])


def test_jsonl_files_are_read_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_jsonl(tmp_path, make_clips(9))
    whole = open_speech([source])
    monkeypatch.setattr(jsonl, "_CHUNK_BYTES", 50)
    parts = open_speech([source])
    assert parts.texts.to_pylist() == whole.texts.to_pylist()
    assert [parts.row_name(row) for row in range(9)] == [whole.row_name(row) for row in range(9)]
    assert audio(parts[8]) == make_clips(9)[8].audio
    assert parts.fingerprint == whole.fingerprint


def test_a_jsonl_file_of_invalid_lines_only_can_be_opened(tmp_path: Path) -> None:
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe\n{\n")
    assert len(read_errors(open_speech([str(tmp_path / "bytes.jsonl")]))) == 2


@pytest.mark.parametrize("ratio", [0.3, 0.9])
def test_a_truncated_parquet_file_is_rejected(tmp_path: Path, ratio: float) -> None:
    source = tmp_path / "speech.parquet"
    table(source, [{"audio": {"bytes": encode_tone(), "path": "a"}, "text": "one"}] * 10)
    whole = source.read_bytes()
    source.write_bytes(whole[: int(len(whole) * ratio)])
    with pytest.raises(DataError, match=r"speech\.parquet is damaged or not a parquet file"):
        open_speech([str(source)])


def test_rows_of_a_damaged_row_group_are_invalid(tmp_path: Path) -> None:
    source = tmp_path / "speech.parquet"
    rows = pa.Table.from_pylist(
        [{"audio": encode_tone(1600, 100 * n), "text": f"one {n}"} for n in range(1, 11)]
    )
    pq.write_table(rows, source, compression="zstd", use_dictionary=False, row_group_size=5)
    damaged = bytearray(source.read_bytes())
    damaged[4:200] = bytes(196)
    source.write_bytes(damaged)
    found = read_errors(open_speech([str(source)]))
    assert list(found) == [0, 1, 2, 3, 4]
    assert "its row group cannot be read" in found[2]


def test_a_text_that_is_not_utf_8_is_one_invalid_row(tmp_path: Path) -> None:
    texts = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(np.array([0, 2, 5], np.int32)), pa.py_buffer(b"\xff\xfeone")]
    )
    pq.write_table(pa.table({"audio": [b"x", b"y"], "text": texts}), tmp_path / "a.parquet")
    speech = open_speech([str(tmp_path / "a.parquet")])
    assert speech.texts.to_pylist() == [None, "one"]
    assert list(read_errors(speech)) == [0]
    assert speech[1].text == "one"


def test_row_groups_are_cached_up_to_a_number_of_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"audio": [bytes([n]) * 1000 for n in range(9)]}), path, row_group_size=1)
    groups = RowGroupCache(max_bytes=3_500)
    for group in (0, 1, 2, 3, 0, 8):
        assert groups.get(path, group, ["audio"])["audio"][0].as_py()[0] == group
        assert sum(table.nbytes for table in groups._tables.values()) <= 3_500
    assert [group for _, group in groups._tables] == [3, 0, 8]


# Tars


MEMBERS = [
    (f"{n}.{end}", content)
    for n in range(4)
    for end, content in (("flac", encode_tone(1600, 100 + n)), ("txt", f"text {n}".encode()))
]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.flac", b"x")], "the transcript is None"),
        ([("a.txt", b"one")], "the clip has .txt; expected one audio file"),
        (
            [("a.flac", b"x"), ("a.wav", b"y"), ("a.txt", b"one")],
            "the clip has .flac, .wav, .txt; expected one audio file",
        ),
        ([("a.flac", b"x"), ("a.flac", b"y"), ("a.txt", b"one")], "two members that end in .flac"),
        ([("a.flac", b"x"), ("a.txt", b"\xff")], "its text is not UTF-8"),
        ([("a.flac", b"x"), ("a.json", b"{")], "its .json is not JSON"),
        ([("a.flac", b"x"), ("a.json", b"[]")], "the transcript is None"),
        ([("a.flac", b"x"), ("a.json", b'{"text": "\\ud800"}')], "half of a surrogate pair"),
        ([("a.flac", b""), ("a.txt", b"one")], "the audio is b''"),
    ],
)
def test_an_invalid_clip_of_a_tar_is_named(
    tmp_path: Path, members: Sequence[tuple[str, bytes]], message: str
) -> None:
    others = [("README.md", b"hello"), (".hidden.wav", b"x"), ("0.cls", b"1")]
    source = write_tar(tmp_path / "s.tar", [*MEMBERS[:2], *members, *others, *MEMBERS[2:4]])
    speech = open_speech([str(source)])
    assert speech.texts.to_pylist()[::2] == ["text 0", "text 1"]
    found = read_errors(speech)
    assert list(found) == [1]
    assert found[1].startswith(f"{source}, a: ")
    assert message in found[1]


def test_members_of_one_name_need_not_be_adjacent(tmp_path: Path) -> None:
    source = write_tar(tmp_path / "s.tar", [*MEMBERS[::2], *MEMBERS[1::2]])
    assert open_speech([str(source)]).texts.to_pylist() == [f"text {n}" for n in range(4)]


def test_one_of_two_audio_files_is_selected_by_its_extension(tmp_path: Path) -> None:
    source = write_tar(tmp_path / "s.tar", [("a.flac", b"x"), ("a.mp3", b"y"), ("a.txt", b"one")])
    assert open_speech([f"{source}?audio=mp3"])[0].audio == b"y"


def test_the_whole_clips_of_a_truncated_tar_remain(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "whole.tar", MEMBERS).read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as tar:
        end_mark = tar.getmembers()[-1].offset_data + 2 * tarfile.BLOCKSIZE
    source, before = tmp_path / "cut.tar", -1
    n_whole = []
    for size in (*range(700, 11_000, 250), len(whole)):
        source.write_bytes(whole[:size])
        speech = open_speech([str(source)])
        bad = read_errors(speech)
        assert bool(bad) == (size < end_mark)
        assert len(bad) <= 2  # a clip that lacks its transcript, and the end itself
        good = [row for row in range(len(speech)) if row not in bad]
        assert [speech[row].audio for row in good] == [MEMBERS[2 * row][1] for row in good]
        n_whole.append(len(good))
        assert len(good) >= before
        before = len(good)
    assert n_whole[0] == 0
    assert n_whole[-1] == 4


def test_a_tar_damaged_in_the_middle_is_rejected(tmp_path: Path) -> None:
    source = write_tar(tmp_path / "s.tar", MEMBERS)
    damaged = bytearray(source.read_bytes())
    at = damaged.index(b"2.flac")
    damaged[at : at + 300] = b"\x07" * 300
    source.write_bytes(damaged)
    with pytest.raises(DataError, match=rf"s\.tar is damaged at byte {at} of"):
        open_speech([str(source)])


# Hugging Face


def test_one_of_several_splits_must_be_named(tmp_path: Path) -> None:
    source = write_huggingface(tmp_path, make_clips(3))
    shutil.copy(
        tmp_path / "data" / "train-00000-of-00001.parquet", tmp_path / "data" / "test-00000-of-00001.parquet"
    )
    (tmp_path / "README.md").unlink()
    with pytest.raises(ConfigError, match=r"has several splits; name one: \?split=\.\.\. of train, test"):
        open_speech([source])
    with pytest.raises(ConfigError, match="has no split 'dev'; name one"):
        open_speech([f"{source}?split=dev"])
    with pytest.raises(ConfigError, match="has no config 'en'; name one"):
        open_speech([f"{source}?split=test&config=en"])
    speech = open_speech([f"{source}?split=test"])
    assert speech.row_name(2) == f"{tmp_path} (test), row 3"
    assert speech.texts.to_pylist() == list(NORMALIZED_TEXTS[:3])


def test_a_folder_written_by_save_to_disk_is_a_source(tmp_path: Path) -> None:
    import datasets

    rows = {
        "audio": [{"bytes": c.audio, "path": None} for c in make_clips(3)],
        "text": [c.text for c in make_clips(3)],
    }
    dataset = datasets.Dataset.from_dict(rows)
    dataset.save_to_disk(str(tmp_path / "one"))
    assert audio(open_speech([str(tmp_path / "one")])[1]) == make_clips(3)[1].audio
    datasets.DatasetDict({"train": dataset, "test": dataset}).save_to_disk(str(tmp_path / "two"))
    assert len(open_speech([f"{tmp_path / 'two'}?split=test"])) == 3
    with pytest.raises(ConfigError, match="several splits"):
        open_speech([str(tmp_path / "two")])
    with pytest.raises(ConfigError, match="has no splits; leave split=test out"):
        open_speech([f"{tmp_path / 'one'}?split=test"])


def test_a_stream_of_unknown_length_needs_n_clips(tmp_path: Path) -> None:
    source = write_huggingface(tmp_path, make_clips(5)) + "?streaming=true"
    (tmp_path / "README.md").unlink()
    with pytest.raises(ConfigError, match=r"set data\.n_clips to the number of rows"):
        open_speech([source])
    assert len(open_speech([source], n_clips=4)) == 4
    found = read_errors(open_speech([source], n_clips=6))
    assert list(found) == [5]
    assert "the stream ends before this row" in found[5]


def test_a_folder_of_loose_audio_files_is_read_by_its_jsonl_file(tmp_path: Path) -> None:
    for number, clip in enumerate(make_clips(3)):
        (tmp_path / f"{number}.flac").write_bytes(clip.audio)
    lines = [
        json.dumps({"file_name": f"{n}.flac", "text": clip.text}) for n, clip in enumerate(make_clips(3))
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    assert audio(open_speech([str(tmp_path / "metadata.jsonl")])[2]) == make_clips(3)[2].audio
    if importlib.util.find_spec("torchcodec") is None:
        with pytest.raises(DataError, match=r"needs torchcodec; give its metadata\.jsonl"):
            open_speech([str(tmp_path)])


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_folder_with_a_jsonl_file_is_a_hugging_face_dataset(tmp_path: Path, is_streamed: bool) -> None:
    (tmp_path / "a.flac").write_bytes(encode_tone())
    (tmp_path / "train.jsonl").write_text('{"audio": "a.flac", "text": "one"}\n' * 3)
    source = f"{tmp_path}?streaming={str(is_streamed).lower()}"
    speech = open_speech([source], n_clips=3)
    assert audio(speech[2]) == encode_tone()


def test_a_folder_without_data_is_rejected_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "notes.xyz").write_text("hello")
    with pytest.raises(DataError, match="cannot be read as a dataset") as error:
        open_speech([str(tmp_path)])
    assert "\n" not in str(error.value)


def test_the_code_of_a_dataset_is_never_run(tmp_path: Path) -> None:
    folder = tmp_path / "scripted"
    folder.mkdir()
    (folder / "scripted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(DataError, match="cannot be read as a dataset"):
        open_speech([str(folder)])
    assert not (tmp_path / "ran").exists()


def test_a_hub_id_without_a_network_ends_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="'nobody/nothing' cannot be loaded from the hub") as error:
        open_speech(["nobody/nothing?split=train"])
    assert "\n" not in str(error.value)


def test_hugging_face_sources_need_the_datasets_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'ossicle\[hub\]'"):
        open_speech(["nobody/nothing"])
    assert "HF_DATASETS_DISABLE_TORCHCODEC" not in os.environ
