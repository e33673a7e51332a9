"""Pairs of equal hashes, and the clusters they make, against plain Python."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.corpus.duplicates import ALL_PAIRS_UP_TO, cluster, components, pairs_of_equal, unique_pairs

Rows = list[tuple[int, int, int]]


def pairs(rows: Rows) -> list[tuple[int, int]]:
    columns = (np.array([row[column] for row in rows], dtype=np.int64) for column in range(3))
    lower, higher = pairs_of_equal(*columns)
    return list(zip(lower.tolist(), higher.tolist(), strict=True))


def expected_pairs(rows: Rows) -> list[tuple[int, int]]:
    """All of a small bucket; of a large one each with the first and the one before."""
    buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
    for key, second, document in rows:
        buckets[key, second].append(document)
    found = set()
    for bucket in buckets.values():
        own = sorted(bucket)
        if len(own) <= ALL_PAIRS_UP_TO:
            found |= set(combinations(own, 2))
        else:
            found |= set(pairwise(own)) | {(own[0], other) for other in own[1:]}
    return sorted(found)


@given(st.lists(st.tuples(st.integers(-2, 2), st.integers(0, 1), st.integers(0, 50)), unique=True))
@settings(max_examples=300, deadline=None)
def test_pairs_are_those_of_brute_force(rows: Rows) -> None:
    assert pairs(rows) == expected_pairs(rows)


@given(
    st.lists(st.sampled_from([1, 2, 3, 31, 32, 33, 34, 100]), max_size=5),
    st.integers(0, 1000),
    st.sampled_from([0, 2**31 - 200, 2**32 - 400]),
)
@settings(max_examples=100, deadline=None)
def test_pairs_of_buckets_about_as_large_as_all_pairs_are_made(sizes: list[int], seed: int, base: int) -> None:
    """Documents are numbered up to 2^32, rows come in no order, and a document is in several buckets."""
    rng = random.Random(seed)
    rows = [
        (place, -size, base + document) for place, size in enumerate(sizes) for document in rng.sample(range(400), size)
    ]
    rng.shuffle(rows)
    assert pairs(rows) == expected_pairs(rows)


def test_unique_pairs_are_in_order_and_no_document_is_its_own() -> None:
    lower, higher = unique_pairs(np.array([5, 2, 3, 2, 9]), np.array([1, 2, 1, 9, 2]))
    assert list(zip(lower.tolist(), higher.tolist(), strict=True)) == [(1, 3), (1, 5), (2, 9)]


def find(parent: dict[int, int], one: int) -> int:
    while parent[one] != one:
        one = parent[one]
    return one


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40), st.sampled_from([0.8, 0.9, 1.0])), max_size=60))
@settings(max_examples=300, deadline=None)
def test_clusters_are_those_of_union_find_and_the_lowest_stays(edges: list[tuple[int, int, float]]) -> None:
    edges = [(min(a, b), max(a, b), similarity) for a, b, similarity in edges if a != b]
    parent = {document: document for a, b, _ in edges for document in (a, b)}
    highest: dict[int, float] = defaultdict(float)
    for a, b, similarity in edges:
        one, other = sorted((find(parent, a), find(parent, b)))
        parent[other] = one
        highest[a], highest[b] = max(highest[a], similarity), max(highest[b], similarity)
    lower, higher = (np.array([edge[side] for edge in edges], dtype=np.int64) for side in range(2))
    found = cluster(lower, higher, np.array([edge[2] for edge in edges], dtype=np.float64))
    gone = [document for document in sorted(parent) if find(parent, document) != document]
    assert found.document_D.tolist() == gone
    assert found.kept_D.tolist() == [find(parent, document) for document in gone]
    assert found.similarity_D.tolist() == [highest[document] for document in gone]


@pytest.mark.parametrize("work", [components, lambda a, b: cluster(a, b, np.zeros(0)).document_D])
def test_no_pairs_no_clusters(work: Callable[..., Any]) -> None:
    nothing = np.zeros(0, dtype=np.int64)
    found = work(nothing, nothing)
    assert all(len(one) == 0 for one in (found if isinstance(found, tuple) else (found,)))
