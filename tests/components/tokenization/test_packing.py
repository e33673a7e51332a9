"""Packing loses no token, cuts only what it must, and wastes little."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.tokenization.packing import Packing, Ragged, best_fit_decreasing, concatenate, fill, pack
from components.tokenization.training import train

GLOSSES = Path(__file__).parents[3] / "conf" / "data" / "wordnet" / "glosses.jsonl.gz"
PAD = 999_999
PACKERS = {"best_fit": pack, "concatenate": concatenate}

some_lengths = st.lists(st.integers(1, 120), max_size=60).map(lambda values: np.array(values, dtype=np.int64))


def flat_documents(lengths: np.ndarray) -> np.ndarray:
    """Tokens that tell their document and their place in it."""
    documents = [1000 * index + np.arange(n) for index, n in enumerate(lengths.tolist())]
    return np.concatenate([np.zeros(0, dtype=np.uint32), *documents]).astype(np.uint32)


def pieces_of(packing: Packing, lengths: np.ndarray, sequence_length: int) -> list[list[list[int]]]:
    """The pieces of each sequence, read from the rows, whose padding is checked."""
    rows_NL = fill(packing, flat_documents(lengths), np.cumsum(lengths) - lengths, sequence_length, PAD)
    assert rows_NL.shape == (packing.num_sequences, sequence_length) and rows_NL.dtype == np.uint32
    found = []
    for row, parts in zip(rows_NL.tolist(), packing.by_sequence(packing.length_P).lists(), strict=True):
        assert parts and row[sum(parts) :] == [PAD] * (sequence_length - sum(parts))
        ends = np.cumsum(parts).tolist()
        found.append([row[end - size : end] for end, size in zip(ends, parts, strict=True)])
    return found


@settings(max_examples=200, deadline=None)
@given(lengths=some_lengths, sequence_length=st.integers(1, 50), way=st.sampled_from(sorted(PACKERS)))
def test_all_tokens_come_out_again_in_order(lengths: np.ndarray, sequence_length: int, way: str) -> None:
    packing = PACKERS[way](lengths, sequence_length)
    pieces = [piece for row in pieces_of(packing, lengths, sequence_length) for piece in row]
    by_document: dict[int, list[list[int]]] = defaultdict(list)
    for piece in pieces:
        by_document[piece[0] // 1000].append(piece)
    for index, length in enumerate(lengths.tolist()):
        found = sorted(by_document[index])
        assert [token for piece in found for token in piece] == [1000 * index + place for place in range(length)]
        if way == "best_fit":  # cut only where it does not fit, and then into as few pieces as can be
            assert len(found) == -(-length // sequence_length)
    if way == "concatenate":
        assert [token for piece in pieces for token in piece] == flat_documents(lengths).tolist()
        assert packing.num_sequences == -(-int(lengths.sum()) // sequence_length)


def one_at_a_time(lengths: list[int], capacity: int) -> list[int]:
    """Best-fit decreasing, piece by piece: the fullest bin that holds it, and of several the one filled last."""
    free: list[int] = []
    filled_at: list[int] = []
    chosen = [0] * len(lengths)
    for turn, piece in enumerate(sorted(range(len(lengths)), key=lambda index: -lengths[index])):
        fitting = [bin_ for bin_, room in enumerate(free) if room >= lengths[piece]]
        if fitting:
            bin_ = min(fitting, key=lambda one: (free[one], -filled_at[one]))
        else:
            bin_ = len(free)
            free.append(capacity)
            filled_at.append(turn)
        chosen[piece], filled_at[bin_] = bin_, turn
        free[bin_] -= lengths[piece]
    return chosen


@settings(max_examples=300, deadline=None)
@given(data=st.data(), capacity=st.integers(1, 40))
def test_lengths_dealt_out_together_go_where_each_would_go_alone(data: st.DataObject, capacity: int) -> None:
    few = data.draw(st.lists(st.integers(1, capacity), min_size=1, max_size=4))  # many pieces of the same length
    lengths = data.draw(st.lists(st.sampled_from(few) | st.integers(1, capacity), max_size=80))
    found, number = best_fit_decreasing(np.array(lengths, dtype=np.int64), capacity)
    assert found.tolist() == one_at_a_time(lengths, capacity)
    assert number == len(set(found.tolist()))


def test_glosses_waste_less_than_one_per_cent() -> None:
    """An eighth of the default corpus, of which the whole pads less, in the default length and size of vocabulary."""
    with gzip.open(GLOSSES, "rt", encoding="utf-8") as stream:
        texts = [json.loads(line)["text"] for line in stream][::8]
    tokenizer = train("byte_bpe", lambda: iter([texts]), 4096, 2)
    lengths = np.array([len(encoding.ids) for encoding in tokenizer.encode_batch_fast(texts)])
    packing = pack(lengths, 128)
    assert 1 - lengths.sum() / (128 * packing.num_sequences) < 0.01
    counts = np.bincount(packing.document_P)
    assert (counts[lengths <= 128] == 1).all()


def test_sequences_follow_the_order_of_documents() -> None:
    packing = pack(np.array([4, 6, 8, 4, 2]), 8)
    assert packing.by_sequence(packing.document_P).lists() == [[0, 3], [1, 4], [2]]


def test_concatenation_by_hand() -> None:
    packing = concatenate(np.array([3, 4, 9, 2]), 8)
    assert packing.by_sequence(packing.document_P).lists() == [[0, 1, 2], [2], [3]]
    assert packing.by_sequence(packing.start_P).lists() == [[0, 0, 0], [1], [0]]
    assert packing.by_sequence(packing.length_P).lists() == [[3, 4, 1], [8], [2]]


@pytest.mark.parametrize("way", PACKERS)
def test_no_documents_pack_into_no_sequences(way: str) -> None:
    packing = PACKERS[way](np.zeros(0, dtype=np.int64), 8)
    assert packing.num_sequences == 0 and packing.by_sequence(packing.length_P).lists() == []
    assert fill(packing, np.zeros(0, dtype=np.uint16), np.zeros(0, dtype=np.int64), 8, 0).shape == (0, 8)


def test_ragged_lists_come_back_whole_and_in_part() -> None:
    lists = [[1, 2], [], [3], [4, 5, 6]]
    ragged = Ragged.of(lists)
    assert ragged.lists() == lists and len(ragged) == 4
    assert ragged.rows(1, 3).lists() == [[], [3]]
    assert Ragged.of([]).lists() == []
