"""Random spans of text for all documents of a batch at once: how long they are, and where they lie.

    segmentation   n items into k parts of 1 or more, each way equally likely           (T5, random_spans_noise_mask)
    draw_lengths   lengths from a table until they make up a budget, the last one cut   (SpanBERT 3.1, BART 2.2)
    interleave     k spans among the items that stay, each order equally likely

Shapes: D documents, S spans or parts of all of them, I slots: spans and the items that stay.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from components.pretraining.hashing import UintArray, uint64_of, uniform
from components.pretraining.objectives.objective import BoolArray, IntArray
from components.pretraining.objectives.ragged import ranks, starts, sums, within

FloatArray = npt.NDArray[np.float64]
LENGTHS, PLACES = 101, 102
SPANBERT_LONGEST, SPANBERT_MEAN = 10, 3.8


def segmentation(items_D: IntArray, parts_D: IntArray, keys_D: UintArray, purpose: int) -> IntArray:
    """Lengths of the parts that each number of items falls into; [S], those of the first document first.

    Args:
        items_D: how many, at least `parts_D`.
        parts_D: how many, at least 1.
        keys_D: of the documents.
        purpose: tells draws apart.
    """
    inner_D = items_D - 1
    chosen = ranks(keys_D, inner_D, uint64_of(purpose)) < np.repeat(parts_D - 1, inner_D)
    begins = np.ones(int(items_D.sum()), dtype=bool)
    begins[within(items_D) > 0] = chosen
    return np.diff(np.append(np.flatnonzero(begins), len(begins)))


def poisson_table(mean: float) -> FloatArray:
    """Cumulative probabilities of the lengths 0, 1, ... of a Poisson distribution."""
    most = int(mean + 12 * math.sqrt(mean) + 12)
    logs = [k * math.log(mean) - mean - math.lgamma(k + 1) for k in range(most)]
    return np.cumsum(np.exp(logs))


def geometric_table(mean: float) -> FloatArray:
    """Cumulative probabilities of the lengths 1, 2, ..., of a geometric distribution clipped so that 10 is the longest
    at SpanBERT's mean of 3.8, and in that proportion beyond it; the parameter is such that the clipped one has `mean`.
    """
    longest = max(SPANBERT_LONGEST, math.ceil(SPANBERT_LONGEST / SPANBERT_MEAN * mean))
    lengths = np.arange(1, longest + 1)

    def weights(p: float) -> FloatArray:
        parts = (1 - p) ** (lengths - 1.0)
        return np.asarray(parts / parts.sum(), dtype=np.float64)

    low, high = 1e-9, 1.0  # the mean falls as p rises
    for _ in range(60):
        middle = (low + high) / 2
        if weights(middle) @ lengths > mean:
            low = middle
        else:
            high = middle
    return np.cumsum(weights(high))


def draw_lengths(budget_D: IntArray, table: FloatArray, shortest: int, keys_D: UintArray) -> tuple[IntArray, IntArray]:
    """Lengths of spans that make up each budget; [S], and how many each document has; [D].

    Args:
        budget_D: items to cover; with 0 there is no span.
        table: cumulative probabilities of the lengths `shortest`, `shortest` + 1, ...
        shortest: 0 or 1.
        keys_D: of the documents.
    """
    tries_D = budget_D if shortest else np.where(budget_D > 0, 2 * budget_D + 8, 0)
    draws = uniform(np.repeat(keys_D, tries_D), within(tries_D).astype(np.uint64), uint64_of(LENGTHS))
    lengths = shortest + np.minimum(np.searchsorted(table, draws, side="right"), len(table) - 1)
    totals = np.concatenate([[0], np.cumsum(lengths)])
    before = totals[:-1] - np.repeat(totals[starts(tries_D)], tries_D)
    budget = np.repeat(budget_D, tries_D)
    kept = before < budget
    lengths = np.minimum(lengths, budget - before)[kept]
    return lengths.astype(np.int64), sums(kept, tries_D)


def interleave(stay_D: IntArray, spans_D: IntArray, keys_D: UintArray) -> BoolArray:
    """Which slots are spans; [I], `stay_D + spans_D` slots a document."""
    slots_D = stay_D + spans_D
    found: BoolArray = ranks(keys_D, slots_D, uint64_of(PLACES)) < np.repeat(spans_D, slots_D)
    return found
