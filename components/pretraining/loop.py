"""The training loop of one rank: a plain function over the default process group of torch.distributed.

Every number that it logs is summed over the ranks, so all of them see the same and decide the same: to stop at a loss
that is no number, to validate, to save. Nothing but rounding depends on the number of ranks.

Shapes: B sequences, G the global batch.
"""

from __future__ import annotations

import logging
import math
import resource
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from components.pretraining.batches import Batch, make_batch, make_objective
from components.pretraining.checkpoint import Checkpoint, CheckpointStore, Progress
from components.pretraining.config import PretrainConfig
from components.pretraining.engine import TrainingEngine
from components.pretraining.evaluation import evaluate, training_counts, unigram_cross_entropy
from components.pretraining.export import EXPORT_NAME, RESULT_NAME, model_card, read_result, write_export
from components.pretraining.models import TargetLoss, build_model
from components.pretraining.objectives.objective import Objective
from components.pretraining.reshard import load_checkpoint
from components.pretraining.sampler import Sampler
from components.pretraining.schedule import learning_rate
from components.tokenization.shards import TokenShards
from infra.energy.flops import matmul_parameters, transformer_flops
from infra.errors import ConfigError, DataError, TrainingError
from infra.storage.mirror import Mirror
from infra.tracking.client import StepTracker

logger = logging.getLogger(__name__)

ATTEMPTS_NAME = "attempts.log"
"""A line for each time that the workers began: how many they were, and the step that they went on from."""
PROGRESS_SECONDS = 1.0
FINAL_LOSS_FRACTION = 0.05
"""`train_loss` is the mean over this last part of the steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingJob:
    """What one training reads and writes; can be pickled."""

    config: PretrainConfig
    shards: Path
    tokenizer: Path
    work: Path
    """Checkpoints and, at the end, `export/`: seen by all ranks."""
    key: str
    """Of the step: names the lineage, and what a checkpoint belongs to."""
    name: str
    """Of the step, for people."""
    tracker: StepTracker
    mirror: Mirror = Mirror(Path("/"))
    """Of the root that the paths lie in."""
    data_license: str | None = None


@dataclass(kw_only=True, slots=True)
class _State:
    """What changes while training."""

    progress: Progress
    history: list[dict[str, Any]]
    recent_losses: list[float]
    train_seconds: float = 0.0
    checkpoint_seconds: float = 0.0
    first_step_at: float | None = None
    tokens_here: int = 0
    """Tokens since this attempt began."""
    told_at: float = field(default_factory=time.monotonic)


def train(job: TrainingJob) -> None:
    """Trains to the end, from the newest complete checkpoint if there is one, and writes `export/` under `work`.

    All ranks of the default process group call it.

    Raises:
        ConfigError: the config does not fit the token shards or `init_from`.
        DataError: the token shards have nothing to train on or to validate with.
        TrainingError: the loss is not a finite number.
    """
    config, world_size, rank = job.config, dist.get_world_size(), dist.get_rank()
    for path in (job.work / EXPORT_NAME, job.shards, job.tokenizer, Path(config.model.init_from or "/")):
        job.mirror.pull(path)
    if read_result(job.work) is not None:
        return
    training, validation = _open_shards(job)
    objective = make_objective(config, training)
    words = objective.vocabulary
    special = {"pad": words.pad, "bos": words.bos, "eos": words.eos}
    module = TargetLoss(build_model(config, training.index.vocab_size, special))
    store = CheckpointStore(job.work / "checkpoints", job.key, config.keep_checkpoints, job.mirror)
    attempt, checkpoint = _agree(store, rank)
    engine = load_checkpoint(checkpoint, module, config, world_size)
    state = _State(progress=Progress(), history=[], recent_losses=[])
    if checkpoint is not None:
        progress = checkpoint.manifest.progress
        state = _State(progress=progress, history=list(checkpoint.history), recent_losses=list(progress.recent_losses))
        logger.info("resuming at step %d from %s", progress.step, checkpoint.folder)
    if rank == 0:
        job.mirror.pull(job.work / ATTEMPTS_NAME)
        with (job.work / ATTEMPTS_NAME).open("a", encoding="utf-8") as stream:
            stream.write(f"{world_size} {state.progress.step}\n")
        job.mirror.push(job.work / ATTEMPTS_NAME)
    sampler = Sampler(num_sequences=len(training), global_batch_size=config.global_batch_size, seed=config.seed)
    while state.progress.step < config.steps:
        started = time.monotonic()
        state.first_step_at = state.first_step_at or time.time()
        batches = _batches(state.progress.step, sampler, training, objective, config, engine.micro_batch_size)
        _step(engine, batches, state, config)
        state.train_seconds += time.monotonic() - started
        _after_step(job, engine, store, attempt, state, validation, objective)
    evaluation = evaluate(engine, validation, objective, config)
    metrics = evaluation.metrics(objective, validation)
    counts_V = training_counts(training, objective)
    if counts_V is not None:
        metrics["unigram_cross_entropy"] = unigram_cross_entropy(counts_V, evaluation.target_counts_V, objective)
    metrics |= {"train_loss": _final_loss(config, state), **_counts(module, config, state.progress)}
    _finish(job, engine, module, attempt, state, metrics)


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


def _agree(store: CheckpointStore, rank: int) -> tuple[str, Checkpoint | None]:
    """Rank 0 chooses the attempt's word and the checkpoint for all."""
    chosen: list[Any] = [None, None]
    if rank == 0:
        chosen = [secrets.token_hex(4), store.newest()]
    dist.broadcast_object_list(chosen)
    if chosen[1] is not None:
        store.mirror.pull(chosen[1].folder)
    return chosen[0], chosen[1]


