"""Shares at several levels, or under several conditions, as coordinates for SVG; it knows numbers and no markup.

A share is drawn from 0 to 100 % always: a figure that begins elsewhere makes small differences look large. What is more
than 100 %, as word error rates can be, is drawn at the edge.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ossicle.evaluation.report.training_curves import Tick
from ossicle.evaluation.statistics import METRICS, Metric

WIDTH, HEIGHT = 372.0, 236.0
"""Size of a line figure in SVG units, which are CSS pixels where there is room."""
LEFT, RIGHT, TOP, BOTTOM = 40.0, 116.0, 14.0, 42.0
"""Margins around the lines; the left one holds the shares, the right one the lines' names, the bottom one levels."""
LABEL_GAP = 14.0
"""Least distance between two names at the lines' ends."""
BAR_GAP = 5.0
"""Distance between the error bars of two lines at one level, which would hide each other; less of many lines."""
MARKER_SIZE = 6.0
"""Room that a mark takes to its right."""
LEADER = 10.0
"""How far the line that leads to a name goes into the margin."""

DOT_WIDTH, DOT_LEFT, DOT_RIGHT, DOT_TOP, ROW_MARGIN = 360.0, 132.0, 18.0, 30.0, 18.0
"""A dot figure's width, its margins left (names), right and above (shares), and the room around a condition's dots."""
DOT_BOTTOM = 8.0
DOT_GAP = 10.0
"""Distance between the dots of one condition."""

_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
_CEILING = "ceiling"
_RIGHT_ANSWERS = METRICS["right"]
NARROW_SPACE = "\u202f"


@dataclass(frozen=True, kw_only=True)
class Point:
    """A share with its 95 % interval, at a level or under a condition."""

    x: str
    y: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Line:
    """One of those that answer, at every level."""

    name: str
    color: str
    """The page's name for its colour; ceiling and cascade have marks of their own, ears have another."""
    points: tuple[Point, ...]


@dataclass(frozen=True, kw_only=True)
class Marker:
    """A point as it is drawn; its error bar lies along the figure's axis of shares."""

    x: float
    y: float
    low: float
    high: float
    """Ends of the error bar: heights in a line figure, places from left to right in a dot figure."""


@dataclass(frozen=True, kw_only=True)
class DrawnLine:
    """A line as it is drawn, with its name where it ends."""

    name: str
    color: str
    path: str
    markers: tuple[Marker, ...]
    """None for the ceiling, which has a band: it reads, and hears nothing of what changes from level to level."""
    band: str
    """The outline of the intervals where there are no marks, else nothing."""
    label: str
    label_y: float
    leader: str
    """From the last point to the name."""


