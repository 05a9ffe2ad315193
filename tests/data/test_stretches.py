"""Rows that are stretches of a longer recording hold the stretch, in every source, under every usual name."""

import datetime
import decimal
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from support.source_checks import read_errors
from support.tiny_speech import write_tar

from ossicle.audio.excerpt import AudioExcerpt
from ossicle.audio.waveform import SAMPLE_RATE, load_audio
from ossicle.data.columns import find_duration_name
from ossicle.data.dataset import open_speech
from ossicle.data.pack import pack
from ossicle.data.stretches import Stretch, find_time_columns, read_stretch
from ossicle.errors import AudioError, DataError
from ossicle.evaluation import load_suite

LEVELS = (0.1, 0.2, 0.3)
"""The recording has a second of each."""
ROWS: list[dict[str, Any]] = [
    {"text": "one", "start": 0.0, "end": 1.0},
    {"text": "two", "start": 1.0, "end": 2.0},
    {"text": "three", "start": 2.0, "end": 3.0},
]


def encode_levels(levels: Sequence[float] = LEVELS, form: str = "WAV") -> bytes:
    """Encodes seconds of noise of different levels."""
    noise = np.random.default_rng(0).choice([-1.0, 1.0], SAMPLE_RATE)
    file = io.BytesIO()
    soundfile.write(file, np.concatenate([level * noise for level in levels]), SAMPLE_RATE, format=form)
    return file.getvalue()


RECORDING = encode_levels()


def measure(audio: Any) -> tuple[float, float]:
    """Returns seconds and level."""
    samples = load_audio(audio)
    return round(len(samples) / SAMPLE_RATE, 2), round(float(np.abs(samples).max()), 2)


def write_jsonl(folder: Path, rows: Sequence[dict[str, Any]]) -> str:
    (folder / "long.wav").write_bytes(RECORDING)
    path = folder / "speech.jsonl"
    path.write_text("".join(json.dumps({"audio": "long.wav", **row}) + "\n" for row in rows))
    return str(path)


def write_parquet(folder: Path, rows: Sequence[dict[str, Any]]) -> str:
    path = folder / "speech.parquet"
    pq.write_table(pa.Table.from_pylist([{"audio": {"bytes": RECORDING}, **row} for row in rows]), path)
    return str(path)


def write_shard(folder: Path, rows: Sequence[dict[str, Any]]) -> str:
    members = [
        member
        for number, row in enumerate(rows)
        for member in ((f"{number}.wav", RECORDING), (f"{number}.json", json.dumps(row).encode()))
    ]
    return str(write_tar(folder / "speech.tar", members))


def write_dataset(folder: Path, rows: Sequence[dict[str, Any]]) -> str:
    (folder / "set").mkdir()
    table = [{"audio": {"bytes": RECORDING, "path": None}, **row} for row in rows]
    pq.write_table(pa.Table.from_pylist(table), folder / "set" / "train.parquet")
    return str(folder / "set")


WRITERS: dict[str, Callable[[Path, Sequence[dict[str, Any]]], str]] = {
    "jsonl": write_jsonl,
    "parquet": write_parquet,
    "tar": write_shard,
    "hf": write_dataset,
}


@pytest.mark.usefixtures("datasets_cache")
@pytest.mark.parametrize("kind", [*WRITERS, "stream"])
def test_every_source_reads_the_stretch_of_a_row(kind: str, tmp_path: Path) -> None:
    source = WRITERS["hf" if kind == "stream" else kind](tmp_path, ROWS)
    dataset = open_speech([source + "?streaming=true"] if kind == "stream" else [source], n_clips=3)
    assert [measure(dataset[row].audio) for row in range(3)] == [(1.0, level) for level in LEVELS]
    if kind != "stream":
        assert dataset.durations_s.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_suite_reads_the_stretch_of_an_item(kind: str, tmp_path: Path) -> None:
    rows = [row | {"answer": "yes"} for row in ROWS]
    items = load_suite(WRITERS[kind](tmp_path, rows))
    assert [measure(item.audio) for item in items] == [(1.0, level) for level in LEVELS]


@pytest.mark.parametrize("pcm", [False, True])
def test_a_packed_row_is_its_stretch(pcm: bool, tmp_path: Path) -> None:
    for kind in ("jsonl", "parquet"):
        (tmp_path / kind).mkdir()
        dataset = open_speech([WRITERS[kind](tmp_path / kind, ROWS)])
        pack(dataset, tmp_path / kind / "packed", pcm=pcm)
        packed = open_speech([str(tmp_path / kind / "packed")])
        assert [measure(packed[row].audio) for row in range(3)] == [(1.0, level) for level in LEVELS]


