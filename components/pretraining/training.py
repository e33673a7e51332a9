"""One training as a rank holds it: the job, its parts, and the state that changes.

Shapes: K losses of the objective.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist

from components.pretraining.checkpoints.checkpoint import Progress
from components.pretraining.checkpoints.writer import CheckpointWriter
from components.pretraining.config import PretrainConfig
from components.pretraining.engine.engine import TrainingEngine
from components.pretraining.evaluation.throughput import Mark, Throughput
from components.pretraining.health.judge import batch_of_step
from components.pretraining.networks.models import TargetLoss
from components.pretraining.notice import Notice
from components.pretraining.objectives.objective import Objective
from components.pretraining.sampler import Sampler
from components.tokenization.shards import TokenShards
from infra.storage.mirror import Mirror
from infra.tracking.client import StepTracker

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
class TrainingState:
    """What changes while training."""

    progress: Progress
    history: list[dict[str, Any]]
    recent_losses: list[float]
    train_seconds: float = 0.0
    """In optimizer steps."""
    data_seconds: float = 0.0
    """Of these, making batches."""
    evaluation_seconds: float = 0.0
    """In validation and samples."""
    first_step_at: float | None = None
    steps_here: int = 0
    """Optimizer steps since this attempt began."""
    tokens_here: int = 0
    """Tokens since this attempt began."""
    told_at: float = field(default_factory=time.monotonic)
    replay_until: int = 0
    """After a rollback: steps up to this one are made again as they were, unjudged and untold."""
    is_leaving: bool = False
    """Whether a rank was told to leave, as all ranks know since the last step."""

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.progress.step

    @property
    def mark(self) -> Mark:
        """How much this attempt has done."""
        return Mark(
            steps=self.steps_here,
            num_tokens=self.tokens_here,
            train_seconds=self.train_seconds,
            data_seconds=self.data_seconds,
        )

    @property
    def replays(self) -> bool:
        """Whether the last step was one that is made again after a rollback."""
        return self.step <= self.replay_until

    @property
    def tokens_per_second(self) -> float:
        """Of all ranks, since this attempt began."""
        return self.tokens_here / max(self.train_seconds, 1e-9)


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """The parts of a training on one rank."""

    job: TrainingJob
    shards: TokenShards
    validation: TokenShards
    objective: Objective
    module: TargetLoss
    engine: TrainingEngine
    sampler: Sampler
    writer: CheckpointWriter
    attempt: str
    """A word that no other attempt at this training has."""
    notice: Notice
    state: TrainingState
    throughput: Throughput

    @property
    def config(self) -> PretrainConfig:
        """The job's."""
        return self.job.config

    @property
    def next_batch(self) -> int:
        """The number of the batch of the next step, in the order of samples."""
        return batch_of_step(self.state.progress.incidents, self.state.step)

    def final_loss(self) -> float:
        """Mean over the last part of the steps: the metric of the step, and the last point of its curve."""
        losses = self.state.recent_losses[-max(1, math.ceil(FINAL_LOSS_FRACTION * self.config.steps)) :]
        return sum(losses) / len(losses)

    def signals(self) -> list[float]:
        """What this rank adds to the sums of a step: whether it was told to leave, whether a checkpoint failed."""
        return [float(self.notice.received), float(self.writer.has_failed)]

    def heed(self, num_told: float, num_failed: float) -> None:
        """Acts on the sums of `signals` over the ranks.

        Raises:
            StorageError: a checkpoint could not be written.
        """
        self.state.is_leaving = num_told > 0
        if num_failed > 0:
            self.writer.wait()

    def log(self, row: Mapping[str, float], measured: Mapping[str, float]) -> None:
        """One point: deterministic values into the history, all of them to the tracker."""
        step = self.state.step
        self.state.history.append({"step": step, **row})
        if dist.get_rank() != 0:
            return
        if step <= max((one.step for one in self.state.progress.incidents if one.verdict == "rollback"), default=0):
            self.job.tracker.log_metrics(row, step, remade=True)  # what was measured the first time stays
            row = {}
        if row or measured:
            self.job.tracker.log_metrics({**row, **measured}, step)
