"""A survey of speech as one HTML page that needs no network, no script and nothing beside it."""

from dataclasses import dataclass

from ossicle.data.inspect import Bins, Survey, histogram
from ossicle.html_page import encode_data_uri, encode_wav, load_templates

WIDTH, HEIGHT, BASE = 440, 200, 178
"""Size of a histogram and where its bars stand, in SVG units."""
MAX_BAD = 200
"""Bad rows that the page lists."""
_GAP = 2


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


def facts(found: Survey) -> list[tuple[str, str]]:
    """The numbers that come first, each with what it counts."""
    hours = found.hours
    named = [(f"{found.n_rows:,}", "rows"), (f"{found.n_usable:,}", "usable"), (f"{len(found.bad):,}", "bad")]
    if hours is not None:
        named.append((f"{hours:,.2f}" if hours < 10 else f"{hours:,.0f}", "hours"))
        named.append((f"{float(found.seconds.mean()):.2f} s", "a clip, in the mean"))
    return named


def basis(found: Survey) -> str:
    """What the numbers rest on."""
    if found.is_complete:
        return "Every row was read and decoded."
    if not found.n_decoded:
        return "No sound was read: only transcripts are judged, and hours are not known."
    return (
        f"Transcripts were all looked at where the source holds them, sound in {found.n_decoded:,} of"
        f" {found.n_rows:,} rows: hours are an estimate, and other rows may be bad."
    )


def render(found: Survey, title: str) -> str:
    """The page of a survey."""
    plots = (
        _plot("Seconds of a clip", histogram(found.seconds)),
        _plot("Characters of a transcript", histogram(found.characters)),
    )
    return (
        load_templates("ossicle.data")
        .get_template("inspect.html")
        .render(
            title=title,
            survey=found,
            facts=facts(found),
            basis=basis(found),
            plots=[plot for plot in plots if plot.bars],
            examples=[
                (example, encode_data_uri("audio/wav", encode_wav(example.samples)))
                for example in found.examples
            ],
            width=WIDTH,
            height=HEIGHT,
            base=BASE,
            max_bad=MAX_BAD,
        )
    )


def _plot(title: str, bins: Bins) -> _Plot:
    n, most = len(bins.counts), max(bins.counts, default=1)
    pitch = WIDTH / max(n, 1)
    bars = tuple(
        _Bar(
            x=round(place * pitch + _GAP / 2, 1),
            y=round(BASE - (height := (BASE - 12) * count / most), 1),
            width=round(pitch - _GAP, 1),
            height=round(height, 1),
            title=f"{edge(bins, place)} to {edge(bins, place + 1)}: {count:,}",
        )
        for place, count in enumerate(bins.counts)
    )
    every = max(1, -(-n // 6))
    ticks = tuple(
        _Tick(
            x=round(place * pitch, 1),
            label=edge(bins, place),
            anchor="start" if not place else "end" if place == n else "middle",
        )
        for place in range(0, n + 1, every)
    )
    return _Plot(title=title, bars=bars, ticks=ticks)


def edge(bins: Bins, place: int) -> str:
    """Where a step of a histogram begins."""
    return f"{bins.low + place * bins.step:.10g}"
