"""Span corruption, as in T5: spans of text give way to sentinels, and the decoder says what was there.

    x = <s> Thank you <extra_0> me to your party <extra_1> week </s>
    y = <extra_0> for inviting <extra_1> last </s>
    loss = - sum over t of log p(y_t | y_<t, x) / number of y

Raffel et al. 2020 (arXiv:1910.10683, 3.1.4) and `random_spans_noise_mask` of their code: of n text tokens
max(1, round(rate * n)) are noise, in max(1, round(noise / mean span length)) spans; the lengths of the spans, and of
what lies between them, are random segmentations; a text begins with what stays and ends with noise. As in the code,
and unlike Figure 2 of the paper, y has no sentinel after its last span. The decoder starts with <pad>.

Each packed document is corrupted for itself, so x and y are packed alike, and cross attention stays within a document.
Their code packs more text into an input so that it is full after the corruption; here what the corruption saves (9 %
at a rate of 0.15 and spans of 3) is not computed, because a batch is as wide as its longest row. A document of fewer
than two text tokens has no noise and nothing to predict.

Shapes: B sequences, L and M tokens, D documents, N tokens of all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from components.pretraining.objectives.objective import (
    BoolArray,
    DecoderSide,
    IntArray,
    Sequences,
    Targets,
    Vocabulary,
    sequence_keys,
)
from components.pretraining.objectives.ragged import (
    Documents,
    documents_of,
    lay_out,
    ranges,
    shift_right,
    starts,
    sums,
    width_of,
)
from components.pretraining.objectives.spans import segmentation

NOISE, STAYING = 21, 22


@dataclass(frozen=True, kw_only=True, slots=True)
class SpanCorruption:
    """The objective with its rate."""

    is_causal: ClassVar[bool] = False
    reads_sentences: ClassVar[bool] = False
    vocabulary: Vocabulary
    masking_rate: float
    mean_span_length: float = 3.0
    seed: int = 0

    def targetable(self, tokens_BL: IntArray) -> BoolArray:
        """Which tokens may be targets: text, sentinels and the end of a document."""
        return ~np.isin(tokens_BL, self.vocabulary.never_predicted)

    def prepare(self, sequences: Sequences, *, validation: bool = False) -> Targets:
        """Takes spans out."""
        keys_B = sequence_keys(self.seed, sequences, validation=validation)
        documents = documents_of(sequences, self.vocabulary, keys_B)
        tokens_N, lengths_D = documents.tokens_N, documents.lengths_D
        noise_N = self.noise(documents)
        first_N = noise_N.copy()
        first_N[1:] &= ~noise_N[:-1]
        first_N |= noise_N & (np.arange(len(noise_N)) == np.repeat(starts(lengths_D), lengths_D))
        spans_N = np.cumsum(first_N)
        before_D: IntArray = (spans_N - first_N)[starts(lengths_D)]
        numbers_N = np.maximum(spans_N - 1 - np.repeat(before_D, lengths_D), 0)  # before the first span: not used
        sentinels_N = self.vocabulary.sentinels[numbers_N]

        stays_N = ~noise_N | first_N
        inputs_N, input_lengths_D = np.where(first_N, sentinels_N, tokens_N)[stays_N], sums(stays_N, lengths_D)
        taken = np.flatnonzero(noise_N)
        outputs_N = np.insert(tokens_N[taken], np.flatnonzero(first_N[taken]), sentinels_N[first_N])
        output_lengths_D = sums(noise_N, lengths_D) + sums(first_N, lengths_D)
        has_noise_D = output_lengths_D > 0
        outputs_N = np.insert(outputs_N, np.cumsum(output_lengths_D)[has_noise_D], self.vocabulary.eos)
        output_lengths_D = output_lengths_D + has_noise_D
        return encoder_decoder_targets(
            documents,
            (inputs_N, input_lengths_D),
            (outputs_N, output_lengths_D),
            shape=(sequences.tokens_BL.shape[0], sequences.tokens_BL.shape[1]),
            vocabulary=self.vocabulary,
            decoder_start=self.vocabulary.pad,
        )

    def noise(self, documents: Documents) -> BoolArray:
        """Which tokens are taken out; [N]."""
        text_D = documents.text_lengths_D
        noisy_D = text_D >= 2
        lengths_D, keys_D = text_D[noisy_D], documents.keys_D[noisy_D]
        noise_D = np.clip(np.round(lengths_D * self.masking_rate).astype(np.int64), 1, lengths_D - 1)
        spans_D = np.maximum(1, np.round(noise_D / self.mean_span_length).astype(np.int64))
        spans_D = np.minimum(spans_D, lengths_D - noise_D)  # a span needs a token before it
        taken_S = segmentation(noise_D, spans_D, keys_D, NOISE)
        staying_S = segmentation(lengths_D - noise_D, spans_D, keys_D, STAYING)
        alternating = np.stack([staying_S, taken_S], axis=1).ravel()
        noise_N = np.zeros(len(documents.tokens_N), dtype=bool)
        places = ranges(documents.text_starts_D[noisy_D], lengths_D)
        noise_N[places] = np.repeat(np.tile([False, True], len(taken_S)), alternating)
        return noise_N


def encoder_decoder_targets(
    documents: Documents,
    encoder: tuple[IntArray, IntArray],
    decoder: tuple[IntArray, IntArray],
    *,
    shape: tuple[int, int],
    vocabulary: Vocabulary,
    decoder_start: int,
) -> Targets:
    """Packs both sides of an encoder-decoder.

    Args:
        documents: of the batch.
        encoder: what the encoder reads, all documents one after another, and how much of it is of each.
        decoder: the same for what is to be predicted.
        shape: B, and L of the token shards.
        vocabulary: gives what padding is.
        decoder_start: what the decoder reads before its first target.
    """
    rows_D, numbers_D = documents.rows_D, documents.numbers_D
    sides = []
    for values_N, lengths_D in (encoder, decoder):
        place = (lengths_D, rows_D, (shape[0], width_of(lengths_D, rows_D, shape[0], shape[1])))
        segments_BX = lay_out(np.repeat(numbers_D, lengths_D), *place, 0)
        sides.append((lay_out(values_N, *place, vocabulary.pad), segments_BX, place))
    (inputs_BL, segments_BL, _), (labels_BM, decoder_segments_BM, place) = sides
    shifted_N = shift_right(*decoder, decoder_start)
    return Targets(
        inputs_BL=inputs_BL,
        segments_BL=segments_BL,
        mask_BX=decoder_segments_BM > 0,
        labels_BX=labels_BM,
        decoder=DecoderSide(inputs_BM=lay_out(shifted_N, *place, vocabulary.pad), segments_BM=decoder_segments_BM),
    )
