"""A dataset of sources in any format: the same rows in any order and process, and a fingerprint of their content."""

import contextlib
import os
import pickle
import shutil
from pathlib import Path

import pytest
from support.source_checks import read_audio
from support.tiny_speech import (
    NORMALIZED_TEXTS,
    SOURCE_WRITERS,
    Clip,
    encode_tone,
    make_clips,
    write_jsonl,
    write_parquet,
)

from ossicle.data.dataset import SpeechDataset, open_speech
from ossicle.errors import ConfigError

pytestmark = pytest.mark.usefixtures("datasets_cache")


def open_format(kind: str, folder: Path, rows: list[Clip]) -> SpeechDataset:
    """Writes rows in a format, or as a dataset to be streamed, and opens them."""
    if kind == "stream":
        return open_speech([SOURCE_WRITERS["hf"](folder, rows) + "?streaming=true"])
    return open_speech([SOURCE_WRITERS[kind](folder, rows)])


@pytest.mark.parametrize("kind", [*SOURCE_WRITERS, "stream"])
def test_every_format_gives_the_same_rows_in_any_order(kind: str, tmp_path: Path) -> None:
    rows = make_clips(7)
    dataset = open_format(kind, tmp_path, rows)
    assert len(dataset) == len(dataset.texts) == len(dataset.durations_s) == 7
    assert dataset.is_sequential == (kind == "stream")
    for row in (*range(7), 6, 0, 3):
        utterance = dataset[row]
        assert read_audio(utterance) == rows[row].audio
        assert utterance.text == NORMALIZED_TEXTS[row % 5]
        assert utterance.name == dataset.row_name(row)
        assert dataset.texts[row].as_py() in (utterance.text, None if kind == "stream" else utterance.text)
    assert len({dataset.row_name(row) for row in range(7)}) == 7
    with pytest.raises(IndexError):
        dataset[7]


@pytest.mark.parametrize("kind", [*SOURCE_WRITERS, "stream"])
def test_a_pickled_copy_reads_the_same_rows(kind: str, tmp_path: Path) -> None:
    rows = make_clips(5)
    dataset = open_format(kind, tmp_path, rows)
    assert read_audio(dataset[2]) == rows[2].audio
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.fingerprint == dataset.fingerprint
    assert [read_audio(copy[row]) for row in (4, 1)] == [rows[4].audio, rows[1].audio]


@pytest.mark.parametrize("kind", [*SOURCE_WRITERS, "stream"])
def test_a_fork_reads_while_its_parent_reads(kind: str, tmp_path: Path) -> None:
    rows = make_clips(5)
    dataset = open_format(kind, tmp_path, rows)
    assert read_audio(dataset[2]) == rows[2].audio
    child = os.fork()
    if not child:
        status = 1
        with contextlib.suppress(BaseException):
            status = int([read_audio(dataset[row]) for row in (1, 4)] != [rows[1].audio, rows[4].audio])
        os._exit(status)
    assert [read_audio(dataset[row]) for row in (3, 0)] == [rows[3].audio, rows[0].audio]
    assert os.waitpid(child, 0)[1] == 0


def test_the_embedded_speech_is_a_source() -> None:
    dataset = open_speech(["pocket/speech"])
    assert len(dataset) == 10_700
    assert dataset[10_699].text == dataset.texts[10_699].as_py()
    assert not dataset.is_sequential


def test_sources_are_concatenated_in_order(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = write_jsonl(tmp_path / "a", make_clips(3)), write_parquet(tmp_path / "b", make_clips(4))
    dataset = open_speech([f"{first}?weight=2", f"{second}?weight=0.5"])
    assert [(s.first_row, s.n_rows, s.weight) for s in dataset.source_ranges] == [(0, 3, 2.0), (3, 4, 0.5)]
    assert [read_audio(dataset[row]) for row in range(7)] == [
        c.audio for c in (*make_clips(3), *make_clips(4))
    ]
    fewer = open_speech([first, second], n_clips=4)
    assert [(s.first_row, s.n_rows, s.weight) for s in fewer.source_ranges] == [(0, 3, None), (3, 1, None)]
    assert len(fewer) == len(fewer.texts) == len(fewer.durations_s) == 4
    assert len(open_speech([first, second], n_clips=2).source_ranges) == 1
    with pytest.raises(ConfigError, match="has no weight and others have one"):
        open_speech([first, f"{second}?weight=1"])
    weighted = [f"{first}?weight=1", f"{second}?weight=1"]
    assert len(open_speech(weighted, n_clips=7)) == 7
    assert len(open_speech(weighted[:1], n_clips=2)) == 2
    for n_clips in (3, 6):
        with pytest.raises(ConfigError, match=f"clips is {n_clips}, which cuts sources that have weights"):
            open_speech(weighted, n_clips=n_clips)


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
