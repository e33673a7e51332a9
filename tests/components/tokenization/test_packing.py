"""Packing loses no token, cuts only what does not fit, and wastes little."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from components.tokenization.packing import best_fit_decreasing, by_sequence, fill, pack

PAD = 9999


@pytest.mark.parametrize("seed", range(20))
def test_every_token_appears_once_in_order_and_nothing_that_fits_is_cut(seed: int) -> None:
    draw = np.random.default_rng(seed)
    length = int(draw.integers(4, 40))
    lengths = draw.integers(1, 3 * length, size=int(draw.integers(1, 80)))
    documents = [[1000 * index + place for place in range(n)] for index, n in enumerate(lengths.tolist())]
    packing = pack(lengths, length)
    flat = np.array([token for document in documents for token in document], dtype=np.uint32)
    rows_NL = fill(packing, flat, np.cumsum(lengths) - lengths, length, 999_999)
    assert rows_NL.shape == (packing.num_sequences, length) and rows_NL.dtype == np.uint32
    pieces: dict[int, list[list[int]]] = defaultdict(list)
    for row, part in zip(rows_NL.tolist(), by_sequence(packing, packing.length_P), strict=True):
        assert row[sum(part) :] == [999_999] * (length - sum(part))
        start = 0
        for size in part:
            piece = row[start : start + size]
            pieces[piece[0] // 1000].append(piece)
            start += size
    for index, document in enumerate(documents):
        found = sorted(pieces[index])
        assert [token for piece in found for token in piece] == document
        assert len(found) == -(-len(document) // length)
    assert packing.num_cut_documents == sum(len(document) > length for document in documents)


def test_best_fit_takes_the_fullest_bin_that_holds_the_piece() -> None:
    assert best_fit_decreasing(np.array([3, 5, 7, 2]), 10).tolist() == [0, 1, 0, 1]


def test_short_documents_waste_less_than_one_per_cent() -> None:
    draw = np.random.default_rng(0)
    lengths = np.clip(draw.lognormal(2.8, 0.5, size=20_000).astype(np.int64) + 2, 4, 300)  # glosses: mean 20
    packing = pack(lengths, 128)
    assert 1 - lengths.sum() / (128 * packing.num_sequences) < 0.01


def test_sequences_follow_the_order_of_documents() -> None:
    packing = pack(np.array([4, 6, 8, 4, 2]), 8)
    order = [packing.document_P[packing.sequence_P == sequence].tolist() for sequence in range(packing.num_sequences)]
    assert order == [[0, 3], [1, 4], [2]]


def test_no_documents_pack_into_no_sequences() -> None:
    packing = pack(np.zeros(0, dtype=np.int64), 8)
    assert packing.num_sequences == 0 and by_sequence(packing, packing.length_P) == []
    assert fill(packing, np.zeros(0, dtype=np.uint16), np.zeros(0, dtype=np.int64), 8, 0).shape == (0, 8)
