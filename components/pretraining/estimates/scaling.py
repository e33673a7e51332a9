"""What a training will take: batches, FLOPs, hours, memory, checkpoints and network, by formula and without torch.

    tokens a parameter   Hoffmann et al. 2022 (arXiv:2203.15556), table 3: about 20 for the least loss at given FLOPs
    FLOPs                6 Psi D and attention (Kaplan et al. 2020, arXiv:2001.08361, section 2.1; flops.py)
    hours                FLOPs / (workers * peak * MFU); MFU as in Chowdhery et al. 2022 (arXiv:2204.02311, appendix B)
    memory               Rajbhandari et al. 2020 (memory.py), Korthikanti et al. 2022 (activations.py)
    network              Rajbhandari et al. 2020, section 7: 2 Psi elements a rank for stage 0 to 2, 3 Psi for stage 3,
                         times (N-1)/N, what a ring sends (Patarasuk and Yuan 2009)
    checkpoint           fp32 weights and Adam's moments, beside the weights of the training: 14 Psi bytes in bf16,
                         12 under stage 3

Hours at a stated MFU include communication, as MFUs that people publish do; where the network alone would take longer
than that, the hours are those of the network. Padding, validation and checkpoints are not counted. On this project's
machine of two cores the same arithmetic, with a time for each layer, predicts other trainings from 20 steps within
8 % (`step_seconds`, `python -m tests.benchmarks.prediction`).

Shapes: Psi parameters, N workers, L tokens of a sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

from components.pretraining.config import PretrainConfig, micro_batch_size, network_vocab_size
from components.pretraining.estimates.activations import (
    ActivationBytes,
    activation_bytes,
    decoder_length,
    targets_per_token,
)
from components.pretraining.estimates.memory import ELEMENT_BYTES, StateBytes, state_bytes
from components.pretraining.networks.sizes import feed_forward_size, network_sizes, num_parameters
from infra.energy.flops import HEAD_TYPES, UNGATED_TYPES, NetworkShape

TFLOPS = 1e12


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """One training on one cluster, in numbers."""

    num_parameters: int
    num_workers: int
    zero_stage: int
    micro_batch_size_per_rank: int
    gradient_accumulation_steps: int
    global_batch_size: int
    global_batch_tokens: int
    steps: int
    num_tokens: int
    """All that pass, repeated ones too."""
    flops: float
    states: StateBytes
    activations: ActivationBytes
    network_bytes_per_step: float
    """What a rank sends."""
    checkpoint_bytes: float
    export_bytes: float
    compute_seconds_per_step: float | None
    network_seconds_per_step: float | None

    @property
    def tokens_per_parameter(self) -> float:
        """Hoffmann et al.: 20."""
        return self.num_tokens / self.num_parameters

    @property
    def memory_bytes_per_rank(self) -> float:
        """The most at once, without what a process takes before it has a model."""
        return self.states.peak(self.activations.peak)

    @property
    def hours(self) -> float | None:
        """Of all steps; None where the cluster's peak is not told."""
        if self.compute_seconds_per_step is None:
            return None
        return self.steps * max(self.compute_seconds_per_step, self.network_seconds_per_step or 0.0) / 3600


def scale(config: PretrainConfig, vocab_size: int, stage: int) -> Scale:
    """The numbers of a training.

    Args:
        config: of the training and its cluster.
        vocab_size: tokens of the tokenizer.
        stage: of ZeRO, chosen.
    """
    cluster, ranks = config.cluster, config.cluster.max_workers
    micro = micro_batch_size(config, ranks)
    tokens = config.global_batch_size * config.sequence_length
    flops = step_flops(config, vocab_size)
    sent = network_bytes(config, vocab_size, stage, ranks)
    peak, network = cluster.peak_tflops_per_worker, cluster.network_gbit_per_second
    psi = num_parameters(config, vocab_size)
    return Scale(
        num_parameters=psi,
        num_workers=ranks,
        zero_stage=stage,
        micro_batch_size_per_rank=micro,
        gradient_accumulation_steps=config.global_batch_size // ranks // micro,
        global_batch_size=config.global_batch_size,
        global_batch_tokens=tokens,
        steps=config.steps,
        num_tokens=tokens * config.steps,
        flops=flops * config.steps,
        states=state_bytes(config, vocab_size, stage, ranks),
        activations=activation_bytes(config, vocab_size, ranks),
        network_bytes_per_step=sent,
        checkpoint_bytes=checkpoint_bytes(config, vocab_size, stage, ranks),
        export_bytes=4.0 * psi,
        compute_seconds_per_step=(
            step_seconds(config, vocab_size, ranks, peak * TFLOPS * cluster.expected_mfu) if peak else None
        ),
        network_seconds_per_step=8 * sent / (network * 1e9) if network else None,
    )


