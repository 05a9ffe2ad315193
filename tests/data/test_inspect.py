"""`ossicle data`: what it prints about a source, and what it writes to disk."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_speech import Clip, encode_tone, make_clips, write_huggingface, write_jsonl

from ossicle.cli import main
from ossicle.data.dataset import open_speech
from ossicle.data.inspect import DatasetSummary, compute_histogram, inspect_dataset
from ossicle.data.inspect_html import render_page

HALF_INVALID = [*make_clips(3), Clip(b"x", "noise"), Clip(b"yyy", "noise too"), Clip(encode_tone(), " ")]


def inspect_half_invalid(folder: Path, n_decoded: int = 1_000) -> DatasetSummary:
    return inspect_dataset(open_speech([write_jsonl(folder, HALF_INVALID)]), n_decoded=n_decoded)


def test_every_row_is_counted_once(tmp_path: Path) -> None:
    summary = inspect_half_invalid(tmp_path)
    assert (summary.n_rows, summary.n_usable, len(summary.invalid_rows), summary.n_decoded) == (6, 3, 3, 6)
    assert summary.is_complete
    assert [row.name.rpartition(" ")[2] for row in summary.invalid_rows] == ["7", "9", "11"]
    assert sum(summary.reason_counts.values()) == 3
    assert max(summary.reason_counts.values()) == 2  # two files of different lengths that are not audio
    assert summary.durations_s.tolist() == pytest.approx([0.1, 0.11, 0.12])
    assert summary.hours == pytest.approx(0.33 / 3600)
    assert summary.n_characters.tolist() == [11, 10, 15]


def test_hours_are_an_estimate_when_not_all_is_decoded(tmp_path: Path) -> None:
    summary = inspect_half_invalid(tmp_path, n_decoded=2)
    assert not summary.is_complete
    assert [row.name.rpartition(" ")[2] for row in summary.invalid_rows] == [
        "7",
        "11",
    ]  # the last row by its transcript
    assert summary.hours == pytest.approx(4 * 0.1 / 3600)
    undecoded = inspect_half_invalid(tmp_path, n_decoded=0)
    assert (undecoded.hours, undecoded.n_usable, undecoded.examples) == (None, 5, ())


@pytest.mark.usefixtures("datasets_cache")
def test_the_first_rows_of_a_stream_are_decoded(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    dataset = open_speech([write_huggingface(tmp_path / "set", make_clips(6)) + "?streaming=true"])
    summary = inspect_dataset(dataset, n_decoded=2)
    assert [example.text for example in summary.examples] == ["one red hat", "Zwei Hüte?"]
    assert (summary.n_rows, summary.n_usable) == (6, 6)
    assert summary.hours == pytest.approx(6 * 0.105 / 3600)


def test_examples_are_spread_over_the_source(tmp_path: Path) -> None:
    dataset = open_speech([write_jsonl(tmp_path, make_clips(20))])
    lines = [
        int(example.name.rpartition(" ")[2]) for example in inspect_dataset(dataset, n_examples=4).examples
    ]
    assert lines == [1, 11, 21, 31]


@given(
    values=st.lists(st.one_of(st.floats(2**-10, 4_000, width=32), st.integers(1, 50).map(float)), max_size=60)
)
def test_a_histogram_counts_every_value_in_its_bin(values: list[float]) -> None:
    histogram = compute_histogram(np.array(values, np.float32))
    assert sum(histogram.counts) == len(values)
    assert len(histogram.counts) <= 21
    for index, count in enumerate(histogram.counts):
        low, slack = histogram.low + index * histogram.step, 1e-5 * max(values)
        inside = sum(low + slack <= value < low + histogram.step - slack for value in values)
        around = sum(low - slack <= value <= low + histogram.step + slack for value in values)
        assert inside <= count <= around


def test_the_page_is_complete_and_loads_no_other_file(tmp_path: Path) -> None:
    rows = [*HALF_INVALID, Clip(encode_tone(), "<b>bold</b> & more")]
    summary = inspect_dataset(open_speech([write_jsonl(tmp_path, rows)]))
    page = render_page(summary, "<my> speech")
    assert "&lt;b&gt;bold&lt;/b&gt; &amp; more" in page
    assert "&lt;my&gt; speech" in page
    assert page.count("<audio") == len(summary.examples) == 3
    assert page.count("<svg") == 2
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "<script" not in page
    assert (
        render_page(inspect_dataset(open_speech([write_jsonl(tmp_path, rows)]), n_decoded=0), "x").count(
            "<svg"
        )
        == 1
    )


def test_inspect_prints_counts_and_exits_with_zero(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_jsonl(tmp_path, HALF_INVALID)
    assert main(["data", "inspect", source, "--html", str(tmp_path / "page.html")]) == 0
    printed = capsys.readouterr().out
    for expected in (
        "6 rows",
        "3 usable",
        "3 invalid",
        "Every row was read",
        "seconds",
        "characters",
        "one red hat",
    ):
        assert expected in printed
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize("decode", ["2", "1000"])
def test_inspect_fails_where_no_row_that_was_read_is_usable(
    decode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_jsonl(tmp_path, [Clip(b"x", "noise")] * 3)
    assert main(["data", "inspect", source, "--decode", decode]) == 1
    assert "no row that was read can be used" in capsys.readouterr().err
    assert main(["data", "inspect", source, "--decode", "0"]) == 0


def test_reasons_of_one_kind_are_counted_together(tmp_path: Path) -> None:
    path = tmp_path / "speech.jsonl"
    texts = ("", "  ", 3, 4.5)
    path.write_text("".join(json.dumps({"audio": "a.wav", "text": text}) + "\n" for text in texts))
    summary = inspect_dataset(open_speech([str(path)]))
    assert summary.reason_counts == {"the transcript is …, expected a text that is not empty": 4}


def test_pack_prints_what_it_packed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write_jsonl(tmp_path, HALF_INVALID), tmp_path / "packed"
    command = ["data", "pack", source, "--out", str(out), "--pcm", "--n-workers", "0"]
    assert main([*command]) == 1
    assert "--max-invalid-ratio" in capsys.readouterr().err
    assert main([*command, "--max-invalid-ratio", "0.5"]) == 0
    printed = capsys.readouterr()
    assert "3 clips" in printed.out
    assert "3 skipped" in printed.out
    assert "MB by the estimated durations" in printed.err
    assert json.loads((out / "index.json").read_text())["n_skipped"] == 3
    assert main(["data", "inspect", str(out)]) == 0
    assert "3 usable" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["inspect", "gone.jsonl"], 1, "no such file"),
        (["inspect", "a.jsonl?color=red"], 2, "unknown key 'color'"),
        (["inspect", "pocket/speech", "--decode", "-1"], 2, "expected zero or more"),
        (
            ["inspect", "pocket/speech", "--n-clips", "-3"],
            2,
            "the number of clips is -3, expected at least 1",
        ),
        (["inspect", "pocket/speech", "--html", "."], 2, "--html is ., which is a folder"),
        (["pack", "pocket/speech", "--out", "x", "--n-clips", "0"], 2, "the number of clips is 0"),
        (["pack", "pocket/speech?weight=2", "--out", "x"], 2, "a packed folder cannot store weights"),
        (["pack", "gone.jsonl", "--out", "x", "--max-invalid-ratio", "2"], 2, "a ratio between 0 and 1"),
    ],
)
def test_mistakes_are_reported_in_one_line(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", *arguments]) == code
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
