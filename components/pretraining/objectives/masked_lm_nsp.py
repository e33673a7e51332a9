"""Masked language modelling and next-sentence prediction, as in BERT.

    loss = masked LM loss + ( - sum over pairs of log p(label | first hidden state of the pair) / number of pairs )

Devlin et al. 2018 (arXiv:1810.04805, 3.1 and A.2): a document is shown as `<s> A </s> B </s>`, where A ends at one of
its sentence ends, each as likely, or at the word nearest to its middle if there is none inside. For half of the
documents B is what follows A (label 0), for the others the second part of a document of another sequence (label 1),
split as a pair of its own would be. What does not fit is cut from the longer of the two (`truncate_seq_pair` of BERT's
code), here from its front or its back as a whole.

Neither lengths nor cuts tell the label: both candidates for B are cut to one length, below the shorter of them where
they differ, so that either both are cut, at the same end, or neither (but for a B of one token, which cannot lose it).
Cut in BERT's way alone, paragraphs of glosses in rows of 128 tokens had a B of 42 tokens that ended with a sentence in
64 % of the true pairs, and of 32 tokens and 38 % in the random ones; this way it is 27 and 26 tokens, 32 and 29 %
(2,000 pairs each; standard errors 0.5 tokens and 1 %).

A document keeps its place in the packed sequence; where that has padding at its end, the first documents take of it
what their separators need. Texts of fewer than 5 tokens, or of one word, are left as they are and give no pair, and so
are all of a sequence where the other has no text to take from. The other sequence is any of the split; where long
documents were cut into several sequences it may, rarely, be a piece of the same document.

Shapes: B sequences, L tokens, D documents, N tokens of all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from components.pretraining.hashing import UintArray, mix, uint64_of, uniform
from components.pretraining.objectives.masked_lm import MaskedLm
from components.pretraining.objectives.objective import (
    BoolArray,
    IntArray,
    Sequences,
    Targets,
    Vocabulary,
    sequence_keys,
)
from components.pretraining.objectives.ragged import (
    Documents,
    below,
    documents_of,
    lay_out,
    ranges,
    row_lengths,
    starts,
    sums,
    within,
)
from components.tokenization.words import WordTable

PARTNER, SPLIT, LABEL, PICK, FRONT = 11, 12, 13, 14, 15
MIN_TEXT_TOKENS = 5
NUM_SPECIAL = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskedLmNsp:
    """The objective."""

    is_causal: ClassVar[bool] = False
    reads_sentences: ClassVar[bool] = True
    masked_lm: MaskedLm
    words: WordTable

    @property
    def vocabulary(self) -> Vocabulary:
        """What it knows of the tokenizer."""
        return self.masked_lm.vocabulary

    def targetable(self, tokens_BL: IntArray) -> BoolArray:
        """Which tokens may be targets: those that stand for text."""
        return self.masked_lm.targetable(tokens_BL)

    def partner_indices(self, sequences: Sequences, num_sequences: int, *, validation: bool) -> IntArray | None:
        """Another sequence of the split for each, int64 [B]; None if there is no other."""
        if num_sequences < 2:
            return None
        others_B = below(
            self._keys(sequences, validation), np.full(len(sequences.indices_B), num_sequences - 1), uint64_of(PARTNER)
        )
        return others_B + (others_B >= sequences.indices_B)

    def prepare(self, sequences: Sequences, *, validation: bool = False) -> Targets:
        """Makes pairs, then hides tokens."""
        none = np.zeros(0, dtype=np.int64)
        if sequences.partners is None:
            targets = self.masked_lm.prepare(sequences, validation=validation)
            types_BL = np.zeros_like(sequences.tokens_BL)
            return replace(targets, token_types_BL=types_BL, pair_positions_P=none, pair_labels_P=none)
        keys_B, shape = self._keys(sequences, validation), sequences.tokens_BL.shape
        own = documents_of(sequences, self.vocabulary, keys_B)
        other = documents_of(sequences.partners, self.vocabulary, mix(keys_B, uint64_of(PARTNER)))
        split_D, other_split = self._splits(own), self._splits(other)
        chosen_D, has_other_D = self._choose(own, other, other_split > 0)
        paired_D = (split_D > 0) & has_other_D
        random_D = paired_D & (uniform(own.keys_D, uint64_of(LABEL)) < 0.5)

        source = np.concatenate([own.tokens_N, other.tokens_N, [self.vocabulary.bos, self.vocabulary.eos]])
        bos, eos = len(source) - 2, len(source) - 1
        first_a, first_b = own.text_starts_D, own.text_starts_D + split_D
        length_a, length_b = split_D, own.text_lengths_D - split_D
        common_b = length_b  # of both labels
        if len(chosen_D):
            first_other = (len(own.tokens_N) + other.text_starts_D + other_split)[chosen_D]
            length_other = (other.text_lengths_D - other_split)[chosen_D]
            common_b = np.maximum(1, np.minimum(length_b, length_other) - (length_b != length_other))
            first_b = np.where(random_D, first_other, first_b)
            length_b = np.where(random_D, length_other, length_b)
        most_D = self._room(own, paired_D, shape) - NUM_SPECIAL
        kept_a = np.minimum(length_a, np.maximum(most_D - common_b, -(-most_D // 2)))
        kept_b = np.minimum(common_b, most_D - kept_a)
        first_a = first_a + self._from_front(own.keys_D, np.where(paired_D, length_a - kept_a, 0), 0)
        first_b = first_b + self._from_front(own.keys_D, np.where(paired_D, length_b - kept_b, 0), 1)

        one_D, no_D = np.ones_like(split_D), np.zeros_like(split_D)
        as_pair = (
            np.stack([bos * one_D, first_a, eos * one_D, first_b, eos * one_D], axis=1),
            np.stack([one_D, kept_a, one_D, kept_b, one_D], axis=1),
        )
        as_is = (
            np.stack([no_D, starts(own.lengths_D), no_D, no_D, no_D], axis=1),
            np.stack([no_D, own.lengths_D, no_D, no_D, no_D], axis=1),
        )
        first_D5, lengths_D5 = (np.where(paired_D[:, None], *both) for both in zip(as_pair, as_is, strict=True))
        lengths_D = lengths_D5.sum(axis=1)
        types_D5 = np.broadcast_to(np.asarray([0, 0, 0, 1, 1]), first_D5.shape)
        place = (lengths_D, own.rows_D, (shape[0], shape[1]))
        columns_D = starts(lengths_D) - starts(row_lengths(lengths_D, own.rows_D, shape[0]))[own.rows_D]
        paired = replace(
            sequences,
            tokens_BL=lay_out(source[ranges(first_D5.ravel(), lengths_D5.ravel())], *place, self.vocabulary.pad),
            segments_BL=lay_out(np.repeat(own.numbers_D, lengths_D), *place, 0),
            sentence_starts_BL=None,
        )
        return replace(
            self.masked_lm.prepare(paired, validation=validation),
            token_types_BL=lay_out(np.repeat(types_D5.ravel(), lengths_D5.ravel()), *place, 0),
            pair_positions_P=(own.rows_D * shape[1] + columns_D)[paired_D],
            pair_labels_P=random_D[paired_D].astype(np.int64),
        )

    def _keys(self, sequences: Sequences, validation: bool) -> UintArray:
        return sequence_keys(self.masked_lm.seed, sequences, validation=validation, dynamic=self.masked_lm.dynamic)

    def _splits(self, documents: Documents) -> IntArray:
        """Text tokens of A for each document; 0 where it gives no pair. [D]."""
        indices, lengths_D = documents.text_indices, documents.text_lengths_D
        tokens_N, place_N = documents.tokens_N[indices], within(lengths_D)
        text_N, inner_N = np.ones(len(indices), dtype=bool), place_N > 0
        sentences_N = inner_N & documents.sentences[indices]
        words_N = inner_N & self.words.word_starts(tokens_N, text_N, ~inner_N)
        ends_D = sums(sentences_N, lengths_D)
        picked_D = below(documents.keys_D, ends_D, uint64_of(SPLIT))
        split_D = np.zeros(len(lengths_D), dtype=np.int64)
        ends_inside_D = ends_D > 0
        split_D[ends_inside_D] = place_N[sentences_N][(starts(ends_D) + picked_D)[ends_inside_D]]
        # Without a sentence end inside: the word start nearest to the middle, the left one of two.
        document_N = np.repeat(np.arange(len(lengths_D)), lengths_D)[words_N]
        off_N = np.abs(2 * place_N[words_N] - lengths_D[document_N])
        order = np.lexsort((place_N[words_N], off_N, document_N))
        with_words, first = np.unique(document_N[order], return_index=True)
        middle_D = np.zeros(len(lengths_D), dtype=np.int64)
        middle_D[with_words] = place_N[words_N][order][first]
        split_D = np.where(ends_inside_D, split_D, middle_D)
        split_D[lengths_D < MIN_TEXT_TOKENS] = 0
        return split_D

    def _choose(self, own: Documents, other: Documents, gives: BoolArray) -> tuple[IntArray, BoolArray]:
        """For each document one of the sequence beside its own, and whether there is one; both [D]."""
        giving = np.flatnonzero(gives)
        if not len(giving):
            return np.zeros(0, dtype=np.int64), np.zeros(len(own.rows_D), dtype=bool)
        num_rows = int(max(own.rows_D.max(), other.rows_D.max())) + 1
        count_B = np.bincount(other.rows_D[giving], minlength=num_rows)
        picked_D = starts(count_B)[own.rows_D] + below(own.keys_D, count_B[own.rows_D], uint64_of(PICK))
        return giving[np.minimum(picked_D, len(giving) - 1)], count_B[own.rows_D] > 0

    def _room(self, own: Documents, paired_D: BoolArray, shape: tuple[int, ...]) -> IntArray:
        """Tokens that each document may take: what it had, and of the padding what its separators need; [D]."""
        missing_D = np.where(paired_D, NUM_SPECIAL - own.heads_D - own.tails_D, 0)
        free_B = shape[1] - row_lengths(own.lengths_D, own.rows_D, shape[0])
        before_D = starts(missing_D) - starts(row_lengths(missing_D, own.rows_D, shape[0]))[own.rows_D]
        taken_D: IntArray = np.clip(free_B[own.rows_D] - before_D, 0, missing_D)
        return own.lengths_D + taken_D

    def _from_front(self, keys_D: UintArray, cut_D: IntArray, segment: int) -> IntArray:
        """How many of the tokens to cut are cut from the front: all or none; [D]."""
        return np.where(uniform(keys_D, uint64_of(FRONT + segment)) < 0.5, cut_D, 0)