def step_flops(config: PretrainConfig, vocab_size: int) -> float:
    """FLOPs of one optimizer step over all workers; what activation checkpointing computes again is not counted, as in
    every MFU."""
    model = network_sizes(config, vocab_size)
    d, rows = model.hidden_size, network_vocab_size(config, vocab_size)
    length, decoded = config.sequence_length, decoder_length(config)
    shape = NetworkShape(
        hidden_size=d,
        num_layers=model.num_layers,
        num_decoder_layers=model.num_layers if decoded else 0,
        attention_size=d,
        key_value_size=d,
        intermediate_size=model.intermediate_size or feed_forward_size(config.architecture, d),
        num_feed_forward_matrices=2 if config.architecture in UNGATED_TYPES else 3,
        num_head_parameters=d * (rows + (d if config.architecture in HEAD_TYPES else 0)),
    )
    return shape.flops(
        num_tokens=config.global_batch_size * length,
        span=length / (2 if config.kind == "decoder" else 1),
        num_head_tokens=config.global_batch_size * length * targets_per_token(config),
        num_decoder_tokens=config.global_batch_size * decoded,
        decoder_span=decoded / 2,
    )


def network_bytes(config: PretrainConfig, vocab_size: int, stage: int, num_ranks: int) -> float:
    """What a rank sends in one optimizer step, bytes (Rajbhandari et al. 2020, section 7).

    Stage 0 and 1 reduce gradients once a step. DeepSpeed reduces them after each micro batch in stage 2, whose
    gradients have no other place, and in stage 3, which also gathers weights for each forward and backward pass; so
    gradient accumulation saves them nothing.

    Args:
        config: of the training.
        vocab_size: tokens of the tokenizer.
        stage: of ZeRO.
        num_ranks: N.
    """
    psi = num_parameters(config, vocab_size)
    accumulated = config.global_batch_size // num_ranks // micro_batch_size(config, num_ranks)
    passes = {0: 2, 1: 2, 2: accumulated + 1, 3: 3 * accumulated}[stage]
    return passes * psi * ELEMENT_BYTES[config.precision] * (num_ranks - 1) / num_ranks


def checkpoint_bytes(config: PretrainConfig, vocab_size: int, stage: int, num_ranks: int) -> float:
    """A DeepSpeed checkpoint, the files of all ranks: optimizer states once, and the weights of the training once,
    which stage 3 leaves to the fp32 ones (measured to 0.1 %, `python -m tests.benchmarks.memory`).

    Args:
        config: of the training.
        vocab_size: tokens of the tokenizer.
        stage: of ZeRO.
        num_ranks: N.
    """
    psi, size = num_parameters(config, vocab_size), ELEMENT_BYTES[config.precision]
    optimizer = 8 + (4 if size < 4 or stage else 0)
    return psi * (optimizer + (size if stage < 3 else 0))


def step_seconds(
    config: PretrainConfig,
    vocab_size: int,
    num_ranks: int,
    flops_per_second: float,
    *,
    layer_seconds: float = 0.0,
    layer_token_seconds: float = 0.0,
) -> float:
    """Seconds of one optimizer step without communication.

    Args:
        config: of the training.
        vocab_size: tokens of the tokenizer.
        num_ranks: N.
        flops_per_second: of a worker, its peak times its MFU.
        layer_seconds: what a layer costs each micro batch whatever its size: kernels that start, hooks.
        layer_token_seconds: what a layer costs each token whatever its width. A large model on a GPU hides both; a
            core that trains 4 layers of width 256 spends half of its time in them (tests/benchmarks/LOG.md).
            Embeddings and head count as one more layer.
    """
    layers = network_sizes(config, vocab_size).num_layers * (2 if config.kind == "encoder_decoder" else 1) + 1
    sequences = config.global_batch_size // num_ranks
    micro_batches, tokens = sequences // micro_batch_size(config, num_ranks), sequences * config.sequence_length
    compute = step_flops(config, vocab_size) / (num_ranks * flops_per_second)
    return compute + layers * (micro_batches * layer_seconds + tokens * layer_token_seconds)
