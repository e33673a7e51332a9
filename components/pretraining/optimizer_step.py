"""One optimizer step: this rank's micro batches, forward and backward, the loss of the global batch, the update.

Every number that counts is summed over the ranks before anything is decided, so all of them decide the same.

Shapes: B sequences, G the global batch, K losses of the objective.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist

from components.pretraining.batches import Batch, make_batch
from components.pretraining.checkpoint import Progress
from components.pretraining.sampler import chain_hash
from components.pretraining.schedule import learning_rate
from components.pretraining.training import FINAL_LOSS_FRACTION, Training
from infra.errors import TrainingError


def take_step(training: Training) -> None:
    """One optimizer step. All ranks call it.

    Raises:
        TrainingError: the loss is not a finite number.
        StorageError: the checkpoint under way could not be written.
    """
    config, engine, state = training.config, training.engine, training.state
    batches = _batches(training)
    counts = [[*(batch.num_targets_K), batch.num_tokens] for batch in batches]
    signals = torch.tensor(training.signals(), dtype=torch.float64)
    sums = torch.cat([torch.tensor(counts, dtype=torch.float64).sum(0), signals]).to(engine.device)
    dist.all_reduce(sums)
    *num_targets_K, num_tokens = (int(value) for value in sums[: -len(signals)])
    training.heed(*sums[-len(signals) :].tolist())
    engine.set_learning_rate(learning_rate(config, state.step))
    weights_K = torch.tensor([1.0 / max(1, number) for number in num_targets_K], device=engine.device)
    losses_K = torch.zeros(len(num_targets_K), dtype=torch.float64, device=engine.device)
    for batch in batches:
        losses_K += engine.accumulate(batch.to(engine.device), weights_K).double()
    dist.all_reduce(losses_K)
    loss = float((losses_K * weights_K).sum())
    if not math.isfinite(loss):
        raise TrainingError(
            f"the training loss is {loss} at step {state.step + 1} of {config.steps}: "
            f"lower learning_rate={config.learning_rate}, or lengthen the warmup ({config.num_warmup_steps} steps)"
        )
    engine.update()
    kept = max(config.log_every_steps, math.ceil(FINAL_LOSS_FRACTION * config.steps))
    state.recent_losses = [*state.recent_losses, loss][-kept:]
    state.tokens_here += num_tokens
    state.progress = Progress(
        step=state.step + 1,
        num_tokens=state.progress.num_tokens + num_tokens,
        num_targets=state.progress.num_targets + num_targets_K[0],
        recent_losses=tuple(state.recent_losses),
        sample_hash=_sample_hash(training),
    )


def _batches(training: Training) -> list[Batch]:
    """This rank's micro batches of the next step."""
    indices_G, epochs_G = training.sampler.global_batch(training.state.step)
    share, size = len(indices_G) // dist.get_world_size(), training.engine.micro_batch_size
    first = dist.get_rank() * share
    return [
        make_batch(training.shards, training.objective, indices_G[at : at + size], epochs_G[at : at + size])
        for at in range(first, first + share, size)
    ]


def _sample_hash(training: Training) -> int:
    """The running hash with the samples of the next step."""
    step, sampler = training.state.step, training.sampler
    indices_G, epochs_G = sampler.global_batch(step)
    return chain_hash(training.state.progress.sample_hash, step * sampler.global_batch_size, indices_G, epochs_G)
