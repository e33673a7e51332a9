"""Loading a checkpoint into an engine, also at another world size or ZeRO stage.

The same size and stage load DeepSpeed's files as they are, to the bit. Otherwise rank 0 converts them to DeepSpeed's
universal form (every weight whole, one folder each; Lian et al. 2024, arXiv:2406.18820) in a process of its own, 6 to
8 s for a tiny model, and all ranks load that. Stage 0 keeps everything on every rank and fits any world size as it
is. Stages 1 and 2 convert to each other; 0 and 3 only to themselves: DeepSpeed 0.19.8 writes another form for stage 3
than for 1 and 2 (no `optimizer_state_dict` in theirs), and none for stage 0.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch.distributed as dist
from torch import nn

from components.pretraining.checkpoint import TAG, Checkpoint
from components.pretraining.config import PretrainConfig
from components.pretraining.engine import TrainingEngine
from infra.errors import ConfigError, InfrastructureError

logger = logging.getLogger(__name__)

CONVERSION_TIMEOUT_SECONDS = 3600
FAMILIES = {0: 0, 1: 1, 2: 1, 3: 3}
"""Stages with one form of universal checkpoint."""


def load_checkpoint(
    checkpoint: Checkpoint | None, module: nn.Module, config: PretrainConfig, world_size: int
) -> tuple[TrainingEngine, Checkpoint | None]:
    """An engine that stands where `checkpoint` (verified) stood. All ranks call it.

    Returns:
        the engine, and the checkpoint that it really holds.

    Raises:
        ConfigError: it is of a stage that does not convert to the one wanted.
        InfrastructureError: the checkpoint cannot be converted or loaded.
    """
    if checkpoint is None:
        return TrainingEngine(module, config, world_size), None
    made = checkpoint.manifest
    if FAMILIES[made.zero_stage] != FAMILIES[config.zero_stage]:
        raise ConfigError(
            f"zero_stage={config.zero_stage}: this training stands at step {made.progress.step} with zero_stage="
            f"{made.zero_stage}, which DeepSpeed converts to {_convertible(made.zero_stage)} only: go on with that"
        )
    same = made.zero_stage == 0 or (made.world_size, made.zero_stage) == (world_size, config.zero_stage)
    folder = checkpoint.folder if same else _converted(checkpoint)
    engine = TrainingEngine(module, config, world_size, load_universal=not same)
    path, _ = engine.engine.load_checkpoint(str(folder), tag=TAG, load_lr_scheduler_states=False)
    if path is None:
        raise InfrastructureError(f"{folder}: DeepSpeed found nothing to load")
    return engine, checkpoint


def _convertible(stage: int) -> str:
    return " or ".join(str(other) for other, family in FAMILIES.items() if family == FAMILIES[stage])


def _converted(checkpoint: Checkpoint) -> Path:
    """The universal form of a checkpoint, made by rank 0 beside it."""
    folder = checkpoint.folder.with_name("universal_" + checkpoint.folder.name)
    problem: list[str | None] = [None]
    if dist.get_rank() == 0:
        made = checkpoint.manifest
        logger.warning(
            "%s was made by %d ranks at ZeRO stage %d: converting it",
            checkpoint.folder,
            made.world_size,
            made.zero_stage,
        )
        shutil.rmtree(folder, ignore_errors=True)
        problem = [convert(checkpoint.folder / TAG, folder / TAG)]
    dist.broadcast_object_list(problem)
    if problem[0] is not None:
        raise InfrastructureError(f"{checkpoint.folder}: cannot be converted to another world size: {problem[0]}")
    return folder


def convert(source: Path, target: Path) -> str | None:
    """Runs DeepSpeed's converter; returns what went wrong, or None.

    Args:
        source: folder with DeepSpeed's files.
        target: the new folder.
    """
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--input_folder", str(source)]
    command += ["--output_folder", str(target), "--num_extract_workers", "1", "--num_merge_workers", "1"]
    command += ["--inject_missing_state"]
    drop = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}
    environment = {name: value for name, value in os.environ.items() if name not in drop}
    target.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=CONVERSION_TIMEOUT_SECONDS, check=False
    )
    return None if done.returncode == 0 else (done.stderr or done.stdout).strip()[-800:]
