"""The training as a plain PyTorch loop: one process, torch's optimizers on whole weights, no DeepSpeed, no Ray."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from components.pretraining.batches import make_batch, make_objective
from components.pretraining.config import PretrainConfig
from components.pretraining.engine.schedule import schedule_factor
from components.pretraining.networks.models import TargetLoss, build_model
from components.pretraining.sampler import Sampler
from components.tokenization.shards import TokenShards


def plain_loop(config: PretrainConfig, data: Path) -> Iterator[float]:
    """The loss of each step; weights in fp32, or in bf16 with fp32 masters and gradients summed in fp32.

    Args:
        config: of the training; batches are of `micro_batch_size_per_rank` sequences.
        data: has `token_shards/` and `tokenizer/`.
    """
    shards = TokenShards(data / "token_shards", "train")
    objective, device = make_objective(config, shards, data / "tokenizer"), torch.device("cpu")
    module = TargetLoss(build_model(config, shards.index.vocab_size, {"pad": 0, "bos": 2, "eos": 3}))
    names, weights = zip(*module.named_parameters(), strict=True)
    masters, low = list(weights), config.precision == "bf16"
    if low:
        masters = [nn.Parameter(weight.detach().bfloat16().float()) for weight in weights]
        for weight, master in zip(weights, masters, strict=True):
            weight.data, master.grad = weight.data.bfloat16(), torch.zeros_like(master)
    optimizers = [
        (optimizer, [group["lr"] for group in optimizer.param_groups])
        for optimizer in made(config, dict(zip(names, masters, strict=True)))
    ]
    sampler = Sampler(num_sequences=len(shards), global_batch_size=config.global_batch_size, seed=config.seed)
    for step in range(config.steps):
        indices_G, epochs_G = sampler.global_batch(step)
        size = config.micro_batch_size_per_rank
        batches = [
            make_batch(
                shards, objective, indices_G[at : at + size], epochs_G[at : at + size], with_mask=module.reads_masks
            )
            for at in range(0, len(indices_G), size)
        ]
        num_targets, total = sum(batch.num_targets_K[0] for batch in batches), 0.0
        for batch in batches:
            loss = module(**batch.to(device))[0] / num_targets
            loss.backward()
            total += loss.item()
            if low:
                torch._foreach_add_([master.grad for master in masters], [weight.grad for weight in weights])
                module.zero_grad()
        nn.utils.clip_grad_norm_(masters, config.gradient_clipping or float("inf"))
        for optimizer, peaks in optimizers:
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * schedule_factor(config, step)
            optimizer.step()
        torch._foreach_zero_([master.grad for master in masters])
        if low:
            with torch.no_grad():
                torch._foreach_copy_(weights, masters)
        yield total


def made(config: PretrainConfig, weights: dict[str, torch.Tensor]) -> list[torch.optim.Optimizer]:
    """The optimizer, at its peak learning rates; for Muon two."""
    hidden = {n for n, w in weights.items() if config.optimizer == "muon" and ".layers." in n and w.ndim == 2}
    others = [(n, w) for n, w in weights.items() if n not in hidden]
    groups = [
        {"params": [w for _, w in others if w.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [w for _, w in others if w.ndim < 2], "weight_decay": 0.0},
    ]
    if config.optimizer == "adafactor":
        return [torch.optim.Adafactor(groups, lr=config.learning_rate)]
    adamw = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.epsilon, fused=True)
    matrices = [weights[n] for n in hidden]
    muon = {"lr": config.muon_learning_rate, "momentum": 0.95, "weight_decay": config.weight_decay}
    return [adamw, torch.optim.Muon(matrices, **muon)] if hidden else [adamw]
