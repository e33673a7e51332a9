"""Bytes that one rank holds of a model under ZeRO: as the paper says, and as DeepSpeed 0.19.8 does.

The paper (Rajbhandari et al. 2020, arXiv:1910.02054, sections 3.1 and 5, figure 1, table 1): mixed precision with Adam
holds 2 bytes of weights, 2 of gradients and K = 12 of optimizer state (fp32 weights, momentum, variance) for each
parameter, and stage 1, 2, 3 divide the optimizer state, then the gradients, then the weights by the number of ranks.

What the engine really holds between the backward pass and the update differs (`python -m tests.benchmarks.memory` walks
the live tensors; it agrees to 0.1 % for stage 0 to 3, 1, 2 and 4 ranks, bf16 and fp32, on a CPU). What is held for a
while during the backward pass and the update, and what is offloaded, follows from DeepSpeed's source, unmeasured:

- Stage 1 drops what belongs to other ranks as stage 2 does once gradients are reduced. They differ during the backward
  pass of more than one micro batch: stage 1 then holds all gradients.
- Gradients of stage 1 and 2 are kept by whole weights: one that lies across the border of two parts is kept by both.
  With an embedding of a fifth of all weights and 4 ranks that is 2 % of the whole.
- fp32 holds a second copy of the weights (as "masters") in stage 1, 2 and 3, not in stage 0.
- Stage 3 keeps a bucket of `reduce_bucket_size` elements for good, and on more than one rank it keeps weights of fewer
  than 10^5 elements whole: for layers below 316 wide that is all of attention. At 6M parameters on 4 ranks it
  therefore takes more than stage 1; it pays from where a bucket is small against the model.

DeepSpeed's own estimators (`estimate_zero2_model_states_mem_needs`, `estimate_zero3_model_states_mem_needs`) count 18
bytes in place of 16: fp32 gradients beside bf16 ones, which this version makes one part at a time, during the update.
They know neither stage 0 and 1, nor fp32, nor buckets, and offload takes 1.5 times the host memory by a factor of
theirs. What they say of offloaded device memory at stage 2 (2 bytes a parameter) is right. A test compares.

Not counted: activations (activations.py), and what a process takes before it has a model (`PROCESS_BYTES`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.pretraining.config import (
    Architecture,
    ModelConfig,
    PretrainConfig,
    micro_batch_size,
    network_vocab_size,
)
from components.pretraining.engine.ds_config import deepspeed_config
from components.pretraining.networks.sizes import (
    BART_POSITION_OFFSET,
    feed_forward_size,
    network_sizes,
    num_parameters,
    num_positions,
)

GIB = 1 << 30
ADAM_BYTES = 12
"""K of the paper: fp32 weights, momentum and variance."""
ELEMENT_BYTES: Mapping[str, int] = {"bf16": 2, "fp16": 2, "fp32": 4}
PERSISTENCE_THRESHOLD = 100_000
"""DeepSpeed's default: stage 3 keeps weights of fewer elements whole."""
MAX_LIVE_PARAMETERS = 1_000_000_000
"""DeepSpeed's default: elements of gathered weights that stage 3 holds at most."""
PROCESS_BYTES = GIB
"""Allowed for what a worker takes without a model. On a CPU that is 0.5 GiB resident after the imports (torch,
transformers, DeepSpeed, Ray); on a GPU, where it stands for the CUDA context and NCCL, it was not measured."""


def paper_bytes(num_parameters: int, stage: int, num_ranks: int, optimizer_bytes: int = ADAM_BYTES) -> float:
    """Model states of a rank by the paper's formulas (section 5): 16 Psi, 4 Psi + 12 Psi/N, 2 Psi + 14 Psi/N, 16 Psi/N.

    Args:
        num_parameters: Psi.
        stage: 0 (plain data parallel), 1 (P_os), 2 (P_os+g) or 3 (P_os+g+p).
        num_ranks: N, the degree of data parallelism.
        optimizer_bytes: K, for each parameter.
    """
    parts = ((optimizer_bytes, 1), (2, 2), (2, 3))  # optimizer state, gradients, weights: from which stage on divided
    return sum(num_parameters * size / (num_ranks if stage >= first else 1) for size, first in parts)


@dataclass(frozen=True, kw_only=True, slots=True)
class StateBytes:
    """Model states of the fullest rank, bytes."""

    weights: float
    gradients: float
    optimizer: float
    buffers: float
    """Buckets that stay."""
    during_backward: float
    """What the backward pass holds for a while beside the above: buckets, whole gradients, gathered weights."""
    during_update: float
    """The same of the update: gradients in fp32."""
    offloaded: float
    """In the memory of the host in place of the device's."""

    @property
    def total(self) -> float:
        """Held between the backward pass and the update: what the benchmark measures."""
        return self.weights + self.gradients + self.optimizer + self.buffers

    def peak(self, activations: float) -> float:
        """The most that is held at once beside `activations` bytes, which are gone at the update."""
        return self.total + max(activations + self.during_backward, self.during_update)


