"""The DeepSpeed engine: ZeRO stage 0 to 3 on a process group that somebody else has made (Ray Train, or a test).

On a machine without GPU, ZeRO-1 with two ranks of one thread runs at the speed of a plain loop within a few percent;
stage 3 gathers weights for each layer and pays only where weights do not fit.

Nothing is compiled: DeepSpeed 0.19.8 would build a shared-memory all-reduce with g++ and ninja whenever it finds g++
(`comm/torch.py::build_shm_op`), for an operation that only inference calls. What it asks first is the table
`deepspeed.ops.__compatible_ops__`, which is made at first access and then kept; here it is set before that.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from components.pretraining import gradients
from components.pretraining.config import PretrainConfig, micro_batch_size

logger = logging.getLogger(__name__)


class _NothingCompiles(dict[str, bool]):
    """The table of C++ operations: none."""

    def __missing__(self, key: str) -> bool:
        return False


@contextmanager
def _hidden(name: str) -> Iterator[None]:
    """Makes `import name` fail as if it were not installed, unless it is imported already."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.modules.pop(name, None)


@contextmanager
def _without_compile() -> Iterator[None]:
    """Makes `@torch.compile` leave functions as they are."""
    compile_, torch.compile = torch.compile, lambda function: function  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compile_


def import_deepspeed() -> Any:
    """DeepSpeed, quiet and without what is not needed.

    Its autotuner imports mlflow where that is installed: 3 of 5.5 seconds, and a tracking client in every worker. Its
    Muon optimizer, imported to learn that AdamW is not Muon, compiles three functions at import: 1.7 s of inductor.
    """
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    with _hidden("mlflow"):
        import deepspeed
    with _without_compile():
        import deepspeed.runtime.zero.muon.original_muon
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    deepspeed.ops.__compatible_ops__ = _NothingCompiles()
    return deepspeed


