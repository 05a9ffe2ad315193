"""The three numbers of items, of groups, and of metrics that cannot be combined."""

import pytest
from support.fake_ear import FakeEar, build_items, evaluate_items, make_tone
from support.reports import build_item_result

from ossicle.errors import DataError
from ossicle.evaluation import (
    Item,
    Suite,
    evaluate,
)
from ossicle.evaluation.score_table import build_group_mean_table, build_score_table

SPOKEN = ["one", "two", "three", "four", "five"]


def test_the_number_of_a_suite_can_be_the_mean_of_its_groups() -> None:
    items = (
        *build_items(SPOKEN, group="many"),
        Item(id="x", audio=make_tone(0), text="one", group="few", answer="No."),
    )
    suite = Suite(name="groups", items=items, overall="groups")
    report = evaluate(FakeEar(SPOKEN), suite)
    assert report.overall.ear.value == pytest.approx((1.0 + 0.0) / 2)
    assert report.overall.metric.name == "mean"
    low, high = report.overall.ear.ci95
    assert low <= 0.5 <= high
    assert report.overall == build_group_mean_table([list(report.items[:5]), list(report.items[5:])])


def test_scores_of_different_metrics_cannot_be_combined() -> None:
    words = build_item_result(1, rule="wer", scores=dict.fromkeys(("text", "cascade", "ear"), (1.0, 4.0)))
    with pytest.raises(DataError, match="right and wer, which cannot be combined"):
        build_score_table([build_item_result(0), words])


def test_groups_and_instructed_items_have_their_own_tables() -> None:
    spoken = ["one", "two", "three", "four"]
    ear = FakeEar(spoken, heard=["one", "2", "three", "4"])
    items = (
        build_items(spoken, group="seen")[:2]
        + build_items(spoken, group="unseen", instruction="Go on.")[2:3]
        + build_items(spoken)[3:]
    )
    report = evaluate_items(ear, items)
    assert {name: (table.n, table.ear.value) for name, table in report.groups.items()} == {
        "seen": (2, 0.5),
        "unseen": (1, 1.0),
        "other": (1, 0.0),
    }
    assert report.instructions == build_score_table(report.items[2:3])
    ungrouped = evaluate_items(ear, build_items(spoken))
    assert ungrouped.groups == {}
    assert ungrouped.instructions is None
