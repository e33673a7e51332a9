"""Dropout by the samples' keys, activations computed again, and a cross-entropy in pieces."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from components.pretraining.config import KINDS, PretrainConfig
from components.pretraining.networks.cross_entropy import linear_cross_entropy
from components.pretraining.networks.dropout import SampleDropout, keep_mask
from components.pretraining.networks.models import TargetLoss, build_model
from infra.errors import FromzeroError

SPECIAL = {"pad": 0, "bos": 2, "eos": 3}
OBJECTIVES = {"encoder": "masked_lm", "encoder_decoder": "denoising", "decoder": "causal_lm"}
KEYS = torch.tensor([5, -(2**62), 7, 2**60 + 5])
DROPPING = [(name, kind) for name, kind in KINDS.items() if name not in ("llama", "qwen3")]


def module_of(architecture: str, kind: str, dropout: float = 0.0, **more: Any) -> TargetLoss:
    model = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "architecture": architecture, "dropout": dropout}
    told = {"objective": OBJECTIVES[kind], "model": model, "sequence_length": 32, **more}
    return TargetLoss(build_model(PretrainConfig.model_validate(told), 500, SPECIAL)).train()


def batch_of(packed: Any, kind: str) -> dict[str, Any]:
    documents = packed.documents(kind, (9, 13, 6, 11, 17, 8, 5))
    rows = [documents[:2], documents[2:4], documents[4:5], documents[5:]]
    batch: dict[str, Any] = packed.pack(rows, kind, 32)
    return batch | {"sample_keys_B": KEYS}


def loss_and_gradient(module: TargetLoss, batch: dict[str, Any]) -> tuple[float, list[torch.Tensor]]:
    module.zero_grad()
    loss = module(**batch).sum()
    loss.backward()
    return float(loss.detach()), [p.grad.clone() for p in module.parameters() if p.grad is not None]


def test_a_mask_is_of_the_sample_and_the_position() -> None:
    whole = keep_mask(KEYS, 3, torch.Size([4, 20, 64]), 0.3)
    assert torch.equal(whole[1:3, :12], keep_mask(KEYS[1:3], 3, torch.Size([2, 12, 64]), 0.3))
    others = [keep_mask(KEYS, 4, whole.shape, 0.3), keep_mask(KEYS + 1, 3, whole.shape, 0.3)]
    for other in [*others, whole.roll(1, 0), whole.roll(1, 1), whole.roll(1, 2)]:
        assert float((whole == other).float().mean()) == pytest.approx(0.7**2 + 0.3**2, abs=0.02)


@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.9])
def test_what_is_dropped_is_that_part_and_the_mean_stays(dropout: float) -> None:
    values = torch.ones(4, 100, 256)
    with SampleDropout(KEYS):
        dropped = functional.dropout(values, dropout, training=True)
        again = nn.Dropout(dropout)(values)
    assert float((dropped == 0).float().mean()) == pytest.approx(dropout, abs=0.005)
    assert float(dropped.mean()) == pytest.approx(1, abs=0.03)
    assert float((dropped == 0).float().mean((1, 2)).sub(dropout).abs().max()) < 0.01
    assert not torch.equal(dropped, again)


@pytest.mark.parametrize(("architecture", "kind"), DROPPING)
def test_the_loss_with_dropout_does_not_depend_on_the_split_into_micro_batches(
    architecture: str, kind: str, packed: Any
) -> None:
    module, batch = module_of(architecture, kind, 0.2), batch_of(packed, kind)
    documents = packed.documents(kind, (9, 13, 6, 11, 17, 8, 5))
    whole, gradient = loss_and_gradient(module, batch)
    parts = [([documents[:2], documents[2:4], documents[4:5]], KEYS[:3]), ([documents[5:]], KEYS[3:])]
    found = [loss_and_gradient(module, packed.pack(rows, kind, 32) | {"sample_keys_B": k}) for rows, k in parts]
    assert sum(loss for loss, _ in found) == pytest.approx(whole, rel=1e-5)
    for one, first, second in zip(gradient, *(g for _, g in found), strict=True):
        assert torch.allclose(one, first + second, atol=1e-4)
    other, _ = loss_and_gradient(module, batch | {"sample_keys_B": KEYS + 1})
    assert abs(other - whole) > 1e-3
    plain = float(module.eval()(**batch).sum().detach())
    assert plain == pytest.approx(float(module_of(architecture, kind)(**batch).sum().detach()), rel=1e-6)


def test_dropout_without_keys_is_a_bug(packed: Any) -> None:
    batch = batch_of(packed, "encoder")
    del batch["sample_keys_B"]
    with pytest.raises(FromzeroError, match="no sample_keys_B"):
        module_of("bert", "encoder", 0.1)(**batch)


@pytest.mark.parametrize(
    ("architecture", "kind", "dropout"),
    [(name, kind, rate) for name, kind in KINDS.items() for rate in (0.0, 0.2) if not rate or (name, kind) in DROPPING],
)
def test_activations_computed_again_are_the_same(architecture: str, kind: str, dropout: float, packed: Any) -> None:
    batch = batch_of(packed, kind)
    plain = module_of(architecture, kind, dropout)
    again = module_of(architecture, kind, dropout, activation_checkpointing=True)
    runs = 0

    def count(*_: Any) -> None:
        nonlocal runs
        runs += 1

    layers = [
        m for m in again.modules() if type(m).__name__.endswith(("LayerFF", "MLP", "Intermediate", "DecoderLayer"))
    ]
    for layer in layers:
        inner = next(child for child in layer.modules() if isinstance(child, nn.Linear) or "Conv1D" in str(type(child)))
        inner.register_forward_pre_hook(count)
    loss, gradient = loss_and_gradient(plain, batch)
    same, again_gradient = loss_and_gradient(again, batch)
    assert layers
    assert runs == 2 * len(layers)
    assert same == loss
    assert all(torch.equal(one, other) for one, other in zip(gradient, again_gradient, strict=True))


@pytest.mark.parametrize("max_logits", [1 << 22, 700, 1])
@pytest.mark.parametrize("with_bias", [False, True])
def test_the_cross_entropy_in_pieces_is_that_of_torch(max_logits: int, with_bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(50, 8), (90, 8), *([(90,)] if with_bias else [])]
    ids_T = torch.randint(0, 90, (50,), generator=generator)
    leaves = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    expected = functional.cross_entropy(functional.linear(*leaves), ids_T, reduction="sum")
    (expected * 0.3).backward()
    copies = [leaf.detach().float().requires_grad_() for leaf in leaves]
    bias = copies[2] if with_bias else None
    found = linear_cross_entropy(copies[0], copies[1], bias, ids_T, max_logits=max_logits)
    (found * 0.3).backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    for leaf, copy in zip(leaves, copies, strict=True):
        assert torch.allclose(copy.grad.double(), leaf.grad, atol=1e-5)
