"""What DeepSpeed is told: what follows from our settings, and the user's `ds_config` merged into it.

`ds_config` may set what our settings leave open (bucket sizes, prefetching, a communication type) and may repeat what
they say, also as "auto"; it may not contradict them. That, and keys that DeepSpeed 0.19.8 does not know, is told by the
planner, so nothing here needs torch; a test compares the keys with those that DeepSpeed asks for.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from typing import Any

from components.pretraining.config import PretrainConfig, micro_batch_size
from components.pretraining.engine.hardware import hardware


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


AUTO = "auto"
"""A value that leaves a key to us, as in the configs of Hugging Face's Trainer."""
OFFLOADED = ("offload_optimizer", "offload_param")
DEEPSPEED_BUCKET = 500_000_000
"""DeepSpeed's default size of a bucket, elements; it is held as a buffer."""

OWNED: Mapping[str, str] = {
    "train_batch_size": "global_batch_size",
    "train_micro_batch_size_per_gpu": "micro_batch_size_per_rank",
    "gradient_accumulation_steps": "micro_batch_size_per_rank (with global_batch_size and cluster.num_workers)",
    "gradient_clipping": "gradient_clipping",
    "zero_optimization.stage": "zero_stage",
    "zero_optimization.offload_optimizer.device": "offload_optimizer",
    "zero_optimization.offload_param.device": "offload_parameters",
    "bf16.enabled": "precision",
    "fp16.enabled": "precision",
}
"""Our field behind each of DeepSpeed's keys; what the key must be follows from it."""
REPLACED: Mapping[str, str] = {
    "optimizer": "optimizer, learning_rate, weight_decay, betas, epsilon",
    "scheduler": "schedule, warmup_fraction, min_learning_rate_fraction",
    "bfloat16": "precision",
    "torch_autocast": "precision",
    "data_types.param_dtype": "precision",
    "activation_checkpointing": "activation_checkpointing",
    "zero_optimization.cpu_offload": "offload_optimizer",
    "zero_optimization.cpu_offload_param": "offload_parameters",
    "zero_optimization.cpu_offload_use_pin_memory": "offload_optimizer",
}
"""Keys that have no place here, and our fields in their stead."""
REFUSED: Mapping[str, str] = {
    "managed_gradient_accumulation": "the micro batches of a step are counted here",
    "gradient_allreduce_op": "the loss is normalised by the targets of the global batch, for a mean over ranks",
    "use_data_before_expert_parallelism": "ranks are data-parallel alone",
    "expert_parallel": "ranks are data-parallel alone",
    "tensor_parallel": "ranks are data-parallel alone",
    "sequence_parallel_size": "ranks are data-parallel alone",
    "pipeline": "ranks are data-parallel alone",
    "data_efficiency": "what a step trains on is a function of seed and step",
    "dataloader_drop_last": "batches are made here",
    "hybrid_engine": "it is for generation between training steps",
    "weight_quantization": "it is for inference",
    "autotuning": "it starts trainings of its own",
    "zero_force_ds_cpu_optimizer": "the optimizer is torch's, also for offloaded state",
    "zero_allow_untested_optimizer": "which optimizer is right at which stage is known (optimizers.py)",
    "compile": "nothing is compiled (engine.py)",
    "zero_optimization.zenflow": "it updates weights with old gradients, so nothing could be resumed exactly",
    "zero_optimization.elastic_checkpoint": "checkpoints are read by reshard.py",
    "zero_optimization.round_robin_gradients": "reshard.py reads weights in their own order",
    "zero_optimization.parameter_alignment": "reshard.py reads weights without gaps",
    "zero_optimization.compute_grad_norm": "gradients are clipped and judged by their norm",
    "bf16.bf16_master_weights_and_grads": "weights are exported, and checkpoints read, from fp32 masters",
    "bf16.bf16_optimizer_states": "checkpoints are read from fp32 moments",
    "fp16.fp16_master_weights_and_grads": "weights are exported, and checkpoints read, from fp32 masters",
    "data_types.grad_accum_dtype": "stage 0 does not have it, and stage 1 keeps its state elsewhere for it",
    "checkpoint": "checkpoints are written by checkpoint.py",
}
"""Keys that would break what the rest of the engine relies on, and why."""
TOP_LEVEL = _words(
    "aio bf16 comms_logger communication_data_type csv_monitor comet data_types datastates_ckpt "
    "disable_allgather disable_python_gc dump_state flops_profiler fp16 gradient_accumulation_steps "
    "gradient_clipping gradient_predivide_factor log_level memory_breakdown prescale_gradients "
    "seq_parallel_communication_data_type steps_per_print tensorboard timers train_batch_size "
    "train_micro_batch_size_per_gpu vocabulary_size wall_clock_breakdown wandb zero_optimization"
)
SECTIONS: Mapping[str, frozenset[str]] = {
    "zero_optimization": _words(
        "stage contiguous_gradients reduce_scatter reduce_bucket_size use_multi_rank_bucket_allreduce "
        "allgather_partitions allgather_bucket_size overlap_comm load_from_fp32_weights "
        "offload_param offload_optimizer sub_group_size stage3_prefetch_bucket_size prefetch_bucket_size "
        "stage3_param_persistence_threshold param_persistence_threshold stage3_model_persistence_threshold "
        "model_persistence_threshold stage3_max_live_parameters max_live_parameters stage3_max_reuse_distance "
        "max_reuse_distance stage3_gather_16bit_weights_on_model_save gather_16bit_weights_on_model_save "
        "stage3_module_granularity_threshold module_granularity_threshold stage3_use_all_reduce_for_fetch_params "
        "use_all_reduce_for_fetch_params stage3_allgather_sequential allgather_sequential "
        "stage3_gather_fp16_weights_on_model_save ignore_unused_parameters legacy_stage1 zero_hpz_partition_size "
        "zero_quantized_weights zero_quantized_nontrainable_weights zero_quantized_gradients "
        "memory_efficient_linear pipeline_loading_checkpoint override_module_apply log_trace_cache_warnings "
        "enable_sanity_checks save_muon_momentum_buffer_in_memory leaf_module"
    ),
    "bf16": _words("enabled immediate_grad_update check_grad_overflow"),
    "fp16": _words(
        "enabled auto_cast loss_scale initial_scale_power loss_scale_window hysteresis consecutive_hysteresis "
        "min_loss_scale"
    ),
    "data_types": frozenset(("buffer_dtype", "keep_in_fp32_modules")),
}
"""What is known of DeepSpeed's keys, without those that are ours or refused."""
MAPPINGS: Mapping[str, str] = {
    "zero_optimization": "{reduce_bucket_size: 1000000}",
    "zero_optimization.offload_optimizer": "{device: cpu}",
    "zero_optimization.offload_param": "{device: cpu}",
    "bf16": "{enabled: true}",
    "fp16": "{enabled: true}",
    "data_types": "{buffer_dtype: fp32}",
}
"""Keys that hold others, and an example."""
SIZES: Mapping[str, int] = {"zero_optimization.reduce_bucket_size": 1} | {
    f"zero_optimization.{name}": 0
    for name in SECTIONS["zero_optimization"]
    if name != "reduce_bucket_size"
    and name.endswith(("_size", "_threshold", "_parameters", "_distance"))
    and not name.startswith("ignore")
}
"""Keys whose value is a number, and the least: the memory plan reckons with some of them."""
NULLABLE = ("steps_per_print",)


