"""TSV and CSV tables, and the folders that data sets are published in."""

import json
from pathlib import Path

import pytest
from support.source_checks import read_audio, read_errors
from support.tiny_speech import encode_tone, make_clips, write_tar

from ossicle.data.dataset import open_speech
from ossicle.errors import ConfigError, DataError

HEADER = "client_id\tpath\tsentence_id\tsentence\tup_votes\tlocale\tsegment\n"


def write_common_voice(folder: Path, splits: tuple[str, ...] = ("train", "dev")) -> Path:
    """Writes a language as Mozilla's archive has it."""
    (folder / "clips").mkdir(parents=True)
    for number, clip in enumerate(make_clips(3)):
        (folder / "clips" / f"{number}.mp3").write_bytes(clip.audio)
    for split in splits:
        lines = [f'x\t{n}.mp3\ty\tSaid "{split}{n}.\t2\ten\t\n' for n in range(3)]
        (folder / f"{split}.tsv").write_text(HEADER + "".join(lines), encoding="utf-8")
    (folder / "clip_durations.tsv").write_text("clip\tduration[ms]\n0.mp3\t100\n")
    return folder


def test_a_table_of_common_voice_is_read_with_its_clips(tmp_path: Path) -> None:
    folder = write_common_voice(tmp_path / "cv" / "en")
    dataset = open_speech([str(folder / "train.tsv")])
    assert not read_errors(dataset)
    assert [dataset[row].text for row in range(3)] == [f'Said "train{n}.' for n in range(3)]
    assert [read_audio(dataset[row]) for row in range(3)] == [clip.audio for clip in make_clips(3)]
    assert dataset.row_name(1) == f"{folder / 'train.tsv'}, line 3"


def test_a_folder_of_common_voice_is_read_by_language_and_split(tmp_path: Path) -> None:
    write_common_voice(tmp_path / "cv" / "en")
    source = str(tmp_path / "cv")
    assert open_speech([f"{source}?split=dev"])[0].text == 'Said "dev0.'
    assert open_speech([f"{source}/en?split=dev"])[0].text == 'Said "dev0.'
    with pytest.raises(ConfigError, match=r"has several splits; name one: \?split=\.\.\. of dev, train"):
        open_speech([source])
    with pytest.raises(ConfigError, match="has no split 'test'"):
        open_speech([f"{source}?split=test"])
    write_common_voice(tmp_path / "cv" / "sw")
    with pytest.raises(ConfigError, match="has several configs; name one"):
        open_speech([f"{source}?split=dev"])
    assert len(open_speech([f"{source}?config=sw&split=dev"])) == 3


def test_a_folder_of_ljspeech_is_read(tmp_path: Path) -> None:
    (tmp_path / "wavs").mkdir()
    for number, clip in enumerate(make_clips(3)):
        (tmp_path / "wavs" / f"LJ001-000{number}.wav").write_bytes(clip.audio)
    rows = (
        'LJ001-0000|Printed in 1455, "so|Printed in fourteen, "so',
        "LJ001-0001|only raw|",
        "LJ001-0002|two fields",
    )
    (tmp_path / "metadata.csv").write_text("\n".join(rows), encoding="utf-8")
    for source in (tmp_path, tmp_path / "metadata.csv"):
        dataset = open_speech([str(source)])
        assert [dataset[row].text for row in range(3)] == [
            'Printed in fourteen, "so',
            "only raw",
            "two fields",
        ]
        assert [read_audio(dataset[row]) for row in range(3)] == [clip.audio for clip in make_clips(3)]
        assert dataset.row_name(0).endswith("metadata.csv, line 1")


@pytest.mark.parametrize("has_splits", [False, True])
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_an_audiofolder_is_read_by_its_metadata(tmp_path: Path, form: str, has_splits: bool) -> None:
    folder = tmp_path / "train" if has_splits else tmp_path
    folder.mkdir(exist_ok=True)
    for number, clip in enumerate(make_clips(2)):
        (folder / f"{number}.flac").write_bytes(clip.audio)
    if form == "csv":
        lines = ["file_name,transcription", '0.flac,"one, two"', "1.flac,three"]
    else:
        lines = [
            json.dumps({"file_name": f"{n}.flac", "text": text})
            for n, text in enumerate(("one, two", "three"))
        ]
    (folder / f"metadata.{form}").write_text("\n".join(lines) + "\n")
    for source in (f"{tmp_path}?split=train", str(tmp_path)):
        dataset = open_speech([source])
        assert [dataset[row].text for row in range(2)] == ["one, two", "three"]
        assert [read_audio(dataset[row]) for row in range(2)] == [clip.audio for clip in make_clips(2)]
    with pytest.raises(ConfigError, match="has no split 'test'"):
        open_speech([f"{tmp_path}?split=test"])


def test_a_folder_of_shards_is_read(tmp_path: Path) -> None:
    for name in ("train-1", "train-0", "test-0"):
        write_tar(tmp_path / f"{name}.tar", [("a.flac", encode_tone()), ("a.txt", name.encode())])
    assert open_speech([f"{tmp_path}?split=train"]).texts.to_pylist() == ["train-0", "train-1"]
    with pytest.raises(ConfigError, match="tars of several splits"):
        open_speech([str(tmp_path)])


