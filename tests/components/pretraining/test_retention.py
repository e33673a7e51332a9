"""Which checkpoints stay."""

from __future__ import annotations

import pytest

from components.pretraining.retention import Retention, Standing

LOSSES = {10: None, 20: 3.0, 30: 2.0, 40: 2.5, 50: 2.0}
COMPLETE = {f"step_{step}": Standing(step=step, validation_loss=loss) for step, loss in LOSSES.items()}


@pytest.mark.parametrize(
    ("retention", "steps"),
    [
        (Retention(newest=2), {40, 50}),
        (Retention(newest=9), {10, 20, 30, 40, 50}),
        (Retention(newest=1, best=1), {30, 50}),  # of two with the same loss the earlier
        (Retention(newest=1, best=3), {30, 40, 50}),
        (Retention(newest=1, best=9), {20, 30, 40, 50}),  # the first was never judged
        (Retention(newest=1, permanent_every_steps=20), {20, 40, 50}),
        (Retention(newest=1, best=1, permanent_every_steps=10), {10, 20, 30, 40, 50}),
    ],
)
def test_the_newest_the_best_and_the_permanent_stay(retention: Retention, steps: set[int]) -> None:
    assert {COMPLETE[name].step for name in retention.kept(COMPLETE)} == steps


def test_after_the_training_the_best_and_the_permanent_last() -> None:
    assert Retention(newest=2, best=1, permanent_every_steps=20).lasting(COMPLETE) == {"step_20", "step_30", "step_40"}
    assert not Retention(newest=2).lasting(COMPLETE)