def deepspeed_config(config: PretrainConfig, world_size: int, num_parameters: int) -> dict[str, Any]:
    """What DeepSpeed is told; batch sizes are derived so that the global batch is the same at any world size.

    Args:
        config: of the training.
        world_size: ranks.
        num_parameters: for bucket sizes: DeepSpeed's default of 5e8 elements is held as a buffer.
    """
    micro = micro_batch_size(config, world_size)
    bucket = min(500_000_000, max(num_parameters, 1_000_000))
    told: dict[str, Any] = {
        "train_batch_size": config.global_batch_size,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": config.global_batch_size // world_size // micro,
        "zero_optimization": {
            "stage": config.stage,
            "overlap_comm": config.cluster.num_gpus_per_worker > 0,
            "contiguous_gradients": True,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
        },
        "steps_per_print": None,
        "wall_clock_breakdown": False,
    }
    if config.gradient_clipping is not None:
        told["gradient_clipping"] = config.gradient_clipping
    if config.precision != "fp32":
        told[config.precision] = {"enabled": True}
    return told


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices and embeddings with weight decay; biases and norms without. Each group also has its `names`."""
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    decayed = [name for name, parameter in trained.items() if parameter.ndim >= 2]
    others = [name for name in trained if name not in set(decayed)]
    return [
        {"params": [trained[name] for name in names], "names": names, "weight_decay": decay}
        for names, decay in ((decayed, weight_decay), (others, 0.0))
        if names
    ]


class TrainingEngine:
    """A DeepSpeed engine with the few things that the loop needs.

    Args:
        module: its forward gives summed losses; moved and cast in place.
        config: of the training.
        world_size: ranks of the default process group.
    """

    def __init__(self, module: nn.Module, config: PretrainConfig, world_size: int) -> None:
        deepspeed = import_deepspeed()
        self.module = module
        self.names = dict(module.named_parameters())
        num_parameters = sum(parameter.numel() for parameter in module.parameters())
        told = deepspeed_config(config, world_size, num_parameters)
        groups = parameter_groups(module, config.weight_decay)
        self.groups = [{name: self.names[name].numel() for name in group.pop("names")} for group in groups]
        """Number of elements by name, for each parameter group of the optimizer."""
        optimizer = torch.optim.AdamW(
            groups,
            lr=config.learning_rate,
            betas=config.betas,
            eps=config.epsilon,
            fused=True,
        )
        # DeepSpeed casts buffers with the weights; the frequencies of rotary positions must stay fp32: in bf16 they
        # are off by up to 0.4 %, which at position 128 is half a radian, and the exported fp32 model would not match.
        buffers = {n: b.clone() for n, b in module.named_buffers() if b.is_floating_point()}
        self.engine, _, _, _ = deepspeed.initialize(
            model=module, optimizer=optimizer, config=told, dist_init_required=False
        )
        for name, buffer in buffers.items():
            owner, _, leaf = name.rpartition(".")
            module.get_submodule(owner)._buffers[leaf] = buffer.to(self.engine.device)
        self.world_size = world_size
        self.num_micro_batches = told["gradient_accumulation_steps"]
        self.micro_batch_size = told["train_micro_batch_size_per_gpu"]
        self._stage = config.stage
        self.mark: Callable[[str], None] = lambda phase: None
        """Told the phase that begins: of the watchdog."""
        self._norm: float | None = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.engine.device
        return device

    def set_learning_rate(self, learning_rate: float) -> None:
        """For the next optimizer step."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate

    def accumulate(self, inputs: Mapping[str, torch.Tensor], weights_K: torch.Tensor) -> torch.Tensor:
        """Forward and backward of one micro batch; `update` follows after the last one of a step.

        DeepSpeed averages gradients over ranks and micro batches; with this scale what results is the gradient of the
        weighted sum of losses over the global batch, whatever the world size.

        Args:
            inputs: of the module's forward, which gives K summed losses.
            weights_K: for each loss 1 / (its targets in the global batch).

        Returns:
            the summed losses of the micro batch, detached; [K].
        """
        self.mark("forward")
        losses_K = self.engine(**inputs)
        self.mark("backward")
        self.engine.backward((losses_K * weights_K).sum() * (self.world_size * self.num_micro_batches))
        if not self.engine.is_gradient_accumulation_boundary():
            self.engine.step()
        detached: torch.Tensor = losses_K.detach()
        return detached

    def update(self) -> None:
        """Clips the gradient and steps the optimizer, after the last micro batch of a step."""
        self.engine.step()

    def pending_gradient_norm(self) -> float | None:
        """Norm of the gradient before clipping, after the last micro batch of a step, the same on all ranks: infinity
        where it is not finite, None where the loss scaler of fp16 sees to that. All ranks call it."""
        self._norm = gradients.pending_norm(self.engine, self._stage)
        return self._norm

    def skip(self) -> None:
        """In place of `update`: drops the gradient; weights, moments and step counts stay as they are."""
        gradients.drop(self.engine, self._stage)

    def gradient_norm(self) -> float:
        """Norm of the last step's gradient before clipping, the same on all ranks."""
        return self._norm or 0.0

    @torch.no_grad()
    def evaluate(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Summed losses [K] without gradient. All ranks call it equally often: stage 3 gathers weights in it."""
        self.mark("evaluation")
        self.engine.eval()
        losses_K: torch.Tensor = self.engine(**inputs)
        self.engine.train()
        return losses_K

    def masters(self) -> dict[int, torch.Tensor]:
        """The fp32 weights of stage 0 in bf16 or fp16, by id of the weight; `safe_get_full_fp32_param` knows none."""
        optimizer = self.engine.optimizer
        groups = zip(getattr(optimizer, "fp16_groups", []), getattr(optimizer, "fp32_groups", []), strict=False)
        return {id(one): master for group in groups for one, master in zip(*group, strict=True)}

    def full_state(self) -> dict[str, torch.Tensor]:
        """Every weight whole in fp32 (the master weights), on the CPU, by name. All ranks call it."""
        from deepspeed.utils import safe_get_full_fp32_param

        masters = self.masters() if self._stage == 0 else {}
        state = {}
        for name, parameter in self.names.items():
            full = masters.get(id(parameter)) if self._stage == 0 else safe_get_full_fp32_param(parameter)
            state[name] = (parameter if full is None else full).detach().float().cpu().clone()
        return state
