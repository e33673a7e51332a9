"""Loading a checkpoint into an engine, also at another world size or ZeRO stage.

The same size and stage load DeepSpeed's files as they are, to the bit. Otherwise every rank reads from them, weight by
weight, the part of the fp32 weights and of the moments that is its own now; the files are memory-mapped, so a rank
holds one whole weight at a time beside its part. DeepSpeed's universal checkpoints were tried for this: a subprocess of
6 to 8 s and a second copy on disk for a tiny model, and no way between stage 0, stages 1 and 2, and stage 3.

How DeepSpeed 0.19.8 lays out a group of weights (flat, in order):

    stage 0       each weight whole, the same on every rank
    stages 1, 2   the group as one vector, padded and cut into one part a rank
    stage 3       each weight padded and cut into one part a rank; a rank's parts one after another
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn

from components.pretraining.checkpoints.checkpoint import Checkpoint, CheckpointStore
from components.pretraining.checkpoints.snapshot import TAG
from components.pretraining.config import PretrainConfig
from components.pretraining.engine.engine import TrainingEngine
from components.pretraining.health.agreement import from_rank_0
from infra.errors import InfrastructureError

logger = logging.getLogger(__name__)

Kind = Literal["weight", "exp_avg", "exp_avg_sq"]
MOMENTS: tuple[Kind, Kind] = ("exp_avg", "exp_avg_sq")


def choose(store: CheckpointStore, until: int | None = None) -> Checkpoint | None:
    """The newest complete checkpoint, as rank 0 finds it, on every machine. All ranks call it.

    Args:
        store: of the training.
        until: the last step that it may be of.

    Raises:
        DamagedArtifactError: another machine than that of rank 0 cannot get it whole.
    """
    checkpoint = from_rank_0(store.newest(until) if dist.get_rank() == 0 else None)
    if checkpoint is not None and store.mirror.objects:
        if dist.get_rank() != 0 and os.environ.get("LOCAL_RANK", "0") == "0":
            store.fetch(checkpoint.folder)
        dist.barrier()
    return checkpoint


def load_checkpoint(
    checkpoint: Checkpoint | None, module: nn.Module, config: PretrainConfig, world_size: int
) -> TrainingEngine:
    """An engine that stands where `checkpoint` (verified) stood. All ranks call it.

    Raises:
        InfrastructureError: the checkpoint cannot be loaded.
    """
    engine = TrainingEngine(module, config, world_size)
    if checkpoint is not None:
        restore(engine, checkpoint, config, world_size)
    return engine


def restore(engine: TrainingEngine, checkpoint: Checkpoint, config: PretrainConfig, world_size: int) -> None:
    """Puts an engine, new or used, where `checkpoint` (verified) stood. All ranks call it.

    Raises:
        InfrastructureError: the checkpoint cannot be loaded.
    """
    made, folder = checkpoint.manifest, checkpoint.folder
    if (made.world_size, made.zero_stage) == (
        world_size,
        config.stage,
    ) or made.zero_stage == config.stage == 0:
        path, _ = engine.engine.load_checkpoint(str(folder), tag=TAG, load_lr_scheduler_states=False)
        if path is None:
            raise InfrastructureError(f"{folder}: DeepSpeed found nothing to load")
        return
    logger.warning(
        "%s is of %d ranks at ZeRO stage %d: it is cut anew for %d ranks at stage %d",
        folder,
        made.world_size,
        made.zero_stage,
        world_size,
        config.stage,
    )
    saved = SavedState(folder / TAG, made.zero_stage, made.world_size, engine.groups)
    write(engine, saved, config.stage)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Piece:
    """Where a part of a weight lies: `length` elements at `offset` of flat vector `flat` of the file of `rank`."""

    rank: int
    flat: int
    offset: int
    length: int


class SavedState:
    """fp32 weights and moments in DeepSpeed's files.

    Args:
        folder: with the files; its manifest was verified, for they are pickles.
        stage: ZeRO stage that wrote them.
        world_size: ranks that wrote them.
        groups: number of elements by name, for each parameter group of the optimizer, in order.
    """

    def __init__(self, folder: Path, stage: int, world_size: int, groups: Sequence[Mapping[str, int]]) -> None:
        names = [name for group in groups for name in group]
        self._ranks = [_flats(folder, stage, rank, names) for rank in range(1 if stage == 0 else world_size)]
        self._lengths = [len(flat) for flat in self._ranks[0]["weight"]]
        locate = {0: self._whole, 3: self._by_weight}.get(stage, self._by_group)
        self._pieces = dict(locate(groups))
        self._numbers = {name: number for group in groups for name, number in group.items()}
        self.step: float = self._ranks[0]["step"]
        """Optimizer steps taken."""
        self.loss_scale: float | None = self._ranks[0]["loss_scale"]
        """What fp16 losses are multiplied with."""

    def read(self, name: str, kind: Kind) -> torch.Tensor:
        """All elements of one weight, or of one of its moments: flat, fp32."""
        parts = [
            self._ranks[piece.rank][kind][piece.flat][piece.offset : piece.offset + piece.length]
            for piece in self._pieces[name]
        ]
        return torch.cat(parts)[: self._numbers[name]].float()

    def _whole(self, groups: Sequence[Mapping[str, int]]) -> Iterator[tuple[str, list[_Piece]]]:
        names = [(name, number) for group in groups for name, number in group.items()]
        for flat, (name, number) in enumerate(names):
            yield name, [_Piece(rank=0, flat=flat, offset=0, length=number)]

    def _by_group(self, groups: Sequence[Mapping[str, int]]) -> Iterator[tuple[str, list[_Piece]]]:
        for flat, group in enumerate(groups):
            part, at = self._lengths[flat], 0
            for name, number in group.items():
                pieces, end = [], at + number
                while at < end:
                    rank, offset = divmod(at, part)
                    length = min(part - offset, end - at)
                    pieces.append(_Piece(rank=rank, flat=flat, offset=offset, length=length))
                    at += length
                yield name, pieces

    def _by_weight(self, groups: Sequence[Mapping[str, int]]) -> Iterator[tuple[str, list[_Piece]]]:
        world_size, flat, at = len(self._ranks), 0, 0
        for group in groups:
            for name, number in group.items():
                if at == self._lengths[flat]:  # a group may be several flat vectors, each of whole weights
                    flat, at = flat + 1, 0
                length = math.ceil(number / world_size)
                yield name, [_Piece(rank=rank, flat=flat, offset=at, length=length) for rank in range(world_size)]
                at += length
            flat, at = flat + 1, 0


def _flats(folder: Path, stage: int, rank: int, names: Sequence[str]) -> dict[str, Any]:
    """The flat vectors of one rank's file by kind, and `step`."""
    pattern = "mp_rank_00_model_states.pt" if stage == 0 else f"*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
    path = next(folder.glob(pattern), None)
    if path is None:
        raise InfrastructureError(f"{folder}: no file {pattern}")
    content = torch.load(path, map_location="cpu", mmap=True, weights_only=False)
    saved = content["optimizer" if stage == 0 else "optimizer_state_dict"]
    if stage == 0:
        inner, masters = saved.get("optimizer_state_dict", saved), saved.get("fp32_groups")
        weights = [one for group in masters for one in group] if masters else [content["module"][n] for n in names]
    elif stage == 3:
        inner, weights = saved["optimizer_state_dict"], saved["fp32_flat_groups"]
    else:
        inner, weights = saved["base_optimizer_state"], saved["single_partition_of_fp32_groups"]
    flats = [weight.detach().reshape(-1) for weight in weights]
    states = inner["state"] or {index: _no_state(flat) for index, flat in enumerate(flats)}  # before the first step
    return {
        "weight": flats,
        **{kind: [states[index][kind].reshape(-1) for index in range(len(flats))] for kind in MOMENTS},
        "step": float(states[0]["step"]),
        "loss_scale": getattr(saved.get("loss_scaler"), "cur_scale", saved.get("cur_scale")),
    }


