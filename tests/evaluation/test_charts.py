"""The figures and the table of the robustness section show every number in its place, without overlaps."""

import re
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ossicle.evaluation.corruptions import CORRUPTIONS, Corruption
from ossicle.evaluation.report.charts import (
    DOT_RIGHT,
    DOT_WIDTH,
    HEIGHT,
    LABEL_GAP,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    DotFigure,
    Line,
    LineFigure,
    Point,
    build_dot_figure,
    build_line_figure,
    separate_labels,
)
from ossicle.evaluation.report.page import build_environment
from ossicle.evaluation.report.robustness import RobustnessSection, build_robustness_section
from ossicle.evaluation.statistics import METRICS, Estimate, Metric

ROUNDING = 0.05 + 1e-9  # coordinates have one decimal
RATIOS = st.floats(0, 1)


@dataclass(frozen=True, kw_only=True)
class FakeScoreTable:
    """An invented table of the three numbers."""

    n: int
    metric: Metric
    text_ceiling: Estimate
    cascade: Estimate
    ear: Estimate
    difference: Estimate
    wer: float | None


def build_estimate(value: float, width: float = 0.03) -> Estimate:
    return Estimate(value=value, ci95=(max(0.0, value - width), min(1.0, value + width)))


def build_table(ear: float = 0.9, cascade: float = 0.8, wer: float | None = 0.125) -> FakeScoreTable:
    difference = Estimate(value=ear - cascade, ci95=(ear - cascade - 0.02, ear - cascade + 0.02))
    return FakeScoreTable(
        n=828,
        metric=METRICS["right"],
        text_ceiling=build_estimate(0.95),
        cascade=build_estimate(cascade),
        ear=build_estimate(ear),
        difference=difference,
        wer=wer,
    )


def build_line(color: str, *ratios: float) -> Line:
    levels = ("clean", "20", "10", "5", "0")
    return Line(
        name=color.capitalize(),
        color=color,
        points=tuple(
            Point(x=level, y=ratio, low=max(0.0, ratio - 0.1), high=min(1.0, ratio + 0.1))
            for level, ratio in zip(levels, ratios, strict=False)
        ),
    )


def render(section: RobustnessSection) -> str:
    source = (
        '{% from "robustness.html" import robustness, robustness_style %}'
        "<style>{{ robustness_style() }}</style>{{ robustness(section.figures, section.rows) }}"
    )
    return build_environment().from_string(source).render(section=section)


# Coordinates


def test_heights_in_a_line_figure_agree_with_its_axis():
    figure = build_line_figure("Babble", "dB", [build_line("ear", 0.0, 0.25, 0.5, 0.75, 1.0)])
    assert [marker.y for marker in figure.lines[0].markers] == [tick.at for tick in figure.y_ticks]
    assert [tick.label for tick in figure.y_ticks] == ["0", "25", "50", "75", "100\u202f%"]
    assert [marker.x for marker in figure.lines[0].markers] == [tick.at for tick in figure.x_ticks]
    assert [tick.label for tick in figure.x_ticks] == ["clean", "20", "10", "5", "0"]


def test_positions_in_a_dot_figure_agree_with_its_axis():
    figure = build_dot_figure("Rest", [build_line("ear", 0.0, 0.25, 0.5, 0.75, 1.0)])
    assert [row.dots[0][1].x for row in figure.rows] == [tick.at for tick in figure.x_ticks]


def test_metrics_without_a_unit_and_above_one_are_drawn():
    bleu, wer = (METRICS[name] for name in ("bleu", "wer"))
    figure = build_line_figure("Babble", "dB", [build_line("ear", 0.25, 0.2)], bleu)
    assert figure.lines[0].label == "Ear 20"
    assert figure.y_ticks[-1].label == "100"
    assert figure.description.startswith("Babble. BLEU, with 95 % intervals. Ear: clean 25.0 (15.0 to 35.0)")
    beyond = build_line_figure("Babble", "dB", [build_line("ear", 0.9, 1.7)], wer)
    assert beyond.lines[0].label == "Ear 170\u202f%"
    assert beyond.lines[0].markers[1].y == TOP, "a word error rate above 100 % is drawn at the edge"
    assert (
        build_dot_figure("Rest", [build_line("ear", 1.7)], wer).rows[0].dots[0][1].x == DOT_WIDTH - DOT_RIGHT
    )