def _batches(
    step: int,
    sampler: Sampler,
    shards: TokenShards,
    objective: Objective,
    config: PretrainConfig,
    micro_batch_size: int,
) -> list[Batch]:
    """This rank's micro batches of a step."""
    indices_G, epochs_G = sampler.global_batch(step)
    share = len(indices_G) // dist.get_world_size()
    first = dist.get_rank() * share
    causal = config.architecture == "llama"
    return [
        make_batch(
            shards,
            objective,
            indices_G[at : at + micro_batch_size],
            epochs_G[at : at + micro_batch_size],
            causal=causal,
        )
        for at in range(first, first + share, micro_batch_size)
    ]


def _step(engine: TrainingEngine, batches: list[Batch], state: _State, config: PretrainConfig) -> None:
    """One optimizer step.

    Raises:
        TrainingError: the loss is not a finite number.
    """
    step = state.progress.step
    counts = torch.tensor(
        [sum(b.num_targets for b in batches), sum(b.num_tokens for b in batches)],
        dtype=torch.float64,
        device=engine.device,
    )
    dist.all_reduce(counts)
    num_targets, num_tokens = int(counts[0]), int(counts[1])
    engine.set_learning_rate(learning_rate(config, step))
    total = torch.zeros(1, dtype=torch.float64, device=engine.device)
    for batch in batches:
        total += engine.accumulate(batch.to(engine.device), num_targets).double()
    dist.all_reduce(total)
    loss = float(total) / max(1, num_targets)
    if not math.isfinite(loss):
        raise TrainingError(
            f"the training loss is {loss} at step {step + 1} of {config.steps}: "
            f"lower learning_rate={config.learning_rate}, or lengthen the warmup ({config.num_warmup_steps} steps)"
        )
    kept = max(config.log_every_steps, math.ceil(FINAL_LOSS_FRACTION * config.steps))
    state.recent_losses = [*state.recent_losses, loss][-kept:]
    state.tokens_here += num_tokens
    state.progress = Progress(
        step=step + 1,
        num_tokens=state.progress.num_tokens + num_tokens,
        num_targets=state.progress.num_targets + num_targets,
        recent_losses=tuple(state.recent_losses),
    )


