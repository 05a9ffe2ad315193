"""Reports side by side: in pairs, in the terminal and on a page."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_report import Page, answered, mixed_report

from ossicle.cli import main
from ossicle.errors import DataError
from ossicle.evaluation import CORRUPTIONS, Report, load_suite, write_report
from ossicle.evaluation.compare_reports import build_rows, check_comparable, compute_paired_difference
from ossicle.evaluation.report.comparison_page import MAX_EARS, N_CLIPS, render_comparison
from ossicle.evaluation.report_data import CorruptedItemResult, CorruptionResult

PATHS = (Path("runs/one/report.json"), Path("runs/two/report.json"), Path("runs/three/report.json"))


def in_noise(report: Report, *, is_right: bool) -> Report:
    """The report with two conditions, under which all answers are right, or none is."""
    marks = {way: (float(is_right),) for way in ("cascade", "ear")}
    again = CorruptedItemResult(transcript="say it", cascade_answer="a", ear_answer="b", scores=marks)
    noisy = [condition for condition in CORRUPTIONS if condition.kind == "white noise"][:2]
    changed = tuple(CorruptionResult(corruption=c, items=(again,) * len(report.items)) for c in noisy)
    return replace(report, corruption_results=changed)


def all_right(report: Report) -> Report:
    """The report of an ear that is never wrong."""
    items = tuple(
        replace(item, ear_answer="Right.", scores={**item.scores, "ear": (1.0,)}) for item in report.items
    )
    return replace(report, items=items)


def test_reports_are_put_side_by_side_in_pairs() -> None:
    worse = Report(suite="numbers", items=tuple(answered(n, ear=n % 3 != 0) for n in range(30)))
    better = Report(suite="numbers", items=tuple(answered(n) for n in range(1, 31)))
    found = compute_paired_difference(worse, better)
    assert found is not None
    assert found.n == 29, "items that one report alone has are left out"
    assert found.difference.value == pytest.approx(9 / 29)
    first = mixed_report()
    names = [row.name for row in build_rows([first, better])]
    assert names == ["All items", "seen voices", "unseen voices", "With a text instruction"]
    assert [row.tables[1] is None for row in build_rows([first, better])] == [False, True, True, True]
    assert compute_paired_difference(first, Report(suite="other", items=(answered(99),))) is None
    with pytest.raises(DataError, match="two or more"):
        check_comparable([first])


def test_conditions_come_after_all_parts_of_the_clean_items() -> None:
    found = build_rows([mixed_report(), in_noise(mixed_report(), is_right=True)])
    assert [row.is_corrupted for row in found] == [False] * 4 + [True] * 2
    assert [row.name for row in found][4:] == ["in white noise, 20 dB", "in white noise, 10 dB"]
    assert [row.tables[0] is None for row in found] == [False] * 4 + [True] * 2


def test_the_page_has_each_ear_and_the_cascade_once() -> None:
    first = mixed_report()
    page = Page(render_comparison(PATHS, [first, all_right(first), first]))
    assert page.count("h1") == page.count("main") == 1
    for path in PATHS:
        assert str(path) in page.text
    assert (
        "Ear 2 against Ear 1: +12.5 points (+2.5 to +22.5), right answers, paired over 40 items." in page.text
    )
    assert re.search(
        r"Ear 3 against Ear 1: 0.0 points \(.*: 40 items are too few to show a difference\)", page.text
    )
    who = [text for text in page.texts if re.fullmatch(r"(Text|Cascade|Ear)( \d)?", text)]
    assert who[who.index("Text") :][:5] == ["Text", "Cascade", "Ear 1", "Ear 2", "Ear 3"]
    assert page.count("svg") == 0, "nothing was heard in noise"


def test_another_cascade_beside_each_ear_is_shown_beside_each() -> None:
    first = mixed_report()
    other = tuple(replace(item, scores={**item.scores, "cascade": (1.0,)}) for item in first.items)
    page = Page(render_comparison(PATHS[:2], [first, replace(first, items=other)]))
    who = [text for text in page.texts if re.fullmatch(r"(Text|Cascade|Ear)( \d)?", text)]
    assert who[who.index("Text") :][:5] == ["Text", "Cascade 1", "Cascade 2", "Ear 1", "Ear 2"]


def test_conditions_that_all_have_are_drawn_with_a_line_for_each_ear() -> None:
    worse, better = (in_noise(mixed_report(), is_right=is_right) for is_right in (False, True))
    page = Page(render_comparison(PATHS[:2], [worse, better]))
    (figure,) = [a["aria-label"] for tag, a in page.tags if tag == "svg" and a.get("aria-label")]
    assert figure is not None
    for said in ("Ear 1: clean 87.5 %", "Ear 2: clean 87.5 %", "Cascade 1: clean", "20 100.0 %", "20 0.0 %"):
        assert said in figure
    alone = Page(render_comparison(PATHS[:2], [worse, mixed_report()]))
    assert alone.count("svg") == 0


def test_items_on_which_ears_part_can_be_heard() -> None:
    report = mixed_report(120)
    page = Page(render_comparison(PATHS[:2], [report, all_right(report)]))
    assert page.count("audio") == N_CLIPS
    assert "All 15 items on which they disagree" in page.text
    assert "only Ear 2 right" in page.text
    assert "only Ear 1 right" not in page.text
    level = Page(render_comparison(PATHS[:2], [report, report]))
    assert level.count("audio") == level.count("details") == 0


def test_sound_of_a_suite_that_comes_along_is_found_again() -> None:
    item = load_suite("pocket")[0]
    wrong = answered(id=item.id, text=item.text, ear=False, audio=None)
    reports = [
        Report(suite="pocket", items=(one,))
        for one in (wrong, replace(wrong, scores={**wrong.scores, "ear": (1.0,)}))
    ]
    assert Page(render_comparison(PATHS[:2], reports)).count("audio") == 1
    elsewhere = [replace(report, suite="mine") for report in reports]
    page = Page(render_comparison(PATHS[:2], elsewhere))
    assert page.count("audio") == 0
    assert "not stored with this report" in page.text


def test_reports_of_other_suites_and_metrics_stand_beside_each_other() -> None:
    item = answered(99, rule="wer", scores=dict.fromkeys(("text", "cascade", "ear"), (1.0, 4.0)))
    page = Page(render_comparison(PATHS[:2], [mixed_report(), Report(suite="other", items=(item,))]))
    assert "Ear 2 and Ear 1 have no items in common." in page.text
    assert page.count("audio") == 0


def test_of_a_suite_of_groups_the_difference_is_the_mean_of_theirs() -> None:
    wrong = [answered(n, ear=False, group="few" if n < 2 else "many") for n in range(20)]
    right = [
        replace(item, scores={**item.scores, "ear": (1.0,)}) if item.group == "few" else item
        for item in wrong
    ]
    first, other = (Report(suite="s", items=tuple(items), overall_of="groups") for items in (wrong, right))
    found = compute_paired_difference(first, other)
    assert found is not None
    assert (found.difference.value, found.metric.name, found.n) == (0.5, "mean", 20)
    assert other.overall.ear.value - first.overall.ear.value == found.difference.value
    words = dict.fromkeys(("text", "cascade", "ear"), (1.0, 4.0))
    mixed = (*wrong[:18], *(replace(item, group="said", rule="wer", scores=words) for item in wrong[18:]))
    reports = [Report(suite="s", items=mixed, overall_of="groups")] * 2
    assert compute_paired_difference(*reports) is not None
    alike = Report(suite="s", items=mixed[:18])
    unlike = Report(suite="s", items=tuple(replace(item, rule="wer", scores=words) for item in alike.items))
    assert compute_paired_difference(alike, unlike) is None
    page = Page(render_comparison(PATHS[:2], [alike, unlike]))
    assert "Ear 2 and Ear 1 have 18 items in common, which are scored by different metrics." in page.text
    assert "Where Ear 2 and Ear 1 disagree" in page.text


def test_a_cascade_of_as_many_but_of_fewer_items_is_another() -> None:
    few, many = (Report(suite="s", items=tuple(answered(n) for n in range(k))) for k in (5, 500))
    page = Page(render_comparison(PATHS[:2], [few, many]))
    who = [text for text in page.texts if re.fullmatch(r"(Text|Cascade|Ear)( \d)?", text)]
    assert who[who.index("Text 1") :][:4] == ["Text 1", "Text 2", "Cascade 1", "Cascade 2"]


def test_items_of_one_name_are_not_mixed_up() -> None:
    said = [answered(id="a", text=text, ear=False, ear_answer=text) for text in ("x", "y")]
    first = Report(suite="s", items=tuple(said))
    items = tuple(replace(item, ear_answer=item.text * 3) for item in all_right(first).items)
    page = Page(render_comparison(PATHS[:2], [first, replace(first, items=items)]))
    assert "✗ x Ear 2 ✓ xxx" in page.text
    assert "✗ y Ear 2 ✓ yyy" in page.text


def test_a_page_is_for_as_many_ears_as_can_be_told_apart() -> None:
    report = in_noise(mixed_report(), is_right=True)
    paths = [Path(str(number)) for number in range(MAX_EARS + 1)]
    others = []
    for number in range(MAX_EARS):
        marks = {"cascade": (float(number % 2),), "text": (float(number % 2),)}
        items = tuple(replace(item, scores={**item.scores, **marks}) for item in report.items)
        others.append(replace(report, items=items))
    page = Page(render_comparison(paths[:-1], others))
    assert f"Ear {MAX_EARS}" in page.text
    with pytest.raises(DataError, match="7 reports for one page; expected 6 at most"):
        render_comparison(paths, [report] * len(paths))


@pytest.mark.parametrize("field", ["id", "text", "instruction", "group", "expected", "ear_answer"])
def test_no_text_becomes_markup(field: str) -> None:
    attack = "<script>alert('1')</script>\"><img src=x onerror=alert(1)>"
    item = answered(1, ear=False, **dict[str, Any]({field: attack}))
    first = Report(suite=attack, items=(item,), command=attack, about={attack: attack})
    page = Page(render_comparison([Path(attack), Path("b")], [first, all_right(first)]))
    assert page.count("script") == page.count("img") == 0
    assert "onerror=alert(1)>" in page.text


# The command


def test_the_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [
        str(write_report(report, tmp_path / f"{n}.json").json)
        for n, report in enumerate([mixed_report(), all_right(mixed_report())])
    ]
    assert main(["compare", *files, "--out", str(tmp_path / "pages" / "page.html")]) == 0
    said = capsys.readouterr().out
    assert f"1: {files[0]}\n2: {files[1]}\n" in said
    assert "2 compared with 1: ear +12.5 (+2.5 to +22.5), right answers, paired over 40 items" in said
    assert Page((tmp_path / "pages" / "page.html").read_text(encoding="utf-8")).count("h1") == 1


@pytest.mark.parametrize(
    ("content", "said"), [(None, "cannot be read"), ("{", "not JSON"), ("{}", "not an evaluation report")]
)
def test_what_is_no_report_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, said: str
) -> None:
    good = str(write_report(mixed_report(), tmp_path / "good.json").json)
    bad = tmp_path / "bad.json"
    if content is not None:
        bad.write_text(content)
    assert main(["compare", good, str(bad)]) != 0
    told = capsys.readouterr().err
    assert said in " ".join(told.split())
    assert "bad.json" in told
    assert "Traceback" not in told


def test_a_report_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(write_report(mixed_report(), tmp_path / f"{n}.json").json) for n in range(2)]
    before = Path(files[1]).read_bytes()
    assert main(["compare", *files, "--out", files[1]]) != 0
    assert "is one of the reports; give the page another name" in " ".join(capsys.readouterr().err.split())
    assert Path(files[1]).read_bytes() == before


def test_in_a_narrow_terminal_no_number_is_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    files = [str(write_report(mixed_report(), tmp_path / f"{n}.json").json) for n in range(2)]
    assert main(["compare", *files]) == 0
    assert "│ All items │ 1 │ 40 │" in capsys.readouterr().out.replace("  ", " ").replace("  ", " ")
