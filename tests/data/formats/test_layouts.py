"""Folders of speech as data sets are published: each layout gives the rows that its files list, and nothing is run."""

import gzip
import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
from support.source_checks import read_audio, read_errors
from support.tiny_speech import encode_tone, make_clips, write_tar

from ossicle.audio.excerpt import AudioExcerpt
from ossicle.data.dataset import SpeechDataset, open_speech
from ossicle.data.inspect import inspect_dataset
from ossicle.errors import ConfigError, DataError

CLIPS = make_clips(3)


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_lines(path: Path, values: list[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(value) + "\n" for value in values)
    return write(path, gzip.compress(text.encode()) if path.suffix == ".gz" else text)


def assert_rows_are(
    dataset: SpeechDataset, label: str, texts: tuple[str, ...] = ("one", "two", "three")
) -> None:
    assert not read_errors(dataset)
    assert tuple(dataset[row].text for row in range(len(dataset))) == texts
    assert [read_audio(dataset[row]) for row in range(len(dataset))] == [clip.audio for clip in CLIPS]
    assert dataset.source_ranges[0].label == label


def read_stretches(dataset: SpeechDataset) -> list[tuple[float, float | None]]:
    audio = [dataset[row].audio for row in range(len(dataset))]
    return [
        (sound.start_s, sound.end_s) if isinstance(sound, AudioExcerpt) else (0.0, None) for sound in audio
    ]


def write_librispeech(folder: Path, extension: str = "flac") -> Path:
    """Writes a subset: SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac and one list of words a chapter."""
    for number, clip in enumerate(CLIPS):
        write(folder / f"84/121550/84-121550-{number:04d}.{extension}", clip.audio)
    lines = [f"84-121550-{number:04d} {word}\n" for number, word in enumerate(("ONE", "TWO", "THREE"))]
    write(folder / "84/121550/84-121550.trans.txt", "".join(lines))
    return folder


def test_a_tree_of_librispeech_is_read_by_its_lists_of_words(tmp_path: Path) -> None:
    root = tmp_path / "LibriSpeech"
    write_librispeech(root / "train-clean-100")
    texts = ("ONE", "TWO", "THREE")  # single words: they may be acronyms
    assert_rows_are(open_speech([str(root / "train-clean-100")]), "LibriSpeech tree", texts)
    assert_rows_are(open_speech([str(root)]), "LibriSpeech tree", texts)
    write_librispeech(root / "dev-clean", "wav")
    with pytest.raises(
        ConfigError, match=r"several splits; name one: \?split=\.\.\. of dev-clean, train-clean-100"
    ):
        open_speech([str(root)])
    assert_rows_are(open_speech([f"{root}?split=dev-clean"]), "LibriSpeech tree", texts)
    (root / "dev-clean/84/121550/84-121550-0001.wav").unlink()
    (error,) = read_errors(open_speech([f"{root}?split=dev-clean"])).values()
    assert error.endswith("84-121550.trans.txt has its words, and there is no audio file beside it")


@pytest.mark.parametrize(
    ("names", "asked"),
    [
        (("train", "val"), True),
        (("training", "testing"), True),
        (("train", "test_clean"), True),
        (("train_set", "test_set"), True),
        (("Train", "unseen"), True),
        (("train-clean-100",), False),
        (("ann", "trainers"), False),
    ],
)
def test_parts_of_a_data_set_are_not_read_together(
    tmp_path: Path, names: tuple[str, ...], asked: bool
) -> None:
    for name in names:
        write(tmp_path / name / "a.flac", CLIPS[0].audio)
        write(tmp_path / name / "a.txt", "words")
    if asked:
        with pytest.raises(ConfigError, match=rf"several splits; .* of {', '.join(sorted(names))}$"):
            open_speech([str(tmp_path)])
        assert len(open_speech([f"{tmp_path}?split={names[1]}"])) == 1
    else:
        assert len(open_speech([str(tmp_path)])) == len(names)


def test_sound_beside_a_test_set_is_not_read_with_it(tmp_path: Path) -> None:
    for name in ("a", "test/b"):
        write(tmp_path / f"{name}.flac", CLIPS[0].audio)
        write(tmp_path / f"{name}.txt", "words")
    with pytest.raises(ConfigError, match="has sound beside its split test: give"):
        open_speech([str(tmp_path)])
    assert len(open_speech([str(tmp_path / "test")])) == 1


def test_the_hours_of_librilight_are_read_together(tmp_path: Path) -> None:
    write_librispeech(tmp_path / "1h/0/clean")
    write_librispeech(tmp_path / "9h/other")
    assert len(open_speech([str(tmp_path)])) == 6


def test_pairs_of_sound_and_text_are_rows_and_those_without_partner_are_invalid(tmp_path: Path) -> None:
    for number, (clip, word) in enumerate(zip(CLIPS, ("one", "two", "three"), strict=True)):
        write(tmp_path / f"a/{number}.wav", clip.audio)
        write(tmp_path / f"a/{number}.txt", f"{word}\n")
    label = "folder of pairs, an audio file and a text of the same name"
    assert_rows_are(open_speech([str(tmp_path)]), label)
    write(tmp_path / "a/3.flac", CLIPS[0].audio)
    write(tmp_path / "b/4.txt", "nothing")
    write(tmp_path / "b/5.wav", CLIPS[0].audio)
    write(tmp_path / "b/5.txt", "\xff\xfe".encode("latin-1"))
    errors = [error.partition(", ")[2] for error in read_errors(open_speech([str(tmp_path)])).values()]
    assert errors[0] == "a/3: the audio file a/3.flac has no text a/3.txt beside it"
    assert errors[1].startswith("b/5: its text b/5.txt cannot be read: it is in UTF-16")
    assert errors[2] == "b/4: the text b/4.txt has no audio file of its name beside it"


def test_of_libritts_the_normalized_text_is_read(tmp_path: Path) -> None:
    for number, (clip, word) in enumerate(zip(CLIPS, ("one", "two", "three"), strict=True)):
        stem = tmp_path / f"train-clean-100/103/1241/103_1241_000000_00000{number}"
        write(stem.with_name(f"{stem.name}.wav"), clip.audio)
        write(stem.with_name(f"{stem.name}.original.txt"), "1")
        write(stem.with_name(f"{stem.name}.normalized.txt"), word)
    label = "folder of pairs, an audio file and a text of the same name"
    assert_rows_are(open_speech([str(tmp_path)]), label)


@pytest.mark.parametrize(
    ("sound", "ending"), [("wav48_silence_trimmed", "_mic1.flac"), ("wav48", ".wav")], ids=["0.92", "0.80"]
)
def test_vctk_is_read_with_its_first_microphone(tmp_path: Path, sound: str, ending: str) -> None:
    for number, (clip, word) in enumerate(zip(CLIPS, ("one", "two", "three"), strict=True)):
        write(tmp_path / f"{sound}/p225/p225_00{number}{ending}", clip.audio)
        write(tmp_path / f"{sound}/p225/p225_00{number}_mic2.flac", encode_tone(800))
        write(tmp_path / f"txt/p225/p225_00{number}.txt", f"{word}\n")
    write(tmp_path / f"{sound}/p315/p315_001{ending}", encode_tone(800))  # its texts were lost
    assert_rows_are(open_speech([str(tmp_path)]), "VCTK folder")


def test_a_split_of_multilingual_librispeech_is_read(tmp_path: Path) -> None:
    for split in ("train", "dev"):
        for number, clip in enumerate(CLIPS):
            write(tmp_path / split / f"audio/10/20/10_20_00000{number}.flac", clip.audio)
        lines = [f"10_20_00000{number}\t{word}\n" for number, word in enumerate(("one", "two", "three"))]
        write(tmp_path / split / "transcripts.txt", "".join(lines))
    with pytest.raises(ConfigError, match="several splits"):
        open_speech([str(tmp_path)])
    assert_rows_are(open_speech([f"{tmp_path}?split=train"]), "Multilingual LibriSpeech folder")


def write_kaldi(folder: Path, recordings: list[str], segments: list[str] | None = None) -> Path:
    write(folder / "wav.scp", "".join(f"{line}\n" for line in recordings))
    write(folder / "text", "utt-0 one\nutt-1 two\nutt-2 three\n")
    if segments is not None:
        write(folder / "segments", "".join(f"{line}\n" for line in segments))
    return folder


def test_a_data_folder_of_kaldi_is_read_from_where_its_recipe_is(tmp_path: Path) -> None:
    for number, clip in enumerate(CLIPS):
        write(tmp_path / f"s5/corpus/{number}.wav", clip.audio)
    write(tmp_path / "s5/data/lang/words.txt", "one 1\n")
    folder = write_kaldi(
        tmp_path / "s5/data/train", [f"utt-{number} corpus/{number}.wav" for number in range(3)]
    )
    assert_rows_are(open_speech([str(folder)]), "Kaldi data folder")
    assert_rows_are(open_speech([str(folder.parent)]), "Kaldi data folder")
    with pytest.raises(ConfigError, match="audio is not for this kind of source"):
        open_speech([f"{folder}?audio=wav"])


def test_segments_of_kaldi_are_stretches_of_recordings(tmp_path: Path) -> None:
    write(tmp_path / "long.wav", encode_tone(48_000))
    segments = ["utt-0 rec 0.0 1.0", "utt-1 rec 1.25 2.5", "utt-2 rec 2.5 -1"]
    dataset = open_speech([str(write_kaldi(tmp_path, ["rec long.wav"], segments))])
    assert read_stretches(dataset) == [(0.0, 1.0), (1.25, 2.5), (2.5, None)]
    assert dataset.durations_s[:2].tolist() == [1.0, 1.25]
    assert inspect_dataset(dataset).durations_s.tolist() == [1.0, 1.25, 0.5]


def test_what_is_wrong_in_a_data_folder_is_said_of_its_rows(tmp_path: Path) -> None:
    write(tmp_path / "long.wav", encode_tone(16_000))
    segments = ["utt-0 rec 0.5 0.25", "utt-1 other 0 1", "utt-3 rec 0 1", "utt-4 rec 0 0.5"]
    write_kaldi(tmp_path, ["rec long.wav", "utt-2 long.wav"], segments)
    write(tmp_path / "text", "utt-0 one\nutt-1 two\nutt-2 three\nutt-4 four\n")
    errors = read_errors(open_speech([str(tmp_path)]))
    assert [error.partition(", ")[2] for error in errors.values()] == [
        "utt-0: its line of segments is 'rec 0.5 0.25', expected RECORDING START END in seconds",
        "utt-1: wav.scp has no recording other",
        "utt-2: segments has no line for this utterance of text",
        "utt-3: text has no words for it",
    ]
    write(tmp_path / "text", "utt-0 one\nutt-0 two\n")
    with pytest.raises(DataError, match="text, line 2: utt-0 has a line already"):
        open_speech([str(tmp_path)])


def test_commands_of_kaldi_are_refused_and_never_run(tmp_path: Path) -> None:
    sound, ran = write(tmp_path / "a.wav", CLIPS[0].audio), tmp_path / "ran"
    command = f"touch {ran}; cat {sound} |"
    folder = write_kaldi(tmp_path / "data", [f"utt-0 {sound}", f"utt-1 {command}", "utt-2 raw.ark:17"])
    errors = read_errors(open_speech([str(folder)]))
    assert "commands are never run: run them yourself, and give the path of each audio file" in errors[1]
    assert "names a place in an archive ('raw.ark:17'), expected the path of an audio file" in errors[2]
    write_kaldi(folder, [f"utt-{number} {command}" for number in range(3)])
    with pytest.raises(
        DataError, match=r"no row of this Kaldi data folder can be used; utt-0: wav.scp has a command"
    ):
        open_speech([str(folder)])
    assert not ran.exists()


def test_manifests_of_nemo_are_read_with_their_offsets(tmp_path: Path) -> None:
    write(tmp_path / "wav/long.wav", encode_tone(48_000))
    rows = [
        {"audio_filepath": "wav/long.wav", "duration": 1.0, "offset": 0.0, "text": "one"},
        {"audio_filepath": "wav/long.wav", "duration": 1.5, "offset": 1.0, "text": "two"},
    ]
    manifest = write_lines(tmp_path / "train_manifest.json", rows)
    for source in (str(manifest), str(tmp_path)):
        dataset = open_speech([source])
        assert read_stretches(dataset) == [(0.0, 1.0), (1.0, 2.5)]
        assert dataset.durations_s.tolist() == [1.0, 1.5]
        assert dataset.source_ranges[0].label.startswith("NeMo manifest, audio from audio_filepath")
    write_lines(tmp_path / "dev_manifest.json", rows)
    with pytest.raises(ConfigError, match=r"name one: .* of dev, train"):
        open_speech([str(tmp_path)])


def test_a_name_that_several_tars_have_stands_for_no_sound(tmp_path: Path) -> None:
    for number in (0, 1):
        write_tar(
            tmp_path / f"audio_{number}.tar",
            [("a.wav", CLIPS[number].audio), (f"b{number}.wav", CLIPS[2].audio)],
        )
    names = ("a", "b0", "b1", "a")
    rows = [{"audio_filepath": f"{name}.wav", "duration": 1.0, "text": "one"} for name in names]
    dataset = open_speech([str(write_lines(tmp_path / "tarred_audio_manifest.json", rows))])
    errors = read_errors(dataset)
    assert list(errors) == [0, 3]
    assert errors[0].endswith("several of the 2 tars have a member a.wav: rename them")


def test_tarred_manifests_of_nemo_are_read_with_their_tars(tmp_path: Path) -> None:
    long = encode_tone(48_000)
    (tmp_path / "sharded_manifests").mkdir()
    write_tar(tmp_path / "audio_0.tar", [("home_a.wav", CLIPS[0].audio), ("home_long.flac", long)])
    write_tar(tmp_path / "audio_1.tar", [("home_b.wav", CLIPS[1].audio)])
    rows = [
        {"audio_filepath": "home_a.wav", "duration": 2.0, "text": "one", "shard_id": 0},
        {"audio_filepath": "home_long.wav", "duration": 1.0, "offset": 0.0, "text": "two", "shard_id": 0},
        {
            "audio_filepath": "home_long-sub1.wav",
            "duration": 1.5,
            "offset": 1.0,
            "text": "three",
            "shard_id": 0,
        },
        {"audio_filepath": "home_b.wav", "duration": 2.0, "text": "four", "shard_id": 1},
        {"audio_filepath": "gone.wav", "duration": 2.0, "text": "five", "shard_id": 1},
    ]
    manifest = write_lines(tmp_path / "tarred_audio_manifest.json", rows)
    shard = write_lines(tmp_path / "sharded_manifests/manifest_1.json", rows[3:])
    for source in (str(manifest), str(tmp_path)):
        dataset = pickle.loads(pickle.dumps(open_speech([source])))  # as workers that are spawned get it
        assert dataset.source_ranges[0].label == "NeMo tarred manifest"
        assert (dataset[0].audio, dataset[3].audio) == (CLIPS[0].audio, CLIPS[1].audio)
        assert [excerpt(dataset[row].audio) for row in (1, 2)] == [(long, 0.0, 1.0), (long, 1.0, 2.5)]
        (error,) = read_errors(dataset).values()
        assert error.endswith("line 5: no member gone.wav is in the 2 tars")
    assert open_speech([str(shard)])[0].text == "four"
    newer = write_lines(tmp_path / "tarred_audio_manifest_version_1.json", [*rows, rows[0]])
    assert len(open_speech([str(tmp_path)])) == len(open_speech([str(newer)])) == 6
    tar = tmp_path / "audio_1.tar"
    tar.write_bytes(tar.read_bytes()[:600])
    assert "audio_1.tar is truncated: copy it again" in read_errors(open_speech([str(manifest)]))[3]
    for name in ("audio_0.tar", "audio_1.tar"):
        (tmp_path / name).unlink()
    assert "does not exist" in read_errors(open_speech([str(tmp_path)]))[0]


def excerpt(audio: Any) -> tuple[Any, float, float | None]:
    return audio.source, audio.start_s, audio.end_s


def test_shards_of_lhotse_are_read_with_their_recordings(tmp_path: Path) -> None:
    recording, supervisions = make_lhotse(tmp_path)
    placeholder = {**recording, "sources": [{"type": "shar", "channels": [0], "source": ""}], "duration": 3.0}
    folder = tmp_path / "shar"
    folder.mkdir()
    for shard, clip in enumerate(CLIPS[:2]):
        cut = {"id": "cut.1-a", "start": 0, "duration": 3.0, "channel": 0, "recording": placeholder}
        cuts = [{**cut, "type": "MonoCut", "supervisions": [supervisions[shard]]}]
        write_lines(folder / f"cuts.{shard:06}.jsonl.gz", cuts)
        ending = ("flac", "original")[shard]
        members = [(f"cut.1-a.{ending}", clip.audio), ("cut.1-a.json", json.dumps(placeholder).encode())]
        write_tar(folder / f"recording.{shard:06}.tar", members)
    for source in (str(folder), str(folder / "cuts.00000{0,1}.jsonl.gz")):
        dataset = open_speech([source])
        assert dataset.source_ranges[0].label == "Lhotse Shar"
        expected = [(CLIPS[0].audio, 0.0, 1.0), (CLIPS[1].audio, 1.0, 2.0)]
        assert [excerpt(dataset[row].audio) for row in range(2)] == expected
        assert [dataset[row].text for row in range(2)] == ["one", "two"]
    (folder / "recording.000001.tar").unlink()
    (error,) = read_errors(open_speech([str(folder)])).values()
    assert "Lhotse's Shar, expected recording.NNNNNN.tar beside cuts.NNNNNN.jsonl.gz" in error


def make_lhotse(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Writes a recording, and returns its manifest and that of its supervisions."""
    write(folder / "download/long.wav", encode_tone(48_000))
    source = {"type": "file", "channels": [0], "source": "download/long.wav"}
    recording = {
        "id": "rec",
        "sources": [source],
        "sampling_rate": 16_000,
        "num_samples": 48_000,
        "duration": 3.0,
    }
    supervisions = [
        {"id": f"s{n}", "recording_id": "rec", "start": float(n), "duration": 1.0, "channel": 0, "text": word}
        for n, word in enumerate(("one", "two", "three"))
    ]
    return recording, supervisions


@pytest.mark.parametrize("ending", ["jsonl.gz", "jsonl"])
def test_supervisions_of_lhotse_are_stretches_of_the_recordings_beside_them(
    tmp_path: Path, ending: str
) -> None:
    recording, supervisions = make_lhotse(tmp_path)
    folder = tmp_path / "data/manifests"
    recordings = write_lines(folder / f"corpus_recordings_train.{ending}", [recording])
    path = write_lines(folder / f"corpus_supervisions_train.{ending}", supervisions)
    for source in (str(folder), f"{folder}?split=train", str(path)):
        dataset = open_speech([source])
        assert read_stretches(dataset) == [(0.0, 1.0), (1.0, 2.0), (2.0, 3.0)]
        assert inspect_dataset(dataset).durations_s.tolist() == [1.0, 1.0, 1.0]
        assert dataset.source_ranges[0].label == "Lhotse supervisions and recordings"
    with pytest.raises(
        DataError, match="has Lhotse's recordings, which have no words; give the supervisions"
    ):
        open_speech([str(recordings)])
    recordings.unlink()
    with pytest.raises(DataError, match=r"no recordings beside it: expected corpus_recordings_train"):
        open_speech([str(path)])


def test_cuts_of_lhotse_give_a_row_for_each_supervision(tmp_path: Path) -> None:
    recording, supervisions = make_lhotse(tmp_path)
    cut = {
        "id": "cut",
        "start": 1.0,
        "duration": 2.0,
        "channel": 0,
        "recording": recording,
        "type": "MonoCut",
    }
    inner = [{**supervision, "start": supervision["start"] - 1.0} for supervision in supervisions[1:]]
    short = {"type": "file", "channels": [0], "source": str(tmp_path / "download/long.wav")}
    whole = {
        "id": "whole",
        "start": 0,
        "duration": 3.0,
        "recording": {**recording, "sources": [short]},
        "supervisions": [{**supervisions[0], "duration": 3.0}],
        "type": "MonoCut",
    }
    write_lines(tmp_path / "fbank/cuts_train.jsonl.gz", [{**cut, "supervisions": inner}, whole])
    dataset = open_speech([str(tmp_path / "fbank")])
    assert read_stretches(dataset) == [(1.0, 2.0), (2.0, 3.0), (0.0, None)]
    assert [dataset[row].text for row in range(3)] == ["two", "three", "one"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"type": "MixedCut", "supervisions": []}, "bad: a MixedCut is not one stretch of a recording"),
        ({"supervisions": []}, "bad: the cut has no supervision"),
        ({"recording": None}, "s0: there is no recording for it, only features at most"),
        ({"supervisions": ["one"]}, "line 2: its supervision is 'one', expected a JSON object"),
        ({"start": math.nan}, "s0: its start and duration are no seconds of the recording"),
    ],
)
def test_cuts_that_are_no_stretch_of_a_file_are_invalid(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    recording, supervisions = make_lhotse(tmp_path)
    cut = {
        "id": "good",
        "start": 0.0,
        "duration": 1.0,
        "supervisions": supervisions[:1],
        "recording": recording,
    }
    write_lines(tmp_path / "cuts.jsonl", [cut, {**cut, "id": "bad", **change}])
    (error,) = read_errors(open_speech([str(tmp_path / "cuts.jsonl")])).values()
    assert f"cuts.jsonl, {reason}" in error


@pytest.mark.parametrize(
    ("recording", "reason"),
    [
        (
            {"sources": [{"type": "command", "channels": [0], "source": "touch {ran}"}]},
            "nothing else is opened or run",
        ),
        ({"sources": [{"type": "file", "channels": [0, 1], "source": "a.wav"}]}, "expected a file a channel"),
        (
            {"transforms": [{"name": "Speed", "kwargs": {"factor": 1.1}}]},
            r"changed when it is read \(Speed\)",
        ),
    ],
)
def test_recordings_that_are_no_file_of_their_own_are_refused(
    tmp_path: Path, recording: dict[str, Any], reason: str
) -> None:
    default, supervisions = make_lhotse(tmp_path)
    changed = json.loads(json.dumps({**default, **recording}).replace("{ran}", str(tmp_path / "ran")))
    write_lines(tmp_path / "recordings.jsonl", [changed])
    write_lines(tmp_path / "supervisions.jsonl", supervisions)
    with pytest.raises(DataError, match=reason):
        open_speech([str(tmp_path / "supervisions.jsonl")])
    assert not (tmp_path / "ran").exists()


def test_arrays_and_compressed_lines_of_json_have_the_columns_of_lines(tmp_path: Path) -> None:
    rows = [
        {"path": write(tmp_path / f"{number}.wav", clip.audio).name, "sentence": word, "duration": 2.0}
        for number, (clip, word) in enumerate(zip(CLIPS, ("one", "two", "three"), strict=True))
    ]
    array = write(tmp_path / "rows.json", json.dumps(rows))
    lines = write_lines(tmp_path / "rows.jsonl.gz", rows)
    for path in (array, lines):
        dataset = open_speech([str(path)])
        assert_rows_are(dataset, "JSON, one object a row")
        assert dataset.durations_s.tolist() == [2.0, 2.0, 2.0]
    write(tmp_path / "one.json", json.dumps({"a": {"wav": "0.wav"}}, indent=2))
    with pytest.raises(
        DataError, match=r"one.json is no list of rows; expected one JSON object a line, or an array"
    ):
        open_speech([str(tmp_path / "one.json")])
    write(lines, lines.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"rows.jsonl.gz cannot be read: .*; expected one JSON object a line"):
        open_speech([str(lines)])


@pytest.mark.parametrize(
    ("files", "difference"),
    [
        (["wav.scp"], "it has Kaldi's wav.scp, and no file text with the words of each utterance"),
        (["text", "segments"], "it has Kaldi's text and segments, and no wav.scp with the audio files"),
        (["clips/a.mp3"], "it has Common Voice's clips, and no train.tsv"),
        (["text"], "it has Kaldi's text, and no wav.scp with the audio files"),
        (["validated.tsv"], "it has Common Voice's table validated.tsv, and no folder clips beside it"),
        (["de/validated.tsv"], "its folder de has Common Voice's table validated.tsv, and no folder clips"),
        (
            ["wav/a.wav", "txt/a.txt"],
            "it holds .* the words of wav/a.wav are in txt/a.txt, which is not beside",
        ),
        (
            ["a.wav", "a.wav.txt"],
            "it holds .* the words of a.wav are in a.wav.txt, .* expected a.txt beside a.wav",
        ),
        (["wavs/a.wav"], r"it has LJSpeech's wavs, and no metadata.csv with a line NAME\|WORDS for each"),
        (["txt/p225/p225_001.txt"], "it has VCTK's txt, and no wav48_silence_trimmed or wav48"),
        (["a/b.flac"], r"it holds audio \(1 in all\) and no words: expected b.txt beside b.flac"),
        (["train-clean-100.tar.gz"], "it holds the archive train-clean-100.tar.gz: unpack it"),
        (["x_recordings_all.jsonl.gz"], "it has Lhotse's recordings .* and no x_supervisions_all.jsonl.gz"),
    ],
)
def test_of_a_layout_that_is_almost_known_the_difference_is_named(
    tmp_path: Path, files: list[str], difference: str
) -> None:
    for name in files:
        write(tmp_path / name, b"x\n")
    with pytest.raises(DataError, match=f"is almost of a known layout: {difference}"):
        open_speech([str(tmp_path)])
