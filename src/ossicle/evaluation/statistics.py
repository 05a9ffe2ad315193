"""From the marks of single answers to one number and how sure it is; it knows numbers, no texts.

An answer's marks are a few numbers that add up over items: (right,) or (errors, words). A metric makes one number of
their sums. So every number can be computed again from the marks beside the items, and resampled item by item.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

N_RESAMPLES = 10_000
"""Bootstrap resamples: enough that the interval's ends move by less than 0.1 points between seeds."""
CONFIDENCE = 0.95
_AT_ONCE = 1 << 24
"""Counts that resamples take in memory at a time."""

ItemScore = tuple[float, ...]
"""What an item's answer adds to its suite's number."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What a table's numbers mean, and how they follow from the sums of marks."""

    name: str
    """What a report knows it by."""
    label: str
    """What people read: "right answers"."""
    aggregate: Callable[[Float[np.ndarray, "... M"], Int[np.ndarray, "..."]], Float[np.ndarray, "..."]]
    """From sums of marks and numbers of items."""
    n_addends: int = 1
    """ItemScore that an answer has."""
    is_error: bool = False
    """Whether less is better."""
    is_mean: bool = True
    """Whether it is the mean of one mark from 0 to 1."""
    unit: Literal["%", ""] = "%"
    """Shares are shown in per cent; any other number as it stands."""
    headline: str = "By ear, the LLM reaches {}."
    """What a report says of the ear's number, which stands for {}."""

    @property
    def title(self) -> str:
        """The label as it begins a sentence."""
        return self.label[:1].upper() + self.label[1:]

    def compute(self, scores: Sequence[ItemScore]) -> float:
        """The number of some items; of at least one."""
        return float(self.aggregate(np.asarray(scores, dtype=np.float64).sum(0), np.asarray(len(scores))))

    def is_correct(self, score: ItemScore) -> bool:
        """Whether one answer counts as right where only right and wrong are told apart."""
        value = self.compute([score])
        return value == 0 if self.is_error else value >= 0.5