def deepspeed_config(config: PretrainConfig, world_size: int, num_parameters: int) -> dict[str, Any]:
    """All that DeepSpeed is told; batch sizes are such that the global batch is the same at any world size.

    Args:
        config: of the training.
        world_size: ranks.
        num_parameters: for the sizes of buckets.
    """
    return _merged(_ours(config, world_size, num_parameters), config.ds_config)


def _ours(config: PretrainConfig, world_size: int, num_parameters: int) -> dict[str, Any]:
    micro, here = micro_batch_size(config, world_size), hardware(config.cluster)
    bucket = min(DEEPSPEED_BUCKET, max(num_parameters, 1_000_000))
    zero: dict[str, Any] = {
        "overlap_comm": here.overlap_comm,
        "contiguous_gradients": True,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
    }
    if config.zero_stage != "auto":
        zero["stage"] = config.zero_stage
    for name, offloaded in zip(OFFLOADED, (config.offload_optimizer, config.offload_parameters), strict=True):
        if offloaded:
            zero[name] = {"device": "cpu", "pin_memory": here.pin_memory}
    told: dict[str, Any] = {
        "train_batch_size": config.global_batch_size,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": config.global_batch_size // world_size // micro,
        "gradient_clipping": config.gradient_clipping or 0.0,  # without the key DeepSpeed clips at 1
        "zero_optimization": zero,
        # torch's fused AdamW runs on a CPU too; DeepSpeed's own would have to be compiled (engine.py).
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
        "wall_clock_breakdown": False,
    }
    if config.precision != "fp32":
        told[config.precision] = {"enabled": True}
    return told


