"""The string that names a source: options, patterns, and messages about what is not a source."""

from pathlib import Path

import pytest
from support.source_checks import write_table
from support.tiny_speech import (
    encode_tone,
    write_tar,
)

from ossicle.data.dataset import open_speech
from ossicle.data.source_spec import parse_source_spec
from ossicle.errors import ConfigError, DataError


def test_options_follow_a_question_mark() -> None:
    spec = parse_source_spec("user/speech?config=en&split=train&text=raw%20text&weight=2&streaming=true")
    assert (spec.name, spec.config, spec.split) == ("user/speech", "en", "train")
    assert (spec.text, spec.weight, spec.streaming) == ("raw text", 2.0, True)
    assert parse_source_spec("part-???.parquet").name == "part-???.parquet"
    assert parse_source_spec("part-?.parquet?text=a=b").text == "a=b"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a.jsonl?color=red", "'a.jsonl': unknown key 'color'; expected one of config, split"),
        ("a.jsonl?weight=", "weight has no value"),
        ("a.jsonl?weight=1&weight=2", "weight is given twice"),
        ("a.jsonl?weight=0", "weight is '0', expected a positive number"),
        ("a.jsonl?weight=nan", "weight is 'nan', expected a positive number"),
        ("a.jsonl?streaming=yes", "streaming is 'yes', expected true or false"),
        ("?weight=1", "'?weight=1'"),
        ("  ", "has no name"),
        ("a.jsonl?split=train", "split is not for this kind of source"),
        ("pocket/speech?streaming=true", "streaming is not for this kind of source"),
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
    (tmp_path / "speech.xlsx").write_text("audio,text")
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "text.parquet").write_text("audio,text")
    (tmp_path / "text.tar").write_text("audio,text")
    (tmp_path / "nothing.tar").touch()
    write_tar(tmp_path / "silent.tar", [("a.txt", b"one"), ("b.json", b"{}")])
    write_table(tmp_path / "nothing.parquet", [{"audio": b"x", "text": "one"}][:0] or [])
    for name, message in {
        "gone.parquet": "no such file",
        "gone-*.jsonl": "no such file",
        "speech.xlsx": "this file is not a dataset",
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
