"""Which checkpoints stay."""

from __future__ import annotations

import random

import pytest

from components.pretraining.checkpoints.retention import Retention, Standing
from components.pretraining.config import PretrainConfig

LOSSES = {10: None, 20: 3.0, 30: 2.0, 40: 2.5, 50: 2.0}
COMPLETE = {f"step_{step}": Standing(step=step, validation_loss=loss) for step, loss in LOSSES.items()}


@pytest.mark.parametrize(
    ("retention", "steps"),
    [
        (Retention(newest=2), {40, 50}),
        (Retention(newest=9), {10, 20, 30, 40, 50}),
        (Retention(newest=1, best=1), {30, 50}),  # of two with the same loss the earlier
        (Retention(newest=1, best=2), {30, 40, 50}),
        (Retention(newest=1, best=3), {20, 30, 40, 50}),
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


def test_the_start_is_not_permanent() -> None:
    start = {"step_0": Standing(step=0, validation_loss=None), **COMPLETE}
    assert "step_0" not in Retention(newest=2, permanent_every_steps=20).kept(start)


@pytest.mark.parametrize("every", [7, 10, 25, None])
def test_one_that_a_rollback_can_take_is_always_there_whatever_happens(every: int | None) -> None:
    """Rollbacks, also soon after another, and workers that are told to leave and save between the times."""
    told = {"on_loss_spike": "rollback", "rollback_steps": 20}
    config = PretrainConfig.model_validate({"checkpoint_every_steps": every, "health": told, "keep_checkpoints": 1})
    retention, draw = Retention.of(config), random.Random(every)
    saved, step, target, most = {0}, 0, 0, 0

    def save() -> set[int]:
        complete = {str(one): Standing(step=one, validation_loss=None) for one in {*saved, step}}
        return {complete[name].step for name in retention.kept(complete)}

    for _ in range(5000):
        step += 1
        chance = draw.random()
        if chance < 0.02:
            target = max(target, step - 20)
            saved = {one for one in saved if one <= target}
            assert saved
            step = target
        elif chance < 0.03 or (every and step % every == 0):
            saved = save()
            most = max(most, len(saved))
    assert most <= (20 / every + 2 if every else 2) + 4  # saved between the times
