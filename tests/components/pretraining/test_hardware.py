"""What is chosen by the hardware of the workers, and what does not go with it."""

from __future__ import annotations

import importlib.util
import re
from typing import Any

import pytest

from components.pretraining.config import PretrainConfig
from components.pretraining.ds_config import deepspeed_config
from components.pretraining.fit import problems
from components.pretraining.hardware import hardware
from components.pretraining.models import attention_implementation

GPU: dict[str, Any] = {"cluster": {"num_gpus_per_worker": 1}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"precision": "fp16"}, r"precision=fp16 needs GPUs"),
        ({"precision": "fp16", "zero_stage": 0, **GPU}, r"fp16 does not go with p\.zero_stage=0.*1, 2, 3 or auto"),
        ({"optimizer": "adafactor"}, r"adafactor needs whole matrices.*p\.zero_stage=1.*set p\.zero_stage=0"),
        ({"optimizer": "muon", "zero_stage": 3}, r"muon needs whole matrices, and p\.zero_stage=3"),
        ({"optimizer": "muon", "zero_stage": "auto"}, r"muon needs whole matrices, and p\.zero_stage=auto"),
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
    assert attention_implementation(on_cpu) == "eager"


def test_flash_attention_is_taken_where_it_is_installed_and_knows_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    for found, expected in ((None, "sdpa"), (importlib.util.find_spec("json"), "flash_attention_2")):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, found=found: found)
        chosen = {
            objective: attention_implementation(PretrainConfig.model_validate({**GPU, "objective": objective}))
            for objective in ("masked_lm", "causal_lm", "prefix_lm", "span_corruption")
        }
        assert chosen == {
            "masked_lm": expected,
            "causal_lm": expected,
            "prefix_lm": "sdpa",
            "span_corruption": "sdpa",
        }
