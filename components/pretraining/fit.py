"""Whether the values of a pretraining fit one another: objective and architecture, sizes, batches, precision.

Told without torch and all at once, before anything starts.
"""

from __future__ import annotations

from pathlib import Path

from components.pretraining.config import KINDS, PretrainConfig
from components.pretraining.init_from import start_problems

ROTARY = ("modernbert", "llama", "qwen3")
"""Architectures with rotary positions."""
WITHOUT_DROPOUT = ("llama", "qwen3")
"""Architectures that drop no hidden states."""


def problems(config: PretrainConfig, where: str = "pretrain", cluster: str = "cluster") -> list[str]:
    """Everything wrong with a combination of values, one line each.

    Args:
        config: valid field by field.
        where: the config key of `config`, for the messages.
        cluster: the config key of its cluster.
    """
    found: list[str] = []
    batch, workers, model = config.global_batch_size, config.cluster.num_workers, config.model
    if batch % workers:
        fits = [count for count in range(1, min(batch, workers) + 1) if batch % count == 0]
        up = -(-batch // workers) * workers
        found.append(
            f"{where}.global_batch_size={batch} must be a multiple of {cluster}.num_workers={workers}: "
            f"set {where}.global_batch_size={up}, or {cluster}.num_workers to one of {', '.join(map(str, fits))}"
        )
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
    if model.init_from is not None:
        if Path(model.init_from).is_dir():
            found += start_problems(config, f"{where}.model")
    elif KINDS[config.architecture] != config.kind or (
        config.objective == "masked_lm_nsp" and config.architecture != "bert"
    ):
        fitting = ", ".join(name for name, kind in KINDS.items() if kind == config.kind)
        fitting = "bert" if config.objective == "masked_lm_nsp" else fitting
        found.append(
            f"{where}.model.architecture={config.architecture} does not fit {where}.objective={config.objective}: "
            f"it takes {fitting}"
        )
    elif model.dropout > 0 and config.architecture in WITHOUT_DROPOUT:
        found.append(
            f"{where}.model.dropout={model.dropout}: {config.architecture} drops no hidden states; set it to 0, or "
            "take gpt2"
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
