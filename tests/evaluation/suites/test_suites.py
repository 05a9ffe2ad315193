"""Public benchmarks, read from tiny folders in the layout that their authors publish."""

import json
import os
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.tiny_speech import encode_tone

from ossicle.audio.waveform import load_audio
from ossicle.errors import DataError
from ossicle.evaluation.scoring import RULES
from ossicle.evaluation.suites import SUITES, open_suite
from ossicle.evaluation.suites.hub_tables import read_published_rows
from ossicle.evaluation.suites.spoken_qa import ACCENTS

AUDIO = {"sampling_rate": 16_000, "_type": "Audio"}
TEXT = {"dtype": "string", "_type": "Value"}


def recording(number: int = 1) -> dict[str, object]:
    return {"bytes": encode_tone(1600, 200.0 * number), "path": f"{number}.flac"}


def write_table(
    file: Path, rows: Sequence[dict[str, Any]], features: Mapping[str, Any] | None = None
) -> None:
    """Writes a parquet file as on the hub, with the column types in its metadata."""
    table = pa.Table.from_pylist(list(rows))
    if features:
        about = {"info": {"features": dict(features)}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file)


def sdqa(folder: Path) -> None:
    """Writes two questions in all accents and one without an answer; one recording is missing."""
    rows: list[dict[str, Any]] = [
        {"id": f"q{n}", "question": text, "answers": answers} | {accent: recording(n) for accent in ACCENTS}
        for n, (text, answers) in enumerate(
            [("who wrote it", ["Ada Lovelace", "Lovelace"]), ("is it so", []), ("when", ["1843"])], start=1
        )
    ]
    rows[2]["nga"] = None
    features = {"id": TEXT, "question": TEXT, "answers": {"feature": TEXT, "_type": "List"}}
    write_table(
        folder / "data" / "dev-00000-of-00001.parquet", rows, features | dict.fromkeys(ACCENTS, AUDIO)
    )


def heysquad(folder: Path) -> None:
    """Writes the same question by two people, and one without an answer."""
    rows = [
        {
            "id": name,
            "audio": recording(n),
            "transcription": "wen was it",
            "question": "When was it?",
            "context": "It was in 1843, in the year 1843.",
            "answers": answers,
            "is_impossible": not answers,
        }
        for n, (name, answers) in enumerate(
            [("56dd", [{"answer_start": 7, "text": "1843"}] * 2), ("56dd", []), ("56dd", [])], start=1
        )
    ]
    rows[1]["answers"] = rows[0]["answers"]
    write_table(folder / "data" / "validation-00000-of-00001.parquet", rows)


def covost(folder: Path) -> None:
    for pair, translation in (("en_de", "Der Hund schläft."), ("en_ja", "犬が寝ている。")):
        rows = [
            {
                "client_id": "c",
                "file": "a.mp3",
                "audio": recording(n),
                "sentence": "The dog sleeps.",
                "translation": translation,
                "id": f"common_voice_en_{n}",
            }
            for n in (1, 2)
        ]
        features = dict.fromkeys(("client_id", "file", "sentence", "translation", "id"), TEXT)
        write_table(folder / pair / "test-00000-of-00001.parquet", rows, features | {"audio": AUDIO})


def bigbench(folder: Path) -> None:
    rows = [
        {"category": category, "official_answer": answer, "transcript": text, "audio": recording(n)}
        for n, (category, answer, text) in enumerate(
            [
                ("formal_fallacies", "invalid", "Is the argument deductively valid or invalid?"),
                ("navigate", "Yes", "Do you return to the starting point?"),
                ("object_counting", "5", "How many instruments do I have?"),
                ("web_of_lies", "No", "Does Ada tell the truth?"),
            ],
            start=1,
        )
    ]
    write_table(folder / "data" / "train-00000-of-00001.parquet", rows)


