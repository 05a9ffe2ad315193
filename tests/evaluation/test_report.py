"""The report for programs and for people: complete, self-contained, safe, and consistent with its items."""

import errno
import io
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from rich.console import Console
from support.reports import HALF_SECOND_TONE, ParsedPage, build_item_result, build_mixed_report

from ossicle.errors import CheckpointError, DataError
from ossicle.evaluation import (
    Report,
    print_table,
    read_report,
    write_report,
)
from ossicle.evaluation.report.formatting import format_percent, format_points, format_points_interval
from ossicle.evaluation.report.page import MAX_ERRORS, render_report
from ossicle.evaluation.statistics import METRICS

RIGHT = METRICS["right"]


def test_the_json_has_three_numbers_that_follow_from_its_items(tmp_path: Path) -> None:
    written = write_report(build_mixed_report(), tmp_path / "new" / "folder")
    stored = json.loads(written.json.read_text())
    assert written.json == tmp_path / "new" / "folder" / "report.json"
    assert {
        "suite",
        "n",
        "text_ceiling",
        "cascade",
        "ear",
        "difference",
        "items",
        "groups",
        "instructions",
    } <= set(stored)
    assert {"command", "versions", "created"} <= set(stored)
    for column, flag in [
        ("text_ceiling", "text_correct"),
        ("cascade", "cascade_correct"),
        ("ear", "ear_correct"),
    ]:
        low, high = stored[column]["ci95"]
        assert stored[column]["value"] == np.mean([item[flag] for item in stored["items"]])
        assert 0 <= low <= stored[column]["value"] <= high <= 1
    gains = [item["ear_correct"] - item["cascade_correct"] for item in stored["items"]]
    assert stored["difference"]["value"] == pytest.approx(np.mean(gains))
    assert stored["cascade"]["wer"] == pytest.approx(8 / 80)
    right_in_text = [item["ear_correct"] for item in stored["items"] if item["text_correct"]]
    assert stored["ear"]["kept"] == np.mean(right_in_text)
    assert stored["ear"]["of_ceiling"] == stored["ear"]["value"] / stored["text_ceiling"]["value"]
    assert {name: table["n"] for name, table in stored["groups"].items()} == {
        "seen voices": 20,
        "unseen voices": 20,
    }
    assert stored["instructions"]["n"] == 10
    assert stored["audio_tokens"] == {"per_item": 3.0, "per_second": 6.0}


def test_a_report_read_from_its_file_is_the_same(tmp_path: Path) -> None:
    report = build_mixed_report()
    written = write_report(report, tmp_path)
    again = read_report(written.json)
    assert again == report
    assert write_report(again, tmp_path / "again").json.read_bytes() == written.json.read_bytes()


def test_names_that_are_not_utf8_do_not_stop_a_report(tmp_path: Path) -> None:
    report = replace(build_mixed_report(), suite="caf\udce9.jsonl", about={"ear": "runs/\udcff"})
    paths = write_report(report, tmp_path)
    assert read_report(paths.json).about == {"ear": "runs/?"}
    assert "caf?.jsonl" in paths.html.read_text(encoding="utf-8")


def test_the_path_of_a_sound_is_stored(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", HALF_SECOND_TONE, 16_000)
    report = Report(suite="files", items=(build_item_result(audio=tmp_path / "a.wav"),))
    again = read_report(write_report(report, tmp_path).json)
    assert again.items[0].audio == str(tmp_path / "a.wav")
    assert render_report(again) == render_report(report)


def test_a_path_names_the_json_and_the_page_gets_the_same_name(tmp_path: Path) -> None:
    written = write_report(build_mixed_report(), tmp_path / "flite.json")
    assert (written.json.name, written.html.name) == ("flite.json", "flite.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flite.html", "flite.json"]


@pytest.mark.parametrize("content", ["[]", "{}", "{", '{"items": [{}]}', '{"items": 3, "suite": "s"}'])
def test_a_file_that_is_not_a_report_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(DataError):
        read_report(tmp_path / "report.json")
    with pytest.raises(DataError, match="cannot be read"):
        read_report(tmp_path / "none.json")


def test_a_report_of_an_older_format_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    path = write_report(build_mixed_report(2), tmp_path).json
    stored = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in stored.items() if key != "format"}))
    with pytest.raises(
        DataError, match=r"report\.json: a report of format 1, expected format 2; run ossicle eval"
    ):
        read_report(path)


@pytest.mark.parametrize(
    "change",
    [
        {"about": None},
        {"created": 3},
        {"items": []},
        *(
            {"items": [{name: value}]}
            for name, value in (("text", None), ("group", 3), ("duration_s", "long"))
        ),
        {"items": [{"scores": {"text": [], "cascade": [1.0], "ear": [1.0]}}]},
        {"items": [{"scores": {"text": [1.0], "cascade": [1.0, 2.0], "ear": [1.0]}}]},
        {"corruption_results": [{"kind": "babble", "level": 5.0, "items": []}]},
        {"corruption_results": [{"kind": "babble", "level": 500.0, "items": None}]},
    ],
)
def test_a_field_of_the_wrong_type_is_an_error(tmp_path: Path, change: dict[str, Any]) -> None:
    path = write_report(Report(suite="s", items=(build_item_result(),)), tmp_path).json
    stored = json.loads(path.read_text())
    items = [stored["items"][0] | item for item in change.get("items", stored["items"])]
    path.write_text(json.dumps(stored | change | {"items": items}))
    with pytest.raises(DataError, match=r"report.json: (not an evaluation report|.*no items were evaluated)"):
        read_report(path)


