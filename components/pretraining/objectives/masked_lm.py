"""Masked language modelling: some tokens are hidden, and predicted from both sides.

    loss = - sum over targets t of log p(x_t | x with the targets hidden) / number of targets

Devlin et al. 2018 (arXiv:1810.04805): of the targets 80 % are shown as <mask>, 10 % as a random token, 10 % as they
are. A masking rate of 30 to 40 % serves small models better than their 15 % (Wettig et al. 2022, arXiv:2202.08005).
Each token is a target or not by its own draw, keyed by (seed, epoch, sequence, position): the same whatever rank it
falls to. Special tokens are never targets.

Shapes: B sequences, L tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from components.pretraining.hashing import mix, uint64_of, uniform
from components.pretraining.objectives.objective import BoolArray, IntArray, Sequences, Targets, Vocabulary

TRAINING, VALIDATION = 1, 2
CHOICE, REPLACEMENT, TOKEN = 1, 2, 3


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskedLm:
    """The objective with its rates."""

    vocabulary: Vocabulary
    masking_rate: float
    mask_token_fraction: float = 0.8
    random_token_fraction: float = 0.1
    seed: int = 0

    @property
    def is_causal(self) -> bool:
        """A position sees the whole document."""
        return False

    def targetable(self, tokens_BL: IntArray) -> BoolArray:
        """Which tokens may be targets: those that stand for text."""
        return ~np.isin(tokens_BL, self.vocabulary.special)

    def prepare(self, sequences: Sequences, *, validation: bool = False) -> Targets:
        """Hides tokens."""
        tokens_BL, segments_BL, epochs_B = sequences.tokens_BL, sequences.segments_BL, sequences.epochs_B
        purpose = VALIDATION if validation else TRAINING
        rows_B1 = mix(
            uint64_of(0 if validation else self.seed),
            uint64_of(purpose),
            (np.zeros_like(epochs_B) if validation else epochs_B).astype(np.uint64),
            sequences.indices_B.astype(np.uint64),
        )[:, None]
        columns_1L = np.arange(tokens_BL.shape[1], dtype=np.uint64)[None, :]
        candidates_BL = (segments_BL > 0) & self.targetable(tokens_BL)
        mask_BL = candidates_BL & (uniform(rows_B1, columns_1L, uint64_of(CHOICE)) < self.masking_rate)
        draw_BL = uniform(rows_B1, columns_1L, uint64_of(REPLACEMENT))
        hidden_BL = mask_BL & (draw_BL < self.mask_token_fraction)
        random_BL = mask_BL & ~hidden_BL & (draw_BL < self.mask_token_fraction + self.random_token_fraction)
        inputs_BL = np.where(hidden_BL, self.vocabulary.mask, tokens_BL)
        if random_BL.any():
            text_ids = np.setdiff1d(np.arange(self.vocabulary.size), self.vocabulary.special)
            chosen_BL = mix(rows_B1, columns_1L, uint64_of(TOKEN)) % np.uint64(len(text_ids))
            inputs_BL = np.where(random_BL, text_ids[chosen_BL.astype(np.int64)], inputs_BL)
        return Targets(inputs_BL=inputs_BL, mask_BL=mask_BL, labels_BL=tokens_BL)
