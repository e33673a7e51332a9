"""One optimizer step: this rank's micro batches, forward and backward, the loss of the global batch, the update.

Every number that counts is summed over the ranks before anything is decided, so all of them decide the same. Loss and
gradient norm are known before the update, so what health/judge.py finds wrong can be skipped without a trace.

Shapes: B sequences, G the global batch, K losses of the objective, W ranks.
"""

from __future__ import annotations

import logging
import math
import time

import torch
import torch.distributed as dist

from components.pretraining.batches import Batch, make_batch
from components.pretraining.checkpoints.checkpoint import Progress
from components.pretraining.engine.schedule import learning_rate
from components.pretraining.health.agreement import STEP_FIELDS, check_step, sample_digest
from components.pretraining.health.incidents import answer
from components.pretraining.health.judge import judge
from components.pretraining.sampler import IntArray, sample_hash
from components.pretraining.training import FINAL_LOSS_FRACTION, Training

logger = logging.getLogger(__name__)


def take_step(training: Training) -> bool:
    """One optimizer step. All ranks call it.

    Returns:
        whether the weights were updated; without it the batch was stepped over, and the training may have gone back.

    Raises:
        TrainingError: something is wrong with the step, and `health` says to stop.
        InfrastructureError: the ranks do not work on the same batch.
        StorageError: the checkpoint under way could not be written.
    """
    config, engine, state = training.config, training.engine, training.state
    indices_G, epochs_G = training.sampler.global_batch(training.next_batch)
    started = time.monotonic()
    batches = _batches(training, indices_G, epochs_G)
    state.data_seconds += time.monotonic() - started
    engine.mark("counts")
    num_targets_K, num_tokens = _sum_counts(training, batches, sample_digest(state.step, indices_G, epochs_G))
    engine.set_learning_rate(learning_rate(config, state.step))
    weights_K = torch.tensor([1.0 / max(1, number) for number in num_targets_K], device=engine.device)
    losses_K = torch.zeros(len(num_targets_K), dtype=torch.float64, device=engine.device)
    for batch in batches:
        losses_K += engine.accumulate(batch.to(engine.device), weights_K).double()
    engine.mark("reduce")
    dist.all_reduce(losses_K)
    loss = float((losses_K * weights_K).sum())
    norm: float | None = engine.gradient_norm()
    if norm == math.inf and engine.scales_loss:
        norm = None  # which the scale of the loss follows
    num_incidents = len(state.progress.incidents)
    known = state.step < state.replay_until  # made again after a rollback: it was judged the first time
    finding = judge(config.health, loss, norm, state.recent_losses, num_incidents) if not known else None
    engine.mark("update")
    if finding is not None:
        answer(training, finding, indices_G, epochs_G)
        if finding.verdict != "accept":
            return False
    if not engine.update() and dist.get_rank() == 0:
        logger.warning("step %d has not changed the weights: its gradient has inf or NaN", state.step + 1)
    kept = max(config.log_every_steps, math.ceil(FINAL_LOSS_FRACTION * config.steps), config.health.spike_window_steps)
    state.recent_losses = [*state.recent_losses, loss][-kept:]
    state.tokens_here += num_tokens
    state.progress = Progress(
        step=state.step + 1,
        num_tokens=state.progress.num_tokens + num_tokens,
        num_targets=state.progress.num_targets + num_targets_K[0],
        recent_losses=tuple(state.recent_losses),
        sample_hash=sample_hash(state.progress.sample_hash, state.step * len(indices_G), indices_G, epochs_G),
        incidents=state.progress.incidents,
    )
    return True


def _batches(training: Training, indices_G: IntArray, epochs_G: IntArray) -> list[Batch]:
    """This rank's micro batches of the next step."""
    share, size = len(indices_G) // dist.get_world_size(), training.engine.micro_batch_size
    first = dist.get_rank() * share
    seed = training.config.seed if training.config.model.dropout else None
    return [
        make_batch(
            training.shards,
            training.objective,
            indices_G[at : at + size],
            epochs_G[at : at + size],
            attention_scope=training.config.attention_scope,
            with_mask=training.engine.reads_masks,
            dropout_seed=seed,
        )
        for at in range(first, first + share, size)
    ]


def _sum_counts(training: Training, batches: list[Batch], digest: int) -> tuple[list[int], int]:
    """Targets of each loss and tokens of the global batch. The same all-reduce shows whether all ranks have as many
    micro batches of the same samples."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    counts = torch.tensor([[*batch.num_targets_K, batch.num_tokens] for batch in batches], dtype=torch.float64).sum(0)
    table_W2 = torch.zeros(world_size, len(STEP_FIELDS), dtype=torch.float64)
    table_W2[rank] = torch.tensor([len(batches), digest], dtype=torch.float64)
    parts = [counts, torch.tensor(training.signals(), dtype=torch.float64), table_W2.flatten()]
    sums = torch.cat(parts).to(training.engine.device)
    dist.all_reduce(sums)
    counts, signals, table = torch.split(sums, [len(part) for part in parts])
    check_step(table.view(table_W2.shape).tolist(), training.state.step + 1)
    training.heed(*signals.tolist())
    *num_targets_K, num_tokens = (int(value) for value in counts)
    return num_targets_K, num_tokens
