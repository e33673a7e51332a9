"""What every objective makes from a batch of packed sequences: what the network sees and what it is to predict.

Shapes: B sequences, L tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


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
