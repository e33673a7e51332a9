"""What an objective is: from packed sequences it makes what the network sees and what it is to predict.

Shapes: B sequences, L tokens, M decoder tokens, X one of the two, P pairs of segments, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from components.pretraining.hashing import UintArray, mix, uint64_of

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
TRAINING, VALIDATION = 1, 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Sequences:
    """Packed sequences of one split."""

    tokens_BL: IntArray
    """Token ids."""
    segments_BL: IntArray
    """Number of the document of each token, from 1; 0 for padding."""
    marked_BL: BoolArray | None
    """Which tokens the shards mark as targets; None where they mark none."""
    indices_B: IntArray
    """Number of each sequence in its split."""
    epochs_B: IntArray
    """Epoch in which each is read."""
    sentence_starts_BL: BoolArray | None = None
    """Which tokens begin a sentence, for objectives that read sentences."""
    partners: Sequences | None = None
    """For next-sentence prediction: another sequence of the split beside each; None where there is no other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderSide:
    """What the decoder of an encoder-decoder reads; its documents have the numbers of those of the encoder."""

    inputs_BM: IntArray
    segments_BM: IntArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Targets:
    """Inputs and targets of a batch."""

    inputs_BL: IntArray
    """Token ids that the network, or its encoder, sees."""
    segments_BL: IntArray
    """Number of the document of each of them, from 1; 0 for padding."""
    mask_BX: BoolArray
    """At which positions something is predicted: [B, M] with a decoder side, else [B, L]."""
    labels_BX: IntArray
    """The token to predict there; elsewhere meaningless."""
    prefix_BL: BoolArray | None = None
    """Tokens that all of their document see, also from the left."""
    decoder: DecoderSide | None = None
    token_types_BL: IntArray | None = None
    """0 for the first segment of a pair, 1 for the second."""
    pair_positions_P: IntArray | None = None
    """Flat index, into B * L, of the first token of each pair."""
    pair_labels_P: IntArray | None = None
    """0 where the second segment follows the first, 1 where it is from elsewhere."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """What objectives know of the tokenizer."""

    size: int
    """Its tokens, without sentinels."""
    pad: int
    bos: int
    eos: int
    mask: int
    num_sentinels: int = 0
    """Ids from `size` upward, each of which stands for a span that was taken out."""
    own_sentinels: tuple[int, ...] = ()
    """Ids of `<extra_id_0>` and on, where the tokenizer has them itself, as T5's; they then stand for the others."""

    @property
    def num_ids(self) -> int:
        """Ids that may occur."""
        return self.size + (0 if self.own_sentinels else self.num_sentinels)

    @property
    def sentinels(self) -> IntArray:
        """The id of each sentinel."""
        return np.asarray(self.own_sentinels or range(self.size, self.num_ids), dtype=np.int64)

    @property
    def special(self) -> IntArray:
        """The ids that stand for no text, ascending; sentinels left out."""
        return np.unique(np.asarray([self.pad, self.bos, self.eos, self.mask], dtype=np.int64))

    @property
    def never_predicted(self) -> IntArray:
        """The ids that no document is continued by. A bos that is the eos too, as in GPT-2, is none of them: a document
        ends with it, and its first token is no target anyway."""
        return np.setdiff1d(np.asarray([self.pad, self.bos, self.mask], dtype=np.int64), [self.eos])


def sequence_keys(seed: int, sequences: Sequences, *, validation: bool, dynamic: bool = True) -> UintArray:
    """What all random choices for a sequence are keyed by; uint64 [B].

    Args:
        seed: of the training.
        sequences: of a batch.
        validation: neither seed nor epoch counts, so that losses can be compared.
        dynamic: whether the epoch counts.
    """
    epochs_B = sequences.epochs_B if dynamic and not validation else np.zeros_like(sequences.epochs_B)
    return mix(
        uint64_of(0 if validation else seed),
        uint64_of(VALIDATION if validation else TRAINING),
        epochs_B.astype(np.uint64),
        sequences.indices_B.astype(np.uint64),
    )


class Objective(Protocol):
    """What is predicted from what."""

    is_causal: ClassVar[bool]
    """Whether a position sees those before it only."""

    @property
    def vocabulary(self) -> Vocabulary:
        """What it knows of the tokenizer."""
        ...

    @property
    def reads_sentences(self) -> bool:
        """Whether it needs `Sequences.sentence_starts_BL`."""
        ...

    def targetable(self, tokens_BL: IntArray) -> BoolArray:
        """Which tokens may be targets."""
        ...

    def prepare(self, sequences: Sequences, *, validation: bool = False) -> Targets:
        """Inputs and targets.

        Args:
            sequences: of a batch.
            validation: makes what neither the seed nor the epoch changes, so that losses can be compared.
        """
        ...
