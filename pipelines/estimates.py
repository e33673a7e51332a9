"""What each training of a plan will take: the numbers of `pretraining/estimates/` for its config and cluster.

Vocabularies are those that the config asks for: a tokenizer never has more tokens. `tune_decoder` has the sizes of
`pretrain_clm`. Sizes of a model to start from are read from its folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from components.pretraining.config import PretrainConfig
from components.pretraining.estimates.scaling import Scale, network_bytes, scale
from components.pretraining.estimates.zero_stage import (
    MARGIN,
    STAGES,
    StageChoice,
    bytes_told,
    choose_stage,
    needed_bytes,
    possible_stages,
    with_sizes_of,
)
from components.tokenization.existing import planned_vocab_size
from infra.cluster.memory import worker_memory_bytes
from infra.errors import ConfigError
from infra.journal.plan import PlannedStep
from infra.journal.step import Step

SOURCES = (
    "Tokens a parameter: about 20 is best for the FLOPs (Hoffmann et al. 2022). FLOPs: 6 N D and attention (Kaplan et "
    "al. 2020). Hours: FLOPs / (workers x peak x MFU) (Chowdhery et al. 2022), or those of the network where that is "
    "slower. Memory: model states (Rajbhandari et al. 2020, section 5, as DeepSpeed 0.19.8 holds them) and activations "
    "(Korthikanti et al. 2022, section 4). Network: 2 Psi elements a rank and step for stages 0 to 2, 3 Psi for stage "
    "3 (Rajbhandari et al. 2020, section 7), times (N-1)/N of a ring; stages 2 and 3 send after every micro batch."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What a training will take."""

    step: str
    scale: Scale
    needed_bytes_by_stage: Mapping[int, float]
    """Of a worker, at once, with the fewest workers: each holds most then."""
    network_bytes_by_stage: Mapping[int, float]
    """What a worker sends in a step."""
    worker_memory_bytes: float | None
    """None where only the workers can tell."""
    choice: StageChoice | None
    """With zero_stage=auto, where the memory is known."""
    is_stage_open: bool
    """zero_stage=auto, and the memory is not known: the numbers are those of the highest stage."""

    @property
    def fits(self) -> bool | None:
        """Whether a worker has the memory; None where nobody knows."""
        if self.worker_memory_bytes is None:
            return None
        needed = self.needed_bytes_by_stage[self.scale.zero_stage]
        return needed <= self.worker_memory_bytes * (1 - MARGIN)

    def to_json(self) -> dict[str, Any]:
        """For `plan --json`; bytes, seconds, hours."""
        return {
            **asdict(self.scale),
            "tokens_per_parameter": self.scale.tokens_per_parameter,
            "memory_bytes_per_rank": self.needed_bytes_by_stage[self.scale.zero_stage],
            "memory_bytes_per_rank_by_stage": dict(self.needed_bytes_by_stage),
            "network_bytes_per_step_by_stage": dict(self.network_bytes_by_stage),
            "worker_memory_bytes": self.worker_memory_bytes,
            "fits": self.fits,
            "hours": self.scale.hours,
            "zero_stage": None if self.is_stage_open else self.scale.zero_stage,
            "zero_stage_reason": self.choice.reason if self.choice else None,
        }


def estimates(plan: Sequence[PlannedStep]) -> list[Estimate]:
    """The estimate of each training that is not reused and whose sizes are known.

    Raises:
        ConfigError: trainings with zero_stage=auto that no stage fits, all of them.
    """
    steps = {planned.step.name: planned.step for planned in plan}
    found: list[Estimate] = []
    problems: list[str] = []
    for planned in plan:
        if isinstance(planned.step.config, PretrainConfig) and planned.status != "reused":
            try:
                found.append(_estimate(planned.step, steps))
            except ConfigError as error:
                if planned.step.config.zero_stage == "auto":  # else it is a model to start from of unknown sizes
                    problems.extend(error.problems)
    if problems:
        raise ConfigError(*problems)
    return found


