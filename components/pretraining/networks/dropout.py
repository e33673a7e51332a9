"""Dropout keyed by sample: the mask is a function of (sample, place in the network, position, feature) and of nothing
else, so that no number of ranks, no size of a micro batch and no recomputation of activations changes it.

    y = x * keep / (1 - p),   keep = 1 where hash(sample key, call, position, feature) >= p    (Srivastava et al. 2014)

`call` numbers the dropouts of one forward pass in order. transformers' models drop by `nn.Dropout` modules or by
calling `nn.functional.dropout` (BART); a torch function mode sees both, and is entered only where dropout is above 0.
A layer whose activations are computed again in the backward pass (`torch.utils.checkpoint`) starts from the number
that it started from before. Attention weights are never dropped: [B, H, L, L] numbers a layer, and
fused kernels would draw them out of reach.

The hash is lowbias32 (Ellis 2018, "Prospecting for hash functions") over a key of 64 bits for each row.
On one thread it takes 1.0 to 1.1 times as long as torch's own dropout (29 to 33 against 28 to 30 ns a number of bf16,
on a busy machine), and the mode adds 4 microseconds to each torch call of the forward pass.

Shapes: B sequences, L positions, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from infra.errors import FromzeroError

HIDDEN_FIELDS = (
    "hidden_dropout_prob",
    "hidden_dropout",
    "dropout",
    "dropout_rate",
    "resid_pdrop",
    "embd_pdrop",
    "mlp_dropout",
    "embedding_dropout",
)
"""Names that the configs of transformers have for the dropout of hidden states."""
OTHER_FIELDS = (
    "attention_probs_dropout_prob",
    "attention_dropout",
    "attn_pdrop",
    "activation_dropout",
    "layerdrop",
    "encoder_layerdrop",
    "decoder_layerdrop",
)
"""And for those that stay 0."""
Contexts = tuple[AbstractContextManager[Any], AbstractContextManager[Any]]


def dropout_fields(names: Iterable[str], dropout: float) -> dict[str, float]:
    """What to set in a config that has the fields `names`: `dropout` on hidden states, 0 elsewhere."""
    has = set(names)
    hidden = {name: dropout for name in HIDDEN_FIELDS if name in has}
    return hidden | {name: 0.0 for name in OTHER_FIELDS if name in has}


def hidden_dropout(config: Any) -> float:
    """The rate that a transformers config gives to hidden states."""
    return max((float(getattr(config, name, 0.0) or 0.0) for name in HIDDEN_FIELDS), default=0.0)


def silence_attention(model: nn.Module) -> None:
    """Sets the dropout of attention weights to 0 where a config has none of its own for it (T5)."""
    for module in model.modules():
        if type(module).__name__.endswith("Attention") and isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0  # type: ignore[assignment]


def _mix64(state: torch.Tensor) -> torch.Tensor:
    """One SplitMix64 step over int64, wrapping around."""
    state = state + (0x9E3779B97F4A7C15 - (1 << 64))
    state = (state ^ ((state >> 30) & ((1 << 34) - 1))) * (0xBF58476D1CE4E5B9 - (1 << 64))
    state = (state ^ ((state >> 27) & ((1 << 37) - 1))) * (0x94D049BB133111EB - (1 << 64))
    return state ^ ((state >> 31) & ((1 << 33) - 1))


def _lowbias32(state: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Ellis' 32-bit mixer over int32, in place, with a second word of the key after the first multiplication."""
    state ^= (state >> 16) & 0xFFFF
    state *= 0x7FEB352D
    state ^= key
    state ^= (state >> 15) & 0x1FFFF
    state *= 0x846CA68B - (1 << 32)
    state ^= (state >> 16) & 0xFFFF
    return state


def keep_mask(sample_keys_B: torch.Tensor, call: int, shape: torch.Size, dropout: float) -> torch.Tensor:
    """Which numbers of [B, L, ..., D] stay; bool.

    Args:
        sample_keys_B: int64.
        call: number of the dropout in the forward pass.
        shape: of what is dropped; its first dimension is B, its second counts positions, if there are three.
        dropout: part that goes, on average.
    """
    device = sample_keys_B.device
    rows_B = _mix64(sample_keys_B ^ call)
    positions_L = torch.arange(shape[1] if len(shape) > 2 else 1, device=device)
    rows_BL1 = _mix64(rows_B[:, None] ^ positions_L)[:, :, None]
    low_BL1, high_BL1 = rows_BL1.to(torch.int32), (rows_BL1 >> 32).to(torch.int32)
    features = torch.arange(shape[2:].numel() if len(shape) > 2 else shape[1], dtype=torch.int32, device=device)
    drawn_BLD = _lowbias32(low_BL1 ^ (features * (0x9E3779B9 - (1 << 32))), high_BL1)
    return (drawn_BLD >= round(dropout * 2**32) - 2**31).view(shape)


class SampleDropout(TorchFunctionMode):
    """While entered, every dropout of hidden states takes its mask from the samples' keys.

    Args:
        sample_keys_B: int64 [B]; a hash of (seed, epoch, sequence).
        calls: dropouts that the forward pass has already made.
    """

    def __init__(self, sample_keys_B: torch.Tensor, calls: int = 0) -> None:
        super().__init__()
        self.sample_keys_B = sample_keys_B
        self.calls = calls

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs `func`, or drops by key where it is a dropout."""
        if func is nn.functional.dropout:
            return self._drop(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _drop(self, input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
        if not training or p == 0.0:
            return input
        if len(input) != len(self.sample_keys_B):
            raise FromzeroError(f"dropout of {tuple(input.shape)} for {len(self.sample_keys_B)} samples")
        keep = keep_mask(self.sample_keys_B, self.calls, input.shape, p)
        self.calls += 1
        return input * (keep.to(input.dtype) / (1.0 - p))

    def contexts(self) -> Contexts:
        """For `torch.utils.checkpoint(context_fn=)`: what a layer runs in at first, and what in when it runs again."""
        return nullcontext(), SampleDropout(self.sample_keys_B, self.calls)
