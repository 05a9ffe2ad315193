"""The figures and the table of a robustness section: every number where it belongs, nothing over anything else."""

import re
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from hypothesis import given
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
SHARES = st.floats(0, 1)


@dataclass(frozen=True, kw_only=True)
class Invented:
    """What a condition's table may look like."""

    n: int
    metric: Metric
    text_ceiling: Estimate
    cascade: Estimate
    ear: Estimate
    difference: Estimate
    wer: float | None


def score(value: float, width: float = 0.03) -> Estimate:
    return Estimate(value=value, ci95=(max(0.0, value - width), min(1.0, value + width)))


def invented(ear: float = 0.9, cascade: float = 0.8, wer: float | None = 0.125) -> Invented:
    difference = Estimate(value=ear - cascade, ci95=(ear - cascade - 0.02, ear - cascade + 0.02))
    return Invented(
        n=828,
        metric=METRICS["right"],
        text_ceiling=score(0.95),
        cascade=score(cascade),
        ear=score(ear),
        difference=difference,
        wer=wer,
    )


def line(colour: str, *shares: float) -> Line:
    levels = ("clean", "20", "10", "5", "0")
    return Line(
        name=colour.capitalize(),
        color=colour,
        points=tuple(
            Point(x=level, y=share, low=max(0.0, share - 0.1), high=min(1.0, share + 0.1))
            for level, share in zip(levels, shares, strict=False)
        ),
    )


def rendered(section: RobustnessSection) -> str:
    source = (
        '{% from "robustness.html" import robustness, robustness_style %}'
        "<style>{{ robustness_style() }}</style>{{ robustness(section.figures, section.rows) }}"
    )
    return build_environment().from_string(source).render(section=section)


# Coordinates


def test_a_share_is_as_high_as_the_axis_says():
    figure = build_line_figure("Babble", "dB", [line("ear", 0.0, 0.25, 0.5, 0.75, 1.0)])
    assert [mark.y for mark in figure.lines[0].markers] == [tick.at for tick in figure.y_ticks]
    assert [tick.label for tick in figure.y_ticks] == ["0", "25", "50", "75", "100\u202f%"]
    assert [mark.x for mark in figure.lines[0].markers] == [tick.at for tick in figure.x_ticks]
    assert [tick.label for tick in figure.x_ticks] == ["clean", "20", "10", "5", "0"]


def test_a_share_is_as_far_right_as_the_axis_of_a_dot_figure_says():
    figure = build_dot_figure("Rest", [line("ear", 0.0, 0.25, 0.5, 0.75, 1.0)])
    assert [row.dots[0][1].x for row in figure.rows] == [tick.at for tick in figure.x_ticks]


def test_what_is_no_share_is_drawn_and_written_as_what_it_is():
    bleu, wer = (METRICS[name] for name in ("bleu", "wer"))
    figure = build_line_figure("Babble", "dB", [line("ear", 0.25, 0.2)], bleu)
    assert figure.lines[0].label == "Ear 20"
    assert figure.y_ticks[-1].label == "100"
    assert figure.description.startswith("Babble. BLEU, with 95 % intervals. Ear: clean 25.0 (15.0 to 35.0)")
    beyond = build_line_figure("Babble", "dB", [line("ear", 0.9, 1.7)], wer)
    assert beyond.lines[0].label == "Ear 170\u202f%"
    assert beyond.lines[0].markers[1].y == TOP, "word error rates have no end, the figure has"
    assert build_dot_figure("Rest", [line("ear", 1.7)], wer).rows[0].dots[0][1].x == DOT_WIDTH - DOT_RIGHT


def test_a_metric_that_is_no_share_is_scaled_to_the_figure():
    found = invented(24.7, 20.1)
    table = replace(found, metric=METRICS["bleu"], text_ceiling=Estimate(value=30.2, ci95=(29.0, 31.0)))
    noisy = Corruption(kind="babble", level=5.0)
    section = build_robustness_section([(CORRUPTIONS[0], table), (noisy, table)])
    (figure,) = section.figures
    assert isinstance(figure, LineFigure)
    labels = [drawn.label for drawn in figure.lines]
    assert labels == ["Text 30", "Cascade 20", "Ear 25"]


@given(st.lists(st.tuples(SHARES, SHARES, SHARES), min_size=1, max_size=5))
def test_everything_lies_within_the_figure_and_error_bars_around_their_marks(shares):
    lines = [
        line(colour, *column)
        for colour, column in zip(("ceiling", "cascade", "ear"), zip(*shares, strict=True), strict=True)
    ]
    figure = build_line_figure("Babble", "dB", lines)
    assert not figure.lines[0].markers
    for drawn in figure.lines:
        assert TOP <= drawn.label_y <= HEIGHT
        for mark in drawn.markers:
            assert LEFT < mark.x < WIDTH - RIGHT
            assert TOP <= mark.high <= mark.y <= mark.low <= HEIGHT  # heights are counted downwards
    dots = build_dot_figure("Rest", lines)
    for row in dots.rows:
        heights = [mark.y for _, mark in row.dots]
        assert heights == sorted(set(heights))
        assert all(
            dots.left <= mark.low <= mark.x <= mark.high <= dots.right and row.top < mark.y < dots.bottom
            for _, mark in row.dots
        )


