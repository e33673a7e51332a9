"""What is judged wrong with a step, what follows, and which batches are then stepped over: numbers alone."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import pytest

from components.pretraining.config import HealthConfig
from components.pretraining.health.judge import (
    Incident,
    batch_of_step,
    incident,
    judge,
    num_stepped_over,
    rollback_target,
    spike_bound,
)


def health(**values: Any) -> HealthConfig:
    return HealthConfig.model_validate(values)


def curve(steps: int, *, noise: float, seed: int = 0) -> list[float]:
    """Losses as of a training: 4 and what is left of another 5 after e-foldings of 60 steps."""
    draw = random.Random(seed)
    return [4 + 5 * math.exp(-step / 60) + draw.gauss(0, noise) for step in range(steps)]


def span(first: int, last: int) -> Incident:
    return Incident(kind="loss_spike", verdict="rollback", step=1, batch=last, first_batch=first, value=9.0, bound=5.0)


@pytest.mark.parametrize(
    ("loss", "norm", "kind"),
    [
        (math.nan, 1.0, "non_finite_loss"),
        (math.inf, None, "non_finite_loss"),
        (4.0, math.inf, "non_finite_gradient_norm"),
        (4.0, 31.0, "gradient_norm"),
        (9.0, 1.0, "loss_spike"),
        (4.0, 30.0, None),
        (4.0, None, None),
    ],
)
def test_what_is_found(loss: float, norm: float | None, kind: str | None) -> None:
    found = judge(health(max_gradient_norm=30.0), loss, norm, curve(300, noise=0.1), 0)
    assert (found.kind if found else None) == kind


@pytest.mark.parametrize(
    ("loss", "values", "verdict"),
    [
        (math.nan, {}, "stop"),
        (math.nan, {"on_non_finite_loss": "skip"}, "skip"),
        (9.0, {}, "accept"),
        (9.0, {"on_loss_spike": "rollback", "on_non_finite_loss": "skip"}, "rollback"),
        (9.0, {"on_loss_spike": "stop"}, "stop"),
    ],
)
def test_the_verdict_is_that_of_the_config(loss: float, values: dict[str, Any], verdict: str) -> None:
    found = judge(health(**values), loss, None, curve(300, noise=0.1), 0)
    assert found is not None
    assert found.verdict == verdict


def test_one_incident_too_many_stops_but_what_is_only_told_does_not() -> None:
    losses = curve(300, noise=0.1)
    skip, tell = health(on_loss_spike="skip", max_incidents=3), health(max_incidents=3)
    verdicts = [judge(skip, 9.0, None, losses, number) for number in (2, 3)]
    assert [one.verdict for one in verdicts if one] == ["skip", "stop"]
    assert judge(tell, 9.0, None, losses, 3).verdict == "accept"  # type: ignore[union-attr]


@pytest.mark.parametrize("noise", [0.001, 0.02, 0.1])
def test_a_healthy_curve_raises_no_alarm_in_its_steep_part_nor_later(noise: float) -> None:
    for seed in range(5):
        losses = curve(600, noise=noise, seed=seed)
        assert not [s for s in range(600) if (b := spike_bound(losses[max(0, s - 100) : s], 8.0)) and losses[s] > b]


@pytest.mark.parametrize("step", [25, 60, 500])
def test_a_jump_of_twelve_deviations_is_seen_also_while_the_loss_falls_quickly(step: int) -> None:
    losses = curve(step, noise=0.1)
    expected = 4 + 5 * math.exp(-step / 60)
    lag = 5 * (math.exp(-(step - 8) / 60) - math.exp(-step / 60))  # of the median of 16
    bound = spike_bound(losses[-100:], 8.0)
    assert bound is not None
    assert expected + 3 * 0.1 < bound < expected + lag + 12 * 0.1


def test_spikes_that_were_let_in_do_not_blind_the_rule() -> None:
    losses = curve(300, noise=0.1)
    for step in (220, 240, 260, 280, 299):
        losses[step] = 9.0
    bound = spike_bound(losses[-100:], 8.0)
    assert bound is not None
    assert bound < 5.5


def test_too_few_losses_raise_no_alarm() -> None:
    assert spike_bound([4.0] * 19, 8.0) is None
    assert spike_bound([4.0] * 20, 8.0) == pytest.approx(4 * (1 + 8 / 500))


def batches(incidents: Sequence[Incident], number: int) -> list[int]:
    """The batches that are not stepped over, by going through all of them."""
    out = {batch for one in incidents for batch in range(one.first_batch, one.batch + 1)}
    return [batch for batch in range(number + len(out)) if batch not in out][:number]


def test_the_batch_of_a_step_is_the_next_that_is_not_stepped_over() -> None:
    draw = random.Random(1)
    for _ in range(200):
        spans = []
        for _ in range(draw.randrange(5)):
            first = draw.randrange(40)
            spans.append(span(first, first + draw.randrange(8)))
        assert [batch_of_step(spans, step) for step in range(40)] == batches(spans, 40)
        assert num_stepped_over(spans) == len({b for s in spans for b in range(s.first_batch, s.batch + 1)})


def test_a_rollback_steps_over_the_batches_of_the_steps_that_it_undoes() -> None:
    config = health(on_loss_spike="rollback", rollback_steps=4)
    found = judge(config, 9.0, None, curve(300, noise=0.1), 0)
    assert found is not None
    first = incident(config, found, (), 24)
    assert (first.first_batch, first.batch, first.step) == (20, 24, 25)
    second = incident(config, found, (first,), 22)  # steps 18-21 had batches 18, 19, 25, 26; the bad one is 27
    assert (second.first_batch, second.batch) == (25, 27)  # no further back than the first went
    third = incident(config, found, (first, second), 30)
    assert (third.first_batch, third.batch) == (34, 38)
    assert incident(config, found, (), 2).first_batch == 0


def test_a_rollback_goes_no_further_back_than_the_one_before() -> None:
    config = health(on_loss_spike="rollback", rollback_steps=100)
    found = judge(config, 9.0, None, curve(300, noise=0.1), 0)
    assert found is not None
    before: tuple[Incident, ...] = ()
    targets = []
    for step in (50, 250, 155, 150, 400):
        targets.append(rollback_target(config, before, step))
        before = (*before, incident(config, found, before, step))
    assert targets == [0, 150, 150, 150, 300]
