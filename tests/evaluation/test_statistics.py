"""Numbers and their intervals follow from the scores of single answers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossicle.evaluation import statistics
from ossicle.evaluation.scoring.translation import count_ngrams
from ossicle.evaluation.statistics import (
    METRICS,
    ItemScore,
    bootstrap_ci95,
    bootstrap_difference,
    bootstrap_group_mean,
    bootstrap_group_mean_difference,
    bootstrap_score,
)


def test_the_bootstrap_agrees_with_resampling_each_item() -> None:
    values = np.array([1] * 40 + [0] * 15 + [-1] * 5)
    rng = np.random.default_rng(1)
    means = values[rng.integers(0, len(values), (20_000, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    one_item = 1 / len(values)
    assert bootstrap_ci95(values.tolist(), lower_bound=-1.0) == pytest.approx((low, high), abs=one_item)
    assert bootstrap_ci95(values.tolist(), lower_bound=-1.0) == bootstrap_ci95(
        values.tolist(), lower_bound=-1.0
    )


def test_many_items_are_resampled_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random(50).tolist()
    whole = bootstrap_ci95(values)
    monkeypatch.setattr(statistics, "_MAX_COUNTS", 50 * 999)
    assert bootstrap_ci95(values) == pytest.approx(whole, rel=1e-12)


def test_unanimous_observations_have_the_exact_binomial_interval() -> None:
    # Clopper and Pearson for 20 of 20: (0.025)**(1/20) to 1.
    assert bootstrap_ci95([True] * 20) == pytest.approx((0.8316, 1.0), abs=1e-4)
    assert bootstrap_ci95([False] * 20) == pytest.approx((0.0, 0.1684), abs=1e-4)
    assert bootstrap_ci95([0] * 20, lower_bound=-1.0) == pytest.approx((-0.1684, 0.1684), abs=1e-4)
    assert bootstrap_ci95([]) == (0.0, 1.0)


@given(st.lists(st.sampled_from([-1, 0, 1]), max_size=60))
def test_an_interval_is_in_range_and_contains_the_mean(values: list[int]) -> None:
    low, high = bootstrap_ci95(values, lower_bound=-1.0)
    assert -1 <= low <= high <= 1
    if values:
        assert low <= np.mean(values) <= high


@pytest.mark.parametrize(
    ("scores", "expected"),
    [([(1.0, 4.0)] * 2, (0.25, 0.25, 0.75)), ([(0.0, 3.0), (0.0, 5.0), (0.0, 2.0)], (0.0, 0.0, 1.0))],
)
def test_error_rates_that_agree_are_no_certainty(
    scores: list[ItemScore], expected: tuple[float, float, float]
) -> None:
    value, lower_range, upper_range = expected
    margin = 1 - 0.025 ** (1 / len(scores))
    estimate = bootstrap_score(METRICS["wer"], scores)
    assert estimate.value == value
    assert estimate.ci95 == pytest.approx((value - lower_range * margin, value + upper_range * margin))


def test_a_translation_is_right_from_half_of_all_points() -> None:
    bleu = METRICS["bleu"]
    scores = [
        count_ngrams(text, "Er sagte, dass er heute kommt.")
        for text in ("Ich weiss das nicht.", "Er sagte, dass er kommt.")
    ]
    assert 0 < bleu.compute([scores[0]]) < 50 < bleu.compute([scores[1]])
    assert [bleu.is_correct(score) for score in scores] == [False, True]


def test_one_item_is_no_clear_difference() -> None:
    wer, right = METRICS["wer"], METRICS["right"]
    for n in (1, 2):
        low, high = bootstrap_difference(wer, [(1.0, 10.0)] * n, [(2.0, 10.0)] * n).ci95
        assert low < -0.1 < 0 < high
    same = [(1.0, 10.0), (2.0, 9.0)]
    assert bootstrap_difference(wer, same, same).ci95 == (0, 0)
    groups = [[(1.0,)], [(1.0,), (1.0,)]]
    low, high = bootstrap_group_mean(groups, [right, right]).ci95
    assert low == pytest.approx(1 - (0.975 + 1 - 0.025**0.5) / 2)
    assert high == 1
    pair = ([(1.0,)], [(0.0,)])
    assert bootstrap_group_mean_difference([pair], [right]).ci95 == pytest.approx((-0.95, 1.0))


def test_error_rates_are_ratios_of_sums_and_differences_are_paired() -> None:
    metric = METRICS["wer"]
    scores, baseline = [(1.0, 2.0), (0.0, 8.0)], [(2.0, 2.0), (1.0, 8.0)]
    assert bootstrap_score(metric, scores).value == 0.1
    gap = bootstrap_difference(metric, scores, baseline)
    assert gap.value == pytest.approx(-0.2)
    assert gap.ci95[0] <= gap.value <= gap.ci95[1] <= 0
    assert metric.is_correct((0.0, 8.0))
    assert not metric.is_correct((1.0, 8.0))
