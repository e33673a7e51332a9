"""Which documents are duplicates of which: pairs from equal hashes, clusters of pairs, the one of a cluster that stays.

Documents are numbered in the order of the corpus (source, digest of the file, row); the first of a cluster stays, so
the survivors depend on nothing but the files. A pair that is too far apart itself may still be in one cluster through
others, as everywhere where duplicates are removed by connected components.

Shapes: R rows of a table of hashes, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from components.corpus.ngrams import IntArray

FloatArray = npt.NDArray[np.float64]
ALL_PAIRS_UP_TO = 32
"""Of a larger bucket each document is paired with the first and with the one before it, not with all: 10^5 pages of
one template would be 5 * 10^9 pairs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clusters:
    """Duplicates, in order of their numbers; a document that has none is not in it."""

    document_D: IntArray
    """The documents that go."""
    kept_D: IntArray
    """The document of the same cluster that stays."""
    similarity_D: FloatArray
    """The highest Jaccard similarity of each with any other of its cluster that was looked at; 1 for equal texts."""


def pairs_of_equal(key_R: IntArray, second_R: IntArray, document_R: IntArray) -> tuple[IntArray, IntArray]:
    """Pairs (lower, higher) of documents with a row of equal (key, second), each pair once, in order."""
    order = np.lexsort((document_R, second_R, key_R))
    key_R, second_R, document_R = key_R[order], second_R[order], document_R[order]
    begins_R = np.ones(len(key_R), dtype=bool)
    begins_R[1:] = (key_R[1:] != key_R[:-1]) | (second_R[1:] != second_R[:-1])
    start_of_bucket = np.flatnonzero(begins_R)
    size_of_bucket = np.diff(np.append(start_of_bucket, len(key_R)))
    bucket_R = np.cumsum(begins_R) - 1
    shared_R = size_of_bucket[bucket_R] > 1 if len(bucket_R) else np.zeros(0, dtype=bool)
    place_R = np.arange(len(key_R)) - start_of_bucket[bucket_R] if len(bucket_R) else np.zeros(0, dtype=np.int64)
    small_R = size_of_bucket[bucket_R] <= ALL_PAIRS_UP_TO if len(bucket_R) else np.zeros(0, dtype=bool)
    found: list[tuple[IntArray, IntArray]] = []
    for offset in range(1, ALL_PAIRS_UP_TO):
        later = np.flatnonzero(shared_R & (place_R >= offset) & (small_R | (offset == 1)))
        if not len(later):
            break
        found.append((document_R[later - offset], document_R[later]))
    star = np.flatnonzero(shared_R & ~small_R & (place_R > 1))
    found.append((document_R[start_of_bucket[bucket_R[star]]], document_R[star]))
    lower_P, higher_P = (np.concatenate(side) for side in zip(*found, strict=True))
    return unique_pairs(lower_P, higher_P)


def unique_pairs(one_P: IntArray, other_P: IntArray) -> tuple[IntArray, IntArray]:
    """Pairs (lower, higher), each once, in order; pairs of a document with itself go."""
    lower_P, higher_P = np.minimum(one_P, other_P), np.maximum(one_P, other_P)
    packed = np.unique((lower_P.astype(np.uint64) << np.uint64(32)) | higher_P.astype(np.uint64))
    lower_P, higher_P = (packed >> np.uint64(32)).astype(np.int64), (packed & np.uint64(0xFFFFFFFF)).astype(np.int64)
    apart = lower_P != higher_P
    return lower_P[apart], higher_P[apart]


def components(lower_P: IntArray, higher_P: IntArray) -> tuple[IntArray, IntArray]:
    """The documents in pairs, in order, and the lowest document that each is connected with."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    documents, places = np.unique(np.concatenate([lower_P, higher_P]), return_inverse=True)
    if not len(documents):
        return documents, documents
    one, other = places[: len(lower_P)], places[len(lower_P) :]
    graph = coo_array((np.ones(len(one), dtype=bool), (one, other)), shape=(len(documents), len(documents)))
    _, label = connected_components(graph, directed=False)
    first = np.full(int(label.max()) + 1, len(documents), dtype=np.int64)
    np.minimum.at(first, label, np.arange(len(documents)))
    return documents, documents[first[label]]


def cluster(lower_P: IntArray, higher_P: IntArray, similarity_P: FloatArray) -> Clusters:
    """The clusters that pairs make, and who stays."""
    documents, kept = components(lower_P, higher_P)
    highest = np.zeros(len(documents))
    for side in (lower_P, higher_P):
        np.maximum.at(highest, np.searchsorted(documents, side), similarity_P)
    gone = documents != kept
    return Clusters(document_D=documents[gone], kept_D=kept[gone], similarity_D=highest[gone])


def sizes(clusters: Clusters) -> tuple[IntArray, IntArray]:
    """The documents that stay, and how many the cluster of each has, itself counted; the largest first."""
    kept, counts = np.unique(clusters.kept_D, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return kept[order], counts[order] + 1


def of_largest(clusters: Clusters, most: int = 10, members: int = 5) -> IntArray:
    """Places in `clusters` of the first `members` of the `most` largest clusters, in order."""
    largest = sizes(clusters)[0][:most]
    found = [np.flatnonzero(clusters.kept_D == kept)[:members] for kept in largest.tolist()]
    return np.sort(np.concatenate([np.zeros(0, dtype=np.int64), *found]))


def settled(equal: Clusters, near: Clusters) -> Clusters:
    """`equal`, with what stays in the end in place of what `near` took after it."""
    if not len(near.document_D):
        return equal
    place_D = np.minimum(np.searchsorted(near.document_D, equal.kept_D), len(near.document_D) - 1)
    went_D = near.document_D[place_D] == equal.kept_D
    return replace(
        equal,
        kept_D=np.where(went_D, near.kept_D[place_D], equal.kept_D),
        similarity_D=np.where(went_D, near.similarity_D[place_D], equal.similarity_D),
    )
