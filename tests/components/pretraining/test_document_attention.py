"""Attention within documents against attention under a mask of the whole row, which transformers computes."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.models.llama.modeling_llama import eager_attention_forward

from components.pretraining.networks.document_attention import HIDDEN_SCORE, Windows, document_attention

ROWS = ([5, 40, 3, 16], [64], [1] * 64, [33, 31], [63, 1])
"""Lengths of the documents of rows of 64 tokens."""
HEADS, WIDTH = 3, 8


def positions(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    return torch.stack([torch.cat([torch.arange(length) for length in row]) for row in rows])


def allowed(rows: Sequence[Sequence[int]], causal: bool) -> torch.Tensor:
    """[B, 1, L, L], from the lengths alone."""
    blocks = [torch.block_diag(*(torch.ones(length, length) for length in row)) for row in rows]
    seen = torch.stack(blocks)[:, None].bool()
    return seen & torch.ones_like(seen).tril() if causal else seen


def drawn(batch: int, heads: int, length: int) -> torch.Tensor:
    return torch.randn(batch, heads, length, WIDTH, requires_grad=True)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("key_heads", [HEADS, 1])
def test_values_and_gradients_are_those_of_a_masked_row(causal: bool, key_heads: int) -> None:
    torch.manual_seed(0)
    batch, length = len(ROWS), 64
    query, key, value = drawn(batch, HEADS, length), drawn(batch, key_heads, length), drawn(batch, key_heads, length)
    module: Any = SimpleNamespace(num_key_value_groups=HEADS // key_heads, training=True)
    mask = torch.where(allowed(ROWS, causal), 0.0, HIDDEN_SCORE)
    expected, _ = eager_attention_forward(module, query, key, value, mask, scaling=0.3)
    windows = Windows.of(positions(ROWS), causal=causal, num_heads=HEADS, dtype=torch.float32)
    found, _ = document_attention(module, query, key, value, None, scaling=0.3, documents=windows)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    towards = torch.randn_like(found)
    inputs = (query, key, value)
    for one, other in zip(
        torch.autograd.grad(found, inputs, towards), torch.autograd.grad(expected, inputs, towards), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_windows_hold_each_token_once_and_are_nearly_full() -> None:
    generator = torch.Generator().manual_seed(1)
    rows = []
    for _ in range(40):
        row: list[int] = []
        while sum(row) < 512:
            row.append(min(512 - sum(row), int(torch.randint(1, 120, (), generator=generator))))
        rows.append(row)
    windows = Windows.of(positions(rows), causal=True, num_heads=1, dtype=torch.float32)
    assert windows.rows_R[windows.slots_S].tolist() == list(range(40 * 512))
    assert sum(count * size for count, size in windows.shapes) == len(windows.rows_R) < 1.02 * 40 * 512
    assert max(size for _, size in windows.shapes) == 128


def test_a_row_is_never_wider_than_its_tokens() -> None:
    """A row of 48 would else get a window of 64, and more memory than is planned."""
    windows = Windows.of(torch.arange(48).expand(2, 48), causal=True, num_heads=1, dtype=torch.float32)
    assert list(windows.shapes) == [(2, 48)]