def librispeech(folder: Path) -> None:
    for n, subset in enumerate(("clean", "other"), start=1):
        row = {"file": "a.flac", "audio": recording(n), "text": "HE HOPED FOR STEW", "speaker_id": 1089}
        for split in ("test", "validation"):
            write_table(folder / subset / split / "0000.parquet", [row | {"id": f"1089-{n}-{split}"}])
    configs = "".join(
        f"- config_name: {subset}\n  data_files:\n"
        + "".join(
            f"  - split: {split}\n    path: {subset}/{split}/*.parquet\n" for split in ("test", "validation")
        )
        for subset in ("clean", "other")
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n", encoding="utf-8")


def iemocap(folder: Path) -> None:
    rows = [
        {
            "file": f"Ses01F_{n}.wav",
            "audio": recording(n),
            "transcription": "Go on.",
            "major_emotion": emotion,
        }
        for n, emotion in enumerate(("angry", "excited", "frustrated", "neutral", "sad"), start=1)
    ]
    write_table(folder / "data" / "train-00000-of-00001.parquet", rows)


def meld(folder: Path) -> None:
    names = ["neutral", "joy", "sadness", "anger", "fear", "disgust", "surprise"]
    rows = [
        {"text": "Oh my God!", "path": f"dia0_utt{n}.flac", "audio": recording(n + 1), "emotion": n}
        for n in (3, 6)
    ]
    features = {
        "text": TEXT,
        "path": TEXT,
        "audio": AUDIO,
        "emotion": {"names": names, "_type": "ClassLabel"},
    }
    write_table(folder / "default" / "test" / "0000.parquet", rows, features)


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "sd-qa": sdqa,
    "heysquad": heysquad,
    "covost2/en_de": covost,
    "bigbenchaudio": bigbench,
    "librispeech": librispeech,
    "iemocap": iemocap,
    "meld": meld,
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_suite_is_read_from_its_published_layout(name: str, tmp_path: Path) -> None:
    LAYOUTS[name](tmp_path)
    suite = open_suite(name, str(tmp_path))
    assert suite.name == name
    assert suite.description
    assert len({item.id for item in suite.items}) == len(suite.items)
    for item in suite.items:
        assert len(load_audio(item.audio)) == 1600
        assert RULES[item.rule].metric.name in ("right", "bleu", "wer")
        assert item.answer
        json.dumps(dict(item.rubric))
    for rule in {item.rule for item in suite.items}:  # the expected answer is scored as right
        items = [item for item in suite.items if item.rule == rule]
        scores = RULES[rule].score(items, [item.answer or "" for item in items], None)
        best = {"wer": (0, 4), "bleu": (4, 3, 2, 1, 4, 3, 2, 1, 4, 4)}.get(rule, (1,))
        assert scores == [best] * len(items)


def test_every_suite_has_a_layout_here() -> None:
    assert {name.partition("/")[0] for name in LAYOUTS} == set(SUITES) - {"voicebench"}


def test_sdqa_groups_accents_and_accepts_any_published_answer(tmp_path: Path) -> None:
    sdqa(tmp_path)
    suite = open_suite("sd-qa", str(tmp_path))
    assert len(suite.items) == 2 * len(ACCENTS) - 1
    assert {item.group for item in suite.items} == set(ACCENTS.values())
    first = suite.items[0]
    assert (first.id, first.text, first.rule) == ("q1-usa", "who wrote it", "panda")
    assert first.rubric == {"answers": ["Ada Lovelace", "Lovelace"]}
    assert first.instruction == "Answer in one short sentence."
    alone = open_suite("sd-qa/nga", str(tmp_path))
    assert [item.id for item in alone.items] == ["q1-nga"]


def test_heysquad_leaves_out_the_passage_and_questions_without_an_answer(tmp_path: Path) -> None:
    heysquad(tmp_path)
    items = open_suite("heysquad", str(tmp_path)).items
    assert [item.id for item in items] == ["0001-56dd", "0002-56dd"]
    assert items[0].rubric == {"answers": ["1843"]}
    assert "1843" not in f"{items[0].text} {items[0].instruction}"


def test_covost_asks_for_the_target_language_and_uses_its_tokenizer(tmp_path: Path) -> None:
    covost(tmp_path)
    german = open_suite("covost2/en_de", str(tmp_path))
    japanese = open_suite("covost2/en_ja", str(tmp_path))
    assert "from English into German" in (german.items[0].instruction or "")
    assert german.items[0].rubric == {"tokenize": "13a"}
    assert japanese.items[0].rubric == {"tokenize": "char"}
    assert "char" in japanese.description
    assert japanese.items[0].answer == "犬が寝ている。"


@pytest.mark.parametrize("name", ["covost2", "covost2/de_fr", "covost2/en_en", "covost2/en_xx"])
def test_covost_needs_a_pair_with_english(name: str) -> None:
    with pytest.raises(DataError, match=r"such as covost2/en_de"):
        open_suite(name, "nowhere")


def test_big_bench_audio_is_grouped_and_scored_by_category(tmp_path: Path) -> None:
    bigbench(tmp_path)
    items = open_suite("bigbenchaudio", str(tmp_path)).items
    assert [(item.group, item.rule, item.answer) for item in items] == [
        ("formal_fallacies", "final", "invalid"),
        ("navigate", "bbh", "yes"),
        ("object_counting", "final", "5"),
        ("web_of_lies", "bbh", "no"),
    ]
    assert items[1].instruction is None
    answers = ["It does not follow, so it is not valid.", "Yes.", "3 + 2 = 5", "No, Ada lies."]
    assert [
        RULES[item.rule].score([item], [answer], None)[0] for item, answer in zip(items, answers, strict=True)
    ] == [(1.0,)] * 4
    assert [item.group for item in open_suite("bigbenchaudio/navigate", str(tmp_path)).items] == ["navigate"]


def test_librispeech_has_two_test_sets(tmp_path: Path) -> None:
    librispeech(tmp_path)
    items = open_suite("librispeech", str(tmp_path)).items
    assert [(item.id, item.group) for item in items] == [
        ("1089-1-test", "test.clean"),
        ("1089-2-test", "test.other"),
    ]
    assert items[0].text == items[0].answer == "He hoped for stew."
    assert RULES["wer"].score([items[0]], ["he hoped for you"], None) == [(1.0, 4.0)]
    for name in ("librispeech/other", "librispeech/test.other"):
        suite = open_suite(name, str(tmp_path))
        assert (suite.name, [item.group for item in suite.items]) == ("librispeech/other", ["test.other"])


def test_a_published_row_of_a_longer_recording_is_its_stretch(tmp_path: Path) -> None:
    librispeech(tmp_path)
    row = {"audio": recording(), "text": "HE HOPED FOR STEW", "id": "1", "begin_time": 0.02, "end_time": 0.06}
    write_table(tmp_path / "clean" / "test" / "0000.parquet", [row])
    stretch = load_audio(open_suite("librispeech/clean", str(tmp_path)).items[0].audio)
    whole = load_audio(encode_tone(1600, 200.0))
    np.testing.assert_array_equal(stretch, whole[320:960])


def test_emotions_are_chosen_among_the_published_words(tmp_path: Path) -> None:
    iemocap(tmp_path / "iemocap")
    meld(tmp_path / "meld")
    acted = open_suite("iemocap", str(tmp_path / "iemocap")).items
    assert [item.answer for item in acted] == ["Anger", "Happiness", "Neutral", "Sadness"]
    assert acted[0].choices == ("Anger", "Happiness", "Neutral", "Sadness")
    series = open_suite("meld", str(tmp_path / "meld")).items
    assert [(item.id, item.answer) for item in series] == [
        ("dia0_utt3.flac", "Anger"),
        ("dia0_utt6.flac", "Surprise"),
    ]
    assert all(choice in (series[0].instruction or "") for choice in series[0].choices)
    assert len(series[0].choices) == 7


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("sd-qa/fra", "usa"),
        ("heysquad/train", "the name alone"),
        ("bigbenchaudio/sports", "navigate"),
        ("librispeech/dev", "clean or other"),
        ("iemocap/session1", "the name alone"),
    ],
)
def test_an_unknown_part_is_refused(name: str, known: str) -> None:
    with pytest.raises(DataError, match=known):
        open_suite(name, "nowhere")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("translation", None, r"\(en_de, test\), row 2: translation is None, expected a text"),
        ("sentence", "  ", r"row 2: sentence is '  ', expected a text"),
        ("audio", {"bytes": None, "path": "gone.mp3"}, r"row 2: audio has no bytes, and there is no file"),
        ("audio", {"bytes": b"", "path": None}, r"row 2: audio is .*, expected a sound"),
    ],
)
def test_a_row_that_differs_from_the_published_form_is_named(
    column: str, value: object, message: str, tmp_path: Path
) -> None:
    row = {"audio": recording(), "sentence": "It is.", "translation": "Es ist.", "id": "a"}
    write_table(tmp_path / "en_de" / "test.parquet", [row, row | {"id": "b", column: value}])
    with pytest.raises(DataError, match=message):
        open_suite("covost2/en_de", str(tmp_path))


