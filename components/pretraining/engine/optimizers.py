"""AdamW, Adafactor and Muon, and at which ZeRO stages each of them is what it says.

ZeRO 1 to 3 hand an optimizer flat parts of the weights. AdamW does not mind: it treats each number by itself. The other
two look at whole matrices, so they run at stage 0, by torch.optim, and are refused elsewhere (`fit.py`):

    adafactor   keeps means of rows and columns in place of the second moment, and scales the update by the norm of the
                whole matrix (Shazeer and Stern 2018, arXiv:1804.04235); on a flat part it would silently become another
                optimizer.
    muon        replaces the momentum of a matrix by the nearest orthogonal one (Jordan et al. 2024,
                kellerjordan.github.io/posts/muon). DeepSpeed 0.19.8 has one that gathers matrices at stages 1 to 3, but
                it clips after that: with gradient_clipping=1 its first update of a two-layer encoder was 14 times too
                small, that of the AdamW weights too. Without clipping the norm that it reports is still not that of the
                gradient, and in bf16 its momentum is kept in bf16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from components.pretraining.config import PretrainConfig

MUON_MOMENTUM = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterGroup:
    """Weights that are treated alike."""

    weights: dict[str, nn.Parameter]
    weight_decay: float
    learning_rate: float
    """Peak."""
    muon: bool = False


def parameter_groups(module: nn.Module, config: PretrainConfig) -> list[ParameterGroup]:
    """Matrices and embeddings with weight decay, biases and norms without; for Muon the layers' matrices apart."""
    trained = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
    muon = layer_matrices(module) if config.optimizer == "muon" else set()
    decay, peak = config.weight_decay, config.learning_rate
    groups = [
        ParameterGroup(
            weights={name: weight for name, weight in trained.items() if name in muon},
            weight_decay=decay,
            learning_rate=config.muon_learning_rate,
            muon=True,
        )
    ]
    groups += [
        ParameterGroup(
            weights={n: w for n, w in trained.items() if n not in muon and (w.ndim >= 2) == is_matrix},
            weight_decay=decay if is_matrix else 0.0,
            learning_rate=peak,
        )
        for is_matrix in (True, False)
    ]
    return [group for group in groups if group.weights]


def layer_matrices(module: nn.Module) -> set[str]:
    """Names of the matrices inside the stack of layers: no embedding, no head.

    GPT-2 keeps its matrices transposed, so Muon's factor sqrt(max(1, rows / columns)) is that of the other side there.
    """
    stacks = [f"{name}." for name, child in module.named_modules() if isinstance(child, nn.ModuleList)]
    embeddings = {f"{name}.weight" for name, child in module.named_modules() if isinstance(child, nn.Embedding)}
    return {
        name
        for name, weight in module.named_parameters()
        if weight.ndim == 2 and name not in embeddings and any(name.startswith(stack) for stack in stacks)
    }


class MuonWithAdamW(torch.optim.Optimizer):
    """torch.optim.Muon and torch.optim.AdamW as one optimizer, for DeepSpeed takes one.

    Args:
        muon: has the layers' matrices.
        adamw: has everything else.
    """

    def __init__(self, muon: torch.optim.Muon, adamw: torch.optim.AdamW) -> None:
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        self._parts = (muon, adamw)

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of both, on the groups and the state of this one: DeepSpeed and a checkpoint replace those."""
        for part in self._parts:
            part.state = self.state
            part.param_groups = [
                group for group in self.param_groups if ("ns_steps" in group) == isinstance(part, torch.optim.Muon)
            ]
            part.step()  # type: ignore[no-untyped-call]


def make_optimizer(groups: list[ParameterGroup], config: PretrainConfig) -> torch.optim.Optimizer:
    """The optimizer, at learning rate 0: DeepSpeed takes a step at stage 0 to make its state.

    Args:
        groups: of the weights, Muon's first.
        config: of the training.
    """
    told: list[dict[str, Any]] = [
        {"params": list(group.weights.values()), "weight_decay": group.weight_decay, "lr": 0.0} for group in groups
    ]
    if config.optimizer == "adafactor":
        return torch.optim.Adafactor(told, lr=0.0)
    others = [entry for group, entry in zip(groups, told, strict=True) if not group.muon]
    adamw = torch.optim.AdamW(others, lr=0.0, betas=config.betas, eps=config.epsilon, fused=True)
    if len(others) == len(told):
        return adamw
    return MuonWithAdamW(torch.optim.Muon(told[:1], lr=0.0, momentum=MUON_MOMENTUM), adamw)
