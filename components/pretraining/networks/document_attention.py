"""Attention within the documents of packed rows, on a CPU: no score is computed between two documents.

Eager attention of a row of L tokens makes L x L scores a head, of which packed documents of n tokens use n / L. Here
the documents of a micro batch are put into windows of 32, 64, 128, ... tokens, at most L: the longest first, each where
it leaves least over (best-fit decreasing; Johnson et al. 1974, SIAM J. Comput. 3(4)). Each size of window is one batch
of matrix products, masked within the window. What the documents see of each other is the same as under a mask of the
whole row, which is nothing; what they see of themselves too. Work and memory grow with the documents' lengths, not with
the row's.

With glosses of 22 tokens in rows of 256, a GPT-2 of 5.9M weights trains 1.1 times as fast as with eager attention, and
a Llama 1.2 times (tests/benchmarks/LOG.md); with documents as long as their rows it costs what eager attention costs.

It stands in transformers' table of attention functions (`attn_implementation=documents`), and gets the windows as the
argument `documents` of the forward pass. Without them, as when text is generated, attention is transformers' SDPA.

Shapes: B rows, L tokens, S = B * L positions, N documents, R positions of all windows, C windows of W positions, H
heads, D width of a head.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

DOCUMENTS = "documents"
"""Its name there."""
HIDDEN_SCORE = -1e4
"""Added to the score of a token that must not be seen: exp of it is 0 in every precision."""
SMALLEST_WINDOW = 32
"""Below it a matrix product costs what the call costs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Windows:
    """Where the documents of a micro batch stand in windows."""

    rows_R: torch.Tensor
    """Which of the S positions stands at each position of the windows; 0 where none does."""
    slots_S: torch.Tensor
    """Where each of the S positions stands."""
    shapes: Sequence[tuple[int, int]]
    """C and W of the windows of each size."""
    hidden: Sequence[torch.Tensor]
    """For each size what is added to the scores, [C * H, W, W]."""

    @classmethod
    def of(cls, positions_BL: torch.Tensor, *, causal: bool, num_heads: int, dtype: torch.dtype) -> Windows:
        """Of rows whose positions restart in each document.

        Args:
            positions_BL: place of each token in its document, from 0; padding is a document too.
            causal: whether a token sees what is up to itself only.
            num_heads: H.
            dtype: of the scores.
        """
        place_S = positions_BL.reshape(-1).cpu().numpy()
        starts_N = np.flatnonzero(place_S == 0)
        lengths_N = np.diff(np.append(starts_N, len(place_S)))
        window_N, offset_N, sizes = _fit(lengths_N, positions_BL.shape[1])
        order = np.argsort(sizes, kind="stable")
        base = np.empty(len(sizes), dtype=np.int64)
        base[order] = np.cumsum(sizes[order]) - sizes[order]
        slots_S = np.repeat(base[window_N] + offset_N, lengths_N) + place_S
        rows_R = np.zeros(sizes.sum(), dtype=np.int64)
        rows_R[slots_S] = np.arange(len(place_S))
        document_R = -1 - np.arange(len(rows_R))  # an empty position sees itself: no row of scores is all hidden
        document_R[slots_S] = np.repeat(np.arange(len(starts_N)), lengths_N)
        shapes, hidden, at = [], [], 0
        for size, count in zip(*np.unique(sizes, return_counts=True), strict=True):
            document_CW = document_R[at : at + count * size].reshape(count, size)
            sees_CWW = document_CW[:, :, None] == document_CW[:, None, :]
            if causal:
                sees_CWW &= np.tri(size, dtype=bool)
            added_CWW = torch.where(torch.from_numpy(sees_CWW), 0.0, HIDDEN_SCORE).to(dtype)
            hidden.append(added_CWW[:, None].expand(-1, num_heads, -1, -1).reshape(-1, size, size))
            shapes.append((int(count), int(size)))
            at += count * size
        return cls(rows_R=torch.from_numpy(rows_R), slots_S=torch.from_numpy(slots_S), shapes=shapes, hidden=hidden)


def _fit(lengths_N: np.ndarray[Any, Any], largest: int) -> tuple[np.ndarray[Any, Any], ...]:
    """The window of each document, its offset there, and the size of each window."""
    window_N, offset_N = np.empty_like(lengths_N), np.empty_like(lengths_N)
    sizes: list[int] = []
    free: list[tuple[int, int]] = []
    """Positions left over and the window, sorted."""
    for number in np.argsort(-lengths_N, kind="stable"):
        length = int(lengths_N[number])
        at = bisect_left(free, (length, -1))
        if at < len(free):
            left, window = free.pop(at)
        else:
            left, window = min(largest, max(SMALLEST_WINDOW, 1 << (length - 1).bit_length())), len(sizes)
            sizes.append(left)
        window_N[number], offset_N[number] = window, sizes[window] - left
        if left > length:
            insort(free, (left - length, window))
    return window_N, offset_N, np.array(sizes, dtype=np.int64)


class _Permute(torch.autograd.Function):
    """Rows of a matrix in another order, by an index and its inverse: both ways a gather, where autograd would add."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, index: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(inverse)
        return values.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return gradients[0].index_select(0, ctx.saved_tensors[0]), None, None


def document_attention(
    module: torch.nn.Module,
    query_BHLD: torch.Tensor,
    key_BHLD: torch.Tensor,
    value_BHLD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    documents: Windows | None = None,
    **told: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers.

    Args:
        module: the layer that calls.
        query_BHLD: queries.
        key_BHLD: keys; fewer heads where heads share them.
        value_BHLD: values; as the keys.
        attention_mask: unused with `documents`.
        scaling: of the scores; D^-1/2 by default.
        documents: where the tokens stand in windows.
        told: what other attention functions take.

    Returns:
        the attended values [B, L, H, D], and no weights.
    """
    if documents is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        told = {"scaling": scaling, **told}
        found: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query_BHLD, key_BHLD, value_BHLD, attention_mask, **told
        )
        return found
    batch, heads, length, width = query_BHLD.shape
    scale = width**-0.5 if scaling is None else scaling
    slots_S, rows_R = documents.slots_S, documents.rows_R
    parts = [count * size for count, size in documents.shapes]
    ins = []
    for tensor in (query_BHLD, key_BHLD, value_BHLD):
        if tensor.shape[1] != heads:
            tensor = tensor.repeat_interleave(heads // tensor.shape[1], 1)
        rows_SE = tensor.transpose(1, 2).reshape(batch * length, heads * width)
        ins.append(_Permute.apply(rows_SE, rows_R, slots_S).split(parts))  # type: ignore[no-untyped-call]
    outs = []
    for (count, size), hidden, *qkv in zip(documents.shapes, documents.hidden, *ins, strict=True):
        query, key, value = (
            part.view(count, size, heads, width).transpose(1, 2).reshape(count * heads, size, width) for part in qkv
        )
        scores = torch.baddbmm(hidden, query, key.transpose(1, 2), alpha=scale)
        attended = torch.bmm(torch.softmax(scores, dim=-1), value)
        outs.append(attended.view(count, heads, size, width).transpose(1, 2).reshape(count * size, heads * width))
    out_SE = _Permute.apply(torch.cat(outs), slots_S, rows_R)  # type: ignore[no-untyped-call]
    return out_SE.view(batch, length, heads, width), None


def register() -> None:
    """Puts it into transformers' tables, as that library has it done; again is no harm."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(DOCUMENTS, document_attention)
    AttentionMaskInterface.register(DOCUMENTS, sdpa_mask)
