"""From the scores of single answers to one number with its confidence interval; it knows numbers, not texts.

The score of an answer is a few numbers that are added up over items: (is_correct,) or (errors, words). A metric computes
one number from the sums. So every number can be computed again from the scores stored with the items, and resampled
item by item.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

N_RESAMPLES = 10_000
"""Bootstrap resamples: enough that the interval's ends move by less than 0.1 points between seeds."""
CONFIDENCE = 0.95
_MAX_COUNTS = 1 << 24
"""Counts of resamples that are held in memory at a time."""

_ROUNDING = 1e-9

ItemScore = tuple[float, ...]
"""The numbers that an item's answer adds to the sums of its suite."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """The meaning of a table's numbers, and how they are computed from the sums of item scores."""

    name: str
    """Identifies the metric in a report."""
    label: str
    """Shown to people: "right answers"."""
    aggregate: Callable[[Float[np.ndarray, "... M"], Int[np.ndarray, "..."]], Float[np.ndarray, "..."]]
    """Computes the number from the sums of item scores and the numbers of items."""
    n_addends: int = 1
    """Numbers in the score of an item."""
    is_error: bool = False
    """Whether less is better."""
    is_mean: bool = True
    """Whether it is the mean of item scores of one number from 0 to 1."""
    unit: Literal["%", ""] = "%"
    """Ratios are shown in percent, any other number without a unit."""
    highest: float = 1.0
    """Largest number, but for rates of errors, of which there may be more than words."""
    headline: str = "By ear, the LLM reaches {}."
    """The report's sentence about the ear's number, which replaces {}."""

    @property
    def title(self) -> str:
        """The label with a capital first letter, for the start of a sentence."""
        return self.label[:1].upper() + self.label[1:]

    def compute(self, scores: Sequence[ItemScore]) -> float:
        """Returns the number of at least one item."""
        return float(self.aggregate(np.asarray(scores, dtype=np.float64).sum(0), np.asarray(len(scores))))

    def is_correct(self, score: ItemScore) -> bool:
        """Whether one answer counts as correct, where answers are only correct or wrong."""
        value = self.compute([score])
        return value == 0 if self.is_error else value >= 0.5 * self.highest


