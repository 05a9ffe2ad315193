"""The summary of a dataset as one HTML page that needs no network, no script and no other file."""

from dataclasses import dataclass

from ossicle.data.inspect import DatasetSummary, Histogram, compute_histogram
from ossicle.html_page import encode_data_uri, encode_wav, load_templates

WIDTH, HEIGHT, BASE = 440, 200, 178
"""Size of a histogram and height of its baseline, in SVG units."""
MAX_INVALID_SHOWN = 200
"""Invalid rows that the page lists."""
_GAP, _TOP_MARGIN, _N_TICKS = 2, 12, 6


@dataclass(frozen=True, kw_only=True)
class _Bar:
    x: float
    y: float
    width: float
    height: float
    title: str


@dataclass(frozen=True, kw_only=True)
class _Tick:
    x: float
    label: str
    anchor: str


@dataclass(frozen=True, kw_only=True)
class _Plot:
    title: str
    bars: tuple[_Bar, ...]
    ticks: tuple[_Tick, ...]


def list_totals(summary: DatasetSummary) -> list[tuple[str, str]]:
    """Returns the headline numbers, each with its label."""
    totals = [
        (f"{summary.n_rows:,}", "rows"),
        (f"{summary.n_usable:,}", "usable"),
        (f"{len(summary.invalid_rows):,}", "invalid"),
    ]
    if (hours := summary.hours) is not None:
        totals.append((f"{hours:,.2f}" if hours < 10 else f"{hours:,.0f}", "hours"))
        totals.append((f"{float(summary.durations_s.mean()):.2f} s", "mean clip length"))
    return totals


def describe_coverage(summary: DatasetSummary) -> str:
    """Returns a sentence that says how much of the dataset the numbers rest on."""
    if summary.is_complete:
        return "Every row was read and decoded."
    if not summary.n_decoded:
        return "No audio was read: only transcripts were checked, and the hours are not known."
    return (
        f"All transcripts that the source stores were checked, and the audio of {summary.n_decoded:,} of"
        f" {summary.n_rows:,} rows was decoded: the hours are an estimate, and other rows may be invalid."
    )


def render_page(summary: DatasetSummary, title: str) -> str:
    """Returns the page."""
    plots = (
        _build_plot("Duration of a clip (seconds)", compute_histogram(summary.durations_s)),
        _build_plot("Length of a transcript (characters)", compute_histogram(summary.n_characters)),
    )
    players = [encode_data_uri("audio/wav", encode_wav(example.samples)) for example in summary.examples]
    return (
        load_templates("ossicle.data")
        .get_template("inspect.html")
        .render(
            title=title,
            summary=summary,
            totals=list_totals(summary),
            coverage=describe_coverage(summary),
            plots=[plot for plot in plots if plot.bars],
            examples=list(zip(summary.examples, players, strict=True)),
            width=WIDTH,
            height=HEIGHT,
            base=BASE,
            max_invalid_shown=MAX_INVALID_SHOWN,
        )
    )


def _build_plot(title: str, histogram: Histogram) -> _Plot:
    n_bins, max_count = len(histogram.counts), max(histogram.counts, default=1)
    pitch = WIDTH / max(n_bins, 1)
    bars = tuple(
        _Bar(
            x=round(index * pitch + _GAP / 2, 1),
            y=round(BASE - (height := (BASE - _TOP_MARGIN) * count / max_count), 1),
            width=round(pitch - _GAP, 1),
            height=round(height, 1),
            title=f"{format_bin_edge(histogram, index)} to {format_bin_edge(histogram, index + 1)}: {count:,}",
        )
        for index, count in enumerate(histogram.counts)
    )
    bins_per_tick = max(1, -(-n_bins // _N_TICKS))
    ticks = tuple(
        _Tick(
            x=round(index * pitch, 1),
            label=format_bin_edge(histogram, index),
            anchor="start" if not index else "end" if index == n_bins else "middle",
        )
        for index in range(0, n_bins + 1, bins_per_tick)
    )
    return _Plot(title=title, bars=bars, ticks=ticks)


def format_bin_edge(histogram: Histogram, index: int) -> str:
    """Returns the lower edge of a bin."""
    return f"{histogram.low + index * histogram.step:.10g}"
