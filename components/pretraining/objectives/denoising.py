"""Denoising auto-encoding, as in BART: a document is corrupted, and the decoder says the whole of it.

    loss = - sum over t of log p(x_t | x_<t, corrupted x) / number of tokens

Lewis et al. 2019 (arXiv:1910.13461, 2.2). Any of these, in this order, to the text between <s> and </s>:

    sentence_permutation  its sentences in a random order
    text_infilling        spans with lengths of a Poisson distribution, one <mask> for each; a span of length 0 puts a
                          <mask> between two tokens
    token_masking         random tokens become <mask>
    token_deletion        random tokens go
    document_rotation     it begins with a token chosen at random, and what was before that comes last

`masking_rate` is the part of the text that the token noises hide together: with three of them each takes a third of
it. BART's best: text_infilling at 0.3 with a mean length of 3, and sentence_permutation. The decoder starts with
</s>, as BART's does, and says <s> too. Spans of length 0 never make a document longer than it was: those beyond that
are left out, which happens in texts of a few tokens.

Shapes: B sequences, L and M tokens, D documents, N tokens of all texts, I slots: tokens that stay, and spans.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from components.pretraining.config import Noise
from components.pretraining.hashing import UintArray, uint64_of, uniform
from components.pretraining.objectives.objective import (
    BoolArray,
    IntArray,
    Sequences,
    Targets,
    Vocabulary,
    sequence_keys,
)
from components.pretraining.objectives.ragged import below, documents_of, ranges, starts, sums, within
from components.pretraining.objectives.span_corruption import encoder_decoder_targets
from components.pretraining.objectives.spans import draw_lengths, interleave, poisson_table

SENTENCE, BUDGET, TOKEN, ROTATION = 31, 32, 33, 34
TOKEN_NOISES = ("text_infilling", "token_masking", "token_deletion")
Text = tuple[IntArray, IntArray]
"""Tokens of all texts, one after another, and how many each has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Denoising:
    """The objective with its noise."""

    is_causal: ClassVar[bool] = False
    vocabulary: Vocabulary
    noise: tuple[Noise, ...]
    masking_rate: float
    mean_span_length: float = 3.0
    seed: int = 0

    @property
    def reads_sentences(self) -> bool:
        """Whether it permutes them."""
        return "sentence_permutation" in self.noise

    def targetable(self, tokens_BL: IntArray) -> BoolArray:
        """Which tokens may be targets: all of a document."""
        return ~np.isin(tokens_BL, [self.vocabulary.pad, self.vocabulary.mask])

    def prepare(self, sequences: Sequences, *, validation: bool = False) -> Targets:
        """Corrupts documents."""
        keys_B = sequence_keys(self.seed, sequences, validation=validation)
        documents = documents_of(sequences, self.vocabulary, keys_B)
        keys_D, heads_D, tails_D = documents.keys_D, documents.heads_D, documents.tails_D
        text: Text = (documents.tokens_N[documents.text_indices], documents.text_lengths_D)
        if "sentence_permutation" in self.noise:
            text = self._permuted(text, keys_D, documents.sentences[documents.text_indices])
        if "text_infilling" in self.noise:
            text = self._infilled(text, keys_D)
        if "token_masking" in self.noise or "token_deletion" in self.noise:
            text = self._hidden(text, keys_D, heads_D + tails_D == 0)
        if "document_rotation" in self.noise:
            text = self._rotated(text, keys_D)
        source = np.concatenate([documents.tokens_N, text[0]])
        first_D = starts(documents.lengths_D)
        pieces_D3 = np.stack(
            [first_D, len(documents.tokens_N) + starts(text[1]), first_D + documents.lengths_D - 1], axis=1
        )
        lengths_D3 = np.stack([heads_D, text[1], tails_D], axis=1)
        return encoder_decoder_targets(
            documents,
            (source[ranges(pieces_D3.ravel(), lengths_D3.ravel())], lengths_D3.sum(axis=1)),
            (documents.tokens_N, documents.lengths_D),
            shape=(sequences.tokens_BL.shape[0], sequences.tokens_BL.shape[1]),
            vocabulary=self.vocabulary,
            decoder_start=self.vocabulary.eos,
        )

    @property
    def _share(self) -> float:
        """Part of the text that each token noise hides."""
        return self.masking_rate / max(1, sum(noise in TOKEN_NOISES for noise in self.noise))

    def _permuted(self, text: Text, keys_D: UintArray, sentences_N: BoolArray) -> Text:
        tokens_N, lengths_D = text
        place_N = within(lengths_D)
        begins_N = sentences_N | (place_N == 0)  # else <s> begins the first one
        first_N = np.maximum.accumulate(np.where(begins_N, np.arange(len(tokens_N)), 0))
        draws_N = uniform(np.repeat(keys_D, lengths_D), place_N[first_N].astype(np.uint64), uint64_of(SENTENCE))
        document_N = np.repeat(np.arange(len(lengths_D)), lengths_D)
        return tokens_N[np.lexsort((place_N, draws_N, document_N))], lengths_D

    def _infilled(self, text: Text, keys_D: UintArray) -> Text:
        tokens_N, lengths_D = text
        budget_D = np.floor(self._share * lengths_D + uniform(keys_D, uint64_of(BUDGET))).astype(np.int64)
        spans_S, spans_D = draw_lengths(budget_D, poisson_table(self.mean_span_length), 0, keys_D)
        empty_S = spans_S == 0
        allowed_D = budget_D - (spans_D - sums(empty_S, spans_D))  # each span of n tokens makes room for n - 1
        before_S = np.cumsum(empty_S) - np.repeat((np.cumsum(sums(empty_S, spans_D)) - sums(empty_S, spans_D)), spans_D)
        kept_S = ~empty_S | (before_S <= np.repeat(allowed_D, spans_D))
        spans_S, spans_D = spans_S[kept_S], sums(kept_S, spans_D)
        is_span = interleave(lengths_D - budget_D, spans_D, keys_D)
        tokens_of_slot = np.ones(len(is_span), dtype=np.int64)
        tokens_of_slot[is_span] = spans_S
        source = np.minimum(np.cumsum(tokens_of_slot) - tokens_of_slot, max(0, len(tokens_N) - 1))
        return np.where(is_span, self.vocabulary.mask, tokens_N[source]), lengths_D - budget_D + spans_D

    def _hidden(self, text: Text, keys_D: UintArray, bare_D: BoolArray) -> Text:
        """Masks and deletes tokens; a document without <s> and </s> (`bare_D`) keeps one at least."""
        tokens_N, lengths_D = text
        place_N, shown_N = within(lengths_D), tokens_N != self.vocabulary.mask
        share = self._share / (1 - self._share if "text_infilling" in self.noise else 1)
        masked = share if "token_masking" in self.noise else 0.0
        deleted = share if "token_deletion" in self.noise else 0.0
        draws_N = uniform(np.repeat(keys_D, lengths_D), place_N.astype(np.uint64), uint64_of(TOKEN))
        tokens_N = np.where(shown_N & (draws_N < masked), self.vocabulary.mask, tokens_N)
        stays_N = ~shown_N | (draws_N < masked) | (draws_N >= masked + deleted)
        emptied_D = bare_D & (sums(stays_N, lengths_D) == 0)
        stays_N |= np.repeat(emptied_D, lengths_D) & (place_N == 0)
        return tokens_N[stays_N], sums(stays_N, lengths_D)

    def _rotated(self, text: Text, keys_D: UintArray) -> Text:
        tokens_N, lengths_D = text
        turn_N = np.repeat(below(keys_D, lengths_D, uint64_of(ROTATION)), lengths_D)
        turned_N = (within(lengths_D) + turn_N) % np.repeat(lengths_D, lengths_D)
        return tokens_N[np.repeat(starts(lengths_D), lengths_D) + turned_N], lengths_D
