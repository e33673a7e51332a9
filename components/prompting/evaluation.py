"""What a matrix of label scores says: predictions, accuracy and its interval, histogram, ties.

Every number here is a pure function of the scores and the labels, so no metric and no calibration ever runs a model
again. Chance is one over the number of labels; the majority class is that of the training rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from components.finetuning.metrics import Scores, accuracy, encode, score
from components.prompting.calibration import FloatArray, calibrated, fit_log_prior
from components.prompting.demonstrations import Rows
from components.prompting.encoding import PromptSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """A prompt under a model: what validation chooses among."""

    model: str
    """`base` or `tuned`."""
    spec: PromptSpec
    shots: int
    draw: int
    permuted: bool = False
    """Whether its demonstrations have wrong labels: the control."""

    @property
    def name(self) -> str:
        """Unique among the prompts of a step; a file name."""
        return f"{self.model}-{self.shots}shot-draw{self.draw}{'-permuted' if self.permuted else ''}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Validated:
    """A prompt's result on the validation rows, raw or calibrated."""

    prompt: Prompt
    log_prior_K: FloatArray | None
    """The frozen prior, if calibrated."""
    accuracy: float

    @property
    def name(self) -> str:
        """Name of the evaluation in results and metrics."""
        suffix = "" if self.log_prior_K is None else "_calibrated"
        return f"{self.prompt.model}_{self.prompt.shots}shot{suffix}"

    def apply(self, scores_NK: FloatArray) -> FloatArray:
        """The scores that decide [N, K]."""
        return scores_NK if self.log_prior_K is None else calibrated(scores_NK, self.log_prior_K)


def validate(
    prompt: Prompt, scores_NK: FloatArray, rows: Rows, labels: Sequence[str], calibrate: bool
) -> list[Validated]:
    """The raw and, if wanted, the calibrated variant of a prompt, judged on the validation rows.

    Args:
        prompt: what was scored.
        scores_NK: its log-likelihoods on `rows`.
        rows: validation rows; the prior uses their texts only.
        labels: the task's labels.
        calibrate: whether to judge the calibrated variant too.
    """
    label_N = encode(rows.labels, labels)
    priors = [None, fit_log_prior(scores_NK)] if calibrate else [None]
    found = []
    for prior in priors:
        variant = Validated(prompt=prompt, log_prior_K=prior, accuracy=0.0)
        predicted_N = variant.apply(scores_NK).argmax(axis=1)
        found.append(Validated(prompt=prompt, log_prior_K=prior, accuracy=accuracy(label_N, predicted_N)))
    return found


def best(candidates: Sequence[Validated]) -> Validated:
    """The highest validation accuracy; among equals the first, so put the simpler ones first."""
    return max(candidates, key=lambda candidate: candidate.accuracy)


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """Test predictions of one variant."""

    predictions: list[str]
    scores: Scores
    histogram: dict[str, int]
    """Label -> how often it was predicted; every label of the task."""
    num_ties: int
    """Rows whose two best labels have exactly one score; the first of them in label order is predicted."""


def judge(decisive_NK: FloatArray, rows: Rows, labels: Sequence[str], seed: int) -> Judged:
    """Accuracy, macro-F1 and their intervals on the test rows."""
    predicted_N = decisive_NK.argmax(axis=1)
    predictions = [labels[index] for index in predicted_N.tolist()]
    counts = Counter(predictions)
    best_two_N2 = np.sort(decisive_NK, axis=1)[:, -2:]
    ties = int((best_two_N2[:, 0] == best_two_N2[:, -1]).sum()) if decisive_NK.shape[1] > 1 else 0
    return Judged(
        predictions=predictions,
        scores=score(encode(rows.labels, labels), predicted_N.astype(np.int64), len(labels), seed=seed),
        histogram={label: counts[label] for label in labels},
        num_ties=ties,
    )


def majority(training: Rows, test: Rows) -> tuple[str, float]:
    """The most frequent training label (the first by name among equals) and its share of the test rows."""
    counts = Counter(training.labels)
    label = min(counts, key=lambda name: (-counts[name], name))
    return label, test.labels.count(label) / len(test)
