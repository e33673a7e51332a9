"""Everything that depends on whether the workers have GPUs: one value behind one switch.

What no test of this project has run, because none of its machines has a GPU:

    backend=nccl            collectives between GPUs
    overlap_comm            gradients are reduced on a stream of their own while the backward pass goes on
    flash attention         `flash_attention_2`, where the package flash_attn is installed; else sdpa, which is tested
    pin_memory              offloaded state in page-locked memory, which GPUs copy from about twice as fast
    offload across a bus    the code of it is tested here, with state that is "moved" from CPU to CPU memory
    fp16 on a GPU           loss scaling and its skipped steps are tested here on a CPU that has fp16 (AVX512-FP16)

AdamW needs no switch: torch's fused kernel runs on both.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Literal

from infra.cluster.config import ClusterConfig

Attention = Literal["eager", "sdpa", "flash_attention_2"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """What is chosen by the hardware of the workers, and nothing else."""

    backend: Literal["gloo", "nccl"]
    """Of torch.distributed."""
    attention: Attention
    """The fastest implementation where documents are told apart by a mask; `eager` on a CPU: at 128 tokens it trains
    1.3 to 1.5 times as fast as sdpa."""
    packed_attention: Attention
    """The same where documents are told apart by positions that restart (`architectures.attention_implementation`)."""
    overlap_comm: bool
    """Whether DeepSpeed reduces gradients beside the backward pass; on a CPU both want the same cores."""
    offload: bool
    """Whether there is a CPU memory to offload to that the weights are not in already."""
    pin_memory: bool


CPU = Hardware(
    backend="gloo", attention="eager", packed_attention="eager", overlap_comm=False, offload=False, pin_memory=False
)


def hardware(cluster: ClusterConfig) -> Hardware:
    """The switch. In a worker it also sees whether flash attention is installed there."""
    if not cluster.num_gpus_per_worker:
        return CPU
    flash = importlib.util.find_spec("flash_attn") is not None
    return Hardware(
        backend="nccl",
        attention="sdpa",
        packed_attention="flash_attention_2" if flash else "sdpa",
        overlap_comm=True,
        offload=True,
        pin_memory=True,
    )
