"""What tests do to a training in its own process: bad numbers in a batch, a batch that never was, a rank that hangs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from typing import Any

import torch


def disturb(told: Mapping[str, Any], rank: int) -> None:
    """Replaces methods in this process for good.

    Args:
        told: `without` (batches that the order of samples never had); `bad` (batch, rank, and what: `nan_loss`,
            `nan_gradient`, or a factor of the gradient); `hang` (step, rank, and how: `sleep` or `stop`).
        rank: of this process.
    """
    from components.pretraining.networks.models import TargetLoss
    from components.pretraining.sampler import Sampler

    now = {"batch": -1}
    global_batch, forward = Sampler.global_batch, TargetLoss.forward

    def other_batch(self: Sampler, step: int) -> Any:
        for one in sorted(told.get("without", ())):
            step += step >= one
        now["batch"] = step
        hang = told.get("hang")
        if hang and (step, rank) == (hang["step"], hang["rank"]):
            if hang["how"] == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(600)
        return global_batch(self, step)

    def bad_forward(self: TargetLoss, *args: Any, **inputs: Any) -> torch.Tensor:
        losses_K = forward(self, *args, **inputs)
        for bad in told.get("bad", ()):
            if self.training and (now["batch"], rank) == (bad["batch"], bad["rank"]):
                what = bad["what"]
                if what == "nan_loss":
                    return losses_K * float("nan")
                factor = float("nan") if what == "nan_gradient" else float(what)
                losses_K.register_hook(lambda gradient, factor=factor: gradient * factor)
        return losses_K

    Sampler.global_batch = other_batch  # type: ignore[method-assign]
    TargetLoss.forward = bad_forward  # type: ignore[method-assign]
