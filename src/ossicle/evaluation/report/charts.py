"""Ratios at several levels, or under several corruptions, as coordinates for SVG; it knows numbers, not markup.

Ratios are always drawn on an axis from 0 to 100 %: an axis that starts elsewhere makes small differences look large.
Ratios above 100 %, which word error rates can reach, are drawn at the edge.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ossicle.evaluation.report.formatting import NARROW_SPACE
from ossicle.evaluation.report.training_curves import Tick
from ossicle.evaluation.statistics import METRICS, Metric

WIDTH, HEIGHT = 372.0, 236.0
"""Size of a line figure in SVG units, which are CSS pixels if the page is wide enough."""
LEFT, RIGHT, TOP, BOTTOM = 40.0, 116.0, 14.0, 42.0
"""Margins around the lines: the left one holds the ratios, the right one the lines' names, the bottom one the levels."""
LABEL_GAP = 14.0
"""Minimal distance between two names at the lines' ends."""
BAR_GAP = 5.0
"""Distance between the error bars of two lines at one level, so that none hides another; smaller for many lines."""
MARKER_SIZE = 6.0
"""Space that a marker takes to its right."""
LEADER = 10.0
"""Length of the part in the margin of the line that leads to a name."""

DOT_WIDTH, DOT_LEFT, DOT_RIGHT, DOT_TOP, ROW_MARGIN = 360.0, 132.0, 18.0, 30.0, 18.0
"""Width of a dot figure, its margins at the left (names), right and top (ratios), and the space around a row's dots."""
DOT_BOTTOM = 8.0
DOT_GAP = 10.0
"""Distance between the dots of one row."""

_TICK_RATIOS = (0.0, 0.25, 0.5, 0.75, 1.0)
_CEILING = "ceiling"
_DEFAULT_METRIC = METRICS["right"]


@dataclass(frozen=True, kw_only=True)
class Point:
    """A ratio with its 95 % interval, at a level or under a corruption."""

    x: str
    y: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Line:
    """The ratios of one system at every level."""

    name: str
    color: str
    """Name of the color in the page's style; "ceiling" and "cascade" have markers of their own, ears share one."""
    points: tuple[Point, ...]


@dataclass(frozen=True, kw_only=True)
class Marker:
    """A drawn point with its error bar, which is parallel to the figure's axis of ratios."""

    x: float
    y: float
    low: float
    high: float
    """Ends of the error bar: y coordinates in a line figure, x coordinates in a dot figure."""


@dataclass(frozen=True, kw_only=True)
class DrawnLine:
    """A drawn line with its name at its end."""

    name: str
    color: str
    path: str
    markers: tuple[Marker, ...]
    """Empty for the ceiling, which has a band: it reads the text, so it is the same at every level."""
    band: str
    """The outline of the intervals if there are no markers, otherwise empty."""
    label: str
    label_y: float
    leader: str
    """The path from the last point to the name."""