def _after_step(
    job: TrainingJob,
    engine: TrainingEngine,
    store: CheckpointStore,
    attempt: str,
    state: _State,
    validation: TokenShards,
    objective: Objective,
) -> None:
    """Logs, validates and saves when it is time."""
    config, step, last = job.config, state.progress.step, state.progress.step == job.config.steps
    rate = state.tokens_here / max(state.train_seconds, 1e-9)
    if step % config.log_every_steps == 0 or last:
        losses = state.recent_losses[-config.log_every_steps :]
        row = {
            "train_loss": _final_loss(config, state) if last else sum(losses) / len(losses),
            "learning_rate": learning_rate(config, step - 1),
            "gradient_norm": engine.gradient_norm(),
        }
        _log(job, state, row, {"tokens_per_second": rate})
    if config.validation_every_steps and step % config.validation_every_steps == 0 and not last:
        _log(job, state, evaluate(engine, validation, objective, config).metrics(objective, validation), {})
    if config.checkpoint_every_steps and step % config.checkpoint_every_steps == 0 and not last:
        started = time.monotonic()
        store.save(
            engine.engine,
            attempt=attempt,
            progress=state.progress,
            history=state.history,
            manifest={
                "num_samples": step * config.global_batch_size,
                "zero_stage": config.zero_stage,
                "precision": config.precision,
            },
        )
        state.checkpoint_seconds += time.monotonic() - started
    if dist.get_rank() == 0 and (last or time.monotonic() - state.told_at >= PROGRESS_SECONDS):
        state.told_at = time.monotonic()
        note = f"loss {state.recent_losses[-1]:.3f}, {rate:,.0f} tokens/s"
        job.tracker.progress(step, config.steps, "steps", note=note)


def _final_loss(config: PretrainConfig, state: _State) -> float:
    """Mean over the last part of the steps: the metric of the step, and the last point of its curve."""
    losses = state.recent_losses[-max(1, math.ceil(FINAL_LOSS_FRACTION * config.steps)) :]
    return sum(losses) / len(losses)


def _log(job: TrainingJob, state: _State, row: Mapping[str, float], measured: Mapping[str, float]) -> None:
    """One point: deterministic values into the history, all of them to the tracker."""
    step = state.progress.step
    state.history.append({"step": step, **row})
    if dist.get_rank() == 0:
        job.tracker.log_metrics({**row, **measured}, step)


def _counts(module: TargetLoss, config: PretrainConfig, progress: Progress) -> dict[str, float | int]:
    """Size, steps, tokens and FLOPs; attention counts whole packed sequences, half of them if causal."""
    model = module.language_model.config
    causal = config.architecture == "llama"
    flops = transformer_flops(
        num_matmul_parameters=matmul_parameters(
            hidden_size=model.hidden_size,
            num_layers=model.num_hidden_layers,
            intermediate_size=model.intermediate_size,
            gated=config.architecture != "bert",
        ),
        num_tokens=progress.num_tokens,
        num_layers=model.num_hidden_layers,
        hidden_size=model.hidden_size,
        attention_span=config.sequence_length / (2 if causal else 1),
        num_head_parameters=model.hidden_size * (model.vocab_size + (0 if causal else model.hidden_size)),
        num_head_tokens=progress.num_targets,
        training=True,
    )
    return {"train_flops": flops, "steps": progress.step, "num_tokens": progress.num_tokens}


def _finish(
    job: TrainingJob,
    engine: TrainingEngine,
    module: TargetLoss,
    attempt: str,
    state: _State,
    metrics: dict[str, float],
) -> None:
    """Writes the export; all ranks take part, because the weights are spread over them."""
    peak = torch.tensor([float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)], device=engine.device)
    dist.all_reduce(peak, op=dist.ReduceOp.MAX)
    full = engine.full_state()
    prefix = "language_model."
    weights = {name.removeprefix(prefix): value for name, value in full.items()}
    metrics["num_parameters"] = sum(value.numel() for value in weights.values())
    _log(job, state, {k: v for k, v in metrics.items() if k.startswith(("validation", "bits"))}, {})
    if dist.get_rank() == 0:
        measured = {
            "tokens_per_second": state.tokens_here / max(state.train_seconds, 1e-9),
            "train_seconds": state.train_seconds,
            "checkpoint_seconds": state.checkpoint_seconds,
            "peak_memory_mib_per_rank": float(peak) / 1024,
        }
        config = job.config
        settings = config.model_dump(mode="json", exclude={"cluster", "model"})
        write_export(
            job.work,
            attempt=attempt,
            model=module.language_model,
            state=weights,
            tokenizer=job.tokenizer,
            card=model_card(
                title=job.name,
                task="fill-mask" if config.objective == "masked_lm" else "text-generation",
                key=job.key,
                data_license=job.data_license,
                metrics=metrics,
                settings=settings,
            ),
            history=state.history,
            result={"metrics": metrics, "measured": measured, "first_step_at": state.first_step_at},
        )
        job.mirror.push(job.work / EXPORT_NAME, last=RESULT_NAME)
    dist.barrier()
