"""From token shards to what the network takes: ids, positions, the masks that keep documents apart, and targets.

Masks are 4-D and boolean, L * L bytes a sequence (16 KiB at 128 tokens), and made only for networks whose attention
reads them: others find the documents by their positions. A padding token sees itself only, so that no row of a mask
is empty, which would make softmax give NaN.

Shapes: B sequences, L tokens of an encoder or of a decoder alone, M decoder tokens of an encoder-decoder, T targets of
the batch, P pairs of segments, K losses of the objective.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from components.pretraining.config import AttentionScope, PretrainConfig, num_sentinels
from components.pretraining.hashing import mix, uint64_of
from components.pretraining.objectives.causal_lm import CausalLm
from components.pretraining.objectives.denoising import Denoising
from components.pretraining.objectives.label_lm import LabelLm
from components.pretraining.objectives.masked_lm import MaskedLm
from components.pretraining.objectives.masked_lm_nsp import MaskedLmNsp
from components.pretraining.objectives.objective import BoolArray, IntArray, Objective, Sequences, Vocabulary
from components.pretraining.objectives.prefix_lm import PrefixLm
from components.pretraining.objectives.span_corruption import SpanCorruption
from components.tokenization.shards import TokenShards
from components.tokenization.words import read_sentinels, read_word_table

DROPOUT = 61


def make_objective(config: PretrainConfig, shards: TokenShards, tokenizer: Path) -> Objective:
    """The objective that the config names.

    Args:
        config: of the training.
        shards: any split.
        tokenizer: folder of the tokenizer that made them, read where words count.

    Raises:
        DataError: nobody can tell that tokenizer's words.
    """
    index, seed = shards.index, config.seed
    vocabulary = Vocabulary(
        size=index.vocab_size,
        pad=index.pad_token_id,
        bos=index.bos_token_id,
        eos=index.eos_token_id,
        mask=index.mask_token_id,
        num_sentinels=num_sentinels(config),
        own_sentinels=read_sentinels(tokenizer, num_sentinels(config)),
    )
    if config.objective == "causal_lm":
        return CausalLm(vocabulary=vocabulary)
    if config.objective == "label_lm":
        return LabelLm(vocabulary=vocabulary)
    if config.objective == "prefix_lm":
        return PrefixLm(vocabulary=vocabulary, seed=seed)
    rate, mean_span_length = config.masking_rate, config.mean_span_length
    if config.objective == "span_corruption":
        return SpanCorruption(vocabulary=vocabulary, masking_rate=rate, mean_span_length=mean_span_length, seed=seed)
    if config.objective == "denoising":
        return Denoising(
            vocabulary=vocabulary,
            noise=config.noise,
            masking_rate=rate,
            mean_span_length=mean_span_length,
            seed=seed,
        )
    with_pairs = config.objective == "masked_lm_nsp"
    words = read_word_table(tokenizer) if with_pairs or config.masking_unit != "token" else None
    masked_lm = MaskedLm(
        vocabulary=vocabulary,
        masking_rate=rate,
        mask_token_fraction=config.mask_token_fraction,
        random_token_fraction=config.random_token_fraction,
        unit=config.masking_unit,
        mean_span_length=mean_span_length,
        dynamic=config.dynamic_masking,
        words=words,
        seed=seed,
    )
    return MaskedLmNsp(masked_lm=masked_lm, words=words) if with_pairs and words is not None else masked_lm


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Tensors of one micro batch; those that do not apply are None."""

    input_ids_BL: torch.Tensor
    positions_BL: torch.Tensor
    """Place in the document, or in the sequence where attention runs through it, from 0."""
    documents_BL: torch.Tensor
    """Number of the document of each token in its sequence, from 0; -1 for padding. Not for the network."""
    target_positions_T: torch.Tensor
    """Index into the B * L positions, or into B * M where there is a decoder beside an encoder."""
    target_ids_T: torch.Tensor
    num_tokens: int
    """Tokens that the network, or its encoder, reads, without padding; a decoder beside it reads one a target."""
    attention_B1LL: torch.Tensor | None = None
    """Which position (row) sees which (column)."""
    token_types_BL: torch.Tensor | None = None
    pair_positions_P: torch.Tensor | None = None
    pair_labels_P: torch.Tensor | None = None
    decoder_input_ids_BM: torch.Tensor | None = None
    decoder_positions_BM: torch.Tensor | None = None
    decoder_attention_B1MM: torch.Tensor | None = None
    cross_attention_B1ML: torch.Tensor | None = None
    sample_keys_B: torch.Tensor | None = None
    """What dropout is keyed by."""

    @property
    def num_targets_K(self) -> tuple[int, ...]:
        """Targets of each loss of the objective."""
        pairs = () if self.pair_labels_P is None else (len(self.pair_labels_P),)
        return (len(self.target_ids_T), *pairs)

    def to(self, device: torch.device) -> dict[str, torch.Tensor]:
        """What the network's forward takes, on `device`."""
        names = [name for name in type(self).__dataclass_fields__ if name != "documents_BL"]
        values = {name: getattr(self, name) for name in names}
        return {name: value.to(device) for name, value in values.items() if isinstance(value, torch.Tensor)}


def positions(segments_BL: IntArray) -> IntArray:
    """Place of each token in its document, from 0; padding too counts from 0. [B, L]."""
    steps_1L = np.arange(segments_BL.shape[1], dtype=np.int64)[None, :]
    starts_BL = np.zeros_like(segments_BL)
    starts_BL[:, 1:] = np.where(np.diff(segments_BL, axis=1) != 0, steps_1L[:, 1:], 0)
    found_BL: IntArray = steps_1L - np.maximum.accumulate(starts_BL, axis=1)
    return found_BL


