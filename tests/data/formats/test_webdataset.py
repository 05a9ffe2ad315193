"""Tar files in the webdataset layout: invalid clips, truncated and damaged files."""

import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.source_checks import read_errors
from support.tiny_speech import (
    encode_tone,
    write_tar,
)

from ossicle.data.dataset import open_speech
from ossicle.errors import ConfigError, DataError

MEMBERS = [
    (f"{n}.{end}", content)
    for n in range(4)
    for end, content in (("flac", encode_tone(1600, 100 + n)), ("txt", f"text {n}".encode()))
]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            [("a.flac", b"x"), ("a.cls", b"1")],
            "the clip has .flac, .cls, and no transcript; expected a .txt, or a",
        ),
        ([("a.txt", b"one")], "the clip has .txt; expected one audio file"),
        (
            [("a.flac", b"x"), ("a.wav", b"y"), ("a.txt", b"one")],
            "the clip has .flac, .wav, .txt; expected one audio file",
        ),
        ([("a.flac", b"x"), ("a.flac", b"y"), ("a.txt", b"one")], "two members that end in .flac"),
        ([("a.flac", b"x"), ("a.txt", b"\xff")], "its text is not UTF-8"),
        ([("a.flac", b"x"), ("a.json", b"{")], "its .json is not JSON"),
        ([("a.flac", b"x"), ("a.json", b"[]")], "the clip has .flac, .json, and no transcript"),
        ([("a.flac", b"x"), ("a.json", b'{"caption": "one"}')], ".json with the fields 'caption', and no"),
        ([("a.flac", b"x"), ("a.json", b'{"text": "\\ud800"}')], "half of a surrogate pair"),
        ([("a.flac", b""), ("a.txt", b"one")], "the audio is b''"),
    ],
)
def test_an_invalid_clip_of_a_tar_is_named(
    tmp_path: Path, members: Sequence[tuple[str, bytes]], message: str
) -> None:
    others = [("README.md", b"hello"), (".hidden.wav", b"x"), ("0.cls", b"1")]
    source = write_tar(tmp_path / "s.tar", [*MEMBERS[:2], *members, *others, *MEMBERS[2:4]])
    dataset = open_speech([str(source)])
    assert dataset.texts.to_pylist()[::2] == ["text 0", "text 1"]
    found = read_errors(dataset)
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
        dataset = open_speech([str(source)])
        errors = read_errors(dataset)
        assert bool(errors) == (size < end_mark)
        assert len(errors) <= 2  # a clip that lacks its transcript, and the end itself
        valid_rows = [row for row in range(len(dataset)) if row not in errors]
        assert [dataset[row].audio for row in valid_rows] == [MEMBERS[2 * row][1] for row in valid_rows]
        n_whole.append(len(valid_rows))
        assert len(valid_rows) >= before
        before = len(valid_rows)
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


def test_tars_of_several_splits_are_not_read_together(tmp_path: Path) -> None:
    for name in ("train-000", "train-001", "val-000"):
        write_tar(tmp_path / f"{name}.tar", MEMBERS[:2])
    with pytest.raises(ConfigError, match=r"tars of several splits; .*\?split=\.\.\. of train, val$"):
        open_speech([str(tmp_path)])
    assert len(open_speech([f"{tmp_path}?split=train"])) == 2
    (tmp_path / "val-000.tar").unlink()
    assert len(open_speech([str(tmp_path)])) == 2