@pytest.mark.parametrize(
    "times",
    [
        {"offset": 1.0, "duration": 1.0},
        {"offset": "1.0", "duration": "1.0"},
        {"start": 1, "duration": 1},
        {"start": 1.0, "end": 2.0, "duration": 3.0},
        {"start_sample": 16_000, "end_sample": 32_000, "start": 1.0, "end": 2.0},
        {"start_time": 1.0, "end_time": 2.0},
        {"begin_time": 1.0, "end_time": 2.0},
        {"begin": 1.0, "end": 2.0},
        {"Start": 1.0, "End": 2.0},
        {"startTime": 1.0, "endTime": 2.0},
        {"start_s": 1.0, "end_s": 2.0},
        {"start_sec": 1.0, "end_sec": 2.0},
        {"start_seconds": 1.0, "stop_seconds": 2.0},
        {"start_ms": 1000, "end_ms": 2000},
        {"offset_ms": 1000, "duration_ms": 1000},
        {"start_ts": 1.0, "end_ts": 2.0},
        {"segment_start": 1.0, "segment_end": 2.0},
        {"audio_start": 1.0, "audio_end": 2.0},
        {"onset": 1.0, "offset": 2.0},
        {"onset": 1.0, "duration": 1.0},
        {"timestamp": [1.0, 2.0]},
        {"segment": {"start": 1.0, "end": 2.0}},
        {"xmin": 1.0, "xmax": 2.0},
        {"from": 1.0, "to": 2.0},
        {"start": "0:00:01,000", "end": "0:00:02,000"},
        {"start": 1.0, "dur": 1.0},
        {"ts": 1.0, "end_ts": 2.0},
    ],
    ids=lambda times: " ".join(times),
)
def test_times_are_found_under_their_usual_names(times: dict[str, Any], tmp_path: Path) -> None:
    for kind in ("jsonl", "parquet", "tar"):
        dataset = open_speech([WRITERS[kind](tmp_path, [{"text": "two", **times}])])
        assert measure(dataset[0].audio) == (1.0, 0.2), kind
    assert measure(load_suite(WRITERS["jsonl"](tmp_path, [{"text": "two", **times}]))[0].audio) == (1.0, 0.2)


@pytest.mark.parametrize(
    "times",
    [
        {"segment": {"start": 1.0, "duration": 1.0, "rec_id": "r"}, "duration": 1.0},
        {"xmin": 1.0, "xmax": 2.0},
        {"tmin": 1.0, "tmax": 2.0},
        {"t_min": 1.0, "t_max": 2.0},
        {"from": 1.0, "to": 2.0},
        {"From": "1.0", "To": "2.0"},
        {"from_ms": 1000, "to_ms": 2000},
        {"start": 1.0, "until": 2.0},
        {"tStart": 1.0, "tEnd": 2.0},
        {"t_start": 1.0, "t_end": 2.0},
        {"time_start": 1.0, "time_end": 2.0},
        {"timestamps_start": "0:00:01.000", "timestamps_end": "0:00:02.000"},
        {"segstart": 1.0, "segend": 2.0},
        {"segment_start_time": 1.0, "segment_end_time": 2.0},
        {"video_start_sec": 1.0, "video_end_sec": 2.0},
        {"startTimeInMs": 1000, "endTimeInMs": 2000},
        {"start": 1.0, "finish": 2.0},
        {"beg": 1.0, "end": 2.0},
        {"start": 1.0, "dur": 1.0},
        {"start": 1.0, "length_s": 1.0},
        {"start_ms": 1000, "dur_ms": 1000},
        {"ts": 1.0, "end_ts": 2.0},
        {"Begin Time (s)": 1.0, "End Time (s)": 2.0},
        {"Begin Time (ms)": 1000, "End Time (ms)": 2000},
        {"Begin Time - ss.msec": 1.0, "End Time - ss.msec": 2.0},
        {"start-time": 1.0, "end-time": 2.0},
        {"StartTime": "0:00:01,000", "EndTime": "0:00:02,000"},
        {"start": "00:01", "end": "00:02"},
        {"startTime": "1.000s", "endTime": "2.000s"},
        {"startOffset": "1s", "endOffset": "2s"},
        {"start_offset_ms": 1000, "end_offset_ms": 2000},
        {"timestamps": {"from": "00:00:01,000", "to": "00:00:02,000"}, "offsets": {"from": 1000, "to": 2000}},
        {"timestamp": "0:01 --> 0:02"},
        {"interval": "[1.0, 2.0]"},
        {"span": "1.0-2.0"},
    ],
    ids=lambda times: " ".join(times),
)
def test_names_and_units_of_public_corpora_are_known(times: dict[str, Any]) -> None:
    row = {"audio": "long.wav", "text": "two", "id": 7, "speaker": "a", **times}
    assert read_stretch("row", row, find_time_columns(row), find_duration_name(row)) == Stretch(1.0, 2.0)


