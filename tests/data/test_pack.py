"""Our packed format: reading returns what was packed, kills change nothing, damage is reported, counts add up."""

import json
import pickle
import signal
import subprocess
import sys
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
from support.invalid_speech import encode_wav, write_half_invalid
from support.source_checks import read_audio
from support.tiny_speech import NORMALIZED_TEXTS, SOURCE_WRITERS, Clip, encode_tone, make_clips, write_jsonl

from ossicle.audio.waveform import load_audio
from ossicle.data import pack as packing
from ossicle.data.dataset import open_speech
from ossicle.data.pack import SKIPPED_FILE, PackSummary, estimate_pcm_bytes, pack
from ossicle.errors import DataError, OssicleError

SMALL = 4_000
"""Bytes of a shard, so that a few clips fill several."""


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def read_skipped(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / SKIPPED_FILE).read_text().splitlines()]


# Reading returns what was packed


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "tar"])
def test_packed_speech_equals_its_source(kind: str, tmp_path: Path) -> None:
    rows = make_clips(9)
    dataset = open_speech([SOURCE_WRITERS[kind](tmp_path, rows)])
    packed = pack(dataset, tmp_path / "packed", shard_bytes=SMALL)
    assert len(list((tmp_path / "packed").glob("shard-*"))) > 2
    unpacked = pickle.loads(pickle.dumps(open_speech([str(tmp_path / "packed")])))
    assert packed.n_rows == len(unpacked) == 9
    assert packed.n_skipped == 0
    assert unpacked.texts.to_pylist() == dataset.texts.to_pylist()
    assert not unpacked.is_sequential
    for row in (8, *range(9)):
        assert read_audio(unpacked[row]) == rows[row].audio
        assert unpacked[row].text == NORMALIZED_TEXTS[row % 5]
        assert unpacked[row].name == unpacked.row_name(row)
        assert dataset.row_name(row) in unpacked.row_name(row)
        assert unpacked.durations_s[row] == np.float32(len(load_audio(rows[row].audio)) / 16_000)
    assert packed.duration_s == pytest.approx(unpacked.durations_s.sum(), rel=1e-6)


def test_samples_are_within_a_step_of_16_bits(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    loud = encode_wav(rng.uniform(-1, 1, 1_900).astype(np.float32), "FLOAT")
    over = encode_wav(np.array([1.7, -1.7, 1.0, -1.0, 0.1] * 400, np.float32), "FLOAT")
    rows = [*make_clips(3), Clip(loud, "loud"), Clip(over, "over")]
    dataset = open_speech([write_jsonl(tmp_path, rows)])
    packed = pack(dataset, tmp_path / "packed", pcm=True)
    unpacked = open_speech([str(tmp_path / "packed")])
    for row, clip in enumerate(rows):
        expected, samples = load_audio(clip.audio), load_audio(unpacked[row].audio)
        assert samples.dtype == np.float32
        peak = max(1.0, np.abs(expected).max())  # louder sound is scaled, not clipped
        np.testing.assert_allclose(samples, expected / peak, atol=1 / 32_768)
    np.testing.assert_array_equal(load_audio(unpacked[0].audio), load_audio(rows[0].audio))  # had 16 bits
    n_samples = sum(len(load_audio(clip.audio)) for clip in rows)
    assert packed.n_bytes > 2 * n_samples
    assert estimate_pcm_bytes(unpacked) == pytest.approx(2 * n_samples, rel=1e-4)


def test_packed_speech_can_be_packed_again(tmp_path: Path) -> None:
    dataset = open_speech([write_jsonl(tmp_path, make_clips(6))])
    pack(dataset, tmp_path / "one", shard_bytes=SMALL)
    pack(open_speech([str(tmp_path / "one")]), tmp_path / "two", pcm=True)
    pack(open_speech([str(tmp_path / "two")]), tmp_path / "three", pcm=True)
    two, three = (open_speech([str(tmp_path / name)]) for name in ("two", "three"))
    for row in range(6):
        np.testing.assert_array_equal(load_audio(two[row].audio), load_audio(three[row].audio))
    with pytest.raises(DataError, match="the row holds samples, which have no encoded form; pack with --pcm"):
        pack(two, tmp_path / "four")


def test_the_number_of_workers_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_ROWS_PER_TASK", 3)
    rows = [*make_clips(10), Clip(b"x", "no sound"), *make_clips(10)]
    dataset = open_speech([write_jsonl(tmp_path, rows)])
    pack(dataset, tmp_path / "one", shard_bytes=SMALL)
    pack(dataset, tmp_path / "two", shard_bytes=SMALL, n_workers=1)
    assert read_files(tmp_path / "one") == read_files(tmp_path / "two")


# Kills


@pytest.mark.parametrize("pcm", [False, True])
def test_a_pack_stopped_after_any_row_resumes_to_the_same_bytes(tmp_path: Path, pcm: bool) -> None:
    rows = [*make_clips(4), Clip(b"x", "no sound"), *make_clips(7), Clip(encode_tone(), " ")]
    dataset = open_speech([write_jsonl(tmp_path, rows)])
    pack(dataset, tmp_path / "whole", pcm=pcm, shard_bytes=SMALL)
    whole = read_files(tmp_path / "whole")
    n_files_left = set()
    for stop in range(1, len(rows) + 1):

        class KilledError(Exception):
            pass

        def progress(n_rows: int, stop: int = stop, killed: type[KilledError] = KilledError) -> None:
            if n_rows == stop:
                raise killed

        folder = tmp_path / f"killed-{stop}"
        with pytest.raises(KilledError):
            pack(dataset, folder, pcm=pcm, shard_bytes=SMALL, progress=progress)
        n_files_left.add(len(read_files(folder)) if folder.exists() else 0)
        seen: list[int] = []
        pack(dataset, folder, pcm=pcm, shard_bytes=SMALL, progress=seen.append)
        assert read_files(folder) == whole
        assert len(seen) <= len(rows) + 1
    assert len(n_files_left) > 2


def test_a_pack_killed_by_a_signal_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path, make_clips(12))
    command = (
        "import os, signal, sys; from pathlib import Path; from ossicle.data.pack import pack;"
        "from ossicle.data.dataset import open_speech\n"
        "def stop(n):\n  if n == int(sys.argv[3]): os.kill(os.getpid(), signal.SIGKILL)\n"
        f"pack(open_speech([sys.argv[1]]), Path(sys.argv[2]), shard_bytes={SMALL}, progress=stop)"
    )
    for stop in (7, -1):
        done = subprocess.run([sys.executable, "-c", command, source, str(tmp_path / "killed"), str(stop)])
        assert done.returncode == (-signal.SIGKILL if stop > 0 else 0)
    pack(open_speech([source]), tmp_path / "whole", shard_bytes=SMALL)
    assert read_files(tmp_path / "killed") == read_files(tmp_path / "whole")