def _merged(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(ours)
    for key, value in theirs.items():
        if isinstance(value, Mapping):
            inner = _merged(found[key] if isinstance(found.get(key), Mapping) else {}, value)
            if inner or not value:
                found[key] = inner
        elif value != AUTO:
            found[key] = value
    return found


def ds_config_problems(config: PretrainConfig, where: str = "pretrain") -> Iterator[str]:
    """What is wrong with `ds_config`, a line each: contradictions, keys out of place, unknown keys.

    Args:
        config: with a global batch that fits its workers.
        where: the config key of `config`.
    """
    workers = range(config.cluster.min_workers, config.cluster.max_workers + 1)
    ours = {size: dict(_leaves(_ours(config, size, 0))) for size in workers}
    for key, value in _leaves(config.ds_config):
        name = f"{where}.ds_config.{key}"
        if value == AUTO:
            continue
        owned, replaced, refused, sized = (
            next((part for part in _parts(key) if part in names), None) for names in (OWNED, REPLACED, REFUSED, SIZES)
        )
        if key in MAPPINGS:
            if not isinstance(value, Mapping):
                yield f"{name}={value!r} must be a mapping, such as {MAPPINGS[key]}"
        elif owned is not None:
            expected = {size: ours[size].get(owned, _absent(owned)) for size in workers}
            given = value if key == owned else {key.removeprefix(f"{owned}."): value}
            yield from _conflict(f"{where}.ds_config.{owned}", given, expected, f"{where}.{OWNED[owned]}")
        elif replaced is not None:
            yield f"{name}={value!r} has no effect here: set {where}.{REPLACED[replaced]} instead"
        elif refused is not None:
            yield f"{name}={value!r} is not possible: {REFUSED[refused]}; leave it out"
        elif sized is not None and not (key == sized and is_size(value, SIZES[sized])):
            yield f"{name}={value!r} must be a number of at least {SIZES[sized]}"
        elif value is None and key not in NULLABLE:
            yield f"{name}=None is no value for DeepSpeed: leave it out"
        else:
            yield from _unknown(name, key)


def is_size(value: Any, least: int) -> bool:
    """Whether it is a number that can be a size."""
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value < math.inf


def _conflict(name: str, value: Any, ours: Mapping[int, Any], field: str) -> Iterator[str]:
    """A line if the value is not ours, at any number of workers."""
    wrong = [size for size in ours if value != ours[size] or isinstance(value, bool) != isinstance(ours[size], bool)]
    if wrong:
        at = f" with num_workers={wrong[0]}" if len(ours) > 1 else ""
        yield (
            f"{name}={value!r} contradicts {ours[wrong[0]]!r}{at}, which follows from the other settings: "
            f"set {field} instead"
        )


def _absent(key: str) -> Any:
    """What DeepSpeed takes where we say nothing."""
    return AUTO if key == "zero_optimization.stage" else "none" if key.endswith(".device") else False


def _unknown(name: str, key: str) -> Iterator[str]:
    top, _, rest = key.partition(".")
    known, found = (SECTIONS[top], rest.partition(".")[0]) if rest and top in SECTIONS else (TOP_LEVEL, top)
    if found not in known:
        near = difflib.get_close_matches(found, known, n=1)
        hint = f"did you mean {near[0]}?" if near else "its documentation: deepspeed.ai/docs/config-json"
        yield f"{name}: DeepSpeed 0.19.8 has no key {found}; {hint}"


def _leaves(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Values by dotted key."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _parts(key: str) -> Iterator[str]:
    """`a`, `a.b`, `a.b.c` of `a.b.c`."""
    pieces = key.split(".")
    return (".".join(pieces[:length]) for length in range(1, len(pieces) + 1))
