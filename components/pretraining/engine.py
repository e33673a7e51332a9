"""The DeepSpeed engine: ZeRO stage 0 to 3 on a process group that somebody else has made (Ray Train, or a test).

On a machine without GPU, ZeRO-1 with two ranks of one thread runs at the speed of a plain loop within a few percent;
stage 3 gathers weights for each layer and pays only where weights do not fit.

Nothing is compiled: DeepSpeed 0.19.8 would build a shared-memory all-reduce with g++ and ninja whenever it finds g++
(`comm/torch.py::build_shm_op`), for an operation that only inference calls. What it asks first is the table
`deepspeed.ops.__compatible_ops__`, which is made at first access and then kept; here it is set before that.
"""

from __future__ import annotations

import ctypes
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

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


M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Numbers of `mallopt` in glibc's malloc.h."""
LARGEST_INT = 2**31 - 1
HEAP_STEP_BYTES = 64 * 2**20


def reuse_freed_memory() -> bool:
    """Has the C library keep what is freed for the next allocation, in this process; false where it is not glibc.

    By default each tensor over 32 MiB, and whatever was last on the heap, goes back to the kernel when it is freed, and
    the next one is made of zeroed pages, each by a fault: 24,000 to 32,000 of them in a step of 2,048 tokens of a GPT-2
    of 5.9M parameters, and an eighth of its CPU time. The process then stays as large as it has ever been, which in a
    training it is in every step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, LARGEST_INT), (M_TOP_PAD, HEAP_STEP_BYTES))
    taken = [mallopt(name, value) == 1 for name, value in settings]
    return all(taken)


def _lighten(optimizer: Any) -> None:
    """Leaves out what DeepSpeed's ZeRO-1/2 step does twice on a CPU.

    - Whether a gradient is finite: it takes the largest and the smallest value of each, to skip a step that would spoil
      the weights. The gradient norm, which it computes next, is not finite in the same cases, and skips the step too.
    - The norm of each gradient in fp64, of an fp64 copy: fp32 differed by 8e-6 at most (20 draws of 9.4M elements).

    Without them its step takes 28 CPU ms in place of 39 for 5.85M parameters on one rank; that of plain torch takes 22.
    """
    from deepspeed.accelerator import get_accelerator

    if getattr(optimizer, "compute_grad_norm", False) and getattr(optimizer, "dtype", None) != torch.float16:
        optimizer.check_overflow = lambda partition_gradients=True: None
    get_accelerator().is_fp64_supported = lambda: False


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
            "stage": config.zero_stage,
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
        module: its forward gives a summed loss; moved and cast in place.
        config: of the training.
        world_size: ranks of the default process group.
    """

    def __init__(self, module: nn.Module, config: PretrainConfig, world_size: int) -> None:
        deepspeed = import_deepspeed()
        if not config.cluster.num_gpus_per_worker:
            reuse_freed_memory()
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
        if self.engine.device.type == "cpu":
            _lighten(self.engine.optimizer)
        for name, buffer in buffers.items():
            owner, _, leaf = name.rpartition(".")
            module.get_submodule(owner)._buffers[leaf] = buffer.to(self.engine.device)
        self.world_size = world_size
        self.num_micro_batches = told["gradient_accumulation_steps"]
        self.micro_batch_size = told["train_micro_batch_size_per_gpu"]
        self._stage = config.zero_stage
        self._plain = config.precision == "fp32" and config.zero_stage == 0

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.engine.device
        return device

    def set_learning_rate(self, learning_rate: float) -> None:
        """For the next optimizer step."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate

    def accumulate(self, inputs: Mapping[str, torch.Tensor], global_num_targets: int) -> torch.Tensor:
        """Forward and backward of one micro batch; steps the optimizer after the last one of a step.

        DeepSpeed averages gradients over ranks and micro batches; with this scale what results is the gradient of
        (sum of the loss over the global batch) / (its targets), whatever the world size.

        Returns:
            the summed loss of the micro batch, detached.
        """
        loss = self.engine(**inputs)
        scale = self.world_size * self.num_micro_batches / max(1, global_num_targets)
        self.engine.backward(loss * scale)
        if self._plain and self.engine.is_gradient_accumulation_boundary():
            gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
            self._plain_norm = float(torch.nn.utils.get_total_norm(gradients))
        self.engine.step()
        detached: torch.Tensor = loss.detach()
        return detached

    def gradient_norm(self) -> float:
        """Norm of the last step's gradient before clipping, the same on all ranks."""
        return self._plain_norm if self._plain else float(self.engine.get_global_grad_norm() or 0.0)

    @torch.no_grad()
    def evaluate(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Summed loss without gradient. All ranks call it equally often: stage 3 gathers weights in it."""
        self.engine.eval()
        loss: torch.Tensor = self.engine(**inputs)
        self.engine.train()
        return loss

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
