"""Validation: cross-entropy, perplexity, bits per byte, and what the training unigrams would give.

    validation_loss        = nats of all validation targets / their number
    validation_perplexity  = exp(validation_loss); for masked_lm a pseudo-perplexity of the masked tokens
    bits_per_byte          = (nats of all targets / targets that are text) / ln 2 / (bytes per text token of the split)
    unigram_cross_entropy  = - mean over the same targets of log((count + 1) / sum(count + 1)), over the tokens that can
                             be targets: what a model that knows frequencies alone gets

Masks are fixed, so one model has one loss. The weights are those of training, in its precision.

Shapes: B sequences, T targets, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from components.pretraining.batches import make_batch
from components.pretraining.config import PretrainConfig
from components.pretraining.engine import TrainingEngine
from components.pretraining.objectives.objective import Objective
from components.tokenization.shards import TokenShards
from infra.errors import DataError

IntArray = npt.NDArray[np.int64]
UNIGRAM_COUNTS_NAME = "unigram_counts.npy"
CHUNK = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Sums over the validation targets."""

    nats: float
    target_counts_V: IntArray
    """How often each token is a target."""

    @property
    def loss(self) -> float:
        """Nats per target."""
        return self.nats / int(self.target_counts_V.sum())

    def metrics(self, objective: Objective, shards: TokenShards) -> dict[str, float]:
        """The metrics above but the unigram's; bits per byte only where all text is predicted."""
        found = {"validation_loss": self.loss, "validation_perplexity": math.exp(min(self.loss, 700.0))}
        counts_V = self.target_counts_V.copy()
        counts_V[objective.vocabulary.special] = 0
        counts_V[objective.vocabulary.size :] = 0
        num_text_targets, split = int(counts_V.sum()), shards.split
        if split.num_target_tokens is None and num_text_targets and split.num_text_bytes:
            bytes_per_token = split.num_text_bytes / split.num_text_tokens
            found["bits_per_byte"] = self.nats / num_text_targets / math.log(2) / bytes_per_token
        return found


def evaluate(engine: TrainingEngine, shards: TokenShards, objective: Objective, config: PretrainConfig) -> Evaluation:
    """Scores the first `max_validation_sequences` of the split. All ranks call it and get the same.

    Raises:
        DataError: the split has no target.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    number = min(len(shards), config.max_validation_sequences or len(shards))
    size = config.micro_batch_size_per_rank
    batches = [np.arange(first, min(first + size, number), dtype=np.int64) for first in range(0, number, size)]
    nats = torch.zeros(1, dtype=torch.float64)
    counts_V = np.zeros(objective.vocabulary.num_ids, dtype=np.int64)
    for first in range(0, len(batches), world_size):
        scored = first + rank < len(batches)
        indices_B = batches[first + rank] if scored else batches[0]
        batch = make_batch(
            shards,
            objective,
            indices_B,
            np.zeros_like(indices_B),
            validation=True,
            scored=scored,
        )
        nats += engine.evaluate(batch.to(engine.device))[:1].double().cpu()
        counts_V += np.bincount(batch.target_ids_T.numpy(), minlength=len(counts_V))
    both = torch.cat([nats, torch.from_numpy(counts_V).double()]).to(engine.device)
    dist.all_reduce(both)
    total = both.cpu().numpy()
    evaluation = Evaluation(nats=float(total[0]), target_counts_V=total[1:].astype(np.int64))
    if not evaluation.target_counts_V.sum():
        raise DataError(f"{shards.folder}: its {number} validation sequences have no target: add validation text")
    return evaluation


def training_counts(shards: TokenShards, objective: Objective) -> IntArray | None:
    """How often each token stands in the training split, among those that can be targets; int64 [V].

    From the marks where the shards have them, else from `unigram_counts.npy`; None without either.
    """
    counts_V = np.zeros(objective.vocabulary.num_ids, dtype=np.int64)
    path = Path(shards.folder) / UNIGRAM_COUNTS_NAME
    if shards.split.num_target_tokens is not None:
        for first in range(0, len(shards), CHUNK):
            indices_B = np.arange(first, min(first + CHUNK, len(shards)), dtype=np.int64)
            marked_T = shards.tokens(indices_B)[shards.targets(indices_B)]
            counts_V += np.bincount(marked_T, minlength=len(counts_V))
    elif path.is_file():
        known_V = np.load(path)
        counts_V[: len(known_V)] += known_V
    else:
        return None
    return counts_V


def unigram_cross_entropy(training_counts_V: IntArray, target_counts_V: IntArray, objective: Objective) -> float:
    """Nats per target of the add-one smoothed training unigrams.

    Args:
        training_counts_V: of the training split.
        target_counts_V: of the validation targets.
        objective: says which tokens can be targets.
    """
    possible_V = objective.targetable(np.arange(len(training_counts_V))[None, :])[0]
    smoothed_V = np.where(possible_V, training_counts_V + 1.0, 0.0)
    log_probability_V = np.log(np.maximum(smoothed_V, 1e-300) / smoothed_V.sum())
    return float(-(target_counts_V * log_probability_V).sum() / target_counts_V.sum())