def test_a_full_disk_leaves_the_earlier_report_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_report(build_mixed_report(8), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CheckpointError, match="No space left on device") as caught:
        write_report(build_mixed_report(40), tmp_path)
    assert "report.json" in str(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_file_in_place_of_the_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_report(build_mixed_report(8), tmp_path / "file" / "report")
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_report(build_mixed_report(8), tmp_path / "file")


METRIC_ROWS = [
    {"step": s, "loss": 9 / s, "hidden": 8 / s, "lr": 1e-3, "clips_per_s": 100.0} for s in range(1, 400)
]


def test_the_page_loads_nothing(tmp_path: Path) -> None:
    markup = write_report(build_mixed_report(), tmp_path, metrics=METRIC_ROWS).html.read_text(
        encoding="utf-8"
    )
    page = ParsedPage(markup)
    assert page.count("script") == 0
    links = [
        value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")
    ]
    assert links
    assert all(link and link.startswith("data:") for link in links)
    assert not re.search(r"https?://|url\(|@import", markup)
    policies = [a["content"] for tag, a in page.tags if tag == "meta" and a.get("http-equiv")]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; media-src data:; img-src data:"]


def test_the_page_shows_the_results() -> None:
    report = build_mixed_report()
    page = ParsedPage(render_report(report, metrics=METRIC_ROWS))
    for ratio in (
        report.overall.ear.value,
        report.overall.cascade.value,
        report.overall.text_ceiling.value,
    ):
        assert format_percent(ratio) in page.text.replace(" %", "\u202f%")
    for text in ("seen voices", "unseen voices", "With a text instruction", report.command, "ossicle 0.1.0"):
        assert text in page.text.replace("\u00a0", " ")
    assert "5 November 2026, 09:07 UTC" in page.text
    assert page.count("audio") == 12
    assert page.count("svg") == 4
    assert all(attributes.get("aria-label") for tag, attributes in page.tags if tag in ("audio", "svg"))
    assert page.count("h1") == page.count("main") == 1


def test_right_and_wrong_are_shown_by_a_sign_as_well_as_by_color() -> None:
    page = ParsedPage(render_report(Report(suite="s", items=(build_item_result(ear=False),))))
    signs = [attributes["aria-label"] for _, attributes in page.tags if attributes.get("class") == "sign"]
    assert signs[:3] == ["right", "right", "wrong"]
    assert "✗ ear wrong" in page.text
    assert "The ear got 1 of 1 wrong. Wrong by ear alone: 1" in page.text


@pytest.mark.parametrize(
    "field", ["id", "text", "instruction", "group", "expected", "transcript", "ear_answer"]
)
def test_texts_are_escaped(field: str) -> None:
    attack = "<script>alert('1')</script>\"><img src=x onerror=alert(1)>"
    items = (
        build_item_result(1, ear=False, **dict[str, Any]({field: attack})),
        build_item_result(2, group="other group"),
    )
    page = ParsedPage(
        render_report(
            Report(suite=attack, items=items, command=attack, about={attack: attack}, versions={attack: "1"})
        )
    )
    assert page.count("script") == page.count("img") == 0
    assert "onerror=alert(1)>" in page.text


def test_a_page_of_one_item_without_training_groups_or_errors() -> None:
    page = ParsedPage(render_report(Report(suite="s", items=(build_item_result(is_own_target=True),))))
    assert page.count("svg") == 0
    assert "right by definition" in page.text
    assert "None: the ear got all 1 items right." in page.text
    assert "With a text instruction" not in page.text


def test_empty_answers_are_shown_as_nothing() -> None:
    item = build_item_result(ear_answer="", cascade_answer=" ", transcript="", text_answer="")
    page = ParsedPage(render_report(Report(suite="s", items=(item,), created="some day")))
    assert page.text.count("nothing") >= 4
    assert "some day" in page.text


def test_a_long_list_of_errors_is_cut_with_a_note() -> None:
    items = tuple(build_item_result(i, ear=False, audio=None) for i in range(MAX_ERRORS + 1))
    page = ParsedPage(render_report(Report(suite="s", items=items)))
    assert f"The first {MAX_ERRORS}; report.json has the rest" in page.text
    assert page.count("tr") == MAX_ERRORS + 3


def test_numbers_are_formatted() -> None:
    assert format_percent(0.9312) == "93.1\u202f%"
    assert format_percent(None) == "–"
    assert format_points(-0.021, RIGHT) == "−2.1"
    assert format_points(-0.0001, RIGHT) == format_points(0.0, RIGHT) == "0.0"
    assert format_points_interval((-0.005, 0.021), RIGHT) == "−0.5 to +2.1"


def test_the_terminal_shows_a_table() -> None:
    console = Console(file=io.StringIO(), width=120, record=True)
    report = build_mixed_report()
    items = (*report.items[:-1], build_item_result(99, group="a [bold]group[/bold]", is_own_target=True))
    print_table(Report(suite="pocket [x]", items=items), console)
    printed = console.export_text()
    for text in (
        "pocket [x]: 40 spoken items",
        "a [bold]group[/bold]",
        "87.5\u202f%",
        "With a text instruction",
    ):
        assert text in printed
    assert "1 items expect the LLM's own answer" in " ".join(printed.split())
