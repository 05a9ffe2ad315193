"""Reports are compared in pairs, in the terminal and on a page."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.reports import ParsedPage, add_noise_results, build_item_result, build_mixed_report

from ossicle.cli import main
from ossicle.errors import DataError
from ossicle.evaluation import Report, load_suite, write_report
from ossicle.evaluation.compare_reports import build_rows, check_comparable, compute_paired_difference
from ossicle.evaluation.report.comparison_page import MAX_EARS, N_CLIPS, render_comparison

PATHS = (Path("runs/one/report.json"), Path("runs/two/report.json"), Path("runs/three/report.json"))


def make_all_correct(report: Report) -> Report:
    """Returns the report of an ear that is never wrong."""
    items = tuple(
        replace(item, ear_answer="Right.", scores={**item.scores, "ear": (1.0,)}) for item in report.items
    )
    return replace(report, items=items)


def test_reports_are_compared_on_the_items_that_both_have() -> None:
    worse = Report(suite="numbers", items=tuple(build_item_result(n, ear=n % 3 != 0) for n in range(30)))
    better = Report(suite="numbers", items=tuple(build_item_result(n) for n in range(1, 31)))
    difference = compute_paired_difference(worse, better)
    assert difference is not None
    assert difference.n == 29, "items that only one report has are left out"
    assert difference.difference.value == pytest.approx(9 / 29)
    first = build_mixed_report()
    names = [row.name for row in build_rows([first, better])]
    assert names == ["All items", "seen voices", "unseen voices", "With a text instruction"]
    assert [row.tables[1] is None for row in build_rows([first, better])] == [False, True, True, True]
    assert compute_paired_difference(first, Report(suite="other", items=(build_item_result(99),))) is None
    with pytest.raises(DataError, match="two or more"):
        check_comparable([first])


def test_corruptions_come_after_the_clean_items() -> None:
    rows = build_rows([build_mixed_report(), add_noise_results(build_mixed_report(), is_right=True)])
    assert [row.is_corrupted for row in rows] == [False] * 4 + [True] * 2
    assert [row.name for row in rows][4:] == ["in white noise, 20 dB", "in white noise, 10 dB"]
    assert [row.tables[0] is None for row in rows] == [False] * 4 + [True] * 2


def test_the_page_shows_each_ear_and_a_common_cascade_once() -> None:
    first = build_mixed_report()
    page = ParsedPage(render_comparison(PATHS, [first, make_all_correct(first), first]))
    assert page.count("h1") == page.count("main") == 1
    for path in PATHS:
        assert str(path) in page.text
    assert (
        "Ear 2 against Ear 1: +12.5 points (+2.5 to +22.5), right answers, paired over 40 items." in page.text
    )
    assert re.search(
        r"Ear 3 against Ear 1: 0.0 points \(.*: no significant difference over 40 items\)", page.text
    )
    systems = [text for text in page.texts if re.fullmatch(r"(Text|Cascade|Ear)( \d)?", text)]
    assert systems[systems.index("Text") :][:5] == ["Text", "Cascade", "Ear 1", "Ear 2", "Ear 3"]
    assert page.count("svg") == 0, "no report has corruptions"


def test_cascades_that_differ_are_shown_for_each_ear() -> None:
    first = build_mixed_report()
    other = tuple(replace(item, scores={**item.scores, "cascade": (1.0,)}) for item in first.items)
    page = ParsedPage(render_comparison(PATHS[:2], [first, replace(first, items=other)]))
    systems = [text for text in page.texts if re.fullmatch(r"(Text|Cascade|Ear)( \d)?", text)]
    assert systems[systems.index("Text") :][:5] == ["Text", "Cascade 1", "Cascade 2", "Ear 1", "Ear 2"]


def test_common_corruptions_are_drawn_with_a_line_for_each_ear() -> None:
    worse, better = (add_noise_results(build_mixed_report(), is_right=is_right) for is_right in (False, True))
    page = ParsedPage(render_comparison(PATHS[:2], [worse, better]))
    (figure,) = [a["aria-label"] for tag, a in page.tags if tag == "svg" and a.get("aria-label")]
    assert figure is not None
    for text in ("Ear 1: clean 87.5 %", "Ear 2: clean 87.5 %", "Cascade 1: clean", "20 100.0 %", "20 0.0 %"):
        assert text in figure
    alone = ParsedPage(render_comparison(PATHS[:2], [worse, build_mixed_report()]))
    assert alone.count("svg") == 0


def test_items_on_which_ears_disagree_can_be_played() -> None:
    report = build_mixed_report(120)
    page = ParsedPage(render_comparison(PATHS[:2], [report, make_all_correct(report)]))
    assert page.count("audio") == N_CLIPS
    assert "All 15 items on which they disagree" in page.text
    assert "only Ear 2 right" in page.text
    assert "only Ear 1 right" not in page.text
    level = ParsedPage(render_comparison(PATHS[:2], [report, report]))
    assert level.count("audio") == level.count("details") == 0


def test_sound_of_an_embedded_suite_is_loaded() -> None:
    item = load_suite("pocket")[0]
    wrong = build_item_result(id=item.id, text=item.text, ear=False, audio=None)
    reports = [
        Report(suite="pocket", items=(one,))
        for one in (wrong, replace(wrong, scores={**wrong.scores, "ear": (1.0,)}))
    ]
    assert ParsedPage(render_comparison(PATHS[:2], reports)).count("audio") == 1
    elsewhere = [replace(report, suite="mine") for report in reports]
    page = ParsedPage(render_comparison(PATHS[:2], elsewhere))
    assert page.count("audio") == 0
    assert "not stored with this report" in page.text


def test_reports_of_different_suites_and_metrics_are_shown_together() -> None:
    item = build_item_result(99, rule="wer", scores=dict.fromkeys(("text", "cascade", "ear"), (1.0, 4.0)))
    page = ParsedPage(
        render_comparison(PATHS[:2], [build_mixed_report(), Report(suite="other", items=(item,))])
    )
    assert "Ear 2 and Ear 1 have no items in common." in page.text
    assert page.count("audio") == 0


def test_the_difference_of_group_means_is_the_mean_of_group_differences() -> None:
    wrong = [build_item_result(n, ear=False, group="few" if n < 2 else "many") for n in range(20)]
    right = [
        replace(item, scores={**item.scores, "ear": (1.0,)}) if item.group == "few" else item
        for item in wrong
    ]
    first, other = (Report(suite="s", items=tuple(items), overall_of="groups") for items in (wrong, right))
    difference = compute_paired_difference(first, other)
    assert difference is not None
    assert (difference.difference.value, difference.metric.name, difference.n) == (0.5, "mean", 20)
    assert other.overall.ear.value - first.overall.ear.value == difference.difference.value
    words = dict.fromkeys(("text", "cascade", "ear"), (1.0, 4.0))
    mixed = (*wrong[:18], *(replace(item, group="words", rule="wer", scores=words) for item in wrong[18:]))
    reports = [Report(suite="s", items=mixed, overall_of="groups")] * 2
    assert compute_paired_difference(*reports) is not None
    alike = Report(suite="s", items=mixed[:18])
    unlike = Report(suite="s", items=tuple(replace(item, rule="wer", scores=words) for item in alike.items))
    assert compute_paired_difference(alike, unlike) is None
    page = ParsedPage(render_comparison(PATHS[:2], [alike, unlike]))
    assert "Ear 2 and Ear 1 have 18 items in common, which are scored by different metrics." in page.text
    assert "Where Ear 2 and Ear 1 disagree" in page.text


def test_equal_numbers_from_different_items_are_shown_for_each_report() -> None:
    few, many = (Report(suite="s", items=tuple(build_item_result(n) for n in range(k))) for k in (5, 500))
    page = ParsedPage(render_comparison(PATHS[:2], [few, many]))
    systems = [text for text in page.texts if re.fullmatch(r"(Text|Cascade|Ear)( \d)?", text)]
    assert systems[systems.index("Text 1") :][:4] == ["Text 1", "Text 2", "Cascade 1", "Cascade 2"]


def test_items_with_one_id_and_different_texts_are_kept_apart() -> None:
    items = [build_item_result(id="a", text=text, ear=False, ear_answer=text) for text in ("x", "y")]
    first = Report(suite="s", items=tuple(items))
    other_items = tuple(replace(item, ear_answer=item.text * 3) for item in make_all_correct(first).items)
    page = ParsedPage(render_comparison(PATHS[:2], [first, replace(first, items=other_items)]))
    assert "✗ x Ear 2 ✓ xxx" in page.text
    assert "✗ y Ear 2 ✓ yyy" in page.text


def test_a_page_has_a_maximal_number_of_ears() -> None:
    report = add_noise_results(build_mixed_report(), is_right=True)
    paths = [Path(str(number)) for number in range(MAX_EARS + 1)]
    others = []
    for number in range(MAX_EARS):
        scores = {"cascade": (float(number % 2),), "text": (float(number % 2),)}
        items = tuple(replace(item, scores={**item.scores, **scores}) for item in report.items)
        others.append(replace(report, items=items))
    page = ParsedPage(render_comparison(paths[:-1], others))
    assert f"Ear {MAX_EARS}" in page.text
    with pytest.raises(DataError, match="7 reports for one page; expected 6 at most"):
        render_comparison(paths, [report] * len(paths))


@pytest.mark.parametrize("field", ["id", "text", "instruction", "group", "expected", "ear_answer"])
def test_texts_are_escaped(field: str) -> None:
    attack = "<script>alert('1')</script>\"><img src=x onerror=alert(1)>"
    item = build_item_result(1, ear=False, **dict[str, Any]({field: attack}))
    first = Report(suite=attack, items=(item,), command=attack, about={attack: attack})
    page = ParsedPage(render_comparison([Path(attack), Path("b")], [first, make_all_correct(first)]))
    assert page.count("script") == page.count("img") == 0
    assert "onerror=alert(1)>" in page.text


# The command


def test_the_command_prints_a_table_and_writes_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [
        str(write_report(report, tmp_path / f"{n}.json").json)
        for n, report in enumerate([build_mixed_report(), make_all_correct(build_mixed_report())])
    ]
    assert main(["compare", *files, "--out", str(tmp_path / "pages" / "page.html")]) == 0
    printed = capsys.readouterr().out
    assert f"1: {files[0]}\n2: {files[1]}\n" in printed
    assert "2 compared with 1: ear +12.5 (+2.5 to +22.5), right answers, paired over 40 items" in printed
    assert ParsedPage((tmp_path / "pages" / "page.html").read_text(encoding="utf-8")).count("h1") == 1


@pytest.mark.parametrize(
    ("content", "message"), [(None, "cannot be read"), ("{", "not JSON"), ("{}", "not an evaluation report")]
)
def test_a_file_that_is_not_a_report_is_an_error_of_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, message: str
) -> None:
    good = str(write_report(build_mixed_report(), tmp_path / "good.json").json)
    bad = tmp_path / "bad.json"
    if content is not None:
        bad.write_text(content)
    assert main(["compare", good, str(bad)]) != 0
    printed = capsys.readouterr().err
    assert message in " ".join(printed.split())
    assert "bad.json" in printed
    assert "Traceback" not in printed


def test_the_page_does_not_overwrite_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(write_report(build_mixed_report(), tmp_path / f"{n}.json").json) for n in range(2)]
    before = Path(files[1]).read_bytes()
    assert main(["compare", *files, "--out", files[1]]) != 0
    assert "is one of the reports; give the page another name" in " ".join(capsys.readouterr().err.split())
    assert Path(files[1]).read_bytes() == before


def test_numbers_are_not_cut_off_in_a_narrow_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    files = [str(write_report(build_mixed_report(), tmp_path / f"{n}.json").json) for n in range(2)]
    assert main(["compare", *files]) == 0
    assert "│ All items │ 1 │ 40 │" in capsys.readouterr().out.replace("  ", " ").replace("  ", " ")
