"""The gradient's norm as numbers alone; on DeepSpeed's engines: test_steps_not_taken.py."""

from __future__ import annotations

import math

import pytest
import torch

from components.pretraining.engine.gradients import total_norm


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_the_norm_has_the_precision_and_range_of_fp32_whatever_the_gradients_have(kind: torch.dtype) -> None:
    gradients = [torch.full((300, 300), 250.0, dtype=kind), torch.full((7,), 3.0, dtype=kind)]
    expected = math.sqrt(300 * 300 * 250.0**2 + 7 * 9)  # above 65,504
    assert float(total_norm(gradients)) == pytest.approx(expected, rel=1e-4)
