"""The report that programs read and people look at: whole, self-contained, harmless and true to its items."""

import base64
import errno
import io
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from rich.console import Console

from ossicle.audio.waveform import AudioSource, load_audio
from ossicle.errors import CheckpointError, DataError
from ossicle.evaluation import ItemResult, Report, print_table, read_report, write_report
from ossicle.evaluation.report.clips import build_player, choose_clips, compare_words
from ossicle.evaluation.report.formatting import format_percent, format_points, format_points_interval
from ossicle.evaluation.report.page import MAX_ERRORS, render_report
from ossicle.evaluation.report.training_curves import HEIGHT, MAX_POINTS, WIDTH, build_panels
from ossicle.evaluation.statistics import METRICS

RIGHT = METRICS["right"]
TONE = (0.1 * np.sin(np.arange(8000) / 5)).astype(np.float32)


def answered(
    number: int = 0, *, ear: bool = True, cascade: bool = True, read: bool = True, **fields: Any
) -> ItemResult:
    def answer(is_right: bool) -> str:
        return "Right." if is_right else "Wrong."

    defaults: dict[str, Any] = {
        "id": f"{number:04d}",
        "text": "say it",
        "instruction": None,
        "group": None,
        "expected": "Right.",
        "is_own_target": False,
        "text_answer": answer(read),
        "transcript": "say it" if cascade else "say that",
        "cascade_answer": answer(cascade),
        "ear_answer": answer(ear),
        "scores": {"text": (float(read),), "cascade": (float(cascade),), "ear": (float(ear),)},
        "n_audio_tokens": 3,
        "duration_s": 0.5,
        "audio": TONE,
    }
    return ItemResult(**(defaults | fields))


def mixed_report(n: int = 40) -> Report:
    items = tuple(
        answered(
            i,
            ear=i % 8 != 0,
            cascade=i % 5 != 0,
            read=i % 20 != 0,
            group=["seen voices", "unseen voices"][i % 2],
            instruction="Answer in Spanish." if i % 4 == 0 else None,
        )
        for i in range(n)
    )
    return Report(
        suite="pocket",
        items=items,
        command="ossicle eval runs/pocket --suite pocket",
        versions={"ossicle": "0.1.0"},
        created="2026-11-05T09:07:00+00:00",
        about={"LLM": "pocket"},
    )


class Page(HTMLParser):
    """The elements of a page, its text, and whether every element is closed in order."""

    VOID = frozenset({"meta", "link", "br"})

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(markup)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        is_self_closed = (self.get_starttag_text() or "").endswith("/>")
        if tag not in self.VOID and not is_self_closed:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


# report.json


def test_the_json_has_the_three_numbers_and_they_follow_from_its_items(tmp_path: Path) -> None:
    written = write_report(mixed_report(), tmp_path / "new" / "folder")
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


def test_a_report_survives_its_file(tmp_path: Path) -> None:
    report = mixed_report()
    written = write_report(report, tmp_path)
    again = read_report(written.json)
    assert again == report
    assert write_report(again, tmp_path / "again").json.read_bytes() == written.json.read_bytes()


