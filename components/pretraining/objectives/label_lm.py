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
from components.pretraining.objectives.targets import BoolArray, IntArray, Targets


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelLm(CausalLm):
    """The objective."""

    def prepare(
        self,
        *,
        tokens_BL: IntArray,
        segments_BL: IntArray,
        shard_targets_BL: BoolArray | None,
        indices_B: IntArray,
        epochs_B: IntArray,
        validation: bool = False,
    ) -> Targets:
        """Makes each marked token the target of the position before it.

        Args:
            tokens_BL: token ids.
            segments_BL: number of the document of each token, 0 for padding.
            shard_targets_BL: which tokens are marked.
            indices_B: not used here.
            epochs_B: not used here.
            validation: not used here.
        """
        causal = CausalLm.prepare(
            self,
            tokens_BL=tokens_BL,
            segments_BL=segments_BL,
            shard_targets_BL=None,
            indices_B=indices_B,
            epochs_B=epochs_B,
            validation=validation,
        )
        if shard_targets_BL is None:
            return causal
        marked_BL = np.zeros_like(causal.mask_BL)
        marked_BL[:, :-1] = shard_targets_BL[:, 1:]
        return replace(causal, mask_BL=causal.mask_BL & marked_BL)