def _mean(sums: Float[np.ndarray, "... 1"], n: Int[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    return np.asarray(sums[..., 0] / n)


def _ratio(sums: Float[np.ndarray, "... 2"], n: Int[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    return np.asarray(sums[..., 0] / np.maximum(sums[..., 1], 1))


def compute_bleu(sums: Float[np.ndarray, "... 10"], n: Int[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Returns corpus BLEU, 0 to 100, from matching and possible n-grams (n = 1 to 4 each), and both lengths.

    Orders without a match are smoothed as sacreBLEU does by default: half, a quarter, ... of one match.

    Args:
        sums: four matches, four totals, length of the answers, length of the references

    Source: Papineni et al., 2002; smoothing "exp" of sacreBLEU, Post, arXiv 1804.08771.
    """
    matches, totals, (length, reference_length) = (
        sums[..., :4],
        sums[..., 4:8],
        np.moveaxis(sums[..., 8:], -1, 0),
    )
    halvings = np.cumsum((matches == 0) & (totals > 0), axis=-1)
    smoothed = np.where(matches > 0, matches, 0.5**halvings)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(smoothed / totals).mean(-1)
        brevity = np.minimum(0, 1 - reference_length / length)
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
            highest=100.0,
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number of some items with its 95 % bootstrap interval."""

    value: float
    ci95: tuple[float, float]


def bootstrap_score(metric: Metric, scores: Sequence[ItemScore]) -> Estimate:
    """Returns the number of at least one item with its interval."""
    if metric.is_mean:
        return Estimate(value=metric.compute(scores), ci95=bootstrap_ci95([value for (value,) in scores]))
    return _bootstrap_groups([(metric, scores, None)])


def bootstrap_difference(
    metric: Metric, scores: Sequence[ItemScore], baseline: Sequence[ItemScore]
) -> Estimate:
    """Returns by how much a metric of `scores` is larger than of `baseline`, in pairs.

    An item with the same score in both adds nothing to the interval's width.
    """
    if metric.is_mean:
        gain = metric.compute(scores) - metric.compute(baseline)
        gains = [value - base for (value,), (base,) in zip(scores, baseline, strict=True)]
        return Estimate(value=gain, ci95=bootstrap_ci95(gains, lower_bound=-1.0))
    return _bootstrap_groups([(metric, scores, baseline)])


def bootstrap_group_mean(groups: Sequence[Sequence[ItemScore]], metrics: Sequence[Metric]) -> Estimate:
    """Returns the mean of several groups' numbers, all of the same weight; each group is resampled by itself."""
    return _bootstrap_groups([(metric, scores, None) for metric, scores in zip(metrics, groups, strict=True)])


def bootstrap_group_mean_difference(
    groups: Sequence[tuple[Sequence[ItemScore], Sequence[ItemScore]]], metrics: Sequence[Metric]
) -> Estimate:
    """Returns the mean of several groups' paired differences."""
    return _bootstrap_groups([(metric, *pair) for metric, pair in zip(metrics, groups, strict=True)])


def _bootstrap_groups(
    groups: Sequence[tuple[Metric, Sequence[ItemScore], Sequence[ItemScore] | None]],
) -> Estimate:
    """Returns the mean of groups' numbers, or of their differences to a baseline.

    Items of a group that all agree have no spread to resample: its part of the interval is the exact binomial bound of
    unanimous observations, as in `bootstrap_ci95`. Systems that have the same scores do not differ.
    """
    values, draws, below, above = [], [], [], []
    for seed, (metric, scores, baseline) in enumerate(groups):
        drawn, base_drawn = _resample(metric, scores, scores if baseline is None else baseline, seed=seed)
        values.append(metric.compute(scores) - (0.0 if baseline is None else metric.compute(baseline)))
        draws.append(drawn if baseline is None else drawn - base_drawn)
        is_unanimous = np.ptp(draws[-1]) < _ROUNDING and (baseline is None or abs(values[-1]) > _ROUNDING)
        margin = _compute_unanimous_margin(len(scores)) if is_unanimous else 0.0
        lowest = 0.0 if baseline is None else -metric.highest
        below.append(margin * (values[-1] - lowest))
        above.append(margin * max(0.0, metric.highest - values[-1]))
    low, high = _compute_ci95(np.mean(draws, axis=0))
    return Estimate(
        value=float(np.mean(values)), ci95=(low - float(np.mean(below)), high + float(np.mean(above)))
    )


def _compute_ci95(values: Float[np.ndarray, " R"]) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _resample(
    metric: Metric, scores: Sequence[ItemScore], baseline: Sequence[ItemScore], *, seed: int = 0
) -> tuple[Float[np.ndarray, " R"], Float[np.ndarray, " R"]]:
    """Returns a metric of both over the same resamples of items, which are multinomial draws over the distinct pairs."""
    width = len(scores[0])
    pairs = np.asarray(
        [(*score, *base) for score, base in zip(scores, baseline, strict=True)], dtype=np.float64
    )
    distinct, counts = np.unique(pairs, axis=0, return_counts=True)
    n, rng = len(pairs), np.random.default_rng(seed)
    chunk_size = max(1, _MAX_COUNTS // len(distinct))
    values, base_values = [], []
    for start in range(0, N_RESAMPLES, chunk_size):
        draws = rng.multinomial(n, counts / n, size=min(chunk_size, N_RESAMPLES - start))
        sums = draws @ distinct
        n_items = np.full(len(sums), n)
        values.append(metric.aggregate(sums[:, :width], n_items))
        base_values.append(metric.aggregate(sums[:, width:], n_items))
    return np.concatenate(values), np.concatenate(base_values)


def _compute_unanimous_margin(n: int) -> float:
    """Returns the largest share of other values that n equal observations do not exclude."""
    return 1 - ((1 - CONFIDENCE) / 2) ** (1 / n)


def bootstrap_ci95(
    values: Sequence[int] | Sequence[float],
    *,
    lower_bound: float = 0.0,
    upper_bound: float = 1.0,
    seed: int = 0,
) -> tuple[float, float]:
    """Returns the 95 % percentile bootstrap interval of the mean of values between `lower_bound` and `upper_bound`.

    Resampling n values is one multinomial draw over the distinct values, so no matrix of n columns is built. Values
    that are all equal have no spread to resample, and a bootstrap would be as certain from two items as from two
    thousand: there the exact binomial bound for unanimous observations is used. Without values the interval is the
    whole range.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13; Clopper and Pearson, 1934.
    """
    n = len(values)
    if n == 0:
        return lower_bound, upper_bound
    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    if len(distinct) == 1:
        value, margin = float(distinct[0]), _compute_unanimous_margin(n)
        return value - (value - lower_bound) * margin, value + (upper_bound - value) * margin
    rng, chunk_size = np.random.default_rng(seed), max(1, _MAX_COUNTS // len(distinct))
    means = [
        rng.multinomial(n, counts / n, size=min(chunk_size, N_RESAMPLES - start)) @ distinct / n
        for start in range(0, N_RESAMPLES, chunk_size)
    ]
    return _compute_ci95(np.concatenate(means))