@pytest.mark.parametrize(
    ("name", "column", "value", "message"),
    [
        ("bigbenchaudio", "official_answer", "maybe", "row 4: official_answer is 'maybe', expected yes, no"),
        ("bigbenchaudio", "category", "snarks", "row 4: category is 'snarks', expected one of"),
        ("meld", "emotion", "bliss", "row 2: emotion is 'bliss', expected one of anger"),
        ("heysquad", "answers", [{"text": 4}], "row 3: answers is .*, expected a list of texts"),
    ],
)
def test_an_invalid_value_is_named(
    name: str, column: str, value: object, message: str, tmp_path: Path
) -> None:
    LAYOUTS[name](tmp_path)
    (file,) = tmp_path.rglob("*.parquet")
    rows = pq.read_table(file).to_pylist()
    if name == "meld":
        rows[0]["emotion"] = "anger"
    if name == "heysquad":
        rows = [row | {"answers": []} for row in rows]
    rows[-1][column] = value
    write_table(file, rows)
    with pytest.raises(DataError, match=message):
        open_suite(name, str(tmp_path))


def test_sound_may_be_a_file_next_to_the_table(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.flac").write_bytes(encode_tone(1600))
    row = {"audio": {"bytes": None, "path": "clips/a.flac"}, "sentence": "It is.", "translation": "Es ist."}
    write_table(tmp_path / "en_de" / "test.parquet", [row | {"id": "a"}])
    (item,) = open_suite("covost2/en_de", str(tmp_path)).items
    assert item.audio == tmp_path / "clips" / "a.flac"


def read(
    source: Path, config: str | None = None, split: str = "test", columns: Sequence[str] = ("id",)
) -> list[dict[str, Any]]:
    return list(read_published_rows(str(source), config=config, split=split, columns=columns))


def test_rows_have_the_requested_columns_and_undecoded_sound(tmp_path: Path) -> None:
    covost(tmp_path)
    rows = read(tmp_path, config="en_de", columns=["audio", "id"])
    assert [list(row) for row in rows] == [["audio", "id"]] * 2
    assert rows[0]["audio"]["bytes"] == recording(1)["bytes"]
    assert "HF_DATASETS_DISABLE_TORCHCODEC" not in os.environ


def test_rows_are_read_one_by_one(tmp_path: Path) -> None:
    covost(tmp_path)
    rows = read_published_rows(str(tmp_path), config="en_de", split="test", columns=["id"])
    assert next(rows) == {"id": "common_voice_en_1"}
    cast(Generator[object], rows).close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": "all"}, "has no configuration 'all', only clean, other"),
        ({"split": "train"}, "has no split 'train', only test, validation"),
        (
            {"columns": ["id", "words"]},
            r"\(clean, test\) has no column 'words', only file, audio, text, speaker_id, id",
        ),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    librispeech(tmp_path)
    with pytest.raises(DataError, match=message):
        read(tmp_path, **({"config": "clean"} | options))


def test_a_local_source_of_speech_is_a_suite(tmp_path: Path) -> None:
    for number, word in enumerate(("one", "two")):
        (tmp_path / f"{number}.flac").write_bytes(encode_tone())
        (tmp_path / f"{number}.txt").write_text(word)
    suite = open_suite(str(tmp_path))
    assert [(item.id, item.text, item.answer) for item in suite.items] == [
        ("0001", "one", None),
        ("0002", "two", None),
    ]
    assert suite.items[0].audio == tmp_path / "0.flac"
    (tmp_path / "1.txt").write_text("")
    with pytest.raises(DataError, match="1: the transcript is "):
        open_suite(str(tmp_path))


def test_a_table_without_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    pq.ParquetWriter(tmp_path / "data" / "test.parquet", pa.schema([("id", pa.string())])).close()
    with pytest.raises(DataError, match=r"\(test\) has no rows; download it again"):
        read(tmp_path)


def test_a_damaged_folder_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "test.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(
        DataError, match="cannot be read as a dataset; give the folder as it is on the hub"
    ) as e:
        read(tmp_path)
    assert "\n" not in str(e.value)


def test_a_hub_id_is_requested_with_its_revision_and_missed_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import datasets
    import huggingface_hub.constants

    requests: list[tuple[object, ...]] = []
    original = datasets.get_dataset_config_names

    def list_configs(source: str, **options: object) -> list[str]:
        requests.append((source, options))
        return original(source, **options)  # ty: ignore[invalid-argument-type]

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets, "get_dataset_config_names", list_configs)
    with pytest.raises(
        DataError, match="loaded from the hub, and there is no local folder of that name"
    ) as refused:
        open_suite("meld")
    assert "\n" not in str(refused.value)
    assert requests == [("ajyy/MELD_audio", {"revision": "refs/convert/parquet"})]


def test_public_benchmarks_need_their_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'ossicle\[benchmarks\]'"):
        read(tmp_path)
    assert "HF_DATASETS_DISABLE_TORCHCODEC" not in os.environ
