"""Plots as PNG, drawn with Pillow, and Markdown tables, for notebooks."""

import io
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from IPython.display import Image as NotebookImage
from IPython.display import Markdown
from PIL import Image, ImageDraw, ImageFont

BLUE, ORANGE, GREEN, PURPLE, SKY, BLACK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#222222"
"""Colors that people with any kind of color vision can distinguish. Source: Okabe and Ito, "Color Universal Design"."""
_GRID, _TEXT = "#DDDDDD", "#333333"
_SCALE = 4
"""Pixels drawn for a unit of width or height; the image is reduced to half, so that edges are smooth."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 16, 30, 44
_LEGEND_LINE, _LEGEND_SIZE, _LEGEND_GAP = 19, 11.5, 50

Style = Literal["line", "dashes", "points", "line and points"]


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points of one label, in the order of the line through them."""

    x: Sequence[float]
    y: Sequence[float]
    label: str | None = None
    """Text in the legend; without it the series is not in the legend."""
    color: str = BLUE
    style: Style = "line"


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes; points outside the ranges, and those a logarithm cannot show, are left out."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    log_x: bool = False
    log_y: bool = False
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None


def draw_figure(
    panels: Sequence[Panel], *, width: int = 380, height: int = 300, n_columns: int = 2
) -> NotebookImage:
    """Draws panels next to each other, with one legend below.

    Args:
        width: of a panel, in CSS pixels
        height: of a panel, in CSS pixels
    """
    n_columns = min(n_columns, len(panels))
    n_rows = math.ceil(len(panels) / n_columns)
    whole_width = n_columns * width
    legend = list(
        {series.label: series for panel in panels for series in panel.series if series.label}.values()
    )
    positions, legend_height = _lay_out_legend([series.label or "" for series in legend], whole_width)
    whole_height = n_rows * height + legend_height
    image = Image.new("RGB", (whole_width * _SCALE, whole_height * _SCALE), "white")
    for number, panel in enumerate(panels):
        row, column = divmod(number, n_columns)
        _Canvas(image, column * width, row * height, width, height).draw(panel)
    below = _Canvas(image, 0, n_rows * height, whole_width, legend_height)
    for series, (left, top) in zip(legend, positions, strict=True):
        below.draw_legend(series, left, n_rows * height + top)
    reduced = image.reduce(2).quantize(96)
    file = io.BytesIO()
    reduced.save(file, "PNG", optimize=True)
    return NotebookImage(file.getvalue(), width=whole_width)


def _lay_out_legend(labels: Sequence[str], width: int) -> tuple[list[tuple[float, float]], int]:
    """Returns the position of each label of a legend, line after line, and the legend's height."""
    font = ImageFont.load_default(_LEGEND_SIZE)
    positions, left, top = [], float(_LEFT), 0.0
    for label in labels:
        needed = font.getlength(label) + _LEGEND_GAP
        if left > _LEFT and left + needed > width:
            left, top = float(_LEFT), top + _LEGEND_LINE
        positions.append((left, top))
        left += needed
    return positions, math.ceil(top) + _LEGEND_LINE + 6


