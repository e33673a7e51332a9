"""Learning rates against values computed by hand."""

from __future__ import annotations

from typing import Any

import pytest

from components.pretraining.config import PretrainConfig
from components.pretraining.engine.schedule import learning_rate, schedule_factor

BASE: dict[str, Any] = {"steps": 11, "learning_rate": 2.0, "warmup_steps": 2, "min_learning_rate_fraction": 0.1}
DOWN = [1.0, 0.8875, 0.775, 0.6625, 0.55, 0.4375, 0.325, 0.2125, 0.1]
"""From 1 to 0.1 in 8 steps of 0.9 / 8."""


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"schedule": "linear"}, [0.5, 1.0, *DOWN]),
        ({"schedule": "linear", "warmup_steps": 0, "steps": 3}, [1.0, 0.55, 0.1]),
        # 0.1 + 0.9 * (1 + cos(pi * k / 8)) / 2; cos(pi / 4) = 0.7071, cos(pi / 8) = 0.9239, cos(3 pi / 8) = 0.3827
        ({}, [0.5, 1.0, 1.0, 0.96575, 0.86820, 0.72221, 0.55, 0.37779, 0.23180, 0.13425, 0.1]),
        ({"schedule": "wsd", "decay_fraction": 0.4}, [0.5, *[1.0] * 6, 0.775, 0.55, 0.325, 0.1]),
        ({"schedule": "wsd", "decay_fraction": 0.01}, [0.5, *[1.0] * 9, 0.1]),
        ({"schedule": "wsd", "decay_fraction": 1.0}, [0.5, 1.0, *DOWN]),
        ({"schedule": "wsd", "min_learning_rate_fraction": 0.0, "decay_fraction": 0.2}, [0.5, *[1.0] * 8, 0.5, 0.0]),
    ],
)
def test_the_factor_of_each_step(values: dict[str, Any], expected: list[float]) -> None:
    config = PretrainConfig.model_validate({**BASE, **values})
    assert [schedule_factor(config, step) for step in range(config.steps)] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shortest_trainings_have_a_learning_rate(schedule: str, steps: int) -> None:
    config = PretrainConfig.model_validate({"schedule": schedule, "steps": steps, "warmup_steps": 0})
    rates = [learning_rate(config, step) for step in range(steps)]
    assert all(rate > 0 for rate in rates)
    assert rates[0] == config.learning_rate or (schedule == "wsd" and steps == 1)
