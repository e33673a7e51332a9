"""Causal language modelling with the loss on marked tokens only: a prompt is read, its label is predicted.

    loss = - sum over marked t of log p(x_t | x_<t) / number of marked t

This is supervised fine-tuning of a decoder on rendered prompts (Wei et al. 2021, arXiv:2109.01652). The marks are the
column `targets` of the token shards; without it every token is marked, and the loss is that of causal_lm.

Shapes: B sequences, L tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from components.pretraining.objectives.causal_lm import CausalLm
from components.pretraining.objectives.objective import Sequences, Targets


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelLm(CausalLm):
    """The objective."""

    def prepare(self, sequences: Sequences, *, validation: bool = False) -> Targets:
        """Makes each marked token the target of the position before it."""
        causal = CausalLm.prepare(self, sequences, validation=validation)
        if sequences.marked_BL is None:
            return causal
        marked_BL = np.zeros_like(causal.mask_BX)
        marked_BL[:, :-1] = sequences.marked_BL[:, 1:]
        return replace(causal, mask_BX=causal.mask_BX & marked_BL)
