"""Batch calibration: divide a model's label probabilities by their mean over unlabelled inputs.

A model prefers some phrases whatever the text is. Zhou et al. 2023 (arXiv 2309.17249) take the mean of its label
probabilities over a batch as that preference. It costs no forward pass: measured on 144 prompts, mean accuracy .684 to
.733 and the worst prompt from .250 to .409. It presumes labels that are about equally frequent, so a tuned model may
lose by it: validation rows decide. The prior is fitted on validation inputs, without labels, and frozen before any
test row is scored.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


def log_posteriors(scores_NK: FloatArray) -> FloatArray:
    """Log-likelihoods normalised over the labels [N, K]."""
    shifted_NK = scores_NK - scores_NK.max(axis=1, keepdims=True)
    normalised_NK: FloatArray = shifted_NK - np.log(np.exp(shifted_NK).sum(axis=1, keepdims=True))
    return normalised_NK


def fit_log_prior(scores_NK: FloatArray) -> FloatArray:
    """Log of the mean label probability over N unlabelled inputs [K]."""
    prior_K: FloatArray = np.log(np.exp(log_posteriors(scores_NK)).mean(axis=0) + 1e-30)
    return prior_K


def calibrated(scores_NK: FloatArray, log_prior_K: FloatArray) -> FloatArray:
    """Scores after division by the frozen prior [N, K]."""
    return log_posteriors(scores_NK) - log_prior_K
