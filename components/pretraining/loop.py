"""The training loop of one rank: a plain function over the default process group of torch.distributed.

Every number that it logs is summed over the ranks, so all of them see the same and decide the same: to stop at a loss
that is no number, to validate, to save. Nothing but rounding depends on the number of ranks.
"""

from __future__ import annotations

import logging
import math
import secrets
import shutil
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist

from components.pretraining.batches import make_objective
from components.pretraining.checkpoints.checkpoint import FOLDER_NAME, CheckpointStore, Manifest, Progress
from components.pretraining.checkpoints.reshard import choose, load_checkpoint
from components.pretraining.checkpoints.retention import Retention
from components.pretraining.checkpoints.writer import CheckpointWriter
from components.pretraining.engine.schedule import learning_rate
from components.pretraining.evaluation.samples import take_samples
from components.pretraining.evaluation.throughput import Throughput, matmul_peak, peak_memory_mib
from components.pretraining.evaluation.validation import evaluate
from components.pretraining.export import EXPORT_NAME, RESULT_NAME, read_result
from components.pretraining.finish import finish, flops_per_token
from components.pretraining.health.agreement import check_same, fingerprint, from_rank_0
from components.pretraining.health.hang import HANG_NAME
from components.pretraining.health.judge import may_roll_back
from components.pretraining.health.watchdog import Watchdog
from components.pretraining.networks.models import TargetLoss, build_model
from components.pretraining.notice import Notice
from components.pretraining.optimizer_step import take_step
from components.pretraining.sampler import Sampler
from components.pretraining.training import Training, TrainingJob, TrainingState
from components.tokenization.shards import TokenShards
from infra.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

ATTEMPTS_NAME = "attempts.log"
"""A line for each time that the workers began: how many they were, and the step that they went on from."""
PROGRESS_SECONDS = 1.0


def train(job: TrainingJob, notice: Notice) -> bool:
    """Trains to the end, from the newest complete checkpoint if there is one, and writes `export/` under `work`.

    All ranks of the default process group call it.

    Args:
        job: what to train.
        notice: tells this rank to leave; all ranks then save after the step that runs, and leave.

    Returns:
        whether it came to its end; False if it left before.

    Raises:
        ConfigError: the config does not fit the token shards or `init_from`.
        DataError: the token shards have nothing to train on or to validate with.
        TrainingError: the loss is not a finite number, or jumped, and `health` says to stop, or stepped over too much.
        InfrastructureError: a rank hangs, or the ranks do not work on the same.
        StorageError: a checkpoint could not be written.
    """
    for path in (job.work / EXPORT_NAME, job.shards, job.tokenizer, Path(job.config.model.init_from or "/")):
        job.mirror.pull(path)
    if from_rank_0(read_result(job.work) is not None):
        if dist.get_rank() == 0:
            job.mirror.push(job.work / EXPORT_NAME, last=RESULT_NAME)  # a kill may have come before
        return True
    if dist.get_rank() == 0:
        shutil.rmtree(job.work / EXPORT_NAME, ignore_errors=True)  # what was pushed of it before a kill
    with Watchdog(job.config.health.hang_timeout_seconds, lambda report: _tell_hang(job, report)) as watchdog:
        training = _start(job, notice, watchdog)
        try:
            if not _run(training, watchdog):
                return False
            training.writer.wait()
        except Exception:  # whatever it is, the checkpoint under way may still become whole
            training.writer.settle()
            raise
        watchdog.mark("finish")
        finish(training)
    return True


def _run(training: Training, watchdog: Watchdog) -> bool:
    """Takes the steps that are left; False if the ranks were told to leave before the last."""
    config, state = training.config, training.state
    while state.step < config.steps:
        started = time.monotonic()
        state.first_step_at = state.first_step_at or time.time()
        watchdog.begin(state.step + 1)
        updated = take_step(training)
        state.train_seconds += time.monotonic() - started
        state.steps_here += 1
        if updated and not state.replays:
            _after_step(training)
        if state.is_leaving and state.step < config.steps:
            _leave(training)
            return False
    return True


def _tell_hang(job: TrainingJob, report: str) -> None:
    """Leaves the report of a hang in the work folder, where the driver and people find it."""
    (job.work / HANG_NAME).write_text(report + "\n", encoding="utf-8")
    job.mirror.push(job.work / HANG_NAME)


