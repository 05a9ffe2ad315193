"""Numbers, intervals and dates as people read them, on pages and in the terminal."""

from datetime import datetime

from ossicle.evaluation.statistics import Metric

NARROW_SPACE = "\u202f"
MINUS = "\u2212"


def format_percent(ratio: float | None) -> str:
    """Returns a ratio as "93.1 %", or a dash for None."""
    return "–" if ratio is None else f"{100 * ratio:.1f}{NARROW_SPACE}%"


def format_number(value: float, metric: Metric) -> str:
    """Returns a metric's number: "93.1 %", or "24.7" for a metric without a unit."""
    return format_percent(value) if metric.unit == "%" else f"{value:.1f}"


def format_interval(ci95: tuple[float, float], metric: Metric) -> str:
    """Returns an interval of such numbers as "91.0–94.8"."""
    scale = _get_scale(metric)
    return f"{scale * ci95[0]:.1f}–{scale * ci95[1]:.1f}"


def format_points(difference: float, metric: Metric) -> str:
    """Returns a difference of two such numbers with its sign; ratios in percentage points."""
    rounded = round(_get_scale(metric) * difference, 1)
    return f"{rounded:+.1f}".replace("-", MINUS) if rounded else "0.0"


def format_points_interval(ci95: tuple[float, float], metric: Metric) -> str:
    """Returns an interval of differences as "−0.5 to +2.1"."""
    return f"{format_points(ci95[0], metric)} to {format_points(ci95[1], metric)}"


def compute_bar_length(value: float, metric: Metric) -> float:
    """Returns the length of a number's bar, in percent of the longest possible one."""
    return min(100.0, max(0.0, _get_scale(metric) * value))


def format_date(created: str) -> str:
    """Returns an ISO time as "5 November 2026, 09:07 UTC"; any other text unchanged."""
    try:
        date = datetime.fromisoformat(created)
    except ValueError:
        return created
    return f"{date.day} {date:%B %Y, %H:%M} UTC"


def _get_scale(metric: Metric) -> float:
    return 100.0 if metric.unit == "%" else 1.0
