"""The sentence that says which way to use: made from the numbers, by one rule.

The most accurate way wins, unless a way with fewer training FLOPs is not worse as far as this test split can tell: the
95 % interval of the paired difference reaches 0. Of those the cheapest wins. Seconds play no part, so that the verdict
is the same on any machine. The rule takes labels as given: it does not price the labelling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from components.comparison.ways import JudgedSplit, Way
from components.finetuning.metrics import Interval


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What to use and why."""

    best: str
    use: str
    sentence: str
    notes: tuple[str, ...]


def decide(test: JudgedSplit, ways: Sequence[Way]) -> Verdict:
    """The verdict over `ways`, of which one is named `majority`."""
    best = max(ways, key=lambda way: (way.scores.accuracy.value, -way.train_flops))
    cheaper = [way for way in ways if way.train_flops < best.train_flops]
    equals = sorted((w for w in cheaper if test.difference(best, w).low <= 0), key=lambda way: way.train_flops)
    use = equals[0] if equals else best
    rival = best if use is not best else max((w for w in ways if w is not best), key=lambda w: w.scores.accuracy.value)
    gap = points(test.difference(use, rival))
    if use is not best:
        why = (
            f"it takes {ratio(best, use)} than {best.title} ({percent(best)}) to train and is not worse as far as "
            f"{use.scores.num_rows:,} test texts can tell ({gap})"
        )
    else:
        dear, cheap = (rival, use) if rival.train_flops >= use.train_flops else (use, rival)
        who = "it" if cheap is use else "the latter"
        why = (
            f"{gap} against the next best, {rival.title} ({percent(rival)}); {who} takes {ratio(dear, cheap)} to train"
        )
    return Verdict(
        best=best.name,
        use=use.name,
        sentence=f"Use {use.title}: {percent(use, interval=True)} of the test texts right; {why}.",
        notes=tuple(_notes(test, ways)),
    )


def _notes(test: JudgedSplit, ways: Sequence[Way]) -> list[str]:
    """What a reader should not overlook."""
    by_name = {way.name: way for way in ways}
    majority = by_name["majority"]
    notes = []
    for way in ways:
        if way is majority:
            continue
        gain = test.difference(way, majority)
        if gain.low <= 0:
            verb = "is worse than" if gain.high < 0 else "is not better than"
            notes.append(
                f"{way.title.capitalize()} {verb} always naming the majority class ({points(gain)}; guessing at "
                f"random gives {100 / len(test.labels):.1f} %): it does not do this task."
            )
    pairs = (
        ("finetuning_pretrained", "finetuning_scratch", "Pretraining brings fine-tuning"),
        ("prompting_tuned", "prompting_base", "Tuning on rendered prompts brings prompting"),
        ("finetuning_pretrained", "prompting_tuned", "With all labels, fine-tuning against tuned prompting is"),
        ("finetuning_pretrained", "tfidf", "Fine-tuning the pretrained encoder against TF-IDF is"),
    )
    for first, second, text in pairs:
        if first in by_name and second in by_name:
            gap = test.difference(by_name[first], by_name[second])
            unclear = "; that may be chance" if gap.low <= 0 <= gap.high else ""
            notes.append(f"{text} {points(gap)}{unclear}.")
    partial = sorted({way.scores.num_rows for way in ways if way.scores.num_rows < len(test.ids)})
    if partial:
        notes.append(
            f"Some ways were judged on {' or '.join(f'{count:,}' for count in partial)} of the {len(test.ids):,} test "
            "texts; differences are over the texts both were judged on."
        )
    return notes


def percent(way: Way, *, interval: bool = False) -> str:
    """`87.3 %`, or with its interval."""
    accuracy = way.scores.accuracy
    ends = f" (95 % interval {100 * accuracy.low:.1f} to {100 * accuracy.high:.1f})" if interval else ""
    return f"{100 * accuracy.value:.1f} %{ends}"


def points(gap: Interval) -> str:
    """`+1.2 points (0.8 to 1.6)`."""
    return f"{100 * gap.value:+.1f} points ({100 * gap.low:+.1f} to {100 * gap.high:+.1f})"


def ratio(dear: Way, cheap: Way) -> str:
    """How much fewer training FLOPs `cheap` takes than `dear`."""
    if cheap.train_flops == 0:
        return f"{dear.train_flops:.2g} fewer FLOPs"
    if cheap.train_flops == dear.train_flops:
        return "as many FLOPs"
    times = dear.train_flops / cheap.train_flops
    return f"{times:,.0f} times fewer FLOPs" if times >= 10 else f"{times:.1f} times fewer FLOPs"