def _start(job: TrainingJob, notice: Notice, watchdog: Watchdog) -> Training:
    """The parts of the training, standing where its newest checkpoint stood."""
    config, world_size, rank = job.config, dist.get_world_size(), dist.get_rank()
    shards, validation = _open_shards(job)
    objective = make_objective(config, shards, job.tokenizer)
    words = objective.vocabulary
    special = {"pad": words.pad, "bos": words.bos, "eos": words.eos}
    module = TargetLoss(build_model(config, shards.index.vocab_size, special))
    store = CheckpointStore(
        job.work / FOLDER_NAME, job.key, Retention.of(config), job.mirror, mark=lambda: watchdog.mark("checkpoint")
    )
    attempt, checkpoint = from_rank_0(secrets.token_hex(4)), choose(store)
    engine = load_checkpoint(checkpoint, module, config, world_size)
    engine.mark = watchdog.mark
    fingerprints: list[Any] = [None] * world_size
    mine = fingerprint(config, shards, engine.num_micro_batches, engine.device.type)
    dist.all_gather_object(fingerprints, mine)
    check_same(fingerprints)
    state = TrainingState(progress=Progress(), history=[], recent_losses=[])
    if checkpoint is not None:
        progress = checkpoint.manifest.progress
        state = TrainingState(
            progress=progress, history=list(checkpoint.history), recent_losses=list(progress.recent_losses)
        )
        logger.info("resuming at step %d from %s", progress.step, checkpoint.folder)
    if rank == 0:
        job.mirror.pull(job.work / ATTEMPTS_NAME)
        with (job.work / ATTEMPTS_NAME).open("a", encoding="utf-8") as stream:
            stream.write(f"{world_size} {state.progress.step}\n")
        job.mirror.pull(job.work / HANG_NAME)
        if (job.work / HANG_NAME).exists():  # of the attempt before
            (job.work / HANG_NAME).rename(job.work / f"before.{attempt}.{HANG_NAME}")
            job.mirror.drop(job.work / HANG_NAME)
        job.mirror.push(job.work / ATTEMPTS_NAME)
    sampler = Sampler(num_sequences=len(shards), global_batch_size=config.global_batch_size, seed=config.seed)
    training = Training(
        job=job,
        shards=shards,
        validation=validation,
        objective=objective,
        module=module,
        engine=engine,
        sampler=sampler,
        writer=CheckpointWriter(store),
        attempt=attempt,
        notice=notice,
        state=state,
        throughput=Throughput(matmul_peak(engine.device, config.precision)),
    )
    if checkpoint is None and may_roll_back(config.health):
        _save(training)
    return training


def _open_shards(job: TrainingJob) -> tuple[TokenShards, TokenShards]:
    training, validation = TokenShards(job.shards, "train"), TokenShards(job.shards, "validation")
    length = training.index.sequence_length
    if length != job.config.sequence_length:
        raise ConfigError(
            f"{job.name}.sequence_length={job.config.sequence_length} is not that of the token shards ({length}): "
            f"set both to the same"
        )
    for split, shards in (("train", training), ("validation", validation)):
        if not len(shards):
            raise DataError(f"{job.shards}: the split {split} has no sequence: give more text")
    return training, validation


def _after_step(training: Training) -> None:
    """Logs, validates and saves when it is time."""
    job, config, state, engine = training.job, training.config, training.state, training.engine
    step, last = state.step, state.step == config.steps
    if step % config.log_every_steps == 0 or last:
        losses = state.recent_losses[-config.log_every_steps :]
        row = {
            "train_loss": training.final_loss() if last else sum(losses) / len(losses),
            "learning_rate": learning_rate(config, step - 1),
            "sample_hash": state.progress.sample_hash,
        }
        if math.isfinite(engine.gradient_norm()):  # not in fp16 where the scale of the loss was too large
            row["gradient_norm"] = engine.gradient_norm()
        flops = flops_per_token(training.module, config, state.progress)
        rates = training.throughput.whole if last else training.throughput.since_last
        training.log(row, {**rates(state.mark, flops), "peak_memory_mib_per_rank": peak_memory_mib(engine.device)})
    if config.validation_every_steps and step % config.validation_every_steps == 0 and not last:
        started = time.monotonic()
        evaluation = evaluate(engine, training.validation, training.objective, config)
        state.evaluation_seconds += time.monotonic() - started
        training.log(evaluation.metrics(training.validation), {})
    if config.samples_every_steps and step % config.samples_every_steps == 0 and not last:
        take_samples(training)
    if config.checkpoint_every_steps and step % config.checkpoint_every_steps == 0 and not last:
        _save(training)
    if dist.get_rank() == 0 and (last or time.monotonic() - state.told_at >= PROGRESS_SECONDS):
        state.told_at = time.monotonic()
        note = f"loss {state.recent_losses[-1]:.3f}, {state.tokens_per_second:,.0f} tokens/s"
        job.tracker.progress(step, config.steps, "steps", note=note)


def _save(training: Training) -> None:
    """Begins to write a checkpoint of where the training stands."""
    config, state = training.config, training.state
    training.engine.mark("checkpoint")
    judged = (row["validation_loss"] for row in reversed(state.history) if "validation_loss" in row)
    made = Manifest(
        progress=state.progress,
        num_samples=training.next_batch * config.global_batch_size,
        world_size=dist.get_world_size(),
        zero_stage=config.stage,
        precision=config.precision,
        config_digest=training.job.key,
        validation_loss=next(judged, None),
    )
    training.writer.save(training.engine.engine, attempt=training.attempt, made=made, history=state.history)


def _leave(training: Training) -> None:
    """Saves where the training stands, and waits until that counts. Where steps are made again after a rollback what
    is saved already does: the rollback will come again."""
    state = training.state
    if training.writer.saved_step != state.step and not state.replays:
        _save(training)
    training.writer.wait()
    logger.warning("told to leave at step %d of %d: saved", state.step, training.config.steps)