def test_a_metric_from_0_to_100_is_scaled_to_the_figure():
    found = build_table(24.7, 20.1)
    table = replace(found, metric=METRICS["bleu"], text_ceiling=Estimate(value=30.2, ci95=(29.0, 31.0)))
    noisy = Corruption(kind="babble", level=5.0)
    section = build_robustness_section([(CORRUPTIONS[0], table), (noisy, table)])
    (figure,) = section.figures
    assert isinstance(figure, LineFigure)
    labels = [drawn.label for drawn in figure.lines]
    assert labels == ["Text 30", "Cascade 20", "Ear 25"]


@given(st.lists(st.tuples(RATIOS, RATIOS, RATIOS), min_size=1, max_size=5))
def test_everything_is_inside_the_figure_and_error_bars_include_their_markers(ratios):
    lines = [
        build_line(color, *column)
        for color, column in zip(("ceiling", "cascade", "ear"), zip(*ratios, strict=True), strict=True)
    ]
    figure = build_line_figure("Babble", "dB", lines)
    assert not figure.lines[0].markers
    for drawn in figure.lines:
        assert TOP <= drawn.label_y <= HEIGHT
        for marker in drawn.markers:
            assert LEFT < marker.x < WIDTH - RIGHT
            assert TOP <= marker.high <= marker.y <= marker.low <= HEIGHT  # heights are counted downwards
    dots = build_dot_figure("Rest", lines)
    for row in dots.rows:
        heights = [marker.y for _, marker in row.dots]
        assert heights == sorted(set(heights))
        assert all(
            dots.left <= marker.low <= marker.x <= marker.high <= dots.right
            and row.top < marker.y < dots.bottom
            for _, marker in row.dots
        )


@given(st.tuples(RATIOS, RATIOS, RATIOS))
def test_labels_never_overlap_and_keep_the_order_of_the_lines(ratios):
    lines = [
        build_line(color, ratio) for color, ratio in zip(("ceiling", "cascade", "ear"), ratios, strict=True)
    ]
    label_ys = [drawn.label_y for drawn in build_line_figure("Babble", "dB", lines).lines]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert abs(label_ys[first] - label_ys[second]) >= LABEL_GAP - 2 * ROUNDING
        if ratios[first] - ratios[second] > 0.01:
            assert label_ys[first] < label_ys[second]


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        ([10.0, 50.0, 90.0], [10.0, 50.0, 90.0]),
        ([50.0, 50.0], [45.0, 55.0]),
        ([50.0, 52.0, 54.0], [42.0, 52.0, 62.0]),
        ([99.0, 98.0], [100.0, 90.0]),
        ([0.0, 0.0, 90.0], [0.0, 10.0, 90.0]),
        ([50.0, 50.0, 56.0], [42.0, 52.0, 62.0]),
    ],
)
def test_labels_are_moved_as_little_as_possible(positions, expected):
    assert separate_labels(positions, gap=10.0, low=0.0, high=100.0) == expected


@settings(max_examples=40)
@given(st.lists(st.floats(0, 1), max_size=40), st.floats(0.001, 0.2))
def test_separated_labels_keep_their_distance_and_order(positions: list[float], gap: float) -> None:
    separated = separate_labels(positions, gap=gap, low=0.0, high=1.0)
    room = min(gap, 1.0 / max(1, len(positions) - 1))
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    ordered = [separated[index] for index in order]
    assert all(b - a >= room * (1 - 1e-6) for a, b in pairwise(ordered))
    assert all(-1e-9 <= position <= 1 + 1e-9 for position in separated)


def test_labels_that_do_not_overlap_are_unchanged() -> None:
    assert separate_labels([0.9, 0.1, 0.5], gap=0.1, low=0.0, high=1.0) == [0.9, 0.1, 0.5]
    assert separate_labels([0.5, 0.5], gap=0.1, low=0.0, high=1.0) == pytest.approx([0.45, 0.55])


def test_the_description_has_all_numbers():
    figure = build_line_figure(
        "Babble", "dB", [build_line("cascade", 0.8, 0.5), build_line("ear", 0.9, 0.625)]
    )
    assert figure.description == (
        "Babble. Right answers, with 95 % intervals. Cascade: clean 80.0 % (70.0 to 90.0), 20 50.0 % (40.0 to 60.0);"
        " Ear: clean 90.0 % (80.0 to 100.0), 20 62.5 % (52.5 to 72.5)."
    )


# The section


