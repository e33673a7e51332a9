"""Learning rate: linear warmup, then a cosine down to a part of the peak (Loshchilov and Hutter 2016, 1608.03983)."""

from __future__ import annotations

import math

from components.pretraining.config import PretrainConfig


def learning_rate(config: PretrainConfig, step: int) -> float:
    """The learning rate of optimizer step `step` (from 0): never 0 at first, the lowest at the last one."""
    warmup = config.num_warmup_steps
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    part = (step - warmup) / max(1, config.steps - 1 - warmup)
    low = config.min_learning_rate_fraction
    return config.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, part))))
