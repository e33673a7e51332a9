"""Summed cross-entropy of a linear output layer, without ever holding all logits.

    loss = sum over t of logsumexp(h_t W' + b) - (h_t W' + b)[y_t]

The targets are taken in pieces of at most 2^22 logits (8 MiB in bf16); the gradients of a piece, p - 1[y], are written
over its logits and multiplied into those of the hidden states and of W at once, in the forward pass, so that nothing is
computed twice and the weights are not needed in the backward pass (under ZeRO 3 they are not gathered again). What is
held is one piece and a gradient of the size of W. The idea is that of Liger (Hsu et al. 2024, arXiv:2410.10989, section
3.2) and of Wijmans et al. 2024 (arXiv:2411.09009). Logits are of the precision of the weights, their softmax is fp32,
sums over pieces are fp32: what autograd gives, to rounding. The softmax goes by blocks of 2^18 logits, whose 1 MiB in
fp32 stays next to the core, and takes one exponential of each.

On one thread it takes 0.48 to 0.82 of the time of `nn.functional.cross_entropy` on all logits in bf16, and the blocks
0.75 of that (tests/benchmarks/LOG.md), because nothing is written twice and a piece stays near the core.

When not to use it: heads that do something after the linear layer (a soft cap); second derivatives.

Shapes: T targets, D width, V vocabulary, C targets of a piece, R of a block.
"""

from __future__ import annotations

from typing import Any

import torch

MAX_LOGITS = 1 << 22
"""Logits held at once."""
BLOCK_LOGITS = 1 << 18
"""Logits that are in fp32 at once, on a CPU; a GPU has all of a piece."""


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        target_ids_T: torch.Tensor,
        needs_gradient: bool,
        max_logits: int,
    ) -> torch.Tensor:
        step = max(1, max_logits // weight_VD.shape[0])
        is_whole = len(hidden_TD) <= step
        loss = torch.zeros((), dtype=torch.float32, device=hidden_TD.device)
        if needs_gradient:
            hidden_gradient_TD = torch.empty_like(hidden_TD)
            sums = weight_VD.dtype if is_whole else torch.float32
            weight_gradient_VD = torch.zeros(weight_VD.shape, dtype=sums, device=weight_VD.device)
            bias_gradient_V = None if bias_V is None else torch.zeros_like(bias_V, dtype=torch.float32)
        for start in range(0, len(hidden_TD), step):
            piece = slice(start, start + step)
            hidden_CD, ids_C1 = hidden_TD[piece], target_ids_T[piece, None]
            logits_CV = hidden_CD @ weight_VD.T
            if bias_V is not None:
                logits_CV += bias_V
            if not needs_gradient:
                loss += _softmax(logits_CV, ids_C1, None)
                continue
            error_CV = logits_CV
            loss += _softmax(logits_CV, ids_C1, error_CV)
            if bias_gradient_V is not None:
                bias_gradient_V += error_CV.sum(0, dtype=torch.float32)
            torch.mm(error_CV, weight_VD, out=hidden_gradient_TD[piece])
            if is_whole:
                torch.mm(error_CV.T, hidden_CD, out=weight_gradient_VD)
            else:
                weight_gradient_VD += error_CV.T @ hidden_CD
        if needs_gradient:
            ctx.save_for_backward(hidden_gradient_TD, weight_gradient_VD, bias_gradient_V)
            ctx.dtypes = weight_VD.dtype, None if bias_V is None else bias_V.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = gradients
        hidden_gradient_TD, weight_gradient_VD, bias_gradient_V = ctx.saved_tensors
        weight_dtype, bias_dtype = ctx.dtypes
        return (
            hidden_gradient_TD.mul(gradient.to(hidden_gradient_TD.dtype)) if ctx.needs_input_grad[0] else None,
            weight_gradient_VD.mul(gradient).to(weight_dtype) if ctx.needs_input_grad[1] else None,
            bias_gradient_V.mul(gradient).to(bias_dtype)
            if bias_gradient_V is not None and ctx.needs_input_grad[2]
            else None,
            None,
            None,
            None,
        )


def _softmax(logits_CV: torch.Tensor, ids_C1: torch.Tensor, error_CV: torch.Tensor | None) -> torch.Tensor:
    """Sum of -log p; writes p - 1[y] into `error_CV`, which may be the logits themselves."""
    is_on_cpu = logits_CV.device.type == "cpu"
    step = max(1, BLOCK_LOGITS // logits_CV.shape[1]) if is_on_cpu else len(logits_CV)
    loss = torch.zeros((), dtype=torch.float32, device=logits_CV.device)
    for start in range(0, len(logits_CV), step):
        block_RV, ids_R1 = logits_CV[start : start + step], ids_C1[start : start + step]
        error_RV = block_RV.to(torch.float32, copy=True)
        error_RV -= error_RV.amax(1, keepdim=True)
        chosen_R1 = error_RV.gather(1, ids_R1)
        sum_R1 = error_RV.exp_().sum(1, keepdim=True)
        loss += (sum_R1.log() - chosen_R1).sum()
        if error_CV is not None:
            error_RV *= sum_R1.reciprocal()
            error_RV.scatter_add_(1, ids_R1, torch.full_like(ids_R1, -1, dtype=torch.float32))
            error_CV[start : start + step].copy_(error_RV)
    return loss


def linear_cross_entropy(
    hidden_TD: torch.Tensor,
    weight_VD: torch.Tensor,
    bias_V: torch.Tensor | None,
    target_ids_T: torch.Tensor,
    *,
    max_logits: int = MAX_LOGITS,
) -> torch.Tensor:
    """Sum over the targets of -log p, in nats; fp32 scalar, 0 for no targets.

    Args:
        hidden_TD: what the output layer takes.
        weight_VD: of the output layer.
        bias_V: of the output layer, trained or not.
        target_ids_T: the token to predict.
        max_logits: held at once.
    """
    found: torch.Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_TD, weight_VD, bias_V, target_ids_T, torch.is_grad_enabled(), max_logits
    )
    return found