@given(st.tuples(SHARES, SHARES, SHARES))
def test_names_at_the_lines_ends_never_overlap_and_keep_the_order_of_the_lines(shares):
    lines = [line(colour, share) for colour, share in zip(("ceiling", "cascade", "ear"), shares, strict=True)]
    label_ys = [drawn.label_y for drawn in build_line_figure("Babble", "dB", lines).lines]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert abs(label_ys[first] - label_ys[second]) >= LABEL_GAP - 2 * ROUNDING
        if shares[first] - shares[second] > 0.01:
            assert label_ys[first] < label_ys[second]


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([10.0, 50.0, 90.0], [10.0, 50.0, 90.0]),
        ([50.0, 50.0], [45.0, 55.0]),
        ([50.0, 52.0, 54.0], [42.0, 52.0, 62.0]),
        ([99.0, 98.0], [100.0, 90.0]),
        ([0.0, 0.0, 90.0], [0.0, 10.0, 90.0]),
        ([50.0, 50.0, 56.0], [42.0, 52.0, 62.0]),
    ],
)
def test_places_are_moved_apart_as_little_as_can_be(places, expected):
    assert separate_labels(places, gap=10.0, low=0.0, high=100.0) == expected


def test_a_reader_who_does_not_see_the_figure_is_told_its_numbers():
    figure = build_line_figure("Babble", "dB", [line("cascade", 0.8, 0.5), line("ear", 0.9, 0.625)])
    assert figure.description == (
        "Babble. Right answers, with 95 % intervals. Cascade: clean 80.0 % (70.0 to 90.0), 20 50.0 % (40.0 to 60.0);"
        " Ear: clean 90.0 % (80.0 to 100.0), 20 62.5 % (52.5 to 72.5)."
    )


# The section


def test_there_is_a_figure_for_every_kind_with_levels_and_one_for_the_rest():
    section = build_robustness_section([(condition, invented()) for condition in CORRUPTIONS])
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
    assert [name for name, _ in section.rows] == [condition.name for condition in CORRUPTIONS]


def test_levels_are_in_order_whatever_order_they_were_measured_in():
    section = build_robustness_section([(condition, invented()) for condition in reversed(CORRUPTIONS)])
    babble, _, speed, _ = section.figures
    assert isinstance(babble, LineFigure)
    assert isinstance(speed, LineFigure)
    assert [tick.label for tick in babble.x_ticks] == ["clean", "20", "10", "5", "0"]
    assert [tick.label for tick in speed.x_ticks] == ["0.8", "0.9", "clean", "1.1", "1.2", "1.3"]


@pytest.mark.parametrize(
    ("conditions", "titles"),
    [
        ([Corruption(kind="babble", level=0.0)], ["Babble"]),
        ([Corruption(kind="clean"), Corruption(kind="telephone")], ["Telephone"]),
        ([Corruption(kind="clean")], []),
        ([], []),
    ],
)
def test_a_section_shows_what_was_measured_and_no_more(conditions, titles):
    section = build_robustness_section([(condition, invented()) for condition in conditions])
    assert [figure.title for figure in section.figures] == titles
    assert rendered(section).count("<figure") == len(titles)


def test_every_line_has_the_numbers_of_its_own():
    noisy = Corruption(kind="white noise", level=0.0)
    section = build_robustness_section([(CORRUPTIONS[0], invented(0.9, 0.8)), (noisy, invented(0.6, 0.3))])
    description = section.figures[0].description
    assert "Text: clean 95.0 % (92.0 to 98.0), 0 95.0 % (92.0 to 98.0)" in description
    assert "Cascade: clean 80.0 % (77.0 to 83.0), 0 30.0 % (27.0 to 33.0)" in description
    assert "Ear: clean 90.0 % (87.0 to 93.0), 0 60.0 % (57.0 to 63.0)" in description


# The markup


class Cells(HTMLParser):
    """The rows of all tables, cell by cell."""

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


def test_the_table_has_a_row_for_every_condition_with_its_numbers():
    noisy = Corruption(kind="babble", level=10.0)
    reader = Cells()
    reader.feed(
        rendered(
            build_robustness_section(
                [(CORRUPTIONS[0], invented(wer=None)), (noisy, invented(0.625, 0.7, 0.3125))]
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


def test_figures_are_images_with_a_description_and_coordinates_that_a_browser_can_draw():
    markup = rendered(build_robustness_section([(condition, invented()) for condition in CORRUPTIONS]))
    images = [ElementTree.fromstring(image) for image in re.findall(r"<svg.*?</svg>", markup, re.DOTALL)]
    figures = [image for image in images if image.get("role") == "img"]
    assert len(figures) == 4
    for figure in figures:
        assert "95 % intervals. Text: " in figure.get("aria-label", "")
        for path in figure.iter("path"):
            assert re.fullmatch(r"([MLHVZmlhv]|-?\d+(\.\d+)?| )+", path.get("d", ""))
    marks = [len([*figure.iter("rect")]) for figure in figures]
    assert marks == [5, 5, 6, 5]  # a square of the cascade for each level
    assert [len([*figure.iter("circle")]) for figure in figures] == marks
    assert not re.search(r"nan|None|undefined", markup)


def test_what_a_name_says_is_never_markup():
    section = build_robustness_section([(Corruption(kind="telephone"), invented())])
    markup = rendered(RobustnessSection(figures=section.figures, rows=(("<b>&", invented()),)))
    assert "&lt;b&gt;&amp;" in markup
    assert "<b>&" not in markup
