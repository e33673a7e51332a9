"""A step that is skipped, or whose gradient is no number, leaves no trace, at any ZeRO stage, to the bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

CONFIG: dict[str, Any] = {
    "model": {"hidden_size": 32, "num_layers": 1, "num_heads": 2},
    "learning_rate": 0.01,
    "sequence_length": 32,
    "global_batch_size": 8,
    "micro_batch_size_per_rank": 2,
}
CASES: dict[str, dict[str, Any]] = {
    **{f"fp32-{stage}": {"precision": "fp32", "zero_stage": stage} for stage in range(4)},
    **{f"bf16-{stage}": {"precision": "bf16", "zero_stage": stage} for stage in range(4)},
    "offload-1": {"zero_stage": 1, "offload_optimizer": True},
    "offload-2": {"zero_stage": 2, "offload_optimizer": True},
    "offload-3": {"zero_stage": 3, "offload_optimizer": True, "offload_parameters": True},
    "adafactor-0": {"zero_stage": 0, "optimizer": "adafactor"},
    "muon-0": {"zero_stage": 0, "optimizer": "muon"},
}
if torch.ops.mkldnn._is_mkldnn_fp16_supported():  # else DeepSpeed refuses it on a CPU
    CASES |= {f"fp16-{stage}": {"precision": "fp16", "zero_stage": stage} for stage in (1, 2, 3)}


@pytest.fixture(scope="module")
def driven(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory, run_trainings: Any) -> Mapping[str, Any]:
    """What `engine_worker.py` wrote on two ranks, by case."""
    root = tmp_path_factory.mktemp("driven")
    works = {root / name: {**CONFIG, **values} for name, values in CASES.items()}
    run_trainings.run(tiny_data, works, 2, program="engine_worker.py")
    return {work.name: json.loads((work / "engine.json").read_text()) for work in works}


@pytest.mark.parametrize("name", CASES)
def test_a_skipped_step_leaves_no_trace(driven: Mapping[str, Any], name: str) -> None:
    """Left-over gradients, moments, or a counted step would change the weights."""
    assert driven[name]["skip"]["weights"] == driven[name]["without"]["weights"]
    assert driven[name]["skip"]["applied"] == [True] * 3


@pytest.mark.parametrize("name", CASES)
def test_a_gradient_that_is_no_number_is_dropped_and_told(driven: Mapping[str, Any], name: str) -> None:
    found = driven[name]["bad"]
    assert found["applied"] == [True, False, True, True]
    assert found["norms"][1] == [float("inf")] * 2
    assert found["weights"] == driven[name]["without"]["weights"]


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_norm_is_known_before_the_update(driven: Mapping[str, Any], name: str) -> None:
    exact = driven["fp32-0"]["without"]["norms"]
    tolerance = 1e-6 if name.startswith("fp32") else 0.02
    for (before, after), (reference, _) in zip(driven[name]["without"]["norms"], exact, strict=True):
        assert before == pytest.approx(after, rel=1e-3)
        assert before == pytest.approx(reference, rel=tolerance) or name == "adafactor-0"


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith(("offload", "fp16"))])
def test_offloaded_state_and_fp16_train_the_same(driven: Mapping[str, Any], name: str) -> None:
    reference = driven[f"bf16-{name[-1]}" if name.startswith("offload") else "fp32-0"]["without"]["losses"]
    assert driven[name]["without"]["losses"] == pytest.approx(reference, rel=1e-3)
