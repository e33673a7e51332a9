"""Weights by formula against the networks themselves; budgets of weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from components.pretraining.config import KINDS, ModelConfig, PretrainConfig, network_vocab_size
from components.pretraining.networks.architectures import make_network
from components.pretraining.networks.sizes import (
    MAX_ASPECT,
    MIN_ASPECT,
    count_parameters,
    network_sizes,
    num_parameters,
    sized,
)
from infra.errors import ConfigError

SPECIAL = {"pad": 0, "bos": 2, "eos": 3}


def config(architecture: str, objective: str | None = None, **model: Any) -> PretrainConfig:
    kind = KINDS[architecture]  # type: ignore[index]
    fitting = {"encoder": "masked_lm", "encoder_decoder": "denoising", "decoder": "causal_lm"}[kind]
    told = {"objective": objective or fitting, "model": {"architecture": architecture, **model}}
    return PretrainConfig.model_validate(told)


@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "vocab_multiple": 8},
        {"hidden_size": 96, "num_layers": 3, "num_heads": 3, "max_position_embeddings": 300},
        {"hidden_size": 768, "num_layers": 12, "num_heads": 12, "intermediate_size": 2000},
    ],
)
@pytest.mark.parametrize(
    ("architecture", "objective"),
    [*((name, None) for name in KINDS), ("bert", "masked_lm_nsp"), ("t5", "span_corruption")],
)
def test_the_formula_counts_the_weights_of_the_network(architecture: str, objective: str | None, sizes: Any) -> None:
    made = config(architecture, objective, **sizes)
    with torch.device("meta"):
        network = make_network(made, network_sizes(made, 1000), network_vocab_size(made, 1000), SPECIAL)
    assert num_parameters(made, 1000) == sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("vocab_size", [1_024, 8_192, 32_768, 131_072])
@pytest.mark.parametrize("architecture", list(KINDS))
def test_a_budget_is_met_within_five_percent_wherever_the_vocabulary_leaves_room(
    architecture: Any, vocab_size: int
) -> None:
    target = 1e6
    while target <= 1e11:
        if 64 * vocab_size < 0.45 * target:
            told = ModelConfig.model_validate({"target_parameters": int(target)})
            found = sized(architecture, told, vocab_size, 128)
            assert abs(count_parameters(architecture, found, vocab_size, 128) / target - 1) <= 0.05
            assert found.hidden_size == 64 * found.num_heads
            assert MIN_ASPECT <= found.hidden_size / found.num_layers <= MAX_ASPECT
        target *= 1.31


@pytest.mark.parametrize(
    ("target", "least", "most"),
    [(110e6, (768, 10), (896, 16)), (1.3e9, (1792, 18), (2304, 28)), (7e9, (4096, 30), (4608, 36))],
)
def test_usual_budgets_give_usual_shapes(target: float, least: tuple[int, int], most: tuple[int, int]) -> None:
    found = sized("llama", ModelConfig.model_validate({"target_parameters": int(target)}), 32_768, 1024)
    assert least[0] <= found.hidden_size <= most[0]
    assert least[1] <= found.num_layers <= most[1]


def test_a_budget_below_the_embeddings_names_the_smallest_network() -> None:
    told = ModelConfig.model_validate({"target_parameters": "1M"})
    with pytest.raises(
        ConfigError, match=r"smallest llama with 32,768 tokens has 2,150,592 weights, 2,097,152 of them"
    ):
        sized("llama", told, 32_768, 128)
    told = ModelConfig.model_validate({"target_parameters": "12M"})
    with pytest.raises(ConfigError, match=r"within 5%: the nearest have [\d,]+ and [\d,]+ weights"):
        sized("llama", told, 131_072, 128)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("10M", 10_000_000),
        ("7B", 7_000_000_000),
        ("1.5b", 1_500_000_000),
        ("350k", 350_000),
        ("10_000_000", 10**7),
        (10**7, 10**7),
    ],
)
def test_a_budget_is_written_as_people_write_it(text: Any, number: int) -> None:
    assert ModelConfig.model_validate({"target_parameters": text}).target_parameters == number


def test_a_budget_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="is no number: write 10M, 7B"):
        ModelConfig.model_validate({"target_parameters": "ten"})


def test_the_vocabulary_is_padded_and_has_room_for_sentinels() -> None:
    assert network_vocab_size(config("llama"), 1000) == 1024
    assert network_vocab_size(config("llama", vocab_multiple=1), 1000) == 1000
    assert network_vocab_size(config("t5", "span_corruption"), 1000) == 1152
    assert network_vocab_size(config("t5", "span_corruption", vocab_multiple=4), 1000) == 1100
