"""The Unigram model (Kudo 2018, arXiv:1804.10959), learned by expectation maximisation over word counts in numpy.

Ours, because the trainer of tokenizers 0.23 gives another vocabulary at each run, and takes 35 s for 9 MB where this
takes 10. It differs in two ways: normalised counts instead of digamma in the M-step, and a pruned piece is priced by
all other segmentations of it, not by the best one. Not for text of which most words are unique: only the 200,000 most
frequent words give seeds. E edges: a piece at a place in a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

MAX_PIECE_CHARACTERS = 16
MAX_WORD_CHARACTERS = 255
MAX_SEED_WORDS = 200_000
MAX_WORDS = 500_000
"""Words that are learned from, the most frequent ones: each has some 25 edges of 40 bytes while they are found."""
SEEDS_PER_TOKEN = 8
SHRINKING_FACTOR = 0.75
NUM_SUB_ITERATIONS = 2
MIN_PROBABILITY = 1e-9


@dataclass(frozen=True, kw_only=True, slots=True)
class Lattice:
    """All ways in which words can be put together from pieces, as edges from a start to an end."""

    num_words: int
    length_W: IntArray
    word_E: IntArray
    start_E: npt.NDArray[np.uint8]
    end_E: npt.NDArray[np.uint8]
    piece_E: IntArray

    def select(self, keep_E: BoolArray) -> Lattice:
        """The lattice with some of its edges."""
        return Lattice(
            num_words=self.num_words,
            length_W=self.length_W,
            word_E=self.word_E[keep_E],
            start_E=self.start_E[keep_E],
            end_E=self.end_E[keep_E],
            piece_E=self.piece_E[keep_E],
        )


def build_lattice(words: list[str], pieces: Mapping[str, int], *, proper: bool = False) -> Lattice:
    """The lattice of `words`, each of at most 255 characters; with `proper`, without edges that span a whole word."""
    codes: list[int] = []  # piece, start and end in one integer: a third of the time that tuples take
    counts: list[int] = []
    get = pieces.get
    for word in words:
        before = len(codes)
        length = len(word)
        for start in range(length):
            for end in range(start + 1, min(length, start + MAX_PIECE_CHARACTERS) + 1):
                piece = get(word[start:end])
                if piece is not None and not (proper and end - start == length):
                    codes.append(piece << 16 | start << 8 | end)
        counts.append(len(codes) - before)
    code_E = np.array(codes, dtype=np.int64)
    return Lattice(
        num_words=len(words),
        length_W=np.array([len(word) for word in words], dtype=np.int64),
        word_E=np.repeat(np.arange(len(words)), counts),
        start_E=(code_E >> 8 & 0xFF).astype(np.uint8),
        end_E=(code_E & 0xFF).astype(np.uint8),
        piece_E=code_E >> 16,
    )


def forward(lattice: Lattice, probability_V: FloatArray) -> FloatArray:
    """Sum over segmentations of each word's start up to each place, [words, longest + 1].

    Not in logarithms: the least likely word of 32 characters is still 1e-288, and float64 reaches 1e-308.
    """
    longest = int(lattice.length_W.max(initial=0))
    alpha = np.zeros((lattice.num_words, longest + 1))
    alpha[:, 0] = 1
    for end, edges in _by_place(lattice.end_E, longest):
        words = lattice.word_E[edges]
        terms = alpha[words, lattice.start_E[edges]] * probability_V[lattice.piece_E[edges]]
        alpha[:, end] += np.bincount(words, weights=terms, minlength=lattice.num_words)
    return alpha


def expected_counts(lattice: Lattice, frequency_W: FloatArray, probability_V: FloatArray) -> FloatArray:
    """How often each piece is used, over all segmentations by their probability."""
    alpha = forward(lattice, probability_V)
    rows = np.arange(lattice.num_words)
    total_W = alpha[rows, lattice.length_W]
    beta = np.zeros_like(alpha)
    beta[rows, lattice.length_W] = 1
    for start, edges in reversed(_by_place(lattice.start_E, alpha.shape[1] - 1)):
        words = lattice.word_E[edges]
        terms = beta[words, lattice.end_E[edges]] * probability_V[lattice.piece_E[edges]]
        beta[:, start] += np.bincount(words, weights=terms, minlength=lattice.num_words)
    per_word = np.divide(frequency_W, total_W, out=np.zeros_like(total_W), where=total_W > 0)
    through_E = (
        alpha[lattice.word_E, lattice.start_E]
        * probability_V[lattice.piece_E]
        * beta[lattice.word_E, lattice.end_E]
        * per_word[lattice.word_E]
    )
    return np.bincount(lattice.piece_E, weights=through_E, minlength=len(probability_V)).astype(np.float64)


def _by_place(place_E: npt.NDArray[np.uint8], last: int) -> list[tuple[int, IntArray]]:
    order = np.argsort(place_E, kind="stable")  # of 8 bits: a radix sort
    bounds = np.searchsorted(place_E[order], np.arange(last + 2))
    return [(place, order[bounds[place] : bounds[place + 1]]) for place in range(last + 1)]


def seed_pieces(words: Mapping[str, int], alphabet: list[str], num_seeds: int, min_frequency: int) -> list[str]:
    """The alphabet, then the substrings of words that save most characters, ties in order of code points."""
    counts: dict[str, int] = {}
    get = counts.get
    frequent = sorted(words.items(), key=lambda item: (-item[1], item[0]))
    for word, count in islice(frequent, MAX_SEED_WORDS):
        for start in range(len(word) - 1):
            for end in range(start + 2, min(len(word), start + MAX_PIECE_CHARACTERS) + 1):
                piece = word[start:end]
                counts[piece] = get(piece, 0) + count
    known = set(alphabet)
    candidates = [
        (-count * len(piece), piece)
        for piece, count in counts.items()
        if count >= max(2, min_frequency) and known.issuperset(piece)
    ]
    return [*alphabet, *(piece for _, piece in sorted(candidates)[:num_seeds])]


def train_unigram(
    words: Mapping[str, int], alphabet: list[str], num_pieces: int, min_frequency: int
) -> list[tuple[str, float]]:
    """At most `num_pieces` pieces with their log probabilities, most likely first.

    Args:
        words: how often each word occurs.
        alphabet: characters that stay in the vocabulary whatever their count; others are unknown.
        num_pieces: the most pieces wanted, at least as many as the alphabet has.
        min_frequency: how often a piece must occur to be thought of.
    """
    known = set(alphabet)
    frequent = sorted(words.items(), key=lambda item: (-item[1], item[0]))[:MAX_WORDS]
    usable = {
        word: count for word, count in sorted(frequent) if len(word) <= MAX_WORD_CHARACTERS and known.issuperset(word)
    }
    pieces = seed_pieces(usable, alphabet, SEEDS_PER_TOKEN * num_pieces, min_frequency)
    ids = {piece: index for index, piece in enumerate(pieces)}
    frequency_W = np.array(list(usable.values()), dtype=np.float64)
    lattice = build_lattice(list(usable), ids)
    inner = build_lattice(pieces, ids, proper=True)
    is_character_V = np.arange(len(pieces)) < len(alphabet)
    alive_V = np.ones(len(pieces), dtype=bool)
    probability_V = _normalise(np.bincount(lattice.piece_E, minlength=len(pieces)).astype(np.float64), alive_V)
    while True:
        for _ in range(NUM_SUB_ITERATIONS):
            counts_V = expected_counts(lattice, frequency_W, probability_V)
            alive_V &= is_character_V | (counts_V >= 0.5)
            probability_V = _normalise(counts_V, alive_V)
        num_alive = int(alive_V.sum())
        if num_alive <= num_pieces:
            break
        rows = np.arange(len(pieces))
        alternative_V = forward(inner, probability_V)[rows, inner.length_W]
        loss_V = counts_V * (np.log(probability_V + 1e-300) - np.log(alternative_V + 1e-300))
        loss_V[is_character_V] = np.inf
        loss_V[~alive_V] = -np.inf
        wanted = max(num_pieces, int(SHRINKING_FACTOR * num_alive))
        alive_V = np.zeros(len(pieces), dtype=bool)
        alive_V[np.argsort(-loss_V, kind="stable")[:wanted]] = True
        probability_V = _normalise(probability_V, alive_V)
        lattice = lattice.select(alive_V[lattice.piece_E])
        inner = inner.select(alive_V[inner.piece_E])
    scored = [(pieces[index], float(np.log(probability_V[index]))) for index in np.flatnonzero(alive_V)]
    return sorted(scored, key=lambda item: (-item[1], item[0]))


def _normalise(counts_V: FloatArray, alive_V: BoolArray) -> FloatArray:
    """Probabilities of the pieces alive, none of them zero."""
    counts_V = np.where(alive_V, counts_V, 0.0)
    probability_V = counts_V / max(counts_V.sum(), 1e-300)
    return np.where(alive_V, np.maximum(probability_V, MIN_PROBABILITY), 0.0)
