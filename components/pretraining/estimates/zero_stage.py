"""`zero_stage=auto`: the smallest ZeRO stage whose model states and activations fit the memory of a worker, and why.

A higher stage divides more and sends more (stage 3 half as much again, and after every micro batch), so the smallest
that fits is the fastest. What is compared is the most that is held at once: at the end of the backward pass, in the
update or, on a CPU, at the end, when each rank gathers the fp32 weights beside its states.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.pretraining.config import KINDS, ModelConfig, PretrainConfig
from components.pretraining.estimates.activations import activation_bytes
from components.pretraining.estimates.memory import GIB, PROCESS_BYTES, state_bytes
from components.pretraining.networks.sizes import num_parameters
from infra.errors import ConfigError

STAGES = (0, 1, 2, 3)
MARGIN = 0.05
"""Part of the memory that is left for what no formula counts: allocators' gaps, batches, buffers."""
NAMES = {
    "hidden_size": ("hidden_size", "d_model", "n_embd"),
    "num_layers": ("num_hidden_layers", "num_layers", "n_layer", "encoder_layers"),
    "num_heads": ("num_attention_heads", "num_heads", "n_head", "encoder_attention_heads"),
    "intermediate_size": ("intermediate_size", "d_ff", "n_inner", "encoder_ffn_dim"),
    "max_position_embeddings": ("max_position_embeddings", "n_positions"),
}
"""What the sizes are called in the config.json of the networks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageChoice:
    """A ZeRO stage and why."""

    stage: int
    needed_bytes: float
    available_bytes: float
    reason: str
    """One line."""


def needed_bytes(config: PretrainConfig, vocab_size: int, stage: int, num_ranks: int) -> float:
    """The most memory that a worker needs at once, bytes: of its GPU where it has one.

    Args:
        config: of the training.
        vocab_size: tokens of the tokenizer.
        stage: of ZeRO.
        num_ranks: N.
    """
    states = state_bytes(config, vocab_size, stage, num_ranks)
    peak = states.peak(activation_bytes(config, vocab_size, num_ranks).peak)
    if not config.cluster.num_gpus_per_worker:  # `TrainingEngine.full_state`
        peak = max(peak, states.weights + states.optimizer + states.buffers + 4 * num_parameters(config, vocab_size))
    return peak + PROCESS_BYTES


def possible_stages(config: PretrainConfig) -> tuple[int, ...]:
    """The stages that the settings leave, as `fit.py` has it: offloaded weights need 3, an offloaded optimizer and fp16
    1 or more, optimizers of whole matrices 0."""
    least = 3 if config.offload_parameters else 1 if config.offload_optimizer or config.precision == "fp16" else 0
    most = STAGES[-1] if config.optimizer == "adamw" else 0
    return tuple(stage for stage in STAGES if least <= stage <= most)


def choose_stage(config: PretrainConfig, vocab_size: int, memory_bytes: float, where: str) -> StageChoice:
    """The smallest stage that fits.

    Args:
        config: of the training; its `zero_stage` is not looked at.
        vocab_size: tokens of the tokenizer.
        memory_bytes: of a worker.
        where: the config key of `config`, for messages.

    Raises:
        ConfigError: none fits: says by how much, and what helps.
    """
    ranks, usable = config.cluster.min_workers, memory_bytes * (1 - MARGIN)
    needs = {stage: needed_bytes(config, vocab_size, stage, ranks) for stage in possible_stages(config)}
    for stage, needed in needs.items():
        if needed <= usable:
            smaller = [f"stage {one} would need {bytes_told(needs[one])}" for one in needs if one < stage]
            reason = (
                f"zero_stage=auto: {stage}, the smallest that fits: {bytes_told(needed)} of the "
                f"{bytes_told(memory_bytes)} of a worker" + (f"; {', '.join(smaller)}" if smaller else "")
            )
            return StageChoice(stage=stage, needed_bytes=needed, available_bytes=memory_bytes, reason=reason)
    best = min(needs, key=lambda stage: needs[stage])
    missing = needs[best] - usable
    raise ConfigError(
        f"{where}.zero_stage=auto: no stage fits the {bytes_told(memory_bytes)} of a worker "
        f"({MARGIN:.0%} of it left free): stage {best} needs the least, {bytes_told(needs[best])}, "
        f"which is {missing:,.0f} bytes ({bytes_told(missing)}) too much: {', or '.join(_remedies(config, where))}"
    )


def _remedies(config: PretrainConfig, where: str) -> list[str]:
    """What would need less memory, and is not set yet."""
    found = ["raise cluster.num_workers"]
    if config.cluster.num_gpus_per_worker and not config.offload_optimizer:
        found.append(f"set {where}.offload_optimizer=true")
    if config.cluster.num_gpus_per_worker and not config.offload_parameters:
        found.append(f"set {where}.offload_parameters=true")
    if not config.activation_checkpointing:
        found.append(f"set {where}.activation_checkpointing=true")
    if config.micro_batch_size_per_rank > 1:
        found.append(f"lower {where}.micro_batch_size_per_rank={config.micro_batch_size_per_rank}")
    return [*found, "make the model smaller"]


def with_sizes_of(config: PretrainConfig, folder: Path) -> tuple[PretrainConfig, int]:
    """The config with the sizes of a Hugging Face model in place of its own, and that model's vocabulary.

    Raises:
        ConfigError: the folder has no config.json that tells them.
    """
    try:
        told: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = told["model_type"]
        sizes = {
            field: next((told[name] for name in names if told.get(name) is not None), None)
            for field, names in NAMES.items()
        }
        known = {name: value for name, value in sizes.items() if value is not None}
        if kind not in KINDS:
            raise ConfigError(f"model.init_from={folder}: zero_stage=auto knows no {kind}: set zero_stage")
        model = ModelConfig.model_validate({"architecture": kind, "vocab_multiple": 1, **known})
        return config.model_copy(update={"model": model}), int(told["vocab_size"])
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"model.init_from={folder}: not a Hugging Face model folder: {' '.join(str(error).split())}"
        ) from error


def bytes_told(value: float) -> str:
    """For people: 1.5 GiB, 20 MiB."""
    return f"{value / GIB:,.1f} GiB" if value >= GIB else f"{value / (1 << 20):,.0f} MiB"