def test_other_columns_are_no_times() -> None:
    for names in (
        ["text_start", "end_of_turn"],
        ["started"],
        ["answer_start", "answer_end"],
        ["start_char", "end_char"],
        ["start_position", "end_position"],
        ["from"],
        ["to"],
        ["xmin", "ymin", "xmax", "ymax"],
        ["min", "max"],
        ["n_speakers", "n"],
        ["total", "created_at", "language"],
        ["id", "duration", "length"],
        ["sender"],
    ):
        assert not find_time_columns(names).names
    for values in (
        {"timestamp": "2026-11-28"},
        {"timestamp": [["a", 0.0]]},
        {"from": "de", "to": "en"},
        {"segment": "Benchmark"},
        {"offsets": [0, 5]},
        {"time": "12:30"},
    ):
        assert read_stretch("row", values, find_time_columns(values), None) is None


def test_times_in_the_types_of_tables_are_read(tmp_path: Path) -> None:
    seconds = [datetime.timedelta(seconds=1), datetime.timedelta(seconds=2)]
    clock = [datetime.time(second=1), datetime.time(second=2)]
    numbers = [decimal.Decimal("1.0"), decimal.Decimal("2.0")]
    for start, end in (seconds, clock, numbers):
        dataset = open_speech([write_parquet(tmp_path, [{"text": "two", "start": start, "end": end}])])
        assert measure(dataset[0].audio) == (1.0, 0.2)
    day = datetime.datetime(2026, 11, 28)
    rows = [{"text": "two", "start": day, "end": day + seconds[0]}]
    assert "expected seconds" in read_errors(open_speech([write_parquet(tmp_path, rows)]))[0]


def test_times_beside_the_bytes_of_a_recording_are_read(tmp_path: Path) -> None:
    path = tmp_path / "speech.parquet"
    audio = {"bytes": RECORDING, "path": None, "offset": 1.0, "duration": 1.0}
    pq.write_table(pa.Table.from_pylist([{"audio": audio, "text": "two"}]), path)
    assert measure(open_speech([str(path)])[0].audio) == (1.0, 0.2)
    assert measure(load_suite(path)[0].audio) == (1.0, 0.2)
    (tmp_path / "long.wav").write_bytes(RECORDING)
    audio = {"path": "long.wav", "offset": 1.0, "duration": 1.0}
    pq.write_table(pa.Table.from_pylist([{"audio": audio, "text": "two"}]), path)
    assert measure(open_speech([str(path)])[0].audio) == (1.0, 0.2)


def test_a_row_without_times_is_the_whole_recording(tmp_path: Path) -> None:
    rows = [
        {"text": "all"},
        {"text": "all", "start": None, "end": None},
        {"text": "two", "start": 1, "end": 2},
    ]
    expected = [(3.0, 0.3), (3.0, 0.3), (1.0, 0.2)]
    dataset = open_speech([write_jsonl(tmp_path, rows)])
    assert [measure(dataset[row].audio) for row in range(3)] == expected
    missing: dict[str, Any] = {"start": None, "end": None}
    dataset = open_speech([write_parquet(tmp_path, [missing | row for row in rows])])
    assert [measure(dataset[row].audio) for row in range(3)] == expected


def test_a_start_alone_is_to_the_end_and_an_end_alone_from_the_start(tmp_path: Path) -> None:
    dataset = open_speech([write_jsonl(tmp_path, [{"text": "a", "start": 2.0}, {"text": "b", "end": 1.0}])])
    assert [measure(dataset[row].audio) for row in range(2)] == [(1.0, 0.3), (1.0, 0.1)]