def _no_state(flat: torch.Tensor) -> dict[str, Any]:
    """Adam's before its first step; takes one element of memory."""
    return {"step": 0.0, **dict.fromkeys(MOMENTS, torch.zeros(1).expand(flat.shape))}


@torch.no_grad()
def write(engine: TrainingEngine, saved: SavedState, stage: int) -> None:
    """Fills a new engine with `saved`: weights as they are trained and in fp32, moments, the optimizer's step.

    Args:
        engine: all ranks have it.
        saved: of any stage and world size.
        stage: of `engine`.
    """
    optimizer = engine.engine.optimizer
    states = getattr(optimizer, "optimizer", optimizer).state
    if stage == 0:
        _write_whole(engine, optimizer, states, saved)
    elif stage == 3:
        _write_by_weight(engine, optimizer, states, saved)
    else:
        _write_by_group(engine, optimizer, states, saved)
    if engine.scales_loss and saved.loss_scale is not None:
        optimizer.loss_scale = saved.loss_scale


def _new_state(vector: torch.Tensor, saved: SavedState) -> dict[str, torch.Tensor]:
    """Adam's state of one flat vector of fp32 weights, moments still 0."""
    step = torch.tensor(saved.step, dtype=torch.float32, device=vector.device)
    return {"step": step, **{kind: torch.zeros_like(vector) for kind in MOMENTS}}


