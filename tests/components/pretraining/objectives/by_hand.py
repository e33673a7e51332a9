"""What the tests of the objectives share: a small vocabulary, sequences from lists, a loss to compute by hand, and a
second implementation of the hash in Python's own integers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from components.pretraining.objectives.objective import Sequences, Targets, Vocabulary
from components.tokenization.words import WordTable

PAD, UNK, BOS, EOS, MASK = range(5)
VOCABULARY = Vocabulary(size=40, pad=PAD, bos=BOS, eos=EOS, mask=MASK, num_sentinels=100)
_NUMBERS = np.arange(40)
WORDS = WordTable(starts_word_V=((_NUMBERS >= 5) & (_NUMBERS < 20)) | (_NUMBERS >= 30), ends_sentence_V=_NUMBERS >= 30)
"""5 to 19 begin a word, 20 to 29 go on with one, 30 to 39 end a sentence (and begin a word)."""
MASK_64 = (1 << 64) - 1


def sequences(
    rows: Sequence[Sequence[Sequence[int]]],
    width: int,
    *,
    indices: Sequence[int] | None = None,
    epoch: int = 0,
    partners: Sequences | None = None,
) -> Sequences:
    """Packed sequences: rows of documents of token ids."""
    tokens = np.zeros((len(rows), width), dtype=np.int64)
    segments = np.zeros_like(tokens)
    for row, documents in enumerate(rows):
        flat = [token for document in documents for token in document]
        tokens[row, : len(flat)] = flat
        segments[row, : len(flat)] = np.repeat(np.arange(1, len(documents) + 1), [len(d) for d in documents])
    begins = np.ones(tokens.shape, dtype=bool)
    begins[:, 1:] = np.diff(segments, axis=1) != 0
    numbers = np.arange(len(rows)) if indices is None else np.asarray(indices)
    return Sequences(
        tokens_BL=tokens,
        segments_BL=segments,
        marked_BL=None,
        indices_B=numbers,
        epochs_B=np.full(len(rows), epoch),
        sentence_starts_BL=WORDS.sentence_starts(tokens.ravel(), begins.ravel()).reshape(tokens.shape),
        partners=partners,
    )


def documents(tokens: Any, segments: Any) -> list[list[list[int]]]:
    """The documents of each row, as lists."""
    return [
        [row[which == number].tolist() for number in range(1, int(which.max(initial=0)) + 1)]
        for row, which in zip(tokens, segments, strict=True)
    ]


def target_ids(targets: Targets) -> list[int]:
    """What is predicted, in order."""
    found: list[int] = targets.labels_BX[targets.mask_BX].tolist()
    return found


def unigram_loss(targets: Targets, probabilities: Mapping[int, float]) -> float:
    """Mean of -log p over the targets, of a model that gives each token the same probability everywhere."""
    found = target_ids(targets)
    return -sum(math.log(probabilities[token]) for token in found) / len(found)


def mix(*words: int) -> int:
    """SplitMix64 chained over words, in Python's integers."""
    state = 0
    for word in words:
        state = ((state ^ word) + 0x9E3779B97F4A7C15) & MASK_64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK_64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK_64
        state ^= state >> 31
    return state


def uniform(*words: int) -> float:
    """The number in [0, 1) from them."""
    return (mix(*words) >> 11) * 2.0**-53


def sequence_key(seed: int, epoch: int, index: int) -> int:
    """Key of a training sequence."""
    return mix(seed, 1, epoch, index)
