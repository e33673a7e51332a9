"""The training with nothing but torch: the reference of the engine's numbers and of its speed.

Same samples, masks, schedule, clipping and AdamW groups as `components.pretraining.loop`; one process. In bf16 the
weights are bf16 and AdamW steps fp32 masters of them, as DeepSpeed does. What makes it quick: fused AdamW, one call for
all casts of gradients and of weights, and, if the caller asks for them, the head and the allocator that ours has.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from components.pretraining.batches import Batch
from components.pretraining.config import PretrainConfig
from components.pretraining.engine import parameter_groups
from components.pretraining.schedule import learning_rate


class PlainLoop:
    """A model whose forward gives a summed loss, and its optimizer; the weights are cast in place."""

    def __init__(self, module: nn.Module, config: PretrainConfig) -> None:
        self.module, self.config = module, config
        groups = parameter_groups(module, config.weight_decay)
        self.weights = [weight for group in groups for weight in group["params"]]
        self.masters = self.weights
        if config.precision == "bf16":
            self.masters = [nn.Parameter(weight.detach().clone()) for weight in self.weights]
            for weight, master in zip(self.weights, self.masters, strict=True):
                weight.data, master.grad = weight.data.bfloat16(), torch.zeros_like(master)
        master_of = dict(zip(map(id, self.weights), self.masters, strict=True))
        for group in groups:
            group["params"] = [master_of[id(weight)] for weight in group["params"]]
            group.pop("names")
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=config.betas, eps=config.epsilon, fused=True)

    def step(self, step: int, batches: Iterable[Batch]) -> float:
        """One optimizer step over the micro batches of a global batch; the mean loss of its targets, in nats."""
        batches, total = list(batches), torch.zeros((), dtype=torch.float64)
        num_targets = sum(batch.num_targets for batch in batches)
        for batch in batches:
            loss = self.module(**batch.to(torch.device("cpu")))
            (loss / num_targets).backward()
            total += loss.detach()
        if self.masters is not self.weights:
            torch._foreach_copy_([master.grad for master in self.masters], [weight.grad for weight in self.weights])
        nn.utils.clip_grad_norm_(self.masters, self.config.gradient_clipping or float("inf"))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, step)
        self.optimizer.step()
        self.module.zero_grad()
        if self.masters is not self.weights:
            with torch.no_grad():
                torch._foreach_copy_(self.weights, self.masters)
        return float(total) / num_targets