def _write_whole(engine: TrainingEngine, optimizer: Any, states: Any, saved: SavedState) -> None:
    masters = engine.masters()
    for name, parameter in engine.names.items():
        master = masters.get(id(parameter), parameter)
        states[master] = _new_state(master, saved)
        for kind, target in (("weight", master), *((kind, states[master][kind]) for kind in MOMENTS)):
            target.copy_(saved.read(name, kind).view_as(target))
        parameter.copy_(master)


def _write_by_group(engine: TrainingEngine, optimizer: Any, states: Any, saved: SavedState) -> None:
    rank = dist.get_rank()
    for group, part in zip(engine.groups, optimizer.single_partition_of_fp32_groups, strict=True):
        states[part] = _new_state(part, saved)
        targets = {"weight": part, **{kind: states[part][kind] for kind in MOMENTS}}
        first, at = rank * part.numel(), 0
        for name, number in group.items():
            parameter = engine.names[name]
            parameter.copy_(saved.read(name, "weight").view_as(parameter))
            start, end = max(at, first), min(at + number, first + part.numel())
            if start < end:
                for kind, target in targets.items():
                    target[start - first : end - first].copy_(saved.read(name, kind)[start - at : end - at])
            at += number


def _write_by_weight(engine: TrainingEngine, optimizer: Any, states: Any, saved: SavedState) -> None:
    rank, names = dist.get_rank(), {id(parameter): name for name, parameter in engine.names.items()}
    vectors = zip(optimizer.fp32_partitioned_groups_flat, optimizer.fp16_partitioned_groups_flat, strict=True)
    for index, (vector, trained) in enumerate(vectors):
        states[vector] = _new_state(vector, saved)
        targets = {"weight": vector, **{kind: states[vector][kind] for kind in MOMENTS}}
        at = 0
        for parameter in optimizer.fp16_groups[index]:
            length = parameter.ds_tensor.ds_numel
            for kind, target in targets.items():
                mine = saved.read(names[id(parameter)], kind)[rank * length : (rank + 1) * length]
                target[at : at + len(mine)].copy_(mine)
            at += length
        trained.copy_(vector)
        parts = optimizer.fp16_partitioned_groups[index]
        for part, value in zip(parts, optimizer.unflatten(trained, parts), strict=True):
            part.data = value.data
    if optimizer.persistent_parameters:  # small weights are kept whole on every rank
        optimizer.persistent_parameters[0].partition(optimizer.persistent_parameters)
        optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
