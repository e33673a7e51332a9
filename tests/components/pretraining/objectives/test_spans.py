"""Random spans: lengths and places have the distributions that they should."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from components.pretraining.objectives import spans
from components.pretraining.objectives.ragged import below, ranks, starts, sums, within

KEYS = np.arange(6000, dtype=np.uint64) * np.uint64(7919)


def test_every_segmentation_is_as_likely() -> None:
    found = spans.segmentation(np.full(6000, 5), np.full(6000, 3), KEYS, 1).reshape(6000, 3)
    assert (found.sum(axis=1) == 5).all()
    counts = Counter(map(tuple, found.tolist()))
    # 5 = 1+1+3, 1+2+2, 1+3+1, 2+1+2, 2+2+1, 3+1+1: 4 choose 2
    assert len(counts) == math.comb(4, 2)
    assert all(abs(count - 1000) < 120 for count in counts.values())  # 4 standard deviations


def test_documents_of_one_item_and_of_many_do_not_mix() -> None:
    found = spans.segmentation(np.asarray([1, 4, 2]), np.asarray([1, 4, 1]), KEYS[:3], 1)
    assert found.tolist() == [1, 1, 1, 1, 1, 2]


def test_poisson_lengths_by_hand() -> None:
    table = spans.poisson_table(3.0)
    assert table[0] == pytest.approx(math.exp(-3))
    assert table[2] == pytest.approx(math.exp(-3) * (1 + 3 + 4.5))
    assert table[-1] == pytest.approx(1, abs=1e-9)


def test_spanberts_lengths_are_geometric_with_one_fifth_and_clipped_at_ten() -> None:
    lengths = np.arange(1, 11)
    expected = 0.2 * 0.8 ** (lengths - 1)
    mean = float((expected * lengths).sum() / expected.sum())
    assert mean == pytest.approx(3.8, abs=0.01)  # as the paper says
    assert spans.geometric_table(mean) == pytest.approx(np.cumsum(expected / expected.sum()), abs=1e-6)
    table = spans.geometric_table(8.0)
    steps = np.arange(1, len(table) + 1)
    assert float(np.diff(table, prepend=0) @ steps) == pytest.approx(8.0, abs=1e-6)
    assert spans.geometric_table(1.0)[0] == pytest.approx(1)


@pytest.mark.parametrize("shortest", [0, 1])
def test_lengths_make_up_the_budget(shortest: int) -> None:
    budget_D = np.tile(np.asarray([0, 1, 7, 200]), 1500)
    table = spans.poisson_table(3.0) if shortest == 0 else spans.geometric_table(3.0)
    lengths_S, spans_D = spans.draw_lengths(budget_D, table, shortest, KEYS)
    assert (sums(lengths_S, spans_D) == budget_D).all()
    assert lengths_S.min() == shortest
    assert (spans_D[budget_D == 0] == 0).all()
    long = np.repeat(budget_D, spans_D) == 200
    assert lengths_S[long].mean() == pytest.approx(3.0, abs=0.05)
    if shortest == 0:  # less the last one of each, which is cut
        assert (lengths_S[long] == 0).mean() == pytest.approx(math.exp(-3), abs=0.005)


def test_every_place_of_a_span_is_as_likely() -> None:
    found = spans.interleave(np.full(6000, 3), np.full(6000, 1), KEYS).reshape(6000, 4)
    assert (found.sum(axis=1) == 1).all()
    assert np.abs(found.sum(axis=0) - 1500).max() < 140


def test_groups_of_different_lengths_by_hand() -> None:
    lengths = np.asarray([2, 0, 3])
    assert starts(lengths).tolist() == [0, 2, 2]
    assert within(lengths).tolist() == [0, 1, 0, 1, 2]
    assert sums(np.asarray([5, 1, 1, 1, 1]), lengths).tolist() == [6, 0, 3]
    found = ranks(KEYS[:3], lengths)
    assert sorted(found[:2].tolist()) == [0, 1]
    assert sorted(found[2:].tolist()) == [0, 1, 2]
    assert below(KEYS, np.full(6000, 4)).max() == 3
    assert below(KEYS[:2], np.asarray([0, 1])).tolist() == [0, 0]
