"""From token shards to what the network takes: ids, positions, the mask that keeps documents apart, and targets.

The mask is 4-D and boolean, L * L bytes a sequence (16 KiB at 128 tokens): fine up to some thousand tokens; beyond,
attention kernels for variable lengths would serve better. A padding token sees itself only, so that no row of the
mask is empty, which would make softmax give NaN.

Shapes: B sequences, L tokens, T targets of the batch, K losses of the objective.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from components.pretraining.config import PretrainConfig
from components.pretraining.objectives.causal_lm import CausalLm
from components.pretraining.objectives.label_lm import LabelLm
from components.pretraining.objectives.masked_lm import MaskedLm
from components.pretraining.objectives.objective import BoolArray, IntArray, Objective, Sequences, Vocabulary
from components.tokenization.shards import TokenShards


def make_objective(config: PretrainConfig, shards: TokenShards) -> Objective:
    """The objective that the config names."""
    index = shards.index
    vocabulary = Vocabulary(
        size=index.vocab_size,
        pad=index.pad_token_id,
        bos=index.bos_token_id,
        eos=index.eos_token_id,
        mask=index.mask_token_id,
    )
    if config.objective == "causal_lm":
        return CausalLm(vocabulary=vocabulary)
    if config.objective == "label_lm":
        return LabelLm(vocabulary=vocabulary)
    return MaskedLm(
        vocabulary=vocabulary,
        masking_rate=config.masking_rate,
        mask_token_fraction=config.mask_token_fraction,
        random_token_fraction=config.random_token_fraction,
        seed=config.seed,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Tensors of one micro batch."""

    input_ids_BL: torch.Tensor
    positions_BL: torch.Tensor
    attention_B1LL: torch.Tensor
    target_positions_T: torch.Tensor
    """Index into the B * L positions."""
    target_ids_T: torch.Tensor
    num_tokens: int
    """Tokens without padding."""

    @property
    def num_targets_K(self) -> tuple[int, ...]:
        """Targets of each loss of the objective."""
        return (len(self.target_ids_T),)

    def to(self, device: torch.device) -> dict[str, torch.Tensor]:
        """What the network's forward takes, on `device`."""
        names = ("input_ids_BL", "positions_BL", "attention_B1LL", "target_positions_T", "target_ids_T")
        return {name: getattr(self, name).to(device) for name in names}


def attention_mask(segments_BL: IntArray, *, causal: bool) -> BoolArray:
    """Which position (row) sees which (column): those of its own document, if `causal` up to itself; [B, 1, L, L]."""
    mask_BLL: BoolArray = (segments_BL[:, :, None] == segments_BL[:, None, :]) & (segments_BL[:, None, :] > 0)
    if causal:
        mask_BLL &= np.tri(segments_BL.shape[1], dtype=bool)
    mask_BLL |= np.eye(segments_BL.shape[1], dtype=bool)
    return np.expand_dims(mask_BLL, 1)


def make_batch(
    shards: TokenShards,
    objective: Objective,
    indices_B: IntArray,
    epochs_B: IntArray,
    *,
    validation: bool = False,
    scored: bool = True,
) -> Batch:
    """One micro batch.

    Args:
        shards: the split.
        objective: makes the targets.
        indices_B: which sequences.
        epochs_B: in which epoch each is read.
        validation: fixed masks.
        scored: without it the batch has no targets: what a rank runs beside the others when it has nothing left.
    """
    sequences = Sequences(
        tokens_BL=shards.tokens(indices_B),
        segments_BL=shards.segments(indices_B),
        marked_BL=shards.targets(indices_B) if shards.split.num_target_tokens is not None else None,
        indices_B=indices_B,
        epochs_B=epochs_B,
    )
    targets = objective.prepare(sequences, validation=validation)
    flat_T = np.flatnonzero(targets.mask_BL) if scored else np.zeros(0, dtype=np.int64)
    return Batch(
        input_ids_BL=torch.from_numpy(np.ascontiguousarray(targets.inputs_BL)),
        positions_BL=torch.from_numpy(shards.positions(indices_B)),
        attention_B1LL=torch.from_numpy(attention_mask(sequences.segments_BL, causal=objective.is_causal)),
        target_positions_T=torch.from_numpy(flat_T),
        target_ids_T=torch.from_numpy(targets.labels_BL.reshape(-1)[flat_T]),
        num_tokens=int((sequences.segments_BL > 0).sum()),
    )