def test_a_time_far_below_the_first_lines_is_used(tmp_path: Path) -> None:
    rows = [{"text": "all"}] * 1_100 + [{"text": "two", "offset": 1.0, "duration": 1.0}]
    assert measure(open_speech([write_jsonl(tmp_path, rows)])[1_100].audio) == (1.0, 0.2)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ({"start": 2.0, "end": 1.0}, "from 2 s to 1 s"),
        ({"start": 1.0, "end": 1.0}, "from 1 s to 1 s"),
        ({"start": -1.0, "end": 1.0}, "expected a start of zero or more"),
        ({"offset": 1.0, "duration": 0.0}, "from 1 s to 1 s"),
        ({"start": "early", "end": 1.0}, "start is 'early', expected seconds"),
        ({"start_sample": 16_000, "end_sample": 32_000}, "start_sample is 16000, expected seconds"),
        ({"startFrame": 0, "endFrame": 32_000}, "endFrame is 32000, expected seconds"),
        ({"frame_offset": 16_000, "num_frames": 16_000}, "frame_offset is 16000, expected seconds"),
        ({"start": True, "end": 1.0}, "start is True, expected seconds"),
        ({"frame_offset": 0, "num_frames": 16_000}, "num_frames is 16000, expected seconds"),
        ({"start": 1.0, "n_samples": 16_000}, "n_samples is 16000, expected seconds"),
        ({"start": 1.0, "length": 40}, "length is 40, expected seconds"),
        ({"start_offset": 10, "end_offset": 20}, "start_offset is 10, expected seconds"),
        ({"offset_start": 10, "offset_end": 20}, "offset_start is 10, expected seconds"),
        ({"offsets": {"from": 0, "to": 3_240}}, "offsets is {'from': 0, 'to': 3240}, expected seconds"),
        ({"t0": 1.0, "t1": 2.0}, "t0 is 1.0, expected seconds"),
        ({"start_ticks": 10**7, "end_ticks": 2 * 10**7}, "start_ticks is 10000000, expected seconds"),
        ({"start_us": 10**6, "end_us": 2 * 10**6}, "start_us is 1000000, expected seconds"),
        ({"start_min": 1, "end_min": 2}, "start_min is 1, expected seconds"),
        ({"from": "early", "to": 2.0}, "from is 'early', expected seconds"),
        (
            {"start": "2026-11-28 10:00", "end": "2026-11-28 10:01"},
            "start is '2026-11-28 10:00', expected seconds",
        ),
        ({"start": [1], "end": 2.0}, "expected seconds"),
        ({"start": 10**400, "end": 2.0}, "expected seconds"),
    ],
)
def test_invalid_times_are_invalid_rows(times: dict[str, Any], message: str, tmp_path: Path) -> None:
    for kind in ("jsonl", "tar"):
        errors = read_errors(open_speech([WRITERS[kind](tmp_path, [{"text": "one", **times}])]))
        assert message in errors[0]
    with pytest.raises(DataError) as caught:
        load_suite(write_jsonl(tmp_path, [{"text": "one", **times}]))
    assert message in str(caught.value)


@pytest.mark.parametrize(("start", "end"), [(1.0, 16_000.0), (2.5, 3.5), (3.0, None), (7.0, 8.0)])
def test_a_stretch_outside_its_recording_is_refused(start: float, end: float | None) -> None:
    with pytest.raises(AudioError, match=r"has 3.00 s, and the stretch from .* lies outside it"):
        load_audio(AudioExcerpt(source=RECORDING, start_s=start, end_s=end))


def test_a_sound_that_was_cut_out_by_its_times_is_whole() -> None:
    cut_out = encode_levels(LEVELS[:1])
    for start in (0.05, 0.5, 7.0, 3_600.0):
        assert measure(AudioExcerpt(source=cut_out, start_s=start, end_s=start + 1.1)) == (1.0, 0.1)


def test_names_of_times_can_be_given_and_refused(tmp_path: Path) -> None:
    rows = [{"text": "two", "from_s": 1.0, "to_s": 2.0}, {"text": "three", "from_s": 2.0, "to_s": 3.0}]
    dataset = open_speech([write_jsonl(tmp_path, rows) + "?start=from_s&end=to_s"])
    assert [measure(dataset[row].audio) for row in range(2)] == [(1.0, 0.2), (1.0, 0.3)]
    dataset = open_speech([write_parquet(tmp_path, ROWS) + "?start=none&end=none"])
    assert [measure(dataset[row].audio) for row in range(3)] == [(3.0, 0.3)] * 3
    with pytest.raises(DataError, match="start=from: there is no such column"):
        open_speech([write_parquet(tmp_path, ROWS) + "?start=from"])


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG", "MP3"])
def test_the_samples_of_a_stretch_are_those_of_the_recording(form: str) -> None:
    recording = encode_levels(form=form)
    whole = load_audio(recording)
    stretch = load_audio(AudioExcerpt(source=recording, start_s=1.25, end_s=2.5))
    np.testing.assert_array_equal(stretch, whole[20_000:40_000])
    samples = load_audio(AudioExcerpt(source=whole, start_s=1.25, end_s=2.5))
    np.testing.assert_array_equal(samples, stretch)


def test_a_feature_key_changes_with_the_stretch(tmp_path: Path) -> None:
    dataset = open_speech([write_jsonl(tmp_path, ROWS)])
    before = dataset.audio_version(1)
    write_jsonl(tmp_path, [ROWS[0], ROWS[1] | {"end": 1.9}, ROWS[2]])
    assert (
        open_speech([str(tmp_path / "speech.jsonl")]).audio_version(1).partition(" ")[2]
        != before.partition(" ")[2]
    )
