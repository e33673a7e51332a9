"""What follows a finding of judge.py: it is told, and the batch is trained on, skipped, or rolled back, or all stops.

A rollback takes the newest checkpoint that is old enough and makes the steps since then again, which gives the same
weights to the bit on as many ranks; they are neither judged nor told nor saved a second time. The list of incidents
is kept, and with it which batches are stepped over from then on. Checkpoints of the steps that are undone go first: a
kill at any time leaves a training that meets the same batch, and decides the same.
"""

from __future__ import annotations

import logging
from typing import Any

import torch.distributed as dist

from components.pretraining.checkpoints.reshard import choose, restore
from components.pretraining.health.agreement import sample_ids, shown_samples
from components.pretraining.health.judge import Finding, Incident, incident, num_stepped_over, rollback_target
from components.pretraining.sampler import IntArray
from components.pretraining.training import Training
from infra.errors import TrainingError

logger = logging.getLogger(__name__)

INCIDENT = "incident"
"""The key of a row of the history that tells what was wrong with a step."""


def answer(training: Training, finding: Finding, indices_G: IntArray, epochs_G: IntArray) -> None:
    """Tells a finding and does what its verdict says; for `accept` the caller goes on. All ranks call it.

    Args:
        training: before the update of the step.
        finding: of the step.
        indices_G: the sequences of its batch.
        epochs_G: the epoch of each.

    Raises:
        TrainingError: the verdict is stop, or a rollback finds no checkpoint.
    """
    state, config = training.state, training.config
    batch, before = training.next_batch, state.progress.incidents
    samples = shown_samples(indices_G, epochs_G)
    if finding.verdict == "stop":
        raise TrainingError(_why_stop(training, finding, f"batch {batch}: {samples}"))
    row: dict[str, Any] = finding.as_row() | {"batch": batch, **sample_ids(indices_G, epochs_G)}
    if finding.verdict == "accept":
        _tell(f"step {state.step + 1}: {finding}; batch {batch}: {samples}")
        _log(training, row, before)
        return
    new = incident(config.health, finding, before, state.step)
    _tell(f"{new}; batch {batch}: {samples}")
    training.engine.skip()
    state.progress = state.progress.model_copy(update={"incidents": (*before, new)})
    _log(training, row | {"first_batch": new.first_batch}, state.progress.incidents)
    if finding.verdict == "rollback":
        _roll_back(training, rollback_target(config.health, before, state.step))


def _why_stop(training: Training, finding: Finding, where: str) -> str:
    config, before = training.config, training.state.progress.incidents
    lines = [
        f"{finding} at step {training.state.step + 1} of {config.steps} ({where}): lower learning_rate="
        f"{config.learning_rate}, or lengthen the warmup ({config.num_warmup_steps} steps)"
    ]
    if before:
        lines[0] += f"; {len(before)} incidents before it, of max_incidents={config.health.max_incidents}:"
    else:
        lines[0] += ", or set health.on_non_finite_loss and health.on_loss_spike to skip or rollback"
    return "\n".join([*lines, *(f"  {one}" for one in before)])


def _tell(line: str) -> None:
    if dist.get_rank() == 0:
        logger.warning("%s", line)


def _log(training: Training, row: dict[str, Any], incidents: tuple[Incident, ...]) -> None:
    """A row in the history, and the number of batches that are stepped over as a curve."""
    state, number = training.state, num_stepped_over(incidents)
    state.history.append({"step": state.step, INCIDENT: row, "skipped_batches": number})
    if dist.get_rank() == 0:
        training.job.tracker.log_metrics({"skipped_batches": float(number)}, state.step)


def _roll_back(training: Training, target: int) -> None:
    """Puts the training to a checkpoint of step `target` or before; the steps up to it will be made again."""
    state, store, config = training.state, training.writer.store, training.config
    training.engine.mark("checkpoint")
    training.writer.wait()
    checkpoint = choose(store, target)
    if checkpoint is None:
        raise TrainingError(
            f"{store.folder}: no complete checkpoint of step {target} or before, to which health would roll back: "
            "set health to skip, or remove the folder, and the training begins anew"
        )
    if dist.get_rank() == 0:
        store.drop_after(target)
    store.forget_after(target)
    _tell(f"rolled back to step {target}, from {checkpoint.folder}")
    restore(training.engine, checkpoint, config, dist.get_world_size())
    progress = checkpoint.manifest.progress
    state.replay_until = target
    state.history[:] = [row for row in state.history if row["step"] <= target or INCIDENT in row]
    state.recent_losses = list(progress.recent_losses)
    state.progress = progress.model_copy(update={"incidents": state.progress.incidents})
