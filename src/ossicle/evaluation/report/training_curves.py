"""Curves of a training run as coordinates for the report's SVG; it knows numbers and no markup."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

WIDTH, HEIGHT = 360, 190
"""Size of a panel in SVG units, which are CSS pixels where there is room."""
LEFT, RIGHT, TOP, BOTTOM = 44, 18, 12, 24
"""Margins around the curve; the left one holds the tick labels."""

MAX_POINTS = 240
"""Points of a drawn curve: more cannot be told apart at this width."""

SMOOTHING_RATIO = 0.05
"""Share of the run that each point of the smoothed curve is the mean of."""

MIN_RATIO_OF_LOG_SCALE = 8.0
"""A curve that falls by more than this is drawn on a logarithmic scale."""

_FIRST = ("loss", "hidden", "align", "token_ce", "end", "asr")
_TITLES = {
    "loss": "Loss",
    "hidden": "Hidden state distance",
    "align": "Input alignment",
    "token_ce": "Token cross-entropy",
    "end": "Sentence end",
    "asr": "Transcript likelihood",
    "lr": "Learning rate",
    "clips_per_s": "Clips per second",
}
_NOT_CURVES = frozenset(
    {"step", "epoch", "time", "time_s", "elapsed_s", "left_s", "n_clips", "clips", "seed"}
)


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A labelled line across a panel."""

    at: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One quantity over the steps of a run, ready to be drawn."""

    title: str
    first: str
    last: str
    """Where the smoothed curve ends."""
    raw_path: str
    smooth_path: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    is_log: bool


def build_panels(records: Sequence[Mapping[str, object]]) -> tuple[Panel, ...]:
    """A panel for every quantity that a run's metrics record over its steps, the loss and its terms first.

    Args:
        records: lines of metrics.jsonl; those without a step and values that are no finite numbers are passed
            over.
    """
    names = [name for name in _FIRST if any(name in record for record in records)]
    names += [name for name in dict.fromkeys(k for record in records for k in record) if name not in names]
    panels = (_panel(name, records) for name in names if name not in _NOT_CURVES)
    return tuple(panel for panel in panels if panel)


def _panel(name: str, records: Sequence[Mapping[str, object]]) -> Panel | None:
    pairs = [(_number(record.get("step")), _number(record.get(name))) for record in records]
    points = sorted((step, value) for step, value in pairs if step is not None and value is not None)
    if not points:
        return None
    steps, values = _thinned(np.array(points))
    smooth = _smoothed(values)
    is_log = bool(values.min() > 0 and smooth[0] > MIN_RATIO_OF_LOG_SCALE * smooth[-1])
    low, high = float(values.min()), float(values.max())
    y_values = _log_ticks(low, high) if is_log else _ticks(low, high, n=4)
    low, high = min(low, *y_values), max(high, *y_values)
    x_low, x_high = float(steps.min()), float(steps.max())

    def x(step: float) -> float:
        share = (step - x_low) / (x_high - x_low) if x_high > x_low else 0.5
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        bottom, top, at = (math.log(v) for v in (low, high, value)) if is_log else (low, high, value)
        share = (at - bottom) / (top - bottom) if top > bottom else 0.5
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)

    def path(heights: np.ndarray) -> str:
        corners = [f"{x(float(s))} {y(float(v))}" for s, v in zip(steps, heights, strict=True)]
        return "M" + "L".join(corners) + ("h0" if len(corners) == 1 else "")

    x_values = [value for value in _ticks(x_low, x_high, n=4) if x_low <= value <= x_high] or [x_low]
    return Panel(
        title=_TITLES.get(name, name),
        first=_label(float(values[0])),
        last=_label(float(smooth[-1])),
        raw_path=path(values),
        smooth_path=path(smooth),
        x_ticks=tuple(Tick(at=x(value), label=f"{value:,.0f}") for value in x_values),
        y_ticks=tuple(Tick(at=y(value), label=_label(value)) for value in y_values),
        is_log=is_log,
    )


def _number(value: object) -> float | None:
    """The value as a finite number; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _thinned(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values, averaged over neighbours where there are more than can be drawn."""
    parts = np.array_split(points, min(len(points), MAX_POINTS))
    means = np.array([part.mean(axis=0) for part in parts])
    return means[:, 0], means[:, 1]


def _smoothed(values: np.ndarray) -> np.ndarray:
    """A centred moving average, which does not lag; at the ends, of what there is."""
    window = np.ones(min(len(values), 2 * round(SMOOTHING_RATIO * len(values) / 2) + 1))
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


def _ticks(low: float, high: float, *, n: int) -> list[float]:
    """About n round numbers that span a range."""
    if high <= low:
        return [low]
    rough = (high - low) / n
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten in a range, with their halves and fifths where the powers are too few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        inside = [f * 10.0**p for p in powers for f in factors if low <= f * 10.0**p <= high]
        if len(inside) >= 3:
            return inside[:: math.ceil(len(inside) / 6)]
    return inside or [low]


def _label(value: float) -> str:
    """A number short enough for a tick."""
    if value == 0 or 0.01 <= abs(value) < 10_000:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e") if value else "0"