def test_stretches_durations_and_marks_of_tables_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.flac").write_bytes(encode_tone(32_000))
    table = tmp_path / "speech.csv"
    rows = "path,text,start,end,duration\na.flac,one,0.5,1.0,\na.flac,all,,,1.5\na.flac,bad,2,1,\n"
    table.write_text(rows, encoding="utf-8-sig")
    dataset = open_speech([str(table)])
    assert dataset.durations_s.tolist()[:2] == [0.5, 1.5]
    assert "from 2 s to 1 s" in read_errors(dataset)[2]
    assert (getattr(dataset[0].audio, "start_s", None), dataset[1].audio) == (0.5, tmp_path / "a.flac")


def test_invalid_rows_of_a_table_are_named(tmp_path: Path) -> None:
    table = tmp_path / "speech.tsv"
    (tmp_path / "a.flac").write_bytes(encode_tone())
    rows = b"path\ttext\na.flac\tgood\na.flac\n\na.flac\tone\ttwo\na.flac\t\xff\ngone\tsaid\na.flac\t \n"
    table.write_bytes(rows)
    errors = read_errors(open_speech([str(table)]))
    assert list(errors) == [1, 2, 3, 4, 5]
    assert errors[1].endswith("line 3: the row has 1 fields, but the header 2 (path, text)")
    assert errors[3].endswith("line 6: the row is not UTF-8: save the table as UTF-8")
    assert "line 7: the audio file" in errors[4]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "none has a known name for audio"),
        (b"a\tb\n", "has the columns a, b; none has a known name for audio"),
        ("path\ttext\n".encode("utf-16"), "UTF-16"),
        (b"path,text\na," + b"x" * 200_000, "field larger than field limit"),
        (b"path,text,text\na.wav,one,two\n", "has several columns 'text': give each a name of its own"),
    ],
)
def test_a_file_that_is_no_table_is_rejected(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "speech.csv").write_bytes(content)
    with pytest.raises(DataError) as caught:
        open_speech([str(tmp_path / "speech.csv")])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_quote_that_is_never_closed_swallows_no_rows(tmp_path: Path) -> None:
    table = tmp_path / "speech.csv"
    lines = [
        "audio|text",
        'a|"He said ""one""."',
        'b|"And then he left.',
        "c|He came back.",
        'd|So," she said.',
    ]
    (tmp_path / "a.wav").write_bytes(encode_tone())
    table.write_text("\n".join([*lines, 'e|"two', 'lines"', 'f|"It rained.']))
    dataset = open_speech([str(table)])
    texts = [
        'He said "one".',
        '"And then he left.',
        "He came back.",
        'So," she said.',
        "two\nlines",
        "It rained.",
    ]
    assert [dataset.row_name(row).rpartition(" ")[2] for row in range(6)] == ["2", "3", "4", "5", "7", "8"]
    assert dataset.texts.to_pylist() == [" ".join(text.split()) for text in texts]


def test_a_table_without_a_header_is_said_to_have_none(tmp_path: Path) -> None:
    (tmp_path / "wavs").mkdir()
    (tmp_path / "wavs/one.wav").write_bytes(encode_tone())
    (tmp_path / "text").write_text("a file that is called as a column is")
    for row, sound in (
        ("wavs/one.wav,words", "wavs/one.wav"),
        ("one,words", "one"),
        ("gone.flac,words", "gone.flac"),
    ):
        (tmp_path / "metadata.csv").write_text(f"{row}\n{row}\n")
        with pytest.raises(
            DataError, match=f"has no header: its first line names the audio file {sound}; put"
        ):
            open_speech([str(tmp_path / "metadata.csv")])
    (tmp_path / "metadata.csv").write_text("audio,text\none,words\n")
    assert open_speech([str(tmp_path / "metadata.csv")])[0].text == "words"


def test_tables_of_windows_programs_are_read(tmp_path: Path) -> None:
    """With a mark, semicolons, quotes, spaces behind commas, carriage returns and backslashes."""
    (tmp_path / "w").mkdir()
    (tmp_path / "w/a.wav").write_bytes(encode_tone())
    for text in (
        '"audio";"text"\r\n"w\\a.wav";"one; ""two"""\r\n',
        'audio, text\r\nw\\a.wav, "one; ""two"""\r\n',
    ):
        (tmp_path / "speech.csv").write_bytes(text.encode("utf-8-sig"))
        utterance = open_speech([str(tmp_path / "speech.csv")])[0]
        assert (utterance.audio, utterance.text) == (tmp_path / "w/a.wav", 'one; "two"')
    (tmp_path / "speech.csv").write_text("audio,text\nw/a.wav,one, two\n")
    (error,) = read_errors(open_speech([str(tmp_path / "speech.csv")])).values()
    assert error.endswith(
        "has 3 fields, but the header 2 (audio, text): put quotes around a text with ',' in it"
    )
