"""Documents of a batch as one flat array, and the few operations on groups of different lengths that they need.

Everything is done for all documents of a batch at once: a loop over 160 documents of 25 tokens with ten numpy calls
each takes some 3 ms, the same without a loop 0.3 ms.

Shapes: B sequences, L or W tokens of one, D documents, N tokens (or other items) of all of them, R ranges.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from components.pretraining.hashing import UintArray, mix, uniform
from components.pretraining.objectives.objective import BoolArray, IntArray, Sequences, Vocabulary

WIDTH_MULTIPLE = 32
"""Sides of an encoder-decoder are padded to a multiple of this."""


def starts(lengths_D: IntArray) -> IntArray:
    """Where each group starts; [D]."""
    first_D: IntArray = np.cumsum(lengths_D) - lengths_D
    return first_D


def within(lengths_D: IntArray) -> IntArray:
    """The place of each item in its group, from 0; [N]."""
    return np.arange(int(lengths_D.sum()), dtype=np.int64) - np.repeat(starts(lengths_D), lengths_D)


def ranges(starts_R: IntArray, lengths_R: IntArray) -> IntArray:
    """The numbers start, start + 1, ... of each range, one range after another; [N]."""
    return np.repeat(starts_R, lengths_R) + within(lengths_R)


def sums(values_N: IntArray | BoolArray, lengths_D: IntArray) -> IntArray:
    """The sum of each group, also of an empty one; [D]."""
    totals = np.concatenate([[0], np.cumsum(values_N, dtype=np.int64)])
    ends_D = np.cumsum(lengths_D)
    found_D: IntArray = totals[ends_D] - totals[ends_D - lengths_D]
    return found_D


def ranks(keys_D: UintArray, lengths_D: IntArray, *purpose: UintArray) -> IntArray:
    """A random permutation of 0, 1, ... for each group; [N]."""
    draws_N = mix(np.repeat(keys_D, lengths_D), within(lengths_D).astype(np.uint64), *purpose)
    group_N = np.repeat(np.arange(len(lengths_D)), lengths_D)
    found_N = np.empty(len(draws_N), dtype=np.int64)
    found_N[np.lexsort((draws_N, group_N))] = within(lengths_D)
    return found_N


def below(keys_D: UintArray, limits_D: IntArray, *purpose: UintArray) -> IntArray:
    """A random number from 0 to limit - 1 for each group; 0 where the limit is 0. [D]."""
    drawn_D = (uniform(keys_D, *purpose) * limits_D).astype(np.int64)
    return np.minimum(drawn_D, np.maximum(limits_D - 1, 0))


@dataclass(frozen=True, kw_only=True, slots=True)
class Documents:
    """The documents of a batch, without padding, in the order of their sequences."""

    tokens_N: IntArray
    lengths_D: IntArray
    rows_D: IntArray
    """The sequence of each, by its place in the batch."""
    numbers_D: IntArray
    """Its number in that sequence, from 1."""
    heads_D: IntArray
    """1 if it begins with <s>; a piece of a long document may not."""
    tails_D: IntArray
    """1 if it ends with </s>."""
    keys_D: UintArray
    """What random choices for it are keyed by."""
    sentence_starts_N: BoolArray | None
    """Which tokens begin a sentence, where the sequences say it."""

    @property
    def sentences(self) -> BoolArray:
        """Which tokens begin a sentence; [N]."""
        if self.sentence_starts_N is None:
            raise TypeError("the sequences were read without sentences")
        return self.sentence_starts_N

    @property
    def text_starts_D(self) -> IntArray:
        """Where the text of each starts in `tokens_N`."""
        return starts(self.lengths_D) + self.heads_D

    @property
    def text_lengths_D(self) -> IntArray:
        """Tokens of the text of each: those between <s> and </s>."""
        return self.lengths_D - self.heads_D - self.tails_D

    @property
    def text_indices(self) -> IntArray:
        """Where the text of all of them lies in `tokens_N`."""
        return ranges(self.text_starts_D, self.text_lengths_D)


def documents_of(sequences: Sequences, vocabulary: Vocabulary, keys_B: UintArray) -> Documents:
    """The documents of packed sequences.

    Args:
        sequences: each document is contiguous in them.
        vocabulary: says which tokens begin and end a document.
        keys_B: key of each sequence.
    """
    rows_N, columns_N = np.nonzero(sequences.segments_BL)
    tokens_N, numbers_N = sequences.tokens_BL[rows_N, columns_N], sequences.segments_BL[rows_N, columns_N]
    begins_N = np.ones(len(rows_N), dtype=bool)
    begins_N[1:] = (np.diff(rows_N) != 0) | (np.diff(numbers_N) != 0)
    first_D = np.flatnonzero(begins_N)
    lengths_D = np.diff(np.append(first_D, len(rows_N)))
    rows_D, numbers_D = rows_N[first_D], numbers_N[first_D]
    heads_D = (tokens_N[first_D] == vocabulary.bos).astype(np.int64)
    ends_D = tokens_N[first_D + lengths_D - 1] == vocabulary.eos
    sentences_BL = sequences.sentence_starts_BL
    return Documents(
        tokens_N=tokens_N,
        lengths_D=lengths_D,
        rows_D=rows_D,
        numbers_D=numbers_D,
        heads_D=heads_D,
        tails_D=(ends_D & (lengths_D > heads_D)).astype(np.int64),
        keys_D=mix(keys_B[rows_D], numbers_D.astype(np.uint64)),
        sentence_starts_N=sentences_BL[rows_N, columns_N] if sentences_BL is not None else None,
    )


def lay_out(values_N: IntArray, lengths_D: IntArray, rows_D: IntArray, shape: tuple[int, int], fill: int) -> IntArray:
    """Documents one after another in their sequences; [B, W].

    Args:
        values_N: of the documents, in the order of their sequences.
        lengths_D: how many each has; may be 0.
        rows_D: sequence of each.
        shape: B and W; a row's documents fit in W.
        fill: what stands in the rest.
    """
    columns_D = starts(lengths_D) - starts(row_lengths(lengths_D, rows_D, shape[0]))[rows_D]
    out_BW = np.full(shape, fill, dtype=np.int64)
    out_BW.reshape(-1)[ranges(rows_D * shape[1] + columns_D, lengths_D)] = values_N
    return out_BW


def row_lengths(lengths_D: IntArray, rows_D: IntArray, num_rows: int) -> IntArray:
    """Tokens of all documents of each sequence; [B]."""
    return np.bincount(rows_D, weights=lengths_D, minlength=num_rows).astype(np.int64)


def width_of(lengths_D: IntArray, rows_D: IntArray, num_rows: int, most: int) -> int:
    """The batch's longest sequence, rounded up to a multiple of 32, if that is no more than `most`."""
    longest = int(row_lengths(lengths_D, rows_D, num_rows).max(initial=1))
    return max(longest, min(-(-longest // WIDTH_MULTIPLE) * WIDTH_MULTIPLE, most))


def shift_right(values_N: IntArray, lengths_D: IntArray, first: int) -> IntArray:
    """What a decoder reads to predict `values_N`: each document without its last token, after `first`."""
    out_N = np.empty_like(values_N)
    out_N[1:] = values_N[:-1]
    out_N[starts(lengths_D)[lengths_D > 0]] = first
    return out_N