@dataclass(frozen=True, kw_only=True)
class LineFigure:
    """Ratios over ordered levels."""

    title: str
    x_title: str
    description: str
    """All numbers as text, for people who cannot see the figure."""
    lines: tuple[DrawnLine, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    """The last one has the unit."""
    width: float = WIDTH
    height: float = HEIGHT
    left: float = LEFT
    right: float = WIDTH - RIGHT
    bottom: float = HEIGHT - BOTTOM
    """Edges of the area of the lines."""


@dataclass(frozen=True, kw_only=True)
class DotRow:
    """One corruption: a dot for each system, from top to bottom."""

    label: str
    label_y: float
    top: float
    """Position of the line that separates it from the row above."""
    dots: tuple[tuple[str, Marker], ...]
    """Color and dot."""


@dataclass(frozen=True, kw_only=True)
class DotFigure:
    """Ratios under corruptions without an order."""

    title: str
    description: str
    """All numbers as text, for people who cannot see the figure."""
    rows: tuple[DotRow, ...]
    x_ticks: tuple[Tick, ...]
    height: float
    width: float = DOT_WIDTH
    left: float = DOT_LEFT
    right: float = DOT_WIDTH - DOT_RIGHT
    top: float = DOT_TOP
    bottom: float
    """Edges of the area of the dots."""


def build_line_figure(
    title: str, x_title: str, lines: Sequence[Line], metric: Metric = _DEFAULT_METRIC
) -> LineFigure:
    """Returns the figure of at least one line; all lines have the same levels, in the order of the first line."""
    levels = [point.x for point in lines[0].points]
    step = (WIDTH - LEFT - RIGHT) / len(levels)
    centers = {level: LEFT + step * (number + 0.5) for number, level in enumerate(levels)}
    ends = [_ratio_to_y(line.points[-1].y) for line in lines]
    label_ys = [round(y, 1) for y in separate_labels(ends, gap=LABEL_GAP, low=TOP, high=HEIGHT - BOTTOM)]
    gap = min(BAR_GAP, step / (len(lines) + 1))
    drawn = tuple(
        _draw_line(line, centers, gap * (number - (len(lines) - 1) / 2), label_y, metric)
        for number, (line, label_y) in enumerate(zip(lines, label_ys, strict=True))
    )
    return LineFigure(
        title=title,
        x_title=x_title,
        description=_describe(title, lines, metric),
        lines=drawn,
        x_ticks=tuple(Tick(at=round(x, 1), label=level) for level, x in centers.items()),
        y_ticks=_build_ticks(_ratio_to_y, metric),
    )


def build_dot_figure(title: str, lines: Sequence[Line], metric: Metric = _DEFAULT_METRIC) -> DotFigure:
    """Returns the figure of at least one line whose points are corruptions, in the order of the first line."""
    rows, height = [], ROW_MARGIN + (len(lines) - 1) * DOT_GAP
    for number, point in enumerate(lines[0].points):
        top = DOT_TOP + number * height
        center = top + height / 2
        dots = [
            (line.color, _draw_dot(line.points[number], center + (index - (len(lines) - 1) / 2) * DOT_GAP))
            for index, line in enumerate(lines)
        ]
        rows.append(DotRow(label=point.x, label_y=center + 3.5, top=top, dots=tuple(dots)))
    return DotFigure(
        title=title,
        description=_describe(title, lines, metric),
        rows=tuple(rows),
        x_ticks=_build_ticks(_ratio_to_x, metric),
        height=DOT_TOP + height * len(rows) + DOT_BOTTOM,
        bottom=DOT_TOP + height * len(rows),
    )


def separate_labels(positions: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """Returns the positions at least `gap` apart: each is moved as little as possible, and the order is kept.

    Neighbors that are too close form a block, centered at the mean of their positions. If there is too little room from
    low to high, all positions are spread over it evenly.
    """
    order = sorted(range(len(positions)), key=positions.__getitem__)
    if gap * (len(order) - 1) > high - low:
        gap = (high - low) / (len(order) - 1)

    def compute_start(block: Sequence[int]) -> float:
        start = sum(positions[index] - rank * gap for rank, index in enumerate(block)) / len(block)
        return max(low, min(start, high - gap * (len(block) - 1)))

    blocks: list[list[int]] = []
    for index in order:
        blocks.append([index])
        while len(blocks) > 1 and compute_start(blocks[-2]) + gap * len(blocks[-2]) > compute_start(
            blocks[-1]
        ):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    separated = [0.0] * len(positions)
    for block in blocks:
        start = compute_start(block)
        for rank, index in enumerate(block):
            separated[index] = start + rank * gap
    return separated


def _draw_line(
    line: Line, centers: dict[str, float], shift: float, label_y: float, metric: Metric
) -> DrawnLine:
    markers, band = _draw_markers(line, centers, shift), ""
    corners = [f"{marker.x} {marker.y}" for marker in markers]
    if line.color == _CEILING:
        corners, band, markers = *_draw_band(line, centers), ()
    start = f"{markers[-1].x + MARKER_SIZE:.1f} {markers[-1].y}" if markers else corners[-1]
    return DrawnLine(
        name=line.name,
        color=line.color,
        path="M" + "L".join(corners),
        markers=markers,
        band=band,
        label=f"{line.name} {_format_ratio(metric, line.points[-1].y)}",
        label_y=label_y,
        leader=f"M{start}L{WIDTH - RIGHT + LEADER} {label_y}",
    )


def _draw_markers(line: Line, centers: dict[str, float], shift: float) -> tuple[Marker, ...]:
    return tuple(
        Marker(
            x=round(centers[point.x] + shift, 1),
            y=_ratio_to_y(point.y),
            low=_ratio_to_y(point.low),
            high=_ratio_to_y(point.high),
        )
        for point in line.points
    )


def _draw_band(line: Line, centers: dict[str, float]) -> tuple[list[str], str]:
    """Returns the corners of a line from edge to edge, and the outline of its intervals."""
    points = [line.points[0], *line.points, line.points[-1]]
    xs = [LEFT, *(round(centers[point.x], 1) for point in line.points), WIDTH - RIGHT]
    upper = [f"{x} {_ratio_to_y(point.high)}" for x, point in zip(xs, points, strict=True)]
    lower = [f"{x} {_ratio_to_y(point.low)}" for x, point in zip(xs, points, strict=True)]
    corners = [f"{x} {_ratio_to_y(point.y)}" for x, point in zip(xs, points, strict=True)]
    return corners, "M" + "L".join([*upper, *reversed(lower)]) + "Z"


def _draw_dot(point: Point, y: float) -> Marker:
    return Marker(
        x=_ratio_to_x(point.y), y=round(y, 1), low=_ratio_to_x(point.low), high=_ratio_to_x(point.high)
    )


def _build_ticks(ratio_to_coordinate: Callable[[float], float], metric: Metric) -> tuple[Tick, ...]:
    labels = [f"{100 * ratio:.0f}" for ratio in _TICK_RATIOS[:-1]] + [_format_ratio(metric, _TICK_RATIOS[-1])]
    return tuple(
        Tick(at=ratio_to_coordinate(ratio), label=label)
        for ratio, label in zip(_TICK_RATIOS, labels, strict=True)
    )


def _ratio_to_y(ratio: float) -> float:
    return round(HEIGHT - BOTTOM - min(ratio, 1.0) * (HEIGHT - TOP - BOTTOM), 1)


def _ratio_to_x(ratio: float) -> float:
    return round(DOT_LEFT + min(ratio, 1.0) * (DOT_WIDTH - DOT_LEFT - DOT_RIGHT), 1)


def _format_ratio(metric: Metric, ratio: float, n_digits: int = 0, space: str = NARROW_SPACE) -> str:
    """Returns a ratio as "93 %", or as "25" for a metric without a unit."""
    return f"{100 * ratio:.{n_digits}f}{space if metric.unit else ''}{metric.unit}"


def _describe(title: str, lines: Sequence[Line], metric: Metric) -> str:
    """Returns a text such as "Babble. ... Ear: clean 93.1 % (91.0 to 94.8), ...; cascade: ..."."""
    parts = [
        f"{line.name}: "
        + ", ".join(
            f"{point.x} {_format_ratio(metric, point.y, 1, ' ')} ({100 * point.low:.1f} to {100 * point.high:.1f})"
            for point in line.points
        )
        for line in lines
    ]
    return f"{title}. {metric.title}, with 95 % intervals. {'; '.join(parts)}."
