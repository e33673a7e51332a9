"""What is chosen by the hardware of the workers, and what does not go with it."""

from __future__ import annotations

import importlib.util
import re
from typing import Any

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from components.pretraining.config import PretrainConfig
from components.pretraining.engine.ds_config import deepspeed_config
from components.pretraining.engine.hardware import FLASH_ARCHITECTURES, attention_implementation, hardware
from components.pretraining.estimates.zero_stage import choose_stage
from components.pretraining.fit import problems
from components.pretraining.networks.models import build_model
from components.pretraining.networks.runner import Runner

GPU: dict[str, Any] = {"cluster": {"num_gpus_per_worker": 1}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"precision": "fp16"}, r"precision=fp16 needs GPUs"),
        ({"precision": "fp16", "zero_stage": 0, **GPU}, r"fp16 does not go with p\.zero_stage=0.*1, 2, 3 or auto"),
        ({"optimizer": "adafactor"}, r"adafactor needs whole matrices.*p\.zero_stage=1.*set p\.zero_stage=0"),
        ({"optimizer": "muon", "zero_stage": 3}, r"muon needs whole matrices, and p\.zero_stage=3"),
        (
            {"optimizer": "muon", "zero_stage": "auto", "precision": "fp16", **GPU},
            r"muon goes with ZeRO stage 0 alone, and p\.precision=fp16.*set p\.optimizer=adamw",
        ),
        ({"offload_optimizer": True}, r"offload_optimizer=true needs GPUs.*in CPU memory already"),
        ({"offload_optimizer": True, "zero_stage": 0, **GPU}, r"needs p\.zero_stage to be 1 or 2 or 3, not 0"),
        ({"offload_parameters": True, "zero_stage": 2, **GPU}, r"offload_parameters=true needs p\.zero_stage to be 3"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_named(values: dict[str, Any], message: str) -> None:
    found = problems(PretrainConfig.model_validate(values), "p")
    assert len(found) == 1
    assert re.search(message, found[0])


@pytest.mark.parametrize(
    "values",
    [
        {"optimizer": "muon", "zero_stage": 0},
        {"precision": "fp16", "zero_stage": 2, "offload_optimizer": True, **GPU},
        {"zero_stage": 3, "offload_parameters": True, "offload_optimizer": True, **GPU},
    ],
    ids=str,
)
def test_what_goes_together_passes(values: dict[str, Any]) -> None:
    assert problems(PretrainConfig.model_validate(values)) == []


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, 0),
        ({"precision": "fp16"}, 1),
        ({"offload_optimizer": True}, 1),
        ({"offload_parameters": True, "offload_optimizer": True}, 3),
        ({"optimizer": "muon"}, 0),
    ],
    ids=str,
)
def test_auto_takes_a_stage_that_the_settings_allow(values: dict[str, Any], expected: int) -> None:
    config = PretrainConfig.model_validate({**GPU, "zero_stage": "auto", **values})
    assert problems(config) == []
    stage = choose_stage(config, 8192, 80 * 2**30, "p").stage
    assert stage == expected
    assert problems(config.model_copy(update={"zero_stage": stage})) == []


def test_one_switch_sets_all(monkeypatch: pytest.MonkeyPatch) -> None:
    config = PretrainConfig.model_validate(
        {**GPU, "zero_stage": 3, "offload_optimizer": True, "offload_parameters": True}
    )
    told = deepspeed_config(config, 2, 10)["zero_optimization"]
    assert told["overlap_comm"]
    assert told["offload_optimizer"] == told["offload_param"] == {"device": "cpu", "pin_memory": True}
    assert hardware(config.cluster).backend == "nccl"
    on_cpu = PretrainConfig()
    assert not deepspeed_config(on_cpu, 2, 10)["zero_optimization"]["overlap_comm"]
    assert hardware(on_cpu.cluster).backend == "gloo"


@pytest.mark.parametrize(
    ("objective", "model_type", "layer_types", "expected"),
    [
        ("causal_lm", "llama", ["full_attention"], "documents"),
        ("masked_lm", "modernbert", [], "documents"),
        ("masked_lm_nsp", "bert", [], "documents"),
        ("masked_lm", "modernbert", ["full_attention", "sliding_attention"], "eager"),
        ("causal_lm", "gpt_neox", [], "eager"),
        ("prefix_lm", "llama", [], "eager"),
        ("span_corruption", "t5", [], "eager"),
    ],
)
def test_on_a_cpu_attention_is_within_documents_where_positions_say_all(
    objective: str, model_type: str, layer_types: list[str], expected: str
) -> None:
    config = PretrainConfig.model_validate({"objective": objective})
    assert attention_implementation(config, model_type, layer_types) == expected


@pytest.mark.parametrize(
    ("values", "model_type", "packed"),
    [
        ({"objective": "causal_lm"}, "llama", True),
        ({"objective": "causal_lm"}, "gpt2", True),
        ({"objective": "label_lm"}, "qwen3", True),
        ({"objective": "causal_lm", "model": {"dropout": 0.1, "architecture": "gpt2"}}, "gpt2", False),
        ({"objective": "causal_lm", "precision": "fp32"}, "llama", False),
        ({"objective": "causal_lm"}, "gpt_neox", False),
        ({"objective": "prefix_lm"}, "llama", False),
        ({"objective": "masked_lm"}, "modernbert", False),
        ({"objective": "span_corruption"}, "t5", False),
    ],
    ids=str,
)
def test_flash_attention_is_taken_where_it_is_installed_and_keeps_documents_apart(
    values: dict[str, Any], model_type: str, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = PretrainConfig.model_validate({**GPU, **values})
    for found, expected in ((None, "sdpa"), (importlib.util.find_spec("json"), "flash_attention_2")):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, found=found: found)
        assert attention_implementation(config, model_type) == (expected if packed else "sdpa")


@pytest.mark.parametrize("architecture", FLASH_ARCHITECTURES)
def test_networks_under_flash_attention_hand_positions_to_it(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without them nothing would keep the documents of a row apart; seen by an attention function in its place."""
    seen = []

    def attend(module: Any, query: torch.Tensor, key: Any, value: Any, mask: Any, **told: Any) -> Any:
        seen.append(told.get("position_ids"))
        return torch.zeros_like(query.transpose(1, 2)), None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", attend)
    model = {"architecture": architecture, "hidden_size": 64, "num_layers": 2, "num_heads": 2}
    config = PretrainConfig.model_validate({"objective": "causal_lm", "model": model, "sequence_length": 32})
    network = build_model(config, 300, {"pad": 0, "bos": 2, "eos": 3})
    network.config._attn_implementation_internal = "flash_attention_2"
    rows = {"input_ids_BL": torch.full((2, 8), 7), "positions_BL": torch.arange(4).repeat(2, 2)}
    Runner(network).hidden(network, rows)
    assert len(seen) == 2
    assert all(positions.tolist() == [[0, 1, 2, 3] * 4] for positions in seen)
