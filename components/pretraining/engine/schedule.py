"""Learning rates: a linear warmup, then one of three ways down to a part of the peak.

    cosine   half a cosine (Loshchilov and Hutter 2016, arXiv:1608.03983)
    linear   a straight line
    wsd      warmup, stable, decay: constant until the last `decay_fraction` of the steps, then a straight line (Hu et
             al. 2024, arXiv:2404.06395, section 4; the line and 20 % of the steps as in Haegele et al. 2024,
             arXiv:2405.18392, who reach the loss of a cosine so, from a run whose length need not be known before)

The last step has the lowest learning rate, and no step has none before it.
"""

from __future__ import annotations

import math

from components.pretraining.config import PretrainConfig


def schedule_factor(config: PretrainConfig, step: int) -> float:
    """Part of the peak that optimizer step `step` (from 0) has; in (0, 1] unless the lowest is 0."""
    warmup, last, low = config.num_warmup_steps, config.steps - 1, config.min_learning_rate_fraction
    if step < warmup:
        return (step + 1) / warmup
    start = warmup
    if config.schedule == "wsd":
        start = max(warmup, config.steps - 1 - max(1, round(config.decay_fraction * config.steps)))
    part = min(1.0, max(0.0, (step - start) / max(1, last - start)))
    if config.schedule == "cosine":
        return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * part))
    return low + (1 - low) * (1 - part)


def learning_rate(config: PretrainConfig, step: int) -> float:
    """The learning rate of optimizer step `step` (from 0)."""
    return config.learning_rate * schedule_factor(config, step)