def test_each_kind_with_levels_has_its_own_figure():
    section = build_robustness_section([(corruption, build_table()) for corruption in CORRUPTIONS])
    assert [figure.title for figure in section.figures] == [
        "Babble",
        "White noise",
        "Speed",
        "Telephone and silence",
    ]
    babble, _, speed, rest = section.figures
    assert isinstance(babble, LineFigure)
    assert isinstance(speed, LineFigure)
    assert isinstance(rest, DotFigure)
    assert [tick.label for tick in babble.x_ticks] == ["clean", "20", "10", "5", "0"]
    assert [tick.label for tick in speed.x_ticks] == ["0.8", "0.9", "clean", "1.1", "1.2", "1.3"]
    assert [row.label for row in rest.rows] == [
        "clean",
        "telephone",
        "silence before, 1 s",
        "silence after, 1 s",
        "silence around, 1 s",
    ]
    assert [name for name, _ in section.rows] == [corruption.name for corruption in CORRUPTIONS]


def test_levels_are_sorted():
    section = build_robustness_section([(corruption, build_table()) for corruption in reversed(CORRUPTIONS)])
    babble, _, speed, _ = section.figures
    assert isinstance(babble, LineFigure)
    assert isinstance(speed, LineFigure)
    assert [tick.label for tick in babble.x_ticks] == ["clean", "20", "10", "5", "0"]
    assert [tick.label for tick in speed.x_ticks] == ["0.8", "0.9", "clean", "1.1", "1.2", "1.3"]


@pytest.mark.parametrize(
    ("corruptions", "titles"),
    [
        ([Corruption(kind="babble", level=0.0)], ["Babble"]),
        ([Corruption(kind="clean"), Corruption(kind="telephone")], ["Telephone"]),
        ([Corruption(kind="clean")], []),
        ([], []),
    ],
)
def test_a_section_shows_only_measured_corruptions(corruptions, titles):
    section = build_robustness_section([(corruption, build_table()) for corruption in corruptions])
    assert [figure.title for figure in section.figures] == titles
    assert render(section).count("<figure") == len(titles)


def test_every_line_has_its_own_numbers():
    noisy = Corruption(kind="white noise", level=0.0)
    section = build_robustness_section(
        [(CORRUPTIONS[0], build_table(0.9, 0.8)), (noisy, build_table(0.6, 0.3))]
    )
    description = section.figures[0].description
    assert "Text: clean 95.0 % (92.0 to 98.0), 0 95.0 % (92.0 to 98.0)" in description
    assert "Cascade: clean 80.0 % (77.0 to 83.0), 0 30.0 % (27.0 to 33.0)" in description
    assert "Ear: clean 90.0 % (87.0 to 93.0), 0 60.0 % (57.0 to 63.0)" in description


# The markup


class TableParser(HTMLParser):
    """Collects the cells of all table rows."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.is_in_cell = False

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.is_in_cell = True
        if tag == "small":
            self.rows[-1][-1] += " "

    def handle_endtag(self, tag):
        self.is_in_cell = self.is_in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self.is_in_cell:
            self.rows[-1][-1] += data


def test_the_table_has_a_row_for_every_corruption():
    noisy = Corruption(kind="babble", level=10.0)
    reader = TableParser()
    reader.feed(
        render(
            build_robustness_section(
                [(CORRUPTIONS[0], build_table(wer=None)), (noisy, build_table(0.625, 0.7, 0.3125))]
            )
        )
    )
    head, clean, babble = reader.rows
    assert head[0] == "Corruption"
    assert clean[0] == "clean"
    assert clean[-1] == "–"
    assert babble == [
        "babble, 10 dB",
        "828",
        "95.0\u202f% 92.0–98.0",
        "70.0\u202f% 67.0–73.0",
        "62.5\u202f% 59.5–65.5",
        "−7.5 −9.5 to −5.5",
        "31.2\u202f%",
    ]


def test_figures_are_images_with_a_description_and_valid_coordinates():
    markup = render(build_robustness_section([(corruption, build_table()) for corruption in CORRUPTIONS]))
    images = [ElementTree.fromstring(image) for image in re.findall(r"<svg.*?</svg>", markup, re.DOTALL)]
    figures = [image for image in images if image.get("role") == "img"]
    assert len(figures) == 4
    for figure in figures:
        assert "95 % intervals. Text: " in figure.get("aria-label", "")
        for path in figure.iter("path"):
            assert re.fullmatch(r"([MLHVZmlhv]|-?\d+(\.\d+)?| )+", path.get("d", ""))
    n_markers = [len([*figure.iter("rect")]) for figure in figures]
    assert n_markers == [5, 5, 6, 5]  # a square of the cascade for each level
    assert [len([*figure.iter("circle")]) for figure in figures] == n_markers
    assert not re.search(r"nan|None|undefined", markup)


def test_names_are_escaped():
    section = build_robustness_section([(Corruption(kind="telephone"), build_table())])
    markup = render(RobustnessSection(figures=section.figures, rows=(("<b>&", build_table()),)))
    assert "&lt;b&gt;&amp;" in markup
    assert "<b>&" not in markup