def _mean(sums: Float[np.ndarray, "... 1"], n: Int[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    return np.asarray(sums[..., 0] / n)


def _ratio(sums: Float[np.ndarray, "... 2"], n: Int[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    return np.asarray(sums[..., 0] / np.maximum(sums[..., 1], 1))


def compute_bleu(sums: Float[np.ndarray, "... 10"], n: Int[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Corpus BLEU, 0 to 100, from matching and possible n-grams (n = 1 to 4 each), and both lengths.

    Orders without a match are smoothed as sacreBLEU does by default: half, a quarter, ... of one match.

    Args:
        sums: four matches, four totals, length of the answers, length of the references

    Source: Papineni et al., 2002; smoothing "exp" of sacreBLEU, Post, arXiv 1804.08771.
    """
    matches, totals, (length, wanted) = (
        sums[..., :4],
        sums[..., 4:8],
        np.moveaxis(sums[..., 8:], -1, 0),
    )
    halvings = np.cumsum((matches == 0) & (totals > 0), axis=-1)
    found = np.where(matches > 0, matches, 0.5**halvings)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(found / totals).mean(-1)
        brevity = np.minimum(0, 1 - wanted / length)
        is_none = (matches.sum(-1) == 0) | (totals == 0).any(-1)
        return np.asarray(np.where(is_none, 0.0, 100 * np.exp(np.where(is_none, 0.0, logs + brevity))))


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            name="right",
            label="right answers",
            headline="By ear, the LLM answers {} right.",
            aggregate=_mean,
        ),
        Metric(
            name="rating",
            label="judged quality",
            headline="By ear, the LLM's answers are judged {} good.",
            aggregate=_mean,
        ),
        Metric(
            name="mean",
            label="mean of the groups",
            headline="By ear, the LLM reaches {}, the mean of the groups.",
            aggregate=_mean,
        ),
        Metric(
            name="wer",
            label="word error rate",
            headline="By ear, the LLM repeats with a word error rate of {}.",
            aggregate=_ratio,
            n_addends=2,
            is_error=True,
            is_mean=False,
        ),
        Metric(
            name="bleu",
            label="BLEU",
            headline="By ear, the LLM translates at {} BLEU.",
            aggregate=compute_bleu,
            n_addends=10,
            is_mean=False,
            unit="",
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number of some items, with its 95 % bootstrap interval."""

    value: float
    ci95: tuple[float, float]


def bootstrap_score(metric: Metric, marks: Sequence[ItemScore]) -> Estimate:
    """The number of at least one item, with its interval."""
    if metric.is_mean:
        return Estimate(value=metric.compute(marks), ci95=bootstrap_ci95([mark for (mark,) in marks]))
    return Estimate(value=metric.compute(marks), ci95=_quantiles(_resampled(metric, marks, marks)[0]))


def bootstrap_difference(metric: Metric, marks: Sequence[ItemScore], others: Sequence[ItemScore]) -> Estimate:
    """How much larger a metric is by `marks` than by `others`, in pairs: what both say alike adds no width."""
    gain = metric.compute(marks) - metric.compute(others)
    if metric.is_mean:
        gains = [mark - other for (mark,), (other,) in zip(marks, others, strict=True)]
        return Estimate(value=gain, ci95=bootstrap_ci95(gains, lower_bound=-1.0))
    first, second = _resampled(metric, marks, others)
    return Estimate(value=gain, ci95=_quantiles(first - second))


def bootstrap_group_mean(parts: Sequence[Sequence[ItemScore]], metrics: Sequence[Metric]) -> Estimate:
    """The mean of several groups' numbers, each weighing the same; resampled within each."""
    return _mean_over([(metric, marks, None) for metric, marks in zip(metrics, parts, strict=True)])


def bootstrap_group_mean_difference(
    parts: Sequence[tuple[Sequence[ItemScore], Sequence[ItemScore]]], metrics: Sequence[Metric]
) -> Estimate:
    """The mean of several groups' paired differences."""
    return _mean_over([(metric, *pair) for metric, pair in zip(metrics, parts, strict=True)])


def _mean_over(parts: Sequence[tuple[Metric, Sequence[ItemScore], Sequence[ItemScore] | None]]) -> Estimate:
    values, draws = [], []
    for seed, (metric, marks, others) in enumerate(parts):
        first, second = _resampled(metric, marks, marks if others is None else others, seed=seed)
        is_paired = others is not None
        values.append(metric.compute(marks) - (metric.compute(others) if others is not None else 0.0))
        draws.append(first - second if is_paired else first)
    return Estimate(value=float(np.mean(values)), ci95=_quantiles(np.mean(draws, axis=0)))


def _quantiles(values: Float[np.ndarray, " R"]) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _resampled(
    metric: Metric, marks: Sequence[ItemScore], others: Sequence[ItemScore], *, seed: int = 0
) -> tuple[Float[np.ndarray, " R"], Float[np.ndarray, " R"]]:
    """A metric of both over the same resamples of items: multinomial draws over the pairs that occur."""
    width = len(marks[0])
    pairs = np.asarray([(*mark, *other) for mark, other in zip(marks, others, strict=True)], dtype=np.float64)
    distinct, counts = np.unique(pairs, axis=0, return_counts=True)
    n, rng = len(pairs), np.random.default_rng(seed)
    at_once = max(1, _AT_ONCE // len(distinct))
    first, second = [], []
    for start in range(0, N_RESAMPLES, at_once):
        draws = rng.multinomial(n, counts / n, size=min(at_once, N_RESAMPLES - start))
        sums = draws @ distinct
        items = np.full(len(sums), n)
        first.append(metric.aggregate(sums[:, :width], items))
        second.append(metric.aggregate(sums[:, width:], items))
    return np.concatenate(first), np.concatenate(second)


def bootstrap_ci95(
    values: Sequence[int] | Sequence[float],
    *,
    lower_bound: float = 0.0,
    upper_bound: float = 1.0,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of values that each lie between `least` and `most`.

    Resampling n values is one multinomial draw over the values that occur, so no matrix of n columns is
    built. Values that are all equal have no spread to resample, and a bootstrap would claim certainty from
    two items as from two thousand; there the exact binomial bound for unanimous observations takes over. No
    values at all say nothing: the interval is the whole range.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13; Clopper and Pearson, 1934.
    """
    n = len(values)
    if n == 0:
        return lower_bound, upper_bound
    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    if len(distinct) == 1:
        value, unseen = float(distinct[0]), 1 - ((1 - CONFIDENCE) / 2) ** (1 / n)
        return value - (value - lower_bound) * unseen, value + (upper_bound - value) * unseen
    draws = np.random.default_rng(seed).multinomial(n, counts / n, size=N_RESAMPLES)
    low, high = np.quantile(draws @ distinct / n, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
