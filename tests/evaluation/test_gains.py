"""Numbers before and after training, of two reports on the same items."""

import pytest
from support.reports import add_noise_results, build_item_result, build_mixed_report

from ossicle.evaluation.gains import compute_gains
from ossicle.evaluation.report_data import Report


def test_gains_are_paired_and_their_mean_over_noises_is_the_last() -> None:
    report = build_mixed_report()
    gains = compute_gains(add_noise_results(report, is_right=False), add_noise_results(report, is_right=True))
    assert [gain.name for gain in gains] == [
        "clean",
        "white noise, 20 dB",
        "white noise, 10 dB",
        "all of these noises",
    ]
    assert (gains[0].difference.value, gains[0].is_clear) == (0.0, False)
    assert [(gain.before.value, gain.after.value, gain.is_clear) for gain in gains[1:]] == [
        (0.0, 1.0, True)
    ] * 3
    assert compute_gains(report, report)[-1].name == "clean"


@pytest.mark.parametrize(("n_errors", "is_clear"), [(0, True), (2, False), (4, False)])
def test_fewer_word_errors_are_a_gain(n_errors: int, is_clear: bool) -> None:
    def build_report(errors: int) -> Report:
        scores = {"text": (0.0, 4.0), "cascade": (2.0, 4.0), "ear": (float(errors), 4.0)}
        return Report(
            suite="mine", items=tuple(build_item_result(i, rule="wer", scores=scores) for i in range(12))
        )

    before, after = build_report(2), build_report(n_errors)
    assert compute_gains(before, after)[0].is_clear is is_clear
    assert compute_gains(before, after)[0].before.value == 0.5
