"""Whether the values of a pretraining fit one another: objective and architecture, sizes, batches, precision.

Told without torch and all at once, before anything starts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from components.pretraining.config import KINDS, NUM_SENTINELS, PretrainConfig
from components.pretraining.engine.ds_config import ds_config_problems
from components.pretraining.engine.hardware import hardware
from components.pretraining.estimates.zero_stage import possible_stages
from components.pretraining.networks.init_from import start_problems

ROTARY = ("modernbert", "llama", "qwen3")
"""Architectures with rotary positions."""
WITHOUT_DROPOUT = ("llama", "qwen3")
"""Architectures that drop no hidden states."""
WITHOUT_DOCUMENTS = ("masked_lm", "causal_lm")
"""Objectives that make sense without documents: others pair, corrupt or answer each for itself."""
MAX_BATCH_GROWTH = 100
"""A global batch more times as large is no advice."""


def problems(config: PretrainConfig, where: str = "pretrain", cluster: str = "cluster") -> list[str]:
    """Everything wrong with a combination of values, one line each.

    Args:
        config: valid field by field.
        where: the config key of `config`, for the messages.
        cluster: the config key of its cluster.
    """
    found: list[str] = []
    model = config.model
    batch = _batch_problems(config, where, cluster)
    found += batch
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
        if model.target_parameters is not None:
            found.append(
                f"{where}.model.target_parameters={model.target_parameters:,} has no effect beside "
                f"{where}.model.init_from, whose sizes are taken: set it to null"
            )
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
    elif model.dropout > 0 and config.architecture in WITHOUT_DROPOUT and not config.is_tuning:
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
        if config.warmup_steps is None:
            given = f"{where}.warmup_fraction={config.warmup_fraction} makes {config.num_warmup_steps} steps, which"
        else:
            given = f"{where}.warmup_steps={config.warmup_steps}"
        found.append(f"{given} must be fewer than {where}.steps={config.steps}")
    if config.mask_token_fraction + config.random_token_fraction > 1:
        found.append(
            f"{where}.mask_token_fraction={config.mask_token_fraction} and {where}.random_token_fraction="
            f"{config.random_token_fraction} must not exceed 1 together"
        )
    if config.attention_scope == "sequence" and config.objective not in WITHOUT_DOCUMENTS:
        found.append(
            f"{where}.attention_scope=sequence does not go with {where}.objective={config.objective}, which is of "
            f"documents: set it to document, or take {' or '.join(WITHOUT_DOCUMENTS)}"
        )
    found += _noise_problems(config, where)
    if not all(0 <= beta < 1 for beta in config.betas):
        found.append(f"{where}.betas={list(config.betas)} must each be at least 0 and less than 1")
    found += _engine_problems(config, where, cluster)
    if not batch:
        found += ds_config_problems(config, where)
    return found


def _engine_problems(config: PretrainConfig, where: str, cluster: str) -> Iterator[str]:
    """Precision, optimizer and offloading against the ZeRO stage and the hardware."""
    stage, here = config.zero_stage, hardware(config.cluster)
    if config.precision == "fp16" and here.backend == "gloo":
        yield (
            f"{where}.precision=fp16 needs GPUs, and {cluster}.num_gpus_per_worker=0: "
            f"set {where}.precision to bf16 or fp32"
        )
    elif config.precision == "fp16" and stage == 0:
        yield (
            f"{where}.precision=fp16 does not go with {where}.zero_stage=0, where DeepSpeed 0.19.8 does not scale the "
            f"loss: set {where}.zero_stage to 1, 2, 3 or auto, or {where}.precision to bf16"
        )
    if stage == "auto" and not possible_stages(config):
        yield (
            f"{where}.optimizer={config.optimizer} goes with ZeRO stage 0 alone, and {where}.precision=fp16 and "
            f"{where}.offload_optimizer=true with higher ones: set {where}.optimizer=adamw, or leave those out"
        )
    if config.optimizer != "adamw" and stage not in (0, "auto"):
        yield (
            f"{where}.optimizer={config.optimizer} needs whole matrices, and {where}.zero_stage={stage} cuts them into "
            f"flat parts: set {where}.zero_stage=0, or {where}.optimizer=adamw, which is right at every stage"
        )
    for field, on, stages in (
        ("offload_optimizer", config.offload_optimizer, (1, 2, 3)),
        ("offload_parameters", config.offload_parameters, (3,)),
    ):
        if on and not here.offload:
            yield (
                f"{where}.{field}=true needs GPUs, and {cluster}.num_gpus_per_worker=0: on a CPU cluster everything is "
                f"in CPU memory already; set {where}.{field}=false"
            )
        elif on and stage not in (*stages, "auto"):
            yield (f"{where}.{field}=true needs {where}.zero_stage to be {' or '.join(map(str, stages))}, not {stage}")


def _noise_problems(config: PretrainConfig, where: str) -> list[str]:
    """What the objective cannot do to a text."""
    found: list[str] = []
    rate, mean, length = config.masking_rate, config.mean_span_length, config.sequence_length
    told = f"{where}.masking_rate={rate} and {where}.mean_span_length={mean}"
    with_spans = {
        "span_corruption": True,
        "denoising": "text_infilling" in config.noise,
        "masked_lm": config.masking_unit == "span",
        "masked_lm_nsp": config.masking_unit == "span",
    }.get(config.objective, False)
    if with_spans and mean >= length:
        found.append(f"{where}.mean_span_length={mean} must be less than {where}.sequence_length={length}")
    if config.objective == "span_corruption":
        if rate > mean / (1 + mean):
            found.append(
                f"{told} leave no token between two spans: set {where}.masking_rate to at most "
                f"{math.floor(1000 * mean / (1 + mean)) / 1000}, or longer spans"
            )
        if round(rate * length / mean) > NUM_SENTINELS:
            found.append(
                f"{told} make {round(rate * length / mean)} spans of a document of {where}.sequence_length={length} "
                f"tokens, and there are {NUM_SENTINELS} sentinels: set {where}.mean_span_length to at least "
                f"{math.ceil(10 * rate * length / NUM_SENTINELS) / 10}"
            )
    if config.objective == "denoising" and len(set(config.noise)) < len(config.noise):
        found.append(f"{where}.noise={list(config.noise)} names one twice")
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
    set_batch = [f"{where}.global_batch_size={up}"] if up <= MAX_BATCH_GROWTH * batch else []
    if not workers.is_elastic:
        fit = [*set_batch, f"{cluster}.num_workers to one of {', '.join(map(str, fits))}"]
        return [
            f"{where}.global_batch_size={batch} must be a multiple of {cluster}.num_workers={workers.max_workers}: "
            f"set {', or '.join(fit)}"
        ]
    fit = [*set_batch, f"{cluster}.num_workers to a range within {', '.join(map(str, fits))}"]
    return [
        f"{where}.global_batch_size={batch} must be a multiple of every number of workers in "
        f"{cluster}.num_workers={list(sizes[:1]) + list(sizes[-1:])}, and is not of {', '.join(map(str, wrong))}: "
        f"set {', or '.join(fit)}"
    ]
