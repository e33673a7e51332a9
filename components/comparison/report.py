"""comparison.json (the same on every machine) and comparison.md (with what this machine measured)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from components.comparison.verdict import Verdict
from components.comparison.ways import JudgedSplit, Way


def document(test: JudgedSplit, ways: Sequence[Way], verdict: Verdict) -> dict[str, Any]:
    """What comparison.json holds: no seconds."""
    return {
        "num_test_rows": len(test.ids),
        "num_classes": len(test.labels),
        "ways": [
            {
                "name": way.name,
                "title": way.title,
                "family": way.family,
                "detail": way.detail,
                **way.scores.as_metrics(),
                "num_rows": way.scores.num_rows,
                "num_correct": way.scores.num_correct,
                "adaptation_flops": way.adaptation_flops,
                "pretraining_flops": way.pretraining_flops,
                "train_flops": way.train_flops,
                "inference_flops_per_example": way.inference_flops_per_example,
            }
            for way in ways
        ],
        "best": verdict.best,
        "use": verdict.use,
        "verdict": verdict.sentence,
        "notes": list(verdict.notes),
    }


def seconds_document(ways: Sequence[Way]) -> dict[str, dict[str, float | None]]:
    """What measured.json holds: wall time by way."""
    return {
        way.name: {"adaptation_seconds": way.adaptation_seconds, "pretraining_seconds": way.pretraining_seconds}
        for way in ways
    }


def markdown(test: JudgedSplit, ways: Sequence[Way], verdict: Verdict) -> str:
    """comparison.md."""
    lines = [
        "# Which way to classify",
        "",
        f"**{verdict.sentence}**",
        "",
        "| way | accuracy | 95 % interval | macro-F1 | FLOPs: task | FLOPs: pretraining | seconds: task | seconds: "
        "pretraining | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for way in ways:
        accuracy = way.scores.accuracy
        lines.append(
            f"| {way.title} | {100 * accuracy.value:.1f} % | {100 * accuracy.low:.1f} to {100 * accuracy.high:.1f} | "
            f"{100 * way.scores.macro_f1.value:.1f} % | {_flops(way.adaptation_flops)} | "
            f"{_flops(way.pretraining_flops)} | {_seconds(way.adaptation_seconds)} | "
            f"{_seconds(way.pretraining_seconds)} | {way.detail} |"
        )
    lines += [
        "",
        "![accuracy and cost](comparison.png)",
        "",
        *(f"- {note}" for note in verdict.notes),
        "",
        f"{len(test.ids):,} test texts, {len(test.labels)} classes. Intervals are percentile bootstraps over test "
        "texts; differences are paired. FLOPs are by formula, those of TF-IDF about. Task FLOPs and seconds are of the "
        "one chosen fit, without the sweep that found it. Seconds are this machine's.",
        "",
    ]
    return "\n".join(lines)


def _flops(value: float) -> str:
    return f"{value:.2g}" if value else "-"


def _seconds(value: float | None) -> str:
    return "?" if value is None else f"{value:.0f}" if value >= 10 else f"{value:.1f}" if value else "-"
