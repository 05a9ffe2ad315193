"""The curves of a training run as coordinates for the report's SVG; it knows numbers, not markup."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

WIDTH, HEIGHT = 360, 190
"""Size of a panel in SVG units, which are CSS pixels if the page is wide enough."""
LEFT, RIGHT, TOP, BOTTOM = 50, 18, 12, 24
"""Margins around the curve; the left one holds the tick labels."""

MAX_POINTS = 240
"""Maximal points of a drawn curve: at this width, more cannot be told apart."""

SMOOTHING_RATIO = 0.05
"""Part of the run that each point of the smoothed curve averages."""

MAX_DOTS = 40
"""A curve of so few values is drawn as dots: there is nothing to smooth."""

MIN_RANGE_RATIO = 0.1
"""The axis of a quantity that hardly changes spans at least this ratio of it, so that it looks flat."""

MAX_DIGITS = 12

MIN_STEPS = 50
"""A run of fewer steps shows that training works, and nothing about the ear that it leads to."""

MIN_LOG_RATIO = 8.0
"""A curve that falls by more than this factor is drawn on a logarithmic scale."""

LOSS_TITLES = {
    "loss": "Loss",
    "hidden": "Hidden state distance",
    "align": "Input alignment",
    "token_ce": "Token cross-entropy",
    "end": "Sentence end",
    "asr": "Transcript likelihood",
    "anchor": "Distance to its start",
    "kl": "Divergence of answers",
}
"""Titles of the loss and its terms, in the order of their panels, which come first."""
_OTHER_TITLES = {
    "grad_norm": "Gradient norm",
    "lr": "Learning rate",
    "clips_per_s": "Clips per second",
    "audio_h_per_h": "Hours heard per hour",
    "tflops": "TFLOP/s per device",
    "mfu": "Use of the device’s peak FLOP/s",
}
_NOT_CURVES = frozenset(
    {"step", "epoch", "time", "time_s", "elapsed_s", "left_s", "n_clips", "clips", "seed"}
)


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A labeled grid line of a figure."""

    at: float
    """Its x or y coordinate."""
    label: str


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One quantity over the steps of a run, ready to be drawn."""

    title: str
    first: str
    """The first value."""
    last: str
    """The last value of the smoothed curve, or of the dots."""
    raw_path: str
    smooth_path: str
    """Empty for a curve of dots."""
    dots: tuple[tuple[float, float], ...]
    """Few values, by their coordinates."""
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    is_log: bool


@dataclass(frozen=True)
class _Curve:
    """One quantity over the steps of a run."""

    steps: np.ndarray
    values: np.ndarray
    smooth: np.ndarray
    """Smoothed values; the values themselves if there are few."""

    @property
    def has_dots(self) -> bool:
        return len(self.values) <= MAX_DOTS


def build_panels(records: Sequence[Mapping[str, object]]) -> tuple[Panel, ...]:
    """Returns a panel for every quantity in a run's metrics, the loss and its terms first.

    Args:
        records: lines of metrics.jsonl; lines without a step and values that are not finite numbers are left out.
    """
    return tuple(panel for row in build_shared_panels([records]) for panel in row if panel)


def build_shared_panels(
    runs: Sequence[Sequence[Mapping[str, object]]],
) -> tuple[tuple[Panel | None, ...], ...]:
    """Returns a row for every quantity in the metrics of several runs, with a panel for each run on the same axes.

    A run that does not have the quantity has None there.
    """
    lines = [record for records in runs for record in records]
    names = [name for name in LOSS_TITLES if any(name in record for record in lines)]
    names += [name for name in dict.fromkeys(k for record in lines for k in record) if name not in names]
    rows = []
    for name in names:
        curves = [_read_curve(name, records) for records in runs]
        shown = [curve for curve in curves if curve is not None]
        if name not in _NOT_CURVES and shown:
            rows.append(tuple(_build_panel(name, curve, shown) if curve else None for curve in curves))
    return tuple(rows)


def count_few_steps(records: Sequence[Mapping[str, object]]) -> int | None:
    """Returns the number of steps of a run that has too few to judge its ear by; None if it has enough."""
    steps = [step for record in records if (step := _to_finite(record.get("step"))) is not None]
    return int(max(steps)) if steps and max(steps) < MIN_STEPS else None


def _read_curve(name: str, records: Sequence[Mapping[str, object]]) -> _Curve | None:
    """Returns the values of a quantity; None if it has none."""
    pairs = [(_to_finite(record.get("step")), _to_finite(record.get(name))) for record in records]
    points = sorted((step, value) for step, value in pairs if step is not None and value is not None)
    if not points:
        return None
    steps, values = _downsample(np.array(points))
    return _Curve(steps, values, values if len(values) <= MAX_DOTS else _smooth(values))


def _build_panel(name: str, curve: _Curve, shown: Sequence[_Curve]) -> Panel:
    """Returns the panel of a quantity, on axes that hold the same quantity of all runs that are shown."""
    steps, values, smooth, has_dots = curve.steps, curve.values, curve.smooth, curve.has_dots
    low, high = (
        float(edge) for edge in (min(c.values.min() for c in shown), max(c.values.max() for c in shown))
    )
    is_log = low > 0 and any(c.smooth[0] > MIN_LOG_RATIO * c.smooth[-1] for c in shown)
    if not is_log:
        low, high = _widen(low, high)
    y_values = _compute_log_ticks(low, high) if is_log else _compute_ticks(low, high, n=4)
    low, high = min(low, *y_values), max(high, *y_values)
    x_low, x_high = (
        float(edge) for edge in (min(c.steps.min() for c in shown), max(c.steps.max() for c in shown))
    )

    def step_to_x(step: float) -> float:
        ratio = (step - x_low) / (x_high - x_low) if x_high > x_low else 0.5
        return round(LEFT + ratio * (WIDTH - LEFT - RIGHT), 1)

    def value_to_y(value: float) -> float:
        bottom, top, at = (math.log(v) for v in (low, high, value)) if is_log else (low, high, value)
        ratio = (at - bottom) / (top - bottom) if top > bottom else 0.5
        return round(HEIGHT - BOTTOM - ratio * (HEIGHT - TOP - BOTTOM), 1)

    def draw_path(curve: np.ndarray) -> str:
        corners = [f"{step_to_x(float(s))} {value_to_y(float(v))}" for s, v in zip(steps, curve, strict=True)]
        return "M" + "L".join(corners) + ("h0" if len(corners) == 1 else "")

    x_ticks = _compute_ticks(x_low, x_high, n=4, min_step=1.0)
    x_values = [value for value in x_ticks if x_low <= value <= x_high] or [x_low]
    dots = [(step_to_x(float(s)), value_to_y(float(v))) for s, v in zip(steps, values, strict=True)]
    return Panel(
        title=(LOSS_TITLES | _OTHER_TITLES).get(name, name.replace("_", " ").capitalize()),
        first=_format_value(float(values[0])),
        last=_format_value(float(smooth[-1])),
        raw_path=draw_path(values),
        smooth_path="" if has_dots else draw_path(smooth),
        dots=tuple(dots) if has_dots else (),
        x_ticks=tuple(Tick(at=step_to_x(value), label=f"{value:,.0f}") for value in x_values),
        y_ticks=tuple(
            Tick(at=value_to_y(value), label=label)
            for value, label in zip(y_values, _format_ticks(y_values), strict=True)
        ),
        is_log=is_log,
    )


def _to_finite(value: object) -> float | None:
    """Returns the value as a finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _downsample(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns steps and values, averaged over neighbors if there are more than `MAX_POINTS`."""
    parts = np.array_split(points, min(len(points), MAX_POINTS))
    means = np.array([part.mean(axis=0) for part in parts])
    return means[:, 0], means[:, 1]


def _smooth(values: np.ndarray) -> np.ndarray:
    """Returns the centered moving average, which does not lag; at the ends, the window is cut off."""
    window = np.ones(min(len(values), 2 * round(SMOOTHING_RATIO * len(values) / 2) + 1))
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


def _widen(low: float, high: float) -> tuple[float, float]:
    """Returns a range around values that hardly differ."""
    missing = MIN_RANGE_RATIO * max(abs(low), abs(high)) - (high - low)
    return (low - missing / 2, high + missing / 2) if missing > 0 else (low, high)


def _compute_ticks(low: float, high: float, *, n: int, min_step: float = 0.0) -> list[float]:
    """Returns about n round numbers that span a range."""
    if high <= low:
        return [low]
    rough = max((high - low) / n, min_step)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def _compute_log_ticks(low: float, high: float) -> list[float]:
    """Returns the powers of ten in a range, with multiples of them if there are too few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        inside = [f * 10.0**p for p in powers for f in factors if low <= f * 10.0**p <= high]
        if len(inside) >= 3:
            return inside[:: math.ceil(len(inside) / 6)]
    return inside or [low]


def _format_ticks(values: Sequence[float]) -> list[str]:
    """Returns the numbers of an axis, in one notation and with as many digits as they need to differ."""
    as_powers = any(value and _needs_power(value) for value in values)
    for n_digits in range(3, MAX_DIGITS):
        labels = [_format_value(value, n_digits, as_power=as_powers) for value in values]
        if len(set(labels)) == len(labels):
            break
    return labels


def _needs_power(value: float) -> bool:
    return not 0.001 <= abs(value) < 100_000


def _format_value(value: float, n_digits: int = 3, *, as_power: bool = False) -> str:
    """Returns a number as a short text."""
    if value == 0:
        return "0"
    if as_power or _needs_power(value):
        mantissa, exponent = f"{value:.{n_digits - 1}e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:,.{n_digits - 3}f}" if abs(value) >= 1000 else f"{value:.{n_digits}g}"
