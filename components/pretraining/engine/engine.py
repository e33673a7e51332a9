"""The DeepSpeed engine: ZeRO stage 0 to 3 on a process group that somebody else has made (Ray Train, or a test).

On a machine without GPU, ZeRO-1 with two ranks of one thread runs at the speed of a plain loop within a few percent;
stage 3 gathers weights for each layer and pays only where weights do not fit.

Nothing is compiled: DeepSpeed 0.19.8 would build a shared-memory all-reduce with g++ and ninja whenever it finds g++
(`comm/torch.py::build_shm_op`), for an operation that only inference calls. What it asks first is the table
`deepspeed.ops.__compatible_ops__`, which is made at first access and then kept; here it is set before that.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from components.pretraining.config import PretrainConfig
from components.pretraining.engine import gradients
from components.pretraining.engine.cpu import lighten, reuse_freed_memory
from components.pretraining.engine.ds_config import deepspeed_config
from components.pretraining.engine.optimizers import make_optimizer, parameter_groups
from infra.errors import ConfigError

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


@contextmanager
def _told_to_the_user(config: PretrainConfig) -> Iterator[None]:
    """Turns what DeepSpeed raises at a `ds_config` into an error of the user."""
    from deepspeed.runtime.config import DeepSpeedConfigError

    try:
        yield
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError, DeepSpeedConfigError) as error:
        if not config.ds_config:
            raise
        errors = getattr(error, "errors", None)
        if callable(errors):  # pydantic's
            lines = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in errors()]
        else:
            lines = [" ".join(str(error).split()) or type(error).__name__]
        raise ConfigError(*(f"ds_config: DeepSpeed does not take it: {line}" for line in lines)) from error


class TrainingEngine:
    """A DeepSpeed engine with the few things that the loop needs.

    A step is `accumulate` for each micro batch, then `update` or `skip`. Between them `gradient_norm` is that of this
    step; it costs one pass over this rank's part of the gradient and a sum over the ranks.

    Args:
        module: its forward gives summed losses; moved and cast in place.
        config: of the training.
        world_size: ranks of the default process group.

    Raises:
        ConfigError: DeepSpeed does not take `ds_config`.
    """

    def __init__(self, module: nn.Module, config: PretrainConfig, world_size: int) -> None:
        deepspeed = import_deepspeed()
        if not config.cluster.num_gpus_per_worker:
            reuse_freed_memory()
        self.module = module
        self.reads_masks: bool = getattr(module, "reads_masks", True)
        """Whether the network's attention reads the masks of its batches."""
        self.names = dict(module.named_parameters())
        num_parameters = sum(parameter.numel() for parameter in module.parameters())
        told = deepspeed_config(config, world_size, num_parameters)
        groups = parameter_groups(module, config)
        self.groups = [{name: weight.numel() for name, weight in group.weights.items()} for group in groups]
        """Number of elements by name, for each parameter group of the optimizer."""
        optimizer = make_optimizer(groups, config)
        # DeepSpeed casts buffers with the weights; the frequencies of rotary positions must stay fp32: in bf16 they
        # are off by up to 0.4 %, which at position 128 is half a radian, and the exported fp32 model would not match.
        buffers = {n: b.clone() for n, b in module.named_buffers() if b.is_floating_point()}
        with _told_to_the_user(config):
            self.engine, _, _, _ = deepspeed.initialize(
                model=module, optimizer=optimizer, config=told, dist_init_required=False
            )
        if self.device.type == "cpu":
            lighten(self.engine.optimizer)
        for name, buffer in buffers.items():
            owner, _, leaf = name.rpartition(".")
            module.get_submodule(owner)._buffers[leaf] = buffer.to(self.engine.device)
        self.world_size = world_size
        self.num_micro_batches = told["gradient_accumulation_steps"]
        self.micro_batch_size = told["train_micro_batch_size_per_gpu"]
        self._stage = config.stage
        self._shares = [group.learning_rate / config.learning_rate for group in groups]
        if self._stage == 0:  # FP16_UnfusedOptimizer takes a step when it is made: without this Adam would be at 1
            getattr(self.engine.optimizer, "optimizer", optimizer).state.clear()
        self.mark: Callable[[str], None] = lambda phase: None
        """Told the phase that begins: of the watchdog."""
        self.scales_loss = config.precision == "fp16"
        """Whether DeepSpeed scales the loss, and lowers the scale for a gradient with inf or NaN."""
        self._norm: float | None = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.engine.device
        return device

    def set_learning_rate(self, learning_rate: float) -> None:
        """For the next optimizer step; Muon's matrices get theirs in proportion."""
        for group, share in zip(self.engine.optimizer.param_groups, self._shares, strict=True):
            group["lr"] = learning_rate * share

    def accumulate(self, inputs: Mapping[str, torch.Tensor], weights_K: torch.Tensor) -> torch.Tensor:
        """Forward and backward of one micro batch; `update` or `skip` follows after the last one of a step.

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
        self._norm = None
        detached: torch.Tensor = losses_K.detach()
        return detached

    def gradient_norm(self) -> float:
        """Norm of the step's gradient before clipping, the same on all ranks; inf for a gradient with inf or NaN.

        All ranks call it, between the last `accumulate` of a step and the first of the next.
        """
        if self._norm is None:
            self._norm = gradients.norm(self.engine, self._stage)
        return self._norm

    def update(self) -> bool:
        """Clips the gradient and steps the optimizer, after the last micro batch of a step.

        Returns:
            whether the weights have changed: a gradient with inf or NaN is dropped, at every stage, and in fp16 the
            scale of the loss is halved for the next step.
        """
        if self.gradient_norm() == math.inf and not self.scales_loss:
            self.skip()
            return False
        self.engine.step()
        applied: bool = self.engine.was_step_applied()
        return applied

    def skip(self) -> None:
        """Drops the gradient of a step in place of `update`: weights, moments and step count stay, to the bit."""
        norm = self.gradient_norm()
        gradients.drop(self.engine, self._stage)
        self._norm = norm

    @torch.no_grad()
    def evaluate(self, inputs: Mapping[str, torch.Tensor], output: str) -> torch.Tensor:
        """What the module's forward gives as `output`, without gradient and dropout.

        All ranks call it equally often: stage 3 gathers weights in it.
        """
        self.mark("evaluation")
        self.engine.eval()
        found: torch.Tensor = self.engine(**inputs, output=output)
        self.engine.train()
        return found

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
            self.mark("finish")
            full = masters.get(id(parameter)) if self._stage == 0 else safe_get_full_fp32_param(parameter)
            state[name] = (parameter if full is None else full).detach().float().cpu().clone()
        return state
