"""How fast a training is: tokens and steps a second, the part of the machine's peak that it uses, memory.

    mfu = FLOPs of the training by formula (infra/energy/flops.py) / seconds / peak of all ranks

is the model FLOPs utilisation of Chowdhery et al. 2022 (arXiv:2204.02311, appendix B): padding and activations that
are computed again count as nothing done. Its peak is measured here, not read from a data sheet: square matrix products
in the training's precision, by all ranks at the same time with the threads that they train with, the fastest of
0.15 s. On a virtual machine that others load too it varies by a third from one start to the next, and so does mfu.
Seconds are those of the optimizer steps, waiting for data included, validation and checkpoints left out.

A point costs one all-reduce of one number, under 1 ms on gloo.
"""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass

import torch
import torch.distributed as dist

PEAK_SECONDS = 0.15
CPU_SIZE, GPU_SIZE = 1024, 8192
"""Rows of the matrices: large enough for the peak, small enough for some products in that time (2 and 1,100 GFLOP)."""
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def matmul_peak(device: torch.device, precision: str) -> float:
    """FLOP/s of all ranks together in matrix products. All ranks call it, and it measures them at the same time."""
    size = GPU_SIZE if device.type == "cuda" else CPU_SIZE
    one_NN = torch.ones(size, size, dtype=DTYPES[precision], device=device)
    other_NN = torch.ones_like(one_NN)
    one_NN @ other_NN  # the first call also prepares kernels
    dist.barrier()
    fastest, ends = float("inf"), time.perf_counter() + PEAK_SECONDS
    while True:
        started = time.perf_counter()
        one_NN @ other_NN
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        now = time.perf_counter()
        fastest = min(fastest, now - started)
        if now >= ends:
            break
    peak = torch.tensor([2 * size**3 / fastest], dtype=torch.float64, device=device)
    dist.all_reduce(peak)
    return float(peak)


def peak_memory_mib(device: torch.device) -> float:
    """Most memory that a rank has held, MiB: of the GPU as PyTorch allocates it, else resident; the largest rank's."""
    if device.type == "cuda":
        mebibytes = torch.cuda.max_memory_allocated(device) / 2**20
    else:
        mebibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    largest = torch.tensor([mebibytes], dtype=torch.float64, device=device)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return float(largest)


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """How much this attempt at a training had done at some moment; what was rolled back counts too."""

    steps: int = 0
    num_tokens: int = 0
    train_seconds: float = 0.0
    """In optimizer steps."""
    data_seconds: float = 0.0
    """Of these, making batches."""


class Throughput:
    """The rates of one attempt at a training.

    Args:
        peak: FLOP/s of all ranks, from `matmul_peak`.
    """

    def __init__(self, peak: float) -> None:
        self.peak = peak
        self._last = Mark()

    def since_last(self, now: Mark, flops_per_token: float) -> dict[str, float]:
        """The rates since the last call, or since the start."""
        since, self._last = self._last, now
        return self._rates(since, now, flops_per_token)

    def whole(self, now: Mark, flops_per_token: float) -> dict[str, float]:
        """The rates since the start."""
        return self._rates(Mark(), now, flops_per_token)

    def _rates(self, since: Mark, now: Mark, flops_per_token: float) -> dict[str, float]:
        """Nothing where no step was taken: an attempt may find only the export to be left."""
        seconds = now.train_seconds - since.train_seconds
        if seconds <= 0:
            return {}
        tokens_per_second = (now.num_tokens - since.num_tokens) / seconds
        return {
            "tokens_per_second": tokens_per_second,
            "steps_per_second": (now.steps - since.steps) / seconds,
            "data_fraction": (now.data_seconds - since.data_seconds) / seconds,
            "mfu": tokens_per_second * flops_per_token / self.peak,
        }
