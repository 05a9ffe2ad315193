"""Plots of the ablations: quality by training FLOPs, and alignment error by slot."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator, ScalarFormatter

from benchmarks.ablations.arms import BASE
from ossicle.evaluation.report.charts import separate_labels

SLOT_ARMS = {
    BASE: "anchored",
    "autoregressive": "autoregressive, sees the words before",
    "query": "query: left-aligned, learned end",
    "diva": "diva: right-aligned, 64 slots",
}
"""The arms whose slots are compared, and their labels."""
_SIDES = ("from the start", "from the end")
_COLORS = ("#1b6ca8", "#8e4f9e", "#d1701f", "#5a8f3c")
_GREY, _LIGHT = "#5f6368", "#c9cdd2"
_LABEL_GAP = 0.042
"""Least distance of two labels as a ratio of the axes' height: one line of text."""


def draw_plots(results: Mapping[str, Any], path: Path) -> tuple[Path, Path]:
    """Writes both plots: to the path, and to one next to it that ends in -slots."""
    slots = path.with_stem(f"{path.stem}-slots")
    path.parent.mkdir(parents=True, exist_ok=True)
    _save(plot_quality(results), path)
    _save(plot_slots(results), slots)
    return path, slots


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=150)


def plot_quality(results: Mapping[str, Any]) -> Figure:
    """Plots right answers by training FLOPs: a point for each arm, with a bar of the spread over seeds.

    Labels are in a column next to the axes, where they cannot overlap, with a line to their point.
    """
    figure = Figure(figsize=(9.6, 6.4))
    axes = figure.add_axes((0.08, 0.1, 0.55, 0.8))
    arms = {name: arm for name, arm in results["arms"].items() if arm["mean"].get("training TFLOP")}
    for name, arm in arms.items():
        deviation = arm["spread"]["ear"]
        axes.errorbar(
            arm["mean"]["training TFLOP"],
            100 * arm["mean"]["ear"],
            yerr=None if deviation is None else 100 * deviation,
            fmt="o",
            markersize=6,
            capsize=2,
            linewidth=1,
            color=_COLORS[0] if name == BASE else _GREY,
            zorder=3,
        )
    axes.set_xscale("log", subs=(2, 3, 4, 5, 7))
    for formatter in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        formatter(ScalarFormatter())
    axes.margins(x=0.1)
    axes.set_ylim(-2, None)
    axes.set_xlabel("training, TFLOP (without the encoder, whose features were cached)")
    axes.set_ylabel("right answers, %")
    axes.set_title(f"The pocket world after {results['n_steps']:,} steps", loc="left", fontsize=11)
    _style(axes)
    _add_labels(axes, arms)
    return figure


def _add_labels(axes: Axes, arms: Mapping[str, Any]) -> None:
    low, high = axes.get_ylim()
    points = {name: (arm["mean"]["training TFLOP"], 100 * arm["mean"]["ear"]) for name, arm in arms.items()}
    points = dict(sorted(points.items(), key=lambda item: (item[1][1], item[1][0])))  # fewer lines cross
    relative = [(y - low) / (high - low) for _, y in points.values()]
    heights = separate_labels(relative, gap=_LABEL_GAP, low=0.0, high=1.0)
    for (name, point), height in zip(points.items(), heights, strict=True):
        axes.annotate(
            f"{name}  {point[1]:.1f} % (n {arms[name]['n']})",
            point,
            (1.05, height),
            textcoords="axes fraction",
            fontsize=8.5,
            verticalalignment="center",
            color=_COLORS[0] if name == BASE else "black",
            arrowprops={
                "arrowstyle": "-",
                "color": _LIGHT,
                "linewidth": 0.7,
                "shrinkB": 3,
                "relpos": (0, 0.5),
            },
            annotation_clip=False,
        )


def plot_slots(results: Mapping[str, Any]) -> Figure:
    """Plots the mean distance of embeddings to their audio tokens by position in the sentence, a line for each arm."""
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, side in zip(panels, _SIDES, strict=True):
        for (name, label), color in zip(SLOT_ARMS.items(), _COLORS, strict=True):
            runs = results["arms"].get(name, {}).get("runs", {}).values()
            errors = average_slots([run["by slot"][side] for run in runs])
            if any(value is not None for value in errors):
                values = [float("nan") if value is None else value for value in errors]
                axes.plot(values, "o-", color=color, markersize=4, label=f"{label} (n {len(runs)})")
        axes.set_xlabel(f"token, counted {side}")
        axes.set_ylim(0, None)
        axes.xaxis.set_major_locator(MultipleLocator(2))
        _style(axes)
    if panels[0].has_data():
        panels[0].legend(frameon=False, fontsize=9)
    panels[0].set_ylabel("L2 of embedding and audio token")
    figure.suptitle(
        f"Alignment by position in the sentence after {results['n_steps']:,} steps",
        fontsize=11,
        x=0.06,
        ha="left",
    )
    return figure


def average_slots(rows: Sequence[Sequence[float | None]]) -> list[float | None]:
    """Returns the mean over seeds at each position that all of them have."""
    return [
        None if not all(value is not None for value in column) else sum(column) / len(column)
        for column in zip(*rows, strict=True)
    ]


def _style(axes: Axes) -> None:
    axes.grid(color=_LIGHT, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