def _estimate(step: Step, steps: Mapping[str, Step]) -> Estimate:
    config, vocab_size = _sized(step, steps)
    ranks, memory = config.cluster.max_workers, worker_memory_bytes(config.cluster)
    choice = None
    if config.zero_stage == "auto" and memory is not None:
        choice = choose_stage(config, vocab_size, memory, step.name)
    is_open = config.zero_stage == "auto" and choice is None
    stage = (
        choice.stage if choice else possible_stages(config)[-1] if config.zero_stage == "auto" else config.zero_stage
    )
    return Estimate(
        step=step.name,
        scale=scale(config, vocab_size, stage),
        needed_bytes_by_stage={
            one: needed_bytes(config, vocab_size, one, config.cluster.min_workers) for one in STAGES
        },
        network_bytes_by_stage={one: network_bytes(config, vocab_size, one, ranks) for one in STAGES},
        worker_memory_bytes=memory,
        choice=choice,
        is_stage_open=is_open,
    )


def _sized(step: Step, steps: Mapping[str, Step]) -> tuple[PretrainConfig, int]:
    """The training's config with the sizes of what it really trains, and its vocabulary."""
    config: PretrainConfig = step.config  # type: ignore[assignment]
    tokenizer: Any = steps["tokenizer"].config
    if config.model.init_from:
        return with_sizes_of(config, Path(config.model.init_from))
    if "init" in step.inputs:
        inner, vocab_size = _sized(step.inputs["init"], steps)
        model = inner.model.model_copy(update={"dropout": config.model.dropout})
        return config.model_copy(update={"model": model}), vocab_size
    return config, planned_vocab_size(tokenizer) or tokenizer.vocab_size


def rows(found: Sequence[Estimate]) -> Iterator[tuple[str, list[str]]]:
    """The table: a name, and its value for each training."""
    scales = [one.scale for one in found]
    yield "parameters", [_count(one.num_parameters) for one in scales]
    yield "workers", [str(one.num_workers) for one in scales]
    yield "steps", [f"{one.steps:,}" for one in scales]
    yield "global batch", [f"{s.global_batch_size:,} seq, {_count(s.global_batch_tokens)} tokens" for s in scales]
    yield (
        "micro batch x accumulation",
        [f"{one.micro_batch_size_per_rank} x {one.gradient_accumulation_steps}" for one in scales],
    )
    yield "tokens", [f"{_count(s.num_tokens)}, {s.tokens_per_parameter:.1f} a parameter" for s in scales]
    yield "FLOPs", [f"{one.flops:.2e}" for one in scales]
    yield "hours", ["cluster.peak_tflops_per_worker?" if s.hours is None else _hours(s) for s in scales]
    yield "ZeRO stage", [_stage(one) for one in found]
    yield (
        "memory a worker",
        [f"{bytes_told(one.needed_bytes_by_stage[one.scale.zero_stage])} of {_memory(one)}" for one in found],
    )
    yield "  model states", [bytes_told(one.states.total) for one in scales]
    yield "  activations", [bytes_told(one.activations.peak) for one in scales]
    yield "  in all, by stage 0/1/2/3", [_by_stage(one.needed_bytes_by_stage) for one in found]
    yield "network a step and worker", [bytes_told(one.network_bytes_per_step) for one in scales]
    yield "  by stage 0/1/2/3", [_by_stage(one.network_bytes_by_stage) for one in found]
    yield "a checkpoint", [bytes_told(one.checkpoint_bytes) for one in scales]
    yield "the exported model", [bytes_told(one.export_bytes) for one in scales]


def _stage(one: Estimate) -> str:
    if one.is_stage_open:
        return "auto: when the workers are known"
    return f"{one.scale.zero_stage} (auto)" if one.choice else str(one.scale.zero_stage)


def _memory(one: Estimate) -> str:
    if one.worker_memory_bytes is None:
        return "?"
    return bytes_told(one.worker_memory_bytes) + ("" if one.fits else ": TOO LITTLE")


def _by_stage(values: Mapping[int, float]) -> str:
    """Bytes in one unit."""
    unit, name = (1 << 30, "GiB") if max(values.values()) >= 1 << 30 else (1 << 20, "MiB")
    return " / ".join(f"{value / unit:,.1f}" for value in values.values()) + f" {name}"


def _hours(one: Scale) -> str:
    hours = one.hours or 0.0
    bound = (one.network_seconds_per_step or 0.0) > (one.compute_seconds_per_step or 0.0)
    told = f"{hours:,.1f}" if hours >= 0.1 else f"{3600 * hours:,.0f} s"
    return told + (", bound by the network" if bound else "")


def _count(value: float) -> str:
    """12.3M"""
    for size, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{name}"
    return f"{value:.0f}"
