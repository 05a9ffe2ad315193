"""What `ossicle data` shows of a source, and what it leaves on disk."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_speech import Clip, clips, sound, write_data_set, write_manifest

from ossicle.cli import main
from ossicle.data.inspect import Survey, histogram, survey
from ossicle.data.inspect_html import render
from ossicle.data.open_source import open_speech

HALF_BAD = [*clips(3), Clip(b"x", "noise"), Clip(b"yyy", "noise too"), Clip(sound(), " ")]


def surveyed(folder: Path, n_decoded: int = 1_000) -> Survey:
    return survey(open_speech([write_manifest(folder, HALF_BAD)]), n_decoded=n_decoded)


def test_every_row_is_counted_once(tmp_path: Path) -> None:
    found = surveyed(tmp_path)
    assert (found.n_rows, found.n_usable, len(found.bad), found.n_decoded) == (6, 3, 3, 6)
    assert found.is_complete
    assert [row.name.rpartition(" ")[2] for row in found.bad] == ["7", "9", "11"]
    assert sum(found.kinds.values()) == 3
    assert max(found.kinds.values()) == 2  # two sounds that are none, of other lengths
    assert found.seconds.tolist() == pytest.approx([0.1, 0.11, 0.12])
    assert found.hours == pytest.approx(0.33 / 3600)
    assert found.characters.tolist() == [11, 10, 15, 5, 9]


def test_hours_are_an_estimate_when_not_all_is_decoded(tmp_path: Path) -> None:
    found = surveyed(tmp_path, n_decoded=2)
    assert not found.is_complete
    assert [row.name.rpartition(" ")[2] for row in found.bad] == ["7", "11"]  # the last one by its transcript
    assert found.hours == pytest.approx(4 * 0.1 / 3600)
    nothing = surveyed(tmp_path, n_decoded=0)
    assert (nothing.hours, nothing.n_usable, nothing.examples) == (None, 5, ())


def test_of_a_stream_the_first_rows_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    speech = open_speech([write_data_set(tmp_path / "set", clips(6)) + "?streaming=true"])
    found = survey(speech, n_decoded=2)
    assert [example.text for example in found.examples] == ["one red hat", "Zwei Hüte?"]
    assert (found.n_rows, found.n_usable) == (6, 6)
    assert found.hours == pytest.approx(6 * 0.105 / 3600)


def test_examples_are_spread_over_the_source(tmp_path: Path) -> None:
    speech = open_speech([write_manifest(tmp_path, clips(20))])
    lines = [int(example.name.rpartition(" ")[2]) for example in survey(speech, n_examples=4).examples]
    assert lines == [1, 11, 21, 31]


@given(
    values=st.lists(st.one_of(st.floats(2**-10, 4_000, width=32), st.integers(1, 50).map(float)), max_size=60)
)
def test_a_histogram_counts_every_value_where_it_belongs(values: list[float]) -> None:
    bins = histogram(np.array(values, np.float32))
    assert sum(bins.counts) == len(values)
    assert len(bins.counts) <= 21
    for place, count in enumerate(bins.counts):
        low, slack = bins.low + place * bins.step, 1e-5 * max(values)
        inside = sum(low + slack <= value < low + bins.step - slack for value in values)
        around = sum(low - slack <= value <= low + bins.step + slack for value in values)
        assert inside <= count <= around


def test_the_page_holds_all_and_needs_nothing_beside_it(tmp_path: Path) -> None:
    rows = [*HALF_BAD, Clip(sound(), "<b>bold</b> & more")]
    found = survey(open_speech([write_manifest(tmp_path, rows)]))
    page = render(found, "<my> speech")
    assert "&lt;b&gt;bold&lt;/b&gt; &amp; more" in page
    assert "&lt;my&gt; speech" in page
    assert page.count("<audio") == len(found.examples) == 3
    assert page.count("<svg") == 2
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "<script" not in page
    assert render(survey(open_speech([write_manifest(tmp_path, rows)]), n_decoded=0), "x").count("<svg") == 1


def test_inspect_shows_counts_and_exits_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_manifest(tmp_path, HALF_BAD)
    assert main(["data", "inspect", source, "--html", str(tmp_path / "page.html")]) == 0
    shown = capsys.readouterr().out
    for expected in (
        "6 rows",
        "3 usable",
        "3 bad",
        "Every row was read",
        "seconds",
        "characters",
        "one red hat",
    ):
        assert expected in shown
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_reasons_of_one_kind_are_counted_together(tmp_path: Path) -> None:
    manifest = tmp_path / "speech.jsonl"
    texts = ("", "  ", 3, 4.5)
    manifest.write_text("".join(json.dumps({"audio": "a.wav", "text": text}) + "\n" for text in texts))
    found = survey(open_speech([str(manifest)]))
    assert found.kinds == {"the transcript is …, expected a text that is not empty": 4}


def test_pack_says_what_it_packed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write_manifest(tmp_path, HALF_BAD), tmp_path / "packed"
    command = ["data", "pack", source, "--out", str(out), "--pcm", "--n-workers", "0"]
    assert main([*command]) == 1
    assert "--max-invalid-ratio" in capsys.readouterr().err
    assert main([*command, "--max-invalid-ratio", "0.5"]) == 0
    shown = capsys.readouterr()
    assert "3 clips" in shown.out
    assert "3 left out" in shown.out
    assert "MiB of samples by the estimated lengths" in shown.err
    assert json.loads((out / "index.json").read_text())["n_skipped"] == 3
    assert main(["data", "inspect", str(out)]) == 0
    assert "3 usable" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["inspect", "gone.jsonl"], 1, "no such file"),
        (["inspect", "a.jsonl?colour=red"], 2, "unknown key 'colour'"),
        (["inspect", "pocket/speech", "--decode", "-1"], 2, "expected zero or more"),
        (
            ["inspect", "pocket/speech", "--n-clips", "-3"],
            2,
            "the number of clips is -3, expected at least 1",
        ),
        (["inspect", "pocket/speech", "--html", "."], 2, "--html is ., which is a folder"),
        (["pack", "pocket/speech", "--out", "x", "--n-clips", "0"], 2, "the number of clips is 0"),
        (["pack", "pocket/speech?weight=2", "--out", "x"], 2, "a packed folder keeps no weights"),
        (["pack", "gone.jsonl", "--out", "x", "--max-invalid-ratio", "2"], 2, "a ratio between 0 and 1"),
    ],
)
def test_mistakes_end_in_one_line(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", *arguments]) == code
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
