"""Whether the values of a pretraining fit one another: objective and architecture, sizes, batches, precision.

Told without torch and all at once, before anything starts.
"""

from __future__ import annotations

import math

from components.pretraining.config import KINDS, PretrainConfig

ROTARY = ("modernbert", "llama", "qwen3")
"""Architectures with rotary positions."""


def problems(config: PretrainConfig, where: str = "pretrain", cluster: str = "cluster") -> list[str]:
    """Everything wrong with a combination of values, one line each.

    Args:
        config: valid field by field.
        where: the config key of `config`, for the messages.
        cluster: the config key of its cluster.
    """
    found: list[str] = []
    model = config.model
    found += _batch_problems(config, where, cluster)
    sizes_count = model.target_parameters is None and model.init_from is None
    if sizes_count and model.hidden_size % model.num_heads:
        found.append(
            f"{where}.model.hidden_size={model.hidden_size} must be a multiple of "
            f"{where}.model.num_heads={model.num_heads}"
        )
    elif sizes_count and config.architecture in ROTARY and (model.hidden_size // model.num_heads) % 2:
        found.append(
            f"{where}.model.hidden_size={model.hidden_size} / {where}.model.num_heads={model.num_heads} must be "
            "even: rotary positions turn pairs of numbers"
        )
    if KINDS[config.architecture] != config.kind:
        fitting = ", ".join(name for name, kind in KINDS.items() if kind == config.kind)
        found.append(
            f"{where}.model.architecture={config.architecture} does not fit {where}.objective={config.objective}: "
            f"it takes {fitting}"
        )
    if model.max_position_embeddings is not None and model.max_position_embeddings < config.sequence_length:
        found.append(
            f"{where}.model.max_position_embeddings={model.max_position_embeddings} must be at least "
            f"{where}.sequence_length={config.sequence_length}"
        )
    if config.num_warmup_steps >= config.steps and config.num_warmup_steps > 0:
        found.append(f"{where}.warmup_steps={config.num_warmup_steps} must be fewer than {where}.steps={config.steps}")
    if config.mask_token_fraction + config.random_token_fraction > 1:
        found.append(
            f"{where}.mask_token_fraction={config.mask_token_fraction} and {where}.random_token_fraction="
            f"{config.random_token_fraction} must not exceed 1 together"
        )
    if not all(0 <= beta < 1 for beta in config.betas):
        found.append(f"{where}.betas={list(config.betas)} must each be at least 0 and less than 1")
    if config.precision == "fp16" and config.cluster.num_gpus_per_worker == 0:
        found.append(
            f"{where}.precision=fp16 needs GPUs, and {cluster}.num_gpus_per_worker=0: "
            f"set {where}.precision to bf16 or fp32"
        )
    return found


def _batch_problems(config: PretrainConfig, where: str, cluster: str) -> list[str]:
    """Whether the global batch can be dealt out to the workers: evenly, at each size that a training may have."""
    batch, workers = config.global_batch_size, config.cluster
    sizes = range(workers.min_workers, workers.max_workers + 1)
    wrong = [size for size in sizes if batch % size]
    if not wrong:
        return []
    fits = [count for count in range(1, min(batch, workers.max_workers) + 1) if batch % count == 0]
    step = math.lcm(*sizes)
    up = -(-batch // step) * step
    if not workers.is_elastic:
        return [
            f"{where}.global_batch_size={batch} must be a multiple of {cluster}.num_workers={workers.max_workers}: "
            f"set {where}.global_batch_size={up}, or {cluster}.num_workers to one of {', '.join(map(str, fits))}"
        ]
    return [
        f"{where}.global_batch_size={batch} must be a multiple of every number of workers in "
        f"{cluster}.num_workers={list(sizes[:1]) + list(sizes[-1:])}, and is not of {', '.join(map(str, wrong))}: set "
        f"{where}.global_batch_size={up}, or a range within {', '.join(map(str, fits))}"
    ]
