"""Causal language modelling: each token is predicted from those before it in its own document.

    loss = - sum over t of log p(x_t | x_<t) / number of targets        (Radford et al. 2018, GPT)

A document's first token in a sequence has nothing before it and is no target; `</s>` is one.

Shapes: B sequences, L tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from components.pretraining.objectives.objective import BoolArray, IntArray, Sequences, Targets, Vocabulary


@dataclass(frozen=True, kw_only=True, slots=True)
class CausalLm:
    """The objective."""

    is_causal: ClassVar[bool] = True
    reads_sentences: ClassVar[bool] = False
    vocabulary: Vocabulary

    def targetable(self, tokens_BL: IntArray) -> BoolArray:
        """Which tokens may be targets: text and the end of a document."""
        return ~np.isin(tokens_BL, self.vocabulary.never_predicted)

    def prepare(self, sequences: Sequences, *, validation: bool = False) -> Targets:
        """Makes each token the target of the position before it."""
        tokens_BL, segments_BL = sequences.tokens_BL, sequences.segments_BL
        labels_BL = np.zeros_like(tokens_BL)
        labels_BL[:, :-1] = tokens_BL[:, 1:]
        mask_BL = np.zeros(tokens_BL.shape, dtype=bool)
        same_document = (segments_BL[:, 1:] == segments_BL[:, :-1]) & (segments_BL[:, 1:] > 0)
        mask_BL[:, :-1] = same_document & self.targetable(tokens_BL[:, 1:])
        return Targets(inputs_BL=tokens_BL, segments_BL=segments_BL, mask_BX=mask_BL, labels_BX=labels_BL)