@dataclass(frozen=True, kw_only=True)
class LineFigure:
    """How shares change from level to level."""

    title: str
    x_title: str
    description: str
    """All its numbers in words, for those who do not see it."""
    lines: tuple[DrawnLine, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    """The last one has the unit."""
    width: float = WIDTH
    height: float = HEIGHT
    left: float = LEFT
    right: float = WIDTH - RIGHT
    bottom: float = HEIGHT - BOTTOM
    """Edges of what the lines are drawn in."""


@dataclass(frozen=True, kw_only=True)
class DotRow:
    """One condition: a dot for each that answers, from top to bottom."""

    label: str
    label_y: float
    top: float
    """Where the line that parts it from the one above is."""
    dots: tuple[tuple[str, Marker], ...]
    """Colour and dot."""


@dataclass(frozen=True, kw_only=True)
class DotFigure:
    """Shares under conditions that have no order."""

    title: str
    description: str
    """All its numbers in words, for those who do not see it."""
    rows: tuple[DotRow, ...]
    x_ticks: tuple[Tick, ...]
    height: float
    width: float = DOT_WIDTH
    left: float = DOT_LEFT
    right: float = DOT_WIDTH - DOT_RIGHT
    top: float = DOT_TOP
    bottom: float
    """Edges of what the dots are drawn in."""


def build_line_figure(
    title: str, x_title: str, lines: Sequence[Line], metric: Metric = _RIGHT_ANSWERS
) -> LineFigure:
    """The figure of lines that have the same levels, at least one, in the order of the first line."""
    levels = [point.x for point in lines[0].points]
    step = (WIDTH - LEFT - RIGHT) / len(levels)
    middles = {level: LEFT + step * (number + 0.5) for number, level in enumerate(levels)}
    ends = [_height(line.points[-1].y) for line in lines]
    label_ys = separate_labels(ends, gap=LABEL_GAP, low=TOP, high=HEIGHT - BOTTOM)
    gap = min(BAR_GAP, step / (len(lines) + 1))
    drawn = tuple(
        _drawn(line, middles, gap * (number - (len(lines) - 1) / 2), label_y, metric)
        for number, (line, label_y) in enumerate(zip(lines, label_ys, strict=True))
    )
    return LineFigure(
        title=title,
        x_title=x_title,
        description=_described(title, lines, metric),
        lines=drawn,
        x_ticks=tuple(Tick(at=round(at, 1), label=level) for level, at in middles.items()),
        y_ticks=_ticks(_height, metric),
    )


def build_dot_figure(title: str, lines: Sequence[Line], metric: Metric = _RIGHT_ANSWERS) -> DotFigure:
    """The figure of lines whose points are conditions, at least one, in the order of the first line."""
    rows, height = [], ROW_MARGIN + (len(lines) - 1) * DOT_GAP
    for number, point in enumerate(lines[0].points):
        top = DOT_TOP + number * height
        middle = top + height / 2
        dots = [
            (line.color, _dot(line.points[number], middle + (place - (len(lines) - 1) / 2) * DOT_GAP))
            for place, line in enumerate(lines)
        ]
        rows.append(DotRow(label=point.x, label_y=middle + 3.5, top=top, dots=tuple(dots)))
    return DotFigure(
        title=title,
        description=_described(title, lines, metric),
        rows=tuple(rows),
        x_ticks=_ticks(_place, metric),
        height=DOT_TOP + height * len(rows) + DOT_BOTTOM,
        bottom=DOT_TOP + height * len(rows),
    )


def separate_labels(positions: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """The places moved apart to at least `gap`, each as little as its neighbours let it, in their order.

    They stay from low to high as far as there is room; where there is none, the last ones pass high.
    """
    order = sorted(range(len(positions)), key=positions.__getitem__)
    # Without the gaps, keeping the distance is keeping the order: the mean of all that would overtake each other.
    clusters: list[list[float]] = []
    for rank, index in enumerate(order):
        clusters.append([positions[index] - rank * gap])
        while len(clusters) > 1 and _mean(clusters[-2]) > _mean(clusters[-1]):
            clusters[-2:] = [clusters[-2] + clusters[-1]]
    latest = high - (len(positions) - 1) * gap
    flat = [max(low, min(_mean(cluster), latest)) for cluster in clusters for _ in cluster]
    moved = [0.0] * len(positions)
    for rank, index in enumerate(order):
        moved[index] = round(flat[rank] + rank * gap, 1)
    return moved


def _drawn(line: Line, middles: dict[str, float], shift: float, label_y: float, metric: Metric) -> DrawnLine:
    marks, band = _marks(line, middles, shift), ""
    corners = [f"{mark.x} {mark.y}" for mark in marks]
    if line.color == _CEILING:
        corners, band, marks = *_across(line, middles), ()
    start = f"{marks[-1].x + MARKER_SIZE:.1f} {marks[-1].y}" if marks else corners[-1]
    return DrawnLine(
        name=line.name,
        color=line.color,
        path="M" + "L".join(corners),
        markers=marks,
        band=band,
        label=f"{line.name} {_written(metric, line.points[-1].y)}",
        label_y=label_y,
        leader=f"M{start}L{WIDTH - RIGHT + LEADER} {label_y}",
    )


def _marks(line: Line, middles: dict[str, float], shift: float) -> tuple[Marker, ...]:
    return tuple(
        Marker(
            x=round(middles[point.x] + shift, 1),
            y=_height(point.y),
            low=_height(point.low),
            high=_height(point.high),
        )
        for point in line.points
    )


def _across(line: Line, middles: dict[str, float]) -> tuple[list[str], str]:
    """The corners of a line from edge to edge, and the outline of its intervals."""
    points = [line.points[0], *line.points, line.points[-1]]
    xs = [LEFT, *(round(middles[point.x], 1) for point in line.points), WIDTH - RIGHT]
    tops = [f"{x} {_height(point.high)}" for x, point in zip(xs, points, strict=True)]
    bottoms = [f"{x} {_height(point.low)}" for x, point in zip(xs, points, strict=True)]
    middle = [f"{x} {_height(point.y)}" for x, point in zip(xs, points, strict=True)]
    return middle, "M" + "L".join([*tops, *reversed(bottoms)]) + "Z"


def _dot(point: Point, y: float) -> Marker:
    return Marker(x=_place(point.y), y=round(y, 1), low=_place(point.low), high=_place(point.high))


def _ticks(place: Callable[[float], float], metric: Metric) -> tuple[Tick, ...]:
    labels = [f"{100 * share:.0f}" for share in _SHARES[:-1]] + [_written(metric, _SHARES[-1])]
    return tuple(Tick(at=place(share), label=label) for share, label in zip(_SHARES, labels, strict=True))


def _height(share: float) -> float:
    return round(HEIGHT - BOTTOM - min(share, 1.0) * (HEIGHT - TOP - BOTTOM), 1)


def _place(share: float) -> float:
    return round(DOT_LEFT + min(share, 1.0) * (DOT_WIDTH - DOT_LEFT - DOT_RIGHT), 1)


def _written(metric: Metric, share: float, n_digits: int = 0, space: str = NARROW_SPACE) -> str:
    """Such as "93 %", or "25" of what is no share."""
    return f"{100 * share:.{n_digits}f}{space if metric.unit else ''}{metric.unit}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _described(title: str, lines: Sequence[Line], metric: Metric) -> str:
    """Such as "Babble. Ear: clean 93.1 % (91.0 to 94.8), ...; cascade: ..."."""
    said = [
        f"{line.name}: "
        + ", ".join(
            f"{point.x} {_written(metric, point.y, 1, ' ')} ({100 * point.low:.1f} to {100 * point.high:.1f})"
            for point in line.points
        )
        for line in lines
    ]
    return f"{title}. {metric.title}, with 95 % intervals. {'; '.join(said)}."
