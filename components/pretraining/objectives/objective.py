"""What an objective is: from packed sequences it makes what the network sees and what it is to predict.

Shapes: B sequences, L tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Targets:
    """Inputs and targets of a batch."""

    inputs_BL: IntArray
    """Token ids that the network sees."""
    mask_BL: BoolArray
    """At which positions something is predicted."""
    labels_BL: IntArray
    """The token to predict there; elsewhere meaningless."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """What objectives know of the tokenizer."""

    size: int
    pad: int
    bos: int
    eos: int
    mask: int

    @property
    def special(self) -> IntArray:
        """The ids that stand for no text, ascending."""
        return np.unique(np.asarray([self.pad, self.bos, self.eos, self.mask], dtype=np.int64))


class Objective(Protocol):
    """What is predicted from what."""

    @property
    def vocabulary(self) -> Vocabulary:
        """What it knows of the tokenizer."""
        ...

    @property
    def is_causal(self) -> bool:
        """Whether a position sees those before it only."""
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