def test_a_worker_that_dies_is_reported_in_one_line() -> None:
    future: Future[None] = Future()
    future.set_exception(BrokenProcessPool("A process in the process pool was terminated"))
    with pytest.raises(
        OssicleError, match=r"a process that decodes audio died, .*; finished shards are kept"
    ):
        packing._get_result(future)


def test_temporary_files_of_a_killed_pack_are_removed(tmp_path: Path) -> None:
    dataset, folder = open_speech([write_jsonl(tmp_path, make_clips(3))]), tmp_path / "packed"
    (folder / ".shard-00000.safetensors.abc").mkdir(parents=True)
    (folder / ".shard-00000.safetensors.abc" / "shard-00000.safetensors").write_bytes(b"half")
    pack(dataset, folder)
    assert sorted(read_files(folder)) == ["index.json", "shard-00000.safetensors", SKIPPED_FILE]


# Rejections


def packed_three(tmp_path: Path) -> tuple[Path, PackSummary]:
    folder = tmp_path / "packed"
    return folder, pack(open_speech([write_jsonl(tmp_path, make_clips(9))]), folder, shard_bytes=SMALL)


def test_a_finished_pack_is_left_unchanged(tmp_path: Path) -> None:
    folder, packed = packed_three(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert pack(open_speech([str(tmp_path / "speech.jsonl")]), folder, shard_bytes=SMALL) == packed
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_folder_with_other_files_or_another_source_is_rejected(tmp_path: Path) -> None:
    folder, _ = packed_three(tmp_path)
    dataset = open_speech([str(tmp_path / "speech.jsonl")])
    with pytest.raises(DataError, match="holds the other encoding"):
        pack(dataset, folder, pcm=True)
    with pytest.raises(DataError, match="holds another source"):
        pack(open_speech([str(tmp_path / "speech.jsonl")], n_clips=3), folder)
    (folder / "index.json").unlink()
    with pytest.raises(DataError, match="holds another source"):
        pack(open_speech([str(tmp_path / "speech.jsonl")], n_clips=3), folder)
    with pytest.raises(DataError, match=r"holds other files \(0\.flac\)"):
        pack(dataset, tmp_path)
    with pytest.raises(DataError, match="is a file; expected a new folder"):
        pack(dataset, tmp_path / "0.flac")


def test_an_unfinished_pack_is_not_a_source(tmp_path: Path) -> None:
    folder, _ = packed_three(tmp_path)
    (folder / "index.json").unlink()
    with pytest.raises(DataError, match=r"is not completely packed .* run the command that began it again"):
        open_speech([str(folder)])


@pytest.mark.parametrize("damage", ["cut", "grown", "gone", "header", "text", "index", "foreign", "listed"])
def test_a_damaged_pack_is_rejected_by_name(tmp_path: Path, damage: str) -> None:
    folder, _ = packed_three(tmp_path)
    shard, index = folder / "shard-00001.safetensors", folder / "index.json"
    whole = shard.read_bytes()
    if damage in ("index", "foreign", "listed"):
        listed = json.loads(index.read_text())
        listed["shards"][0]["file"] = "../elsewhere"
        index.write_text({"index": "{", "foreign": "{}", "listed": json.dumps(listed)}[damage])
    elif damage == "gone":
        shard.unlink()
    else:
        at = whole.index(b"Zwei") if b"Zwei" in whole else whole.index(b"red hat")
        shard.write_bytes(
            {
                "cut": whole[:-10],
                "grown": whole + b"x",
                "header": b"\xff" * 50 + whole[50:],
                "text": whole[:at] + b"~" + whole[at + 1 :],
            }[damage]
        )
    with pytest.raises(DataError, match="pack it again") as error:
        open_speech([str(folder)])
    named = index if damage in ("index", "foreign", "listed") else shard
    assert str(named) in str(error.value)


def test_audio_damaged_on_disk_is_an_invalid_row(tmp_path: Path) -> None:
    folder, _ = packed_three(tmp_path)
    shard = folder / "shard-00000.safetensors"
    whole = bytearray(shard.read_bytes())
    at = whole.index((tmp_path / "1.flac").read_bytes())
    whole[at + 50] ^= 1
    shard.write_bytes(whole)
    dataset = open_speech([str(folder)])
    assert read_audio(dataset[0]) == (tmp_path / "0.flac").read_bytes()
    with pytest.raises(DataError, match=r"row 2 \(.*\): its audio is damaged on disk"):
        dataset[1]


# Half of the rows invalid


@pytest.mark.parametrize("pcm", [False, True])
def test_with_half_of_the_rows_invalid_the_counts_add_up(tmp_path: Path, pcm: bool) -> None:
    source, n_invalid = write_half_invalid(tmp_path)
    dataset = open_speech([source])
    assert len(dataset) == 2 * n_invalid
    folder = tmp_path / "packed"
    packed = pack(dataset, folder, pcm=pcm, max_invalid_ratio=0.5, shard_bytes=SMALL)
    assert (packed.n_rows, packed.n_skipped) == (n_invalid, n_invalid)
    listed = read_skipped(folder)
    assert [row["row"] for row in listed] == [f"{source}, line {2 * n + 2}" for n in range(n_invalid)]
    assert all(row["reason"] and "\n" not in row["reason"] for row in listed)
    unpacked = open_speech([str(folder)])
    assert unpacked.texts.to_pylist() == ["good"] * n_invalid
    for row in range(n_invalid):
        load_audio(unpacked[row].audio)


def test_too_many_invalid_rows_stop_it_and_a_larger_ratio_resumes_it(tmp_path: Path) -> None:
    source, n_invalid = write_half_invalid(tmp_path)
    dataset, folder = open_speech([source]), tmp_path / "packed"
    with pytest.raises(
        DataError,
        match=r"rows are invalid so far, more than the allowed ratio of 0\.3: .*--max-invalid-ratio",
    ):
        pack(dataset, folder, max_invalid_ratio=0.3, shard_bytes=SMALL)
    n_listed = len(read_skipped(folder))
    assert n_listed == int(0.3 * len(dataset)) + 1
    with pytest.raises(DataError):
        pack(dataset, folder, max_invalid_ratio=0.3, shard_bytes=SMALL)
    assert len(read_skipped(folder)) == n_listed
    assert pack(dataset, folder, max_invalid_ratio=0.5, shard_bytes=SMALL).n_skipped == n_invalid
    pack(dataset, tmp_path / "whole", shard_bytes=SMALL)
    assert read_files(folder) == read_files(tmp_path / "whole")


def test_audio_too_quiet_for_16_bits_is_skipped(tmp_path: Path) -> None:
    fading = np.linspace(0, 1e-6, 4_000) * load_audio(encode_tone(4_000))
    quiet = encode_wav(fading.astype(np.float32), "FLOAT")
    dataset = open_speech([write_jsonl(tmp_path, [*make_clips(1), Clip(quiet, "quiet")])])
    assert pack(dataset, tmp_path / "bytes").n_skipped == 0
    assert pack(dataset, tmp_path / "samples", pcm=True).n_skipped == 1
    assert "too quiet for 16 bits" in read_skipped(tmp_path / "samples")[0]["reason"]


def test_rows_that_are_all_invalid_are_not_packed(tmp_path: Path) -> None:
    dataset = open_speech([write_jsonl(tmp_path, [Clip(b"x", "one")] * 3)])
    for _ in range(2):
        with pytest.raises(DataError, match="none of 3 rows can be packed"):
            pack(dataset, tmp_path / "packed")
    assert len(read_skipped(tmp_path / "packed")) == 3