def state_bytes(config: PretrainConfig, vocab_size: int, stage: int, num_ranks: int) -> StateBytes:
    """Model states of the fullest rank with AdamW; other optimizers hold less.

    Args:
        config: of the training; its own `zero_stage` and number of workers do not count.
        vocab_size: tokens of the tokenizer.
        stage: of ZeRO.
        num_ranks: N.
    """
    psi = num_parameters(config, vocab_size)
    zero: Mapping[str, Any] = deepspeed_config(config, num_ranks, psi)["zero_optimization"]
    size = ELEMENT_BYTES[config.precision]
    is_low = size < 4
    bucket = zero["reduce_bucket_size"] * size * (2 if zero.get("overlap_comm") else 1)
    part = -(-psi // num_ranks)
    states = 8 + (4 if is_low or stage else 0)  # fp32 at stage 0 has no masters
    micro_batches = config.global_batch_size // num_ranks // micro_batch_size(config, num_ranks)
    if stage == 0:
        found = StateBytes(
            weights=size * psi,
            gradients=size * psi,
            optimizer=states * psi,
            buffers=0,
            during_backward=0,
            during_update=4 * psi if is_low else 0,
            offloaded=0,
        )
    elif stage < 3:
        found = StateBytes(
            weights=size * psi,
            gradients=size * _whole_weights(config, vocab_size, num_ranks),
            optimizer=states * part,
            buffers=0,
            during_backward=bucket + (size * psi if stage == 1 and micro_batches > 1 else 0),
            during_update=4 * part if is_low else 0,
            offloaded=0,
        )
    else:
        threshold = int(zero.get("stage3_param_persistence_threshold", PERSISTENCE_THRESHOLD))
        persistent = _small_weights(config, vocab_size, threshold) if num_ranks > 1 else 0
        live = int(zero.get("stage3_max_live_parameters", MAX_LIVE_PARAMETERS))
        found = StateBytes(
            weights=size * (part + persistent),
            gradients=size * part,
            optimizer=states * part,
            buffers=bucket,
            during_backward=size * min(psi - persistent, live) if num_ranks > 1 else 0,
            during_update=4 * part if is_low else 0,
            offloaded=0,
        )
    return _with_offload(found, config, stage)


def _with_offload(states: StateBytes, config: PretrainConfig, stage: int) -> StateBytes:
    """Moves offloaded state to the host: the optimizer's with the gradients that it reads, and stage 3's weights."""
    if not config.cluster.num_gpus_per_worker or not stage:
        return states
    optimizer = states.optimizer + states.gradients if config.offload_optimizer else 0.0
    weights = states.weights if config.offload_parameters and stage == 3 else 0.0
    return StateBytes(
        weights=states.weights - weights,
        gradients=0.0 if optimizer else states.gradients,
        optimizer=0.0 if optimizer else states.optimizer,
        buffers=states.buffers,
        during_backward=states.during_backward,
        during_update=0.0 if optimizer else states.during_update,
        offloaded=optimizer + weights + (states.during_update if optimizer else 0.0),
    )


def layer_matrices(architecture: Architecture, model: ModelConfig) -> Iterator[tuple[int, int]]:
    """(how many, elements) of the matrices of one layer in the network's order; of an encoder-decoder, of one layer of
    the encoder and then of the decoder."""
    d = model.hidden_size
    f = model.intermediate_size or feed_forward_size(architecture, d)
    if architecture in ("modernbert", "gpt2"):  # queries, keys and values in one matrix
        yield from ((1, 3 * d * d), (1, d * d))
        yield from ((1, 2 * d * f), (1, d * f)) if architecture == "modernbert" else ((2, d * f),)
        return
    matrices = 3 if architecture in ("llama", "qwen3", "t5") else 2
    yield from ((4, d * d), (matrices, d * f))
    if architecture in ("t5", "bart"):
        yield from ((8, d * d), (matrices, d * f))


def _matrices(config: PretrainConfig, vocab_size: int) -> list[int]:
    """Elements of every matrix in the network's order, by which DeepSpeed lays them flat; the rest are vectors."""
    model, architecture = network_sizes(config, vocab_size), config.architecture
    d, rows = model.hidden_size, num_positions(config)
    embeddings = [network_vocab_size(config, vocab_size) * d]
    if architecture in ("bert", "gpt2"):
        embeddings.append(rows * d)
    elif architecture == "bart":
        embeddings += 2 * [(rows + BART_POSITION_OFFSET) * d]
    layer = [elements for count, elements in layer_matrices(architecture, model) for _ in range(count)]
    head = [d * d] if architecture in ("bert", "modernbert") else []
    return embeddings + layer * model.num_layers + head


def _whole_weights(config: PretrainConfig, vocab_size: int, num_ranks: int) -> int:
    """Elements of the weights that lie in a rank's part, those across its borders whole; of the fullest rank."""
    matrices = _matrices(config, vocab_size)
    vectors = num_parameters(config, vocab_size) - sum(matrices)
    return max(_touched(matrices, num_ranks)) + -(-vectors // num_ranks)


def _touched(sizes: Sequence[int], num_ranks: int) -> list[int]:
    """For each of `num_ranks` equal parts of the flat row of weights, the elements of the weights that it touches."""
    part = -(-sum(sizes) // num_ranks)
    found, start = [0] * num_ranks, 0
    for elements in sizes:
        for rank in range(start // part, min(num_ranks, -(-(start + elements) // part))):
            found[rank] += elements
        start += elements
    return found


def _small_weights(config: PretrainConfig, vocab_size: int, threshold: int) -> int:
    """Elements of the weights below `threshold` elements, all vectors among them."""
    matrices = _matrices(config, vocab_size)
    vectors = num_parameters(config, vocab_size) - sum(matrices)
    return vectors + sum(elements for elements in matrices if elements <= threshold)
