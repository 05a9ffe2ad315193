"""Plots as PNG, drawn with Pillow, and tables, as a notebook shows them; it knows numbers and no experiments."""

import io
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from IPython.display import Image as Shown
from IPython.display import Markdown
from PIL import Image, ImageDraw, ImageFont

BLUE, ORANGE, GREEN, PURPLE, SKY, BLACK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#222222"
"""Colours that people with any kind of colour vision can tell apart. Source: Okabe and Ito, "Color Universal Design"."""
_GRID, _TEXT = "#DDDDDD", "#333333"
_FINE = 4
"""Pixels drawn to a unit of width or height; half of them are kept, so that edges are smooth."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 16, 30, 44
_LEGEND_LINE, _LEGEND_SIZE, _LEGEND_GAP = 19, 11.5, 50


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points that belong together; their order is that of the line through them."""

    x: Sequence[float]
    y: Sequence[float]
    label: str | None = None
    """In the legend; none keeps it out."""
    color: str = BLUE
    style: Literal["line", "dashes", "points", "line and points"] = "line"


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes; points outside of given ranges, and what a logarithm cannot show, are left out."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    log_x: bool = False
    log_y: bool = False
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None


def draw_figure(panels: Sequence[Panel], *, width: int = 380, height: int = 300, n_columns: int = 2) -> Shown:
    """Panels side by side, as a notebook shows them, with one legend below them all.

    Args:
        width: of a panel, in CSS pixels
        height: of a panel
    """
    n_columns = min(n_columns, len(panels))
    n_rows = math.ceil(len(panels) / n_columns)
    whole_width = n_columns * width
    legend = list({one.label: one for panel in panels for one in panel.series if one.label}.values())
    places, legend_height = _flow([one.label or "" for one in legend], whole_width)
    whole_height = n_rows * height + legend_height
    image = Image.new("RGB", (whole_width * _FINE, whole_height * _FINE), "white")
    for number, panel in enumerate(panels):
        row, column = divmod(number, n_columns)
        _Canvas(image, column * width, row * height, width, height).draw(panel)
    below = _Canvas(image, 0, n_rows * height, whole_width, legend_height)
    for one, (left, top) in zip(legend, places, strict=True):
        below.legend(one, left, n_rows * height + top)
    kept = image.reduce(2).quantize(96)
    file = io.BytesIO()
    kept.save(file, "PNG", optimize=True)
    return Shown(file.getvalue(), width=whole_width)


def _flow(labels: Sequence[str], width: int) -> tuple[list[tuple[float, float]], int]:
    """Where each label of a legend stands, line after line, and how high they are together."""
    font = ImageFont.load_default(_LEGEND_SIZE)
    places, left, top = [], float(_LEFT), 0.0
    for label in labels:
        needed = font.getlength(label) + _LEGEND_GAP
        if left > _LEFT and left + needed > width:
            left, top = float(_LEFT), top + _LEGEND_LINE
        places.append((left, top))
        left += needed
    return places, math.ceil(top) + _LEGEND_LINE + 6