def format_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> Markdown:
    """Formats rows below a header; the first column is left-aligned, others are right-aligned."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return Markdown("\n".join(f"| {' | '.join(map(str, line))} |" for line in lines))


@dataclass(frozen=True)
class _Axis:
    """Maps values to ratios of an axis."""

    low: float
    high: float
    is_log: bool
    ticks: tuple[float, ...]

    @classmethod
    def over(cls, values: Sequence[float], is_log: bool, given: tuple[float, float] | None) -> "_Axis":
        seen = [v for v in values if math.isfinite(v) and (v > 0 or not is_log)]
        low, high = given or (min(seen), max(seen))
        if low == high:
            low, high = (low / 2, high * 2) if is_log else (low - 0.5, high + 0.5)
        ticks = _log_ticks(low, high) if is_log else _ticks(low, high)
        if given is None:
            low, high = (min(low, ticks[0]), max(high, ticks[-1]))
        return cls(low, high, is_log, tuple(tick for tick in ticks if low <= tick <= high))

    def to_ratio(self, value: float) -> float | None:
        if not math.isfinite(value) or (self.is_log and value <= 0):
            return None
        low, high, at = (
            (math.log(v) for v in (self.low, self.high, value))
            if self.is_log
            else (self.low, self.high, value)
        )
        ratio = (at - low) / (high - low)
        return ratio if -1e-9 <= ratio <= 1 + 1e-9 else None


def _ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    return [n * step for n in range(math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    if last - first <= 2:
        inside = [f * 10.0**p for p in range(first, last + 1) for f in (1, 2, 5)]
        return [tick for tick in inside if low / 2.5 <= tick <= high * 2.5]
    every = math.ceil((last - first) / 6)
    return [10.0**p for p in range(first, last + every, every)]


def _label(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 1_000_000 or abs(value) < 0.001:
        power = math.floor(math.log10(abs(value)) + 1e-9)
        digit = round(value / 10.0**power)
        return f"1e{power}" if digit == 1 else f"{digit}e{power}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


class _Canvas:
    """The part of an image for one panel."""

    def __init__(self, image: Image.Image, left: int, top: int, width: int, height: int) -> None:
        self.image, self.pen = image, ImageDraw.Draw(image)
        self.box = (left + _LEFT, top + _TOP, left + width - _RIGHT, top + height - _BOTTOM)
        self.left, self.top = left, top

    def draw(self, panel: Panel) -> None:
        x = _Axis.over([v for series in panel.series for v in series.x], panel.log_x, panel.x_range)
        y = _Axis.over([v for series in panel.series for v in series.y], panel.log_y, panel.y_range)
        self._draw_frame(panel, x, y)
        for series in panel.series:
            self._draw_series(series, x, y)

    def _draw_frame(self, panel: Panel, x: _Axis, y: _Axis) -> None:
        left, top, right, bottom = self.box
        for tick in x.ticks:
            at = left + (x.to_ratio(tick) or 0) * (right - left)
            self._draw_line([(at, top), (at, bottom)], _GRID, 0.7)
            self._draw_text((at, bottom + 4), _label(tick), 11, "mt")
        for tick in y.ticks:
            at = bottom - (y.to_ratio(tick) or 0) * (bottom - top)
            self._draw_line([(left, at), (right, at)], _GRID, 0.7)
            self._draw_text((left - 5, at), _label(tick), 11, "rm")
        self._draw_line([(left, top), (left, bottom), (right, bottom)], _TEXT, 1)
        self._draw_text((left, self.top + 8), panel.title, 13.5, "lt")
        self._draw_text(((left + right) / 2, bottom + 22), panel.x_label, 12, "mt")
        self._draw_vertical_text((self.left + 4, (top + bottom) / 2), panel.y_label, 12)

    def _draw_series(self, series: Series, x: _Axis, y: _Axis) -> None:
        left, top, right, bottom = self.box
        ratios = [
            (x.to_ratio(float(a)), y.to_ratio(float(b))) for a, b in zip(series.x, series.y, strict=True)
        ]
        points = [
            (left + a * (right - left), bottom - b * (bottom - top))
            for a, b in ratios
            if a is not None and b is not None
        ]
        if series.style in ("line", "line and points"):
            self._draw_line(points, series.color, 2)
        if series.style == "dashes":
            self._draw_dashes(points, series.color)
        if series.style in ("points", "line and points"):
            for point in points:
                self._draw_dot(point, series.color, 1.7 if series.style == "points" else 3)

    def draw_legend(self, series: Series, left: float, top: float) -> None:
        middle = top + _LEGEND_LINE / 2
        ends = [(left, middle), (left + 22, middle)]
        if series.style == "dashes":
            self._draw_dashes(ends, series.color)
        elif series.style != "points":
            self._draw_line(ends, series.color, 2)
        if series.style in ("points", "line and points"):
            self._draw_dot((left + 11, middle), series.color, 3)
        self._draw_text((left + 28, middle), series.label or "", _LEGEND_SIZE, "lm")

    def _draw_line(self, points: Sequence[tuple[float, float]], color: str, width: float) -> None:
        fine = [(a * _SCALE, b * _SCALE) for a, b in points]
        self.pen.line(fine, fill=color, width=max(1, round(width * _SCALE)), joint="curve")

    def _draw_dashes(self, points: Sequence[tuple[float, float]], color: str) -> None:
        drawn_length = 0.0
        for (a, b), (c, d) in itertools.pairwise(points):
            length = math.dist((a, b), (c, d))
            n = max(1, round(length / 1.5))
            for part in range(n):
                if (drawn_length + part / n * length) % 9 < 5.5:
                    ends = [(a + (c - a) * s / n, b + (d - b) * s / n) for s in (part, part + 1)]
                    self._draw_line(ends, color, 1.8)
            drawn_length += length

    def _draw_dot(self, point: tuple[float, float], color: str, radius: float) -> None:
        a, b = point[0] * _SCALE, point[1] * _SCALE
        r = radius * _SCALE
        self.pen.ellipse((a - r, b - r, a + r, b + r), fill=color)

    def _draw_text(self, at: tuple[float, float], text: str, size: float, anchor: str) -> None:
        font = ImageFont.load_default(size * _SCALE)
        self.pen.text((at[0] * _SCALE, at[1] * _SCALE), text, fill=_TEXT, font=font, anchor=anchor)

    def _draw_vertical_text(self, at: tuple[float, float], text: str, size: float) -> None:
        font = ImageFont.load_default(size * _SCALE)
        box = font.getbbox(text)
        label = Image.new("RGB", (math.ceil(box[2]) + 8, math.ceil(box[3]) + 8), "white")
        ImageDraw.Draw(label).text((4, 4), text, fill=_TEXT, font=font)
        turned = label.rotate(90, expand=True)
        self.image.paste(turned, (round(at[0] * _SCALE), round(at[1] * _SCALE - turned.height / 2)))
