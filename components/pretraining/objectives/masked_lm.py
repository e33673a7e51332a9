"""Masked language modelling: some tokens are hidden, and predicted from both sides.

    loss = - sum over targets t of log p(x_t | x with the targets hidden) / number of targets

Devlin et al. 2018 (arXiv:1810.04805, 3.1): of the targets 80 % are shown as <mask>, 10 % as a random token, 10 % as
they are. A masking rate of 30 to 40 % serves small models better than their 15 % (Wettig et al. 2022,
arXiv:2202.08005). What is hidden at once (`unit`):

    token   each token by its own draw
    word    all tokens of a word by one draw (whole-word masking, github.com/google-research/bert, May 2019); each token
            is then replaced by its own draw
    span    spans of whole words, their lengths geometric and clipped, until the rate is spent (Joshi et al. 2019,
            arXiv:1907.10529, SpanBERT 3.1); a span is shown as <mask>, as random tokens or as it is, as a whole

Masks are dynamic (others in each epoch: Liu et al. 2019, arXiv:1907.11692, 4.1) or static. Every draw is keyed by
(seed, epoch, sequence, position): the same whatever rank it falls to. Special tokens are never targets.

Shapes: B sequences, L tokens, D documents, W words of all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from components.pretraining.hashing import UintArray, mix, uint64_of, uniform
from components.pretraining.objectives.objective import (
    BoolArray,
    IntArray,
    Sequences,
    Targets,
    Vocabulary,
    sequence_keys,
)
from components.pretraining.objectives.spans import draw_lengths, geometric_table, interleave
from components.tokenization.words import WordTable

CHOICE, REPLACEMENT, TOKEN, BUDGET = 1, 2, 3, 4
MaskingUnit = Literal["token", "word", "span"]


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskedLm:
    """The objective with its rates."""

    is_causal: ClassVar[bool] = False
    reads_sentences: ClassVar[bool] = False
    vocabulary: Vocabulary
    masking_rate: float
    mask_token_fraction: float = 0.8
    random_token_fraction: float = 0.1
    unit: MaskingUnit = "token"
    mean_span_length: float = 3.8
    """Words."""
    dynamic: bool = True
    words: WordTable | None = None
    """For words and spans."""
    seed: int = 0

    def targetable(self, tokens_BL: IntArray) -> BoolArray:
        """Which tokens may be targets: those that stand for text."""
        return ~np.isin(tokens_BL, self.vocabulary.special)

    def prepare(self, sequences: Sequences, *, validation: bool = False) -> Targets:
        """Hides tokens."""
        tokens_BL, segments_BL = sequences.tokens_BL, sequences.segments_BL
        rows_B1 = sequence_keys(self.seed, sequences, validation=validation, dynamic=self.dynamic)[:, None]
        columns_1L = np.arange(tokens_BL.shape[1], dtype=np.int64)[None, :]
        candidates_BL = (segments_BL > 0) & self.targetable(tokens_BL)
        units_BL = np.broadcast_to(columns_1L, tokens_BL.shape)
        if self.unit == "span":
            mask_BL, units_BL = self._spans(sequences, candidates_BL, rows_B1)
        else:
            drawn_BL = units_BL
            if self.unit == "word":
                drawn_BL = np.maximum.accumulate(
                    np.where(self._word_starts(sequences, candidates_BL), columns_1L, 0), axis=1
                )
            draws_BL = uniform(rows_B1, drawn_BL.astype(np.uint64), uint64_of(CHOICE))
            mask_BL = candidates_BL & (draws_BL < self.masking_rate)
        draw_BL = uniform(rows_B1, units_BL.astype(np.uint64), uint64_of(REPLACEMENT))
        hidden_BL = mask_BL & (draw_BL < self.mask_token_fraction)
        random_BL = mask_BL & ~hidden_BL & (draw_BL < self.mask_token_fraction + self.random_token_fraction)
        inputs_BL = np.where(hidden_BL, self.vocabulary.mask, tokens_BL)
        if random_BL.any():
            chosen_BL = mix(rows_B1, columns_1L.astype(np.uint64), uint64_of(TOKEN))
            inputs_BL = np.where(random_BL, self._text_ids(chosen_BL), inputs_BL)
        return Targets(inputs_BL=inputs_BL, segments_BL=segments_BL, mask_BX=mask_BL, labels_BX=tokens_BL)

    def _text_ids(self, draws_BL: UintArray) -> IntArray:
        """An id of the tokenizer that is not special from each draw."""
        special = self.vocabulary.special
        ids_BL = (draws_BL % np.uint64(self.vocabulary.size - len(special))).astype(np.int64)
        for id_ in special.tolist():
            ids_BL += ids_BL >= id_
        return ids_BL

    def _word_starts(self, sequences: Sequences, candidates_BL: BoolArray) -> BoolArray:
        if self.words is None:
            raise TypeError(f"unit={self.unit} needs a word table")
        begins_BL = np.ones(candidates_BL.shape, dtype=bool)
        begins_BL[:, 1:] = np.diff(sequences.segments_BL, axis=1) != 0
        flat = self.words.word_starts(sequences.tokens_BL.ravel(), candidates_BL.ravel(), begins_BL.ravel())
        return flat.reshape(candidates_BL.shape)

    def _spans(self, sequences: Sequences, candidates_BL: BoolArray, rows_B1: UintArray) -> tuple[BoolArray, IntArray]:
        """What is hidden, and for each token the column whose draw says how: that of the first token of its span."""
        flat = np.flatnonzero(candidates_BL)
        width = candidates_BL.shape[1]
        first_W = np.flatnonzero(self._word_starts(sequences, candidates_BL).ravel()[flat])
        word_lengths_W = np.diff(np.append(first_W, len(flat)))
        document_W = (flat // width * (width + 1) + sequences.segments_BL.ravel()[flat])[first_W]
        found_D, words_D = np.unique(document_W, return_counts=True)
        keys_D = mix(rows_B1.ravel()[found_D // (width + 1)], (found_D % (width + 1)).astype(np.uint64))
        draws_D = uniform(keys_D, uint64_of(BUDGET))
        budget_D = np.floor(self.masking_rate * words_D + draws_D).astype(np.int64)  # right on average, short or long
        lengths_S, spans_D = draw_lengths(budget_D, geometric_table(self.mean_span_length), 1, keys_D)
        is_span = interleave(words_D - budget_D, spans_D, keys_D)
        words_of_slot = np.ones(len(is_span), dtype=np.int64)
        words_of_slot[is_span] = lengths_S
        slot_W = np.repeat(np.arange(len(is_span)), words_of_slot)
        first_word_of_slot = np.cumsum(words_of_slot) - words_of_slot
        mask_BL = np.zeros(candidates_BL.shape, dtype=bool)
        mask_BL.reshape(-1)[flat] = np.repeat(is_span[slot_W], word_lengths_W)
        units_BL = np.zeros(candidates_BL.shape, dtype=np.int64)
        units_BL.reshape(-1)[flat] = np.repeat(flat[first_W[first_word_of_slot[slot_W]]] % width, word_lengths_W)
        return mask_BL, units_BL