def test_sound_from_a_file_is_found_again(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", TONE, 16_000)
    report = Report(suite="files", items=(answered(audio=tmp_path / "a.wav"),))
    again = read_report(write_report(report, tmp_path).json)
    assert again.items[0].audio == str(tmp_path / "a.wav")
    assert render_report(again) == render_report(report)


def test_a_path_names_the_json_and_the_page_lies_beside_it(tmp_path: Path) -> None:
    written = write_report(mixed_report(), tmp_path / "flite.json")
    assert (written.json.name, written.html.name) == ("flite.json", "flite.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flite.html", "flite.json"]


@pytest.mark.parametrize("content", ["[]", "{}", "{", '{"items": [{}]}', '{"items": 3, "suite": "s"}'])
def test_a_file_that_is_no_report(tmp_path: Path, content: str) -> None:
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(DataError):
        read_report(tmp_path / "report.json")
    with pytest.raises(DataError, match="cannot be read"):
        read_report(tmp_path / "none.json")


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
def test_a_report_with_something_of_another_kind_is_refused_by_name(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    path = write_report(Report(suite="s", items=(answered(),)), tmp_path).json
    stored = json.loads(path.read_text())
    items = [stored["items"][0] | item for item in change.get("items", stored["items"])]
    path.write_text(json.dumps(stored | change | {"items": items}))
    with pytest.raises(DataError, match=r"report.json: (not an evaluation report|.*no items were evaluated)"):
        read_report(path)


# On disk: whole or not at all


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report(mixed_report(8), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device") as caught:
        write_report(mixed_report(40), tmp_path)
    assert "report.json" in str(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_report(mixed_report(8), tmp_path / "file" / "report")
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_report(mixed_report(8), tmp_path / "file")


# report.html


METRIC_ROWS = [
    {"step": s, "loss": 9 / s, "hidden": 8 / s, "lr": 1e-3, "clips_per_s": 100.0} for s in range(1, 400)
]


def test_the_page_needs_nothing_from_anywhere(tmp_path: Path) -> None:
    markup = write_report(mixed_report(), tmp_path, metrics=METRIC_ROWS).html.read_text(encoding="utf-8")
    page = Page(markup)
    assert page.count("script") == 0
    links = [
        value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")
    ]
    assert links
    assert all(link and link.startswith("data:") for link in links)
    assert not re.search(r"https?://|url\(|@import", markup)
    policies = [a["content"] for tag, a in page.tags if tag == "meta" and a.get("http-equiv")]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; media-src data:; img-src data:"]


def test_the_page_says_what_was_found() -> None:
    report = mixed_report()
    page = Page(render_report(report, metrics=METRIC_ROWS))
    for share in (
        report.overall.ear.value,
        report.overall.cascade.value,
        report.overall.text_ceiling.value,
    ):
        assert format_percent(share) in page.text.replace(" %", "\u202f%")
    for said in ("seen voices", "unseen voices", "With a text instruction", report.command, "ossicle 0.1.0"):
        assert said in page.text.replace("\u00a0", " ")
    assert "5 November 2026, 09:07 UTC" in page.text
    assert page.count("audio") == 12
    assert page.count("svg") == 4
    assert all(attributes.get("aria-label") for tag, attributes in page.tags if tag in ("audio", "svg"))
    assert page.count("h1") == page.count("main") == 1


def test_right_and_wrong_are_told_by_a_sign_too() -> None:
    page = Page(render_report(Report(suite="s", items=(answered(ear=False),))))
    signs = [attributes["aria-label"] for _, attributes in page.tags if attributes.get("class") == "sign"]
    assert signs[:3] == ["right", "right", "wrong"]
    assert "✗ ear wrong" in page.text
    assert "The ear got 1 of 1 wrong. Wrong by ear alone: 1" in page.text


@pytest.mark.parametrize(
    "field", ["id", "text", "instruction", "group", "expected", "transcript", "ear_answer"]
)
def test_no_text_becomes_markup(field: str) -> None:
    attack = "<script>alert('1')</script>\"><img src=x onerror=alert(1)>"
    items = (answered(1, ear=False, **dict[str, Any]({field: attack})), answered(2, group="other group"))
    page = Page(
        render_report(
            Report(suite=attack, items=items, command=attack, about={attack: attack}, versions={attack: "1"})
        )
    )
    assert page.count("script") == page.count("img") == 0
    assert "onerror=alert(1)>" in page.text


def test_a_page_of_one_item_without_training_groups_or_errors() -> None:
    page = Page(render_report(Report(suite="s", items=(answered(is_own_target=True),))))
    assert page.count("svg") == 0
    assert "right by definition" in page.text
    assert "None: the ear got all 1 items right." in page.text
    assert "With a text instruction" not in page.text


def test_answers_of_nothing_are_shown_as_such() -> None:
    item = answered(ear_answer="", cascade_answer=" ", transcript="", text_answer="")
    page = Page(render_report(Report(suite="s", items=(item,), created="some day")))
    assert page.text.count("nothing") >= 4
    assert "some day" in page.text


def test_a_long_list_of_errors_says_where_the_rest_is() -> None:
    items = tuple(answered(i, ear=False, audio=None) for i in range(MAX_ERRORS + 1))
    page = Page(render_report(Report(suite="s", items=items)))
    assert f"The first {MAX_ERRORS}; report.json has the rest" in page.text
    assert page.count("tr") == MAX_ERRORS + 3


def test_numbers_as_people_read_them() -> None:
    assert format_percent(0.9312) == "93.1\u202f%"
    assert format_percent(None) == "–"
    assert format_points(-0.021, RIGHT) == "−2.1"
    assert format_points(-0.0001, RIGHT) == format_points(0.0, RIGHT) == "0.0"
    assert format_points_interval((-0.005, 0.021), RIGHT) == "−0.5 to +2.1"


# Sound


def test_clips_are_chosen_by_rule() -> None:
    report = mixed_report(400)
    clips = choose_clips(report.items)
    assert len(clips) == 12
    assert sum(not item.ear_correct for item in clips) == 4
    assert {item.group for item in clips} == {"seen voices", "unseen voices"}
    assert any(item.instruction for item in clips)
    assert clips == choose_clips(report.items[::-1])[::-1]
    all_right = tuple(answered(i) for i in range(20))
    assert len(choose_clips(all_right)) == 12
    all_wrong = tuple(answered(i, ear=False) for i in range(20))
    assert len(choose_clips(all_wrong)) == 12
    assert choose_clips(all_right[:3]) == all_right[:3]


def test_a_sentence_is_played_twice_only_when_there_is_no_other() -> None:
    items = tuple(answered(i, text="often" if i % 10 else f"rare {i}") for i in range(110))
    assert sum(item.text == "often" for item in choose_clips(items)) == 1


def encoded(format: str, samples: np.ndarray = TONE, rate: int = 16_000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=format)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["wav", "aiff", "ogg", "array", "rated", "path"])
def test_sound_becomes_a_wav_that_plays_what_the_ear_heard(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.wav").write_bytes(encoded("WAV", rate=22_050))
    sources: dict[str, AudioSource] = {"array": TONE, "rated": (TONE, 8_000), "path": tmp_path / "a.wav"}
    source = sources[kind] if kind in sources else encoded(kind.upper())
    uri = build_player(source).uri
    assert uri is not None
    head, _, body = uri.partition(",")
    assert head == "data:audio/wav;base64"
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(body)))
    assert rate == 16_000
    np.testing.assert_allclose(samples, load_audio(source), atol=2**-15)


@pytest.mark.parametrize(("kind", "mime_type"), [("FLAC", "audio/flac"), ("MP3", "audio/mpeg")])
def test_small_files_that_browsers_play_stay_as_they_are(kind: str, mime_type: str) -> None:
    sound = encoded(kind)
    assert build_player(sound).uri == f"data:{mime_type};base64,{base64.b64encode(sound).decode()}"


def test_long_sound_is_cut_and_says_so() -> None:
    cut = build_player(np.tile(TONE, 90))
    assert cut.note == "The first 30 of 45 seconds."
    assert cut.uri is not None
    assert len(base64.b64decode(cut.uri.partition(",")[2])) == 30 * 16_000 * 2 + 44


def test_sound_that_is_gone_leaves_a_note(tmp_path: Path) -> None:
    page = Page(
        render_report(
            Report(suite="s", items=(answered(1, audio=tmp_path / "gone.wav"), answered(2, audio=None)))
        )
    )
    assert page.count("audio") == 0
    assert "can no longer be read" in page.text
    assert "not stored with this report" in page.text


def test_misheard_words_are_marked() -> None:
    def marked(text: str, transcript: str) -> str:
        return " ".join(
            f"-{word.text}" if word.is_missing else f"!{word.text}" if word.is_wrong else word.text
            for word in compare_words(text, transcript)
        )

    assert marked("Say the word, please.", "say a word") == "say !a word -please."
    assert marked("one", "one two") == "one !two"
    assert marked("one", "") == "-one"


# Curves


def test_curves_stay_in_their_panel_and_thin_out() -> None:
    panels = build_panels([{"step": s, "loss": 5 * 0.999**s + 0.01} for s in range(20_000)])
    (panel,) = panels
    corners = re.findall(r"([\d.]+) ([\d.]+)", panel.smooth_path)
    assert len(corners) == MAX_POINTS
    assert all(0 <= float(x) <= WIDTH and 0 <= float(y) <= HEIGHT for x, y in corners)
    assert panel.is_log
    assert 3 <= len(panel.y_ticks) <= 7
    assert (panel.first, panel.last) == ("4.81", "0.01")


def test_odd_records_are_drawn_as_far_as_they_go() -> None:
    records = [
        {"event": "start", "step": 0},
        {"step": 1, "loss": 2.0, "epoch": 1, "note": "warm", "is_best": True},
        {"step": 2, "loss": float("nan"), "align": 0.0},
        {"step": 3, "loss": 2.0, "align": -1.0},
        {"loss": 7.0},
    ]
    assert [panel.title for panel in build_panels(records)] == ["Loss", "Input alignment"]
    assert build_panels([]) == ()
    (single,) = build_panels([{"step": 5, "grad_norm": 1e-7}])
    assert (single.title, single.first, single.last) == ("grad_norm", "1e-7", "1e-7")
    Page(render_report(mixed_report(8), metrics=records))


# In the terminal


def test_the_table_in_the_terminal() -> None:
    console = Console(file=io.StringIO(), width=120, record=True)
    report = mixed_report()
    items = (*report.items[:-1], answered(99, group="a [bold]group[/bold]", is_own_target=True))
    print_table(Report(suite="pocket [x]", items=items), console)
    printed = console.export_text()
    for said in (
        "pocket [x]: 40 spoken items",
        "a [bold]group[/bold]",
        "87.5\u202f%",
        "With a text instruction",
    ):
        assert said in printed
    assert "1 items expect the LLM's own answer" in " ".join(printed.split())