def attention_mask(segments_BL: IntArray, *, causal: bool, prefix_BL: BoolArray | None = None) -> BoolArray:
    """Which position (row) sees which (column), [B, 1, L, L]: those of its own document.

    Args:
        segments_BL: number of the document of each token, 0 for padding.
        causal: a position sees what is up to itself only,
        prefix_BL: and these.
    """
    mask_BLL: BoolArray = (segments_BL[:, :, None] == segments_BL[:, None, :]) & (segments_BL[:, None, :] > 0)
    if causal:
        before_BLL = np.tri(segments_BL.shape[1], dtype=bool)[None]
        mask_BLL &= before_BLL if prefix_BL is None else before_BLL | prefix_BL[:, None, :]
    mask_BLL |= np.eye(segments_BL.shape[1], dtype=bool)
    return np.expand_dims(mask_BLL, 1)


def cross_attention_mask(decoder_segments_BM: IntArray, segments_BL: IntArray) -> BoolArray:
    """Which decoder position (row) sees which of the encoder (column), [B, 1, M, L]: those of its own document.

    Padding sees the first one.
    """
    mask_BML: BoolArray = decoder_segments_BM[:, :, None] == segments_BL[:, None, :]
    mask_BML &= (decoder_segments_BM > 0)[:, :, None]
    mask_BML[:, :, 0] |= decoder_segments_BM == 0
    return np.expand_dims(mask_BML, 1)


def read_sequences(shards: TokenShards, indices_B: IntArray, epochs_B: IntArray, *, sentences: bool) -> Sequences:
    """Sequences of a split as they are in the token shards, with their sentences if asked for."""
    return Sequences(
        tokens_BL=shards.tokens(indices_B),
        segments_BL=shards.segments(indices_B),
        marked_BL=shards.targets(indices_B) if shards.split.num_target_tokens is not None else None,
        indices_B=indices_B,
        epochs_B=epochs_B,
        sentence_starts_BL=shards.sentence_starts(indices_B) if sentences else None,
    )


def make_batch(
    shards: TokenShards,
    objective: Objective,
    indices_B: IntArray,
    epochs_B: IntArray,
    *,
    validation: bool = False,
    attention_scope: AttentionScope = "document",
    scored: bool = True,
    with_mask: bool = True,
    dropout_seed: int | None = None,
) -> Batch:
    """One micro batch.

    Args:
        shards: the split.
        objective: makes the targets.
        indices_B: which sequences.
        epochs_B: in which epoch each is read.
        validation: fixed masks.
        attention_scope: what a token sees, and what positions count in: its document or the whole sequence.
        scored: without it the batch has no targets: what a rank runs beside the others when it has nothing left.
        with_mask: make `attention_B1LL`, where the network reads it.
        dropout_seed: the seed of the training, where its network has dropout.
    """
    sentences = objective.reads_sentences
    sequences = read_sequences(shards, indices_B, epochs_B, sentences=sentences)
    if isinstance(objective, MaskedLmNsp):
        partners_B = objective.partner_indices(sequences, len(shards), validation=validation)
        if partners_B is not None:
            partners = read_sequences(shards, partners_B, epochs_B, sentences=sentences)
            sequences = replace(sequences, partners=partners)
    targets = objective.prepare(sequences, validation=validation)
    segments_BL = documents_BL = targets.segments_BL
    if attention_scope == "sequence":
        segments_BL = (documents_BL > 0).astype(np.int64)
    flat_T = np.flatnonzero(targets.mask_BX) if scored else np.zeros(0, dtype=np.int64)
    arrays: dict[str, IntArray | BoolArray | None] = {
        "input_ids_BL": targets.inputs_BL,
        "positions_BL": positions(segments_BL),
        "documents_BL": documents_BL - 1,
        "target_positions_T": flat_T,
        "target_ids_T": targets.labels_BX.reshape(-1)[flat_T],
        "token_types_BL": targets.token_types_BL,
        "pair_positions_P": _scored(targets.pair_positions_P, scored),
        "pair_labels_P": _scored(targets.pair_labels_P, scored),
    }
    if with_mask:
        causal, prefix_BL = objective.is_causal, targets.prefix_BL
        arrays["attention_B1LL"] = attention_mask(segments_BL, causal=causal, prefix_BL=prefix_BL)
    if targets.decoder is not None:
        segments_BM = targets.decoder.segments_BM
        arrays |= {
            "decoder_input_ids_BM": targets.decoder.inputs_BM,
            "decoder_positions_BM": positions(segments_BM),
            "decoder_attention_B1MM": attention_mask(segments_BM, causal=True),
            "cross_attention_B1ML": cross_attention_mask(segments_BM, segments_BL),
        }
    if dropout_seed is not None:
        keys_B = mix(uint64_of(dropout_seed), uint64_of(DROPOUT), *(x.astype(np.uint64) for x in (epochs_B, indices_B)))
        arrays["sample_keys_B"] = keys_B.view(np.int64)
    made = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items() if array is not None}
    return Batch(**made, num_tokens=int((segments_BL > 0).sum()))


def _scored(values_P: IntArray | None, scored: bool) -> IntArray | None:
    return values_P if scored or values_P is None else values_P[:0]
