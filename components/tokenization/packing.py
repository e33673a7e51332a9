"""Documents into sequences of one length, in one of two ways; neither loses a token.

Best-fit decreasing (`best_fit`): longest first, each piece goes where it leaves the least room (Ding et al. 2024,
arXiv:2404.10830). A document is cut only if it is longer than a sequence, into whole sequences and a rest. 117,791
glosses of 23 tokens in sequences of 128 pad 0.3 %; where most documents are longer than a sequence only their rests
are packed, and padding is that of the rests. Order is kept within a window of documents only.

Concatenating (`concatenate`): one document after another, cut wherever a sequence ends, as GPT-2 and GPT-3 were
trained. Nothing is padded but the last sequence, and documents are cut that would fit: of those glosses one in six.
Take it where attention runs over documents anyway (`attention_scope=sequence`), or to compare with work that did.

A piece of a cut document in another sequence is a document there: its positions begin again at 0, and attention does
not reach the piece before it.

Shapes: P pieces, N sequences, Q pieces and paddings, L `sequence_length`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FILL_TOKENS = 1 << 18
"""Tokens that `fill` moves at once: its index takes 8 bytes for each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ragged:
    """N lists of different lengths: list i is `values[offsets[i]:offsets[i + 1]]`."""

    values: npt.NDArray[Any]
    offsets: IntArray
    """N + 1, from 0 to the number of values."""

    @classmethod
    def of(cls, lists: Sequence[Sequence[int]]) -> Ragged:
        """From Python's lists."""
        offsets = np.concatenate([[0], np.cumsum([len(part) for part in lists], dtype=np.int64)]).astype(np.int64)
        return cls(values=np.array([value for part in lists for value in part], dtype=np.int64), offsets=offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def rows(self, first: int, last: int) -> Ragged:
        """The lists from `first` up to `last`, without a copy of their values."""
        offsets = self.offsets[first : last + 1]
        return Ragged(values=self.values[offsets[0] : offsets[-1]], offsets=offsets - offsets[0])

    def lists(self) -> list[list[int]]:
        """As Python's lists."""
        bounds = self.offsets.tolist()
        return [self.values[a:b].tolist() for a, b in itertools.pairwise(bounds)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Packing:
    """Where each piece of each document goes; pieces are in the order in which they lie in the sequences."""

    document_P: IntArray
    """The document that the piece is of."""
    start_P: IntArray
    """Its first token in that document."""
    length_P: IntArray
    offsets: IntArray
    """Where the pieces of each sequence begin, and their number; [N + 1]."""

    @property
    def num_sequences(self) -> int:
        """N."""
        return len(self.offsets) - 1

    def by_sequence(self, values_P: npt.NDArray[Any]) -> Ragged:
        """The values of the pieces in each sequence, for example their lengths."""
        return Ragged(values=values_P, offsets=self.offsets)


def pack(lengths: IntArray, sequence_length: int) -> Packing:
    """Packs documents of `lengths` tokens (each 1 or more) into sequences of `sequence_length` by best fit.

    A longer document is cut into pieces of `sequence_length` and a rest. Within a sequence pieces are in the order of
    the documents, and sequences are in the order of their first piece, so that neighbours stay near.
    """
    document_P, start_P, length_P = _cut(lengths, sequence_length)
    bin_P, num_bins = best_fit_decreasing(length_P, sequence_length)
    # Bins are numbered by their longest piece; number them by their first one instead.
    first_of_bin = np.zeros(num_bins, dtype=np.int64)
    first_of_bin[bin_P[::-1]] = np.arange(len(bin_P) - 1, -1, -1)
    rank = np.empty(num_bins, dtype=np.int64)
    rank[np.argsort(first_of_bin)] = np.arange(num_bins)
    sequence_P = rank[bin_P]
    order = np.argsort(sequence_P, kind="stable")
    return Packing(
        document_P=document_P[order],
        start_P=start_P[order],
        length_P=length_P[order],
        offsets=_offsets(np.bincount(sequence_P, minlength=num_bins)),
    )


def concatenate(lengths: IntArray, sequence_length: int) -> Packing:
    """Packs documents of `lengths` tokens (each 1 or more) one after another; the last sequence may be short."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    full = np.arange(sequence_length, total, sequence_length)
    place = np.searchsorted(ends, full)
    is_cut = ends[place] != full
    cuts = np.insert(ends, place[is_cut], full[is_cut])  # np.union1d hashes: ten times as long
    begins_P = np.concatenate([[0], cuts[:-1]]).astype(np.int64) if len(cuts) else cuts
    document_P = np.searchsorted(ends, begins_P, side="right")
    num_sequences = -(-total // sequence_length)
    return Packing(
        document_P=document_P,
        start_P=begins_P - (ends - lengths)[document_P],
        length_P=cuts - begins_P,
        offsets=_offsets(np.bincount(begins_P // sequence_length, minlength=num_sequences)),
    )


def _cut(lengths: IntArray, sequence_length: int) -> tuple[IntArray, IntArray, IntArray]:
    """Document, first token and length of each piece, document by document."""
    if not len(lengths) or int(lengths.max()) <= sequence_length:
        return np.arange(len(lengths)), np.zeros(len(lengths), dtype=np.int64), lengths
    pieces_per_document = -(-lengths // sequence_length)
    document_P = np.repeat(np.arange(len(lengths)), pieces_per_document)
    first_P = np.repeat(np.cumsum(pieces_per_document) - pieces_per_document, pieces_per_document)
    start_P = (np.arange(len(document_P)) - first_P) * sequence_length
    return document_P, start_P, np.minimum(lengths[document_P] - start_P, sequence_length)


def _offsets(counts: IntArray) -> IntArray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def best_fit_decreasing(length_P: IntArray, capacity: int) -> tuple[IntArray, int]:
    """The bin of each piece, and the number of bins; no bin holds more than `capacity`.

    The bin with the least room that holds a piece is found in a bit set of free lengths; of several the one filled last
    is taken. Pieces of one length are dealt out together: while the bin of least room has room for more of them they
    stay in it, so as many bins as have that room take as many each, and lists of bins move as slices. The bins are
    those of taking one piece at a time, in the given order of equal lengths.
    """
    bins: list[list[int]] = [[] for _ in range(capacity + 1)]
    """Bins by what is free in them, filled last at the end."""
    free_lengths = 0
    """Bit n is set where a bin with n free is open."""
    num_bins = 0
    order = np.argsort((capacity - length_P).astype(np.min_scalar_type(capacity)), kind="stable")
    counts = np.bincount(length_P, minlength=capacity + 1)
    chosen: list[int] = [0] * len(length_P)
    at = 0
    for length in np.flatnonzero(counts)[::-1].tolist():
        left = int(counts[length])
        while left:
            fitting = free_lengths >> length
            free = length + (fitting & -fitting).bit_length() - 1 if fitting else capacity
            each = free // length
            number = -(-left // each)
            if fitting:
                open_bins = bins[free]
                number = min(number, len(open_bins))
                taken = open_bins[: -number - 1 : -1]
                del open_bins[-number:]
                if not open_bins:
                    free_lengths ^= 1 << free
            else:
                taken = list(range(num_bins, num_bins + number))
                num_bins += number
            placed = min(left, number * each)
            whole = placed // each
            for turn in range(each):
                chosen[at + turn : at + placed : each] = taken if turn < placed - each * whole else taken[:whole]
            if whole and free > each * length:
                rest = free - each * length
                bins[rest].extend(taken[:whole])
                free_lengths |= 1 << rest
            if whole < number:
                rest = free - (placed - each * whole) * length
                bins[rest].append(taken[-1])
                free_lengths |= 1 << rest
            at += placed
            left -= placed
    bin_P = np.empty(len(length_P), dtype=np.int64)
    bin_P[order] = chosen
    return bin_P, num_bins


def fill(
    packing: Packing, tokens: npt.NDArray[Any], offsets: IntArray, sequence_length: int, pad_token_id: int
) -> npt.NDArray[Any]:
    """The packed sequences, [N, L], of the type of `tokens`.

    Args:
        packing: of these documents.
        tokens: the tokens of all documents, one after another.
        offsets: where each document starts in `tokens`.
        sequence_length: as in `pack`.
        pad_token_id: fills what is free at the end of a sequence.
    """
    # Padding is one more piece of its sequence, of a run of padding behind the tokens.
    source = np.concatenate([tokens, np.full(sequence_length, pad_token_id, dtype=tokens.dtype)])
    lasts_N = packing.offsets[1:]
    totals = np.concatenate([[0], np.cumsum(packing.length_P)])
    free_N = sequence_length - np.diff(totals[packing.offsets])
    length_Q = np.insert(packing.length_P, lasts_N, free_N)
    source_Q = np.insert(offsets[packing.document_P] + packing.start_P, lasts_N, len(tokens))
    shift_Q = source_Q - (np.cumsum(length_Q) - length_Q)
    bounds = packing.offsets + np.arange(len(packing.offsets))  # of the sequences in Q
    flat = np.empty(packing.num_sequences * sequence_length, dtype=tokens.dtype)
    step = max(1, FILL_TOKENS // sequence_length)
    for first in range(0, packing.num_sequences, step):
        last = min(packing.num_sequences, first + step)
        here = slice(bounds[first], bounds[last])
        index = np.repeat(shift_Q[here], length_Q[here])
        index += np.arange(first * sequence_length, last * sequence_length)
        np.take(source, index, out=flat[first * sequence_length : last * sequence_length], mode="clip")
    return flat.reshape(packing.num_sequences, sequence_length)
