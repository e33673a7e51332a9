"""The picture of the comparison: accuracy with intervals, and accuracy against training FLOPs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from components.comparison.ways import Way

COLORS = {"baseline": "#7f8c8d", "prompting": "#d9822b", "finetuning": "#2b6cb0"}
DOTS_PER_INCH = 150


def draw(path: Path, ways: Sequence[Way], chance: float, num_rows: int) -> None:
    """Writes a PNG.

    Args:
        path: the file.
        ways: what is compared, in the order of the bars from the top.
        chance: accuracy of guessing at random.
        num_rows: test texts, for the title.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.5, 0.5 * len(ways) + 2.2), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    bars, points = figure.subplots(1, 2, width_ratios=(1.15, 1))
    places = list(range(len(ways)))[::-1]
    for place, way in zip(places, ways, strict=True):
        accuracy = way.scores.accuracy
        below, above = accuracy.value - accuracy.low, accuracy.high - accuracy.value
        bars.barh(place, 100 * accuracy.value, color=COLORS[way.family], height=0.66)
        bars.errorbar(
            100 * accuracy.value, place, xerr=[[100 * below], [100 * above]], color="black", capsize=3, linewidth=1
        )
        bars.text(
            100 * accuracy.high + 1.5, place, f"{100 * accuracy.value:.1f} %", va="center", ha="left", fontsize=10
        )
    bars.axvline(100 * chance, ymax=0.92, color="black", linestyle=":", linewidth=1)
    bars.text(100 * chance, len(ways) - 0.5, "chance", ha="center", va="bottom", fontsize=8)
    bars.set_yticks(places, [way.title for way in ways], fontsize=10)
    bars.set_ylim(-0.6, len(ways) - 0.1)
    bars.set_xlim(0, 112)
    bars.set_xticks(range(0, 101, 20))
    bars.set_xlabel("test accuracy, % (bars: 95 % interval)")
    bars.set_title(f"Accuracy on {num_rows:,} test texts", fontsize=11)
    _draw_costs(points, ways)
    for axes in (bars, points):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Software": None})


def _draw_costs(points: Any, ways: Sequence[Way]) -> None:
    """Accuracy against FLOPs: the line runs from adaptation alone to adaptation and pretraining."""
    costed = [way for way in ways if way.train_flops > 0]
    least = min((way.adaptation_flops or way.train_flops for way in costed), default=1.0)
    most = max((way.train_flops for way in costed), default=10.0)
    for way in sorted(costed, key=lambda way: way.scores.accuracy.value):
        accuracy = way.scores.accuracy
        value, color = 100 * accuracy.value, COLORS[way.family]
        if way.adaptation_flops and way.pretraining_flops:
            points.plot([way.adaptation_flops, way.train_flops], [value, value], color=color, linewidth=1.5, alpha=0.5)
            points.plot(way.adaptation_flops, value, marker="o", color=color, markerfacecolor="white", markersize=6)
        errors = [[value - 100 * accuracy.low], [100 * accuracy.high - value]]
        points.errorbar(way.train_flops, value, yerr=errors, marker="o", color=color, capsize=3, markersize=7)
        right = way.family == "baseline"  # cheap ways stand at the left, the others at the right
        above = way.adaptation_flops > 0 and way.pretraining_flops > 0  # above its line; all others below
        points.annotate(
            way.title,
            (way.train_flops, value),
            xytext=(9 if right else -9, 7 if above else -15),
            textcoords="offset points",
            ha="left" if right else "right",
            fontsize=9,
            color=color,
        )
    points.set_xscale("log")
    points.set_xlim(least / 10**0.5, most * 10**0.7)
    points.set_ylim(0, 108)
    points.set_yticks(range(0, 101, 20))
    points.set_xlabel("training FLOPs (open: for the task alone; filled: with pretraining)")
    points.set_ylabel("test accuracy, %")
    points.set_title("Accuracy against training cost", fontsize=11)
    points.grid(axis="both", alpha=0.25)
