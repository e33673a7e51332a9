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
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from infra.cluster.config import ClusterConfig

if TYPE_CHECKING:
    from components.pretraining.config import PretrainConfig

Attention = Literal["eager", "sdpa", "flash_attention_2", "documents"]
"""`documents` is networks/document_attention.py, all others are transformers'."""
CAUSAL_OBJECTIVES = ("causal_lm", "label_lm")
WHOLE_OBJECTIVES = ("masked_lm", "masked_lm_nsp")
"""In these a token sees all of its document up to itself, or all of it: positions that restart say who sees whom."""
FLASH_ARCHITECTURES = ("llama", "qwen3", "gpt2")
"""Those that hand positions on to their attention function. The encoders of transformers 5 do not (ModernBERT turns
them into rotations and drops them), so flash attention would let documents of a row see each other."""
DOCUMENT_ARCHITECTURES = (*FLASH_ARCHITECTURES, "bert", "modernbert")
"""Those that hand on what else their forward is given."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """What is chosen by the hardware of the workers, and nothing else."""

    backend: Literal["gloo", "nccl"]
    """Of torch.distributed."""
    attention: Attention
    """The fastest where documents are told apart by a mask; `eager` on a CPU: at 128 tokens it trains 1.3 to 1.5 times
    as fast as sdpa."""
    packed_attention: Attention
    """The same where documents are told apart by positions that restart (`attention_implementation`)."""
    overlap_comm: bool
    """Whether DeepSpeed reduces gradients beside the backward pass; on a CPU both want the same cores."""
    offload: bool
    """Whether there is a CPU memory to offload to that the weights are not in already."""
    pin_memory: bool


CPU = Hardware(
    backend="gloo", attention="eager", packed_attention="documents", overlap_comm=False, offload=False, pin_memory=False
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


def attention_implementation(config: PretrainConfig, model_type: str, layer_types: Iterable[str] = ()) -> Attention:
    """By the hardware. Flash attention makes one row of all, whose dropout could not be keyed by sample, and takes no
    fp32; `documents` knows no sliding windows.

    Args:
        config: of the training.
        model_type: of the network, by its transformers config.
        layer_types: of the layers, by its transformers config.
    """
    here = hardware(config.cluster)
    if here.packed_attention == "documents":
        fits = model_type in DOCUMENT_ARCHITECTURES and "sliding_attention" not in layer_types
        is_packed = fits and config.objective in (*CAUSAL_OBJECTIVES, *WHOLE_OBJECTIVES)
    else:
        fits = model_type in FLASH_ARCHITECTURES and config.precision != "fp32" and not config.model.dropout
        is_packed = fits and config.objective in CAUSAL_OBJECTIVES
    return here.packed_attention if is_packed else here.attention