def format_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> Markdown:
    """Rows below a header; the first column to the left, numbers to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return Markdown("\n".join(f"| {' | '.join(map(str, line))} |" for line in lines))


@dataclass(frozen=True)
class _Axis:
    """Values to shares of an axis."""

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

    def share(self, value: float) -> float | None:
        if not math.isfinite(value) or (self.is_log and value <= 0):
            return None
        low, high, at = (
            (math.log(v) for v in (self.low, self.high, value))
            if self.is_log
            else (self.low, self.high, value)
        )
        share = (at - low) / (high - low)
        return share if -1e-9 <= share <= 1 + 1e-9 else None


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
    """A part of an image that one panel is drawn on."""

    def __init__(self, image: Image.Image, left: int, top: int, width: int, height: int) -> None:
        self.image, self.pen = image, ImageDraw.Draw(image)
        self.box = (left + _LEFT, top + _TOP, left + width - _RIGHT, top + height - _BOTTOM)
        self.left, self.top = left, top

    def draw(self, panel: Panel) -> None:
        x = _Axis.over([v for one in panel.series for v in one.x], panel.log_x, panel.x_range)
        y = _Axis.over([v for one in panel.series for v in one.y], panel.log_y, panel.y_range)
        self._frame(panel, x, y)
        for one in panel.series:
            self._series(one, x, y)

    def _frame(self, panel: Panel, x: _Axis, y: _Axis) -> None:
        left, top, right, bottom = self.box
        for tick in x.ticks:
            at = left + (x.share(tick) or 0) * (right - left)
            self._line([(at, top), (at, bottom)], _GRID, 0.7)
            self._text((at, bottom + 4), _label(tick), 11, "mt")
        for tick in y.ticks:
            at = bottom - (y.share(tick) or 0) * (bottom - top)
            self._line([(left, at), (right, at)], _GRID, 0.7)
            self._text((left - 5, at), _label(tick), 11, "rm")
        self._line([(left, top), (left, bottom), (right, bottom)], _TEXT, 1)
        self._text((left, self.top + 8), panel.title, 13.5, "lt")
        self._text(((left + right) / 2, bottom + 22), panel.x_label, 12, "mt")
        self._upright((self.left + 4, (top + bottom) / 2), panel.y_label, 12)

    def _series(self, one: Series, x: _Axis, y: _Axis) -> None:
        left, top, right, bottom = self.box
        shares = [(x.share(float(a)), y.share(float(b))) for a, b in zip(one.x, one.y, strict=True)]
        spots = [
            (left + a * (right - left), bottom - b * (bottom - top))
            for a, b in shares
            if a is not None and b is not None
        ]
        if one.style in ("line", "line and points"):
            self._line(spots, one.color, 2)
        if one.style == "dashes":
            self._dashes(spots, one.color)
        if one.style in ("points", "line and points"):
            for spot in spots:
                self._dot(spot, one.color, 1.7 if one.style == "points" else 3)

    def legend(self, one: Series, left: float, top: float) -> None:
        middle = top + _LEGEND_LINE / 2
        ends = [(left, middle), (left + 22, middle)]
        if one.style == "dashes":
            self._dashes(ends, one.color)
        elif one.style != "points":
            self._line(ends, one.color, 2)
        if one.style in ("points", "line and points"):
            self._dot((left + 11, middle), one.color, 3)
        self._text((left + 28, middle), one.label or "", _LEGEND_SIZE, "lm")

    def _line(self, spots: Sequence[tuple[float, float]], color: str, width: float) -> None:
        fine = [(a * _FINE, b * _FINE) for a, b in spots]
        self.pen.line(fine, fill=color, width=max(1, round(width * _FINE)), joint="curve")

    def _dashes(self, spots: Sequence[tuple[float, float]], color: str) -> None:
        gone = 0.0
        for (a, b), (c, d) in itertools.pairwise(spots):
            length = math.dist((a, b), (c, d))
            n = max(1, round(length / 1.5))
            for part in range(n):
                if (gone + part / n * length) % 9 < 5.5:
                    ends = [(a + (c - a) * s / n, b + (d - b) * s / n) for s in (part, part + 1)]
                    self._line(ends, color, 1.8)
            gone += length

    def _dot(self, spot: tuple[float, float], color: str, radius: float) -> None:
        a, b = spot[0] * _FINE, spot[1] * _FINE
        r = radius * _FINE
        self.pen.ellipse((a - r, b - r, a + r, b + r), fill=color)

    def _text(self, at: tuple[float, float], text: str, size: float, anchor: str) -> None:
        font = ImageFont.load_default(size * _FINE)
        self.pen.text((at[0] * _FINE, at[1] * _FINE), text, fill=_TEXT, font=font, anchor=anchor)

    def _upright(self, at: tuple[float, float], text: str, size: float) -> None:
        font = ImageFont.load_default(size * _FINE)
        box = font.getbbox(text)
        label = Image.new("RGB", (math.ceil(box[2]) + 8, math.ceil(box[3]) + 8), "white")
        ImageDraw.Draw(label).text((4, 4), text, fill=_TEXT, font=font)
        turned = label.rotate(90, expand=True)
        self.image.paste(turned, (round(at[0] * _FINE), round(at[1] * _FINE - turned.height / 2)))
