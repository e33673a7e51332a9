"""Which weights an optimizer treats how, and that each goes on from a checkpoint where it was."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from components.pretraining.config import PretrainConfig
from components.pretraining.engine.optimizers import layer_matrices, parameter_groups
from components.pretraining.networks.models import TargetLoss, build_model

CONFIG: dict[str, Any] = {
    "model": {"hidden_size": 32, "num_layers": 2, "num_heads": 2},
    "steps": 6,
    "sequence_length": 32,
    "global_batch_size": 8,
    "micro_batch_size_per_rank": 2,
    "zero_stage": 0,
    "log_every_steps": 1,
    "max_validation_sequences": 20,
    "checkpoint_every_steps": 4,
}
CASES = {
    f"{optimizer}-{precision}": {"optimizer": optimizer, "precision": precision}
    for optimizer in ("adafactor", "muon")
    for precision in ("fp32", "bf16")
}


@pytest.mark.parametrize("objective", ["masked_lm", "causal_lm"])
def test_muon_has_the_matrices_of_the_layers_and_nothing_else(objective: str) -> None:
    values = {**CONFIG, "objective": objective, "optimizer": "muon", "weight_decay": 0.1}
    config = PretrainConfig.model_validate(values)
    module = TargetLoss(build_model(config, 64, {"pad": 0, "bos": 1, "eos": 2}))
    groups = parameter_groups(module, config)
    assert [(group.muon, group.weight_decay, group.learning_rate) for group in groups] == [
        (True, 0.1, 0.02),
        (False, 0.1, 0.002),
        (False, 0.0, 0.002),
    ]
    hidden, matrices, others = (set(group.weights) for group in groups)
    assert hidden == layer_matrices(module)
    assert all(".layers." in name and "norm" not in name for name in hidden)
    assert not any(".layers." in name for name in matrices)
    assert any("embed" in name for name in matrices)
    assert hidden | matrices | others == {name for name, _ in module.named_parameters()}


@pytest.fixture(scope="module")
def made(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory, run_trainings: Any) -> Mapping[str, Path]:
    """Finished trainings of two ranks, each with a checkpoint of step 4 of 6."""
    root = tmp_path_factory.mktemp("optimizers")
    works = {name: root / name for name in CASES}
    run_trainings.run(tiny_data, {work: {**CONFIG, **CASES[name]} for name, work in works.items()}, 2)
    return works


@pytest.fixture(scope="module")
def resumed(made: Mapping[str, Path], tiny_data: Path, run_trainings: Any) -> Mapping[tuple[str, int], Path]:
    """These gone on with from step 4, by name and number of ranks."""
    works = {}
    for world_size in (2, 1):
        mine = {}
        for name, source in made.items():
            work = source.with_name(f"{name}-{world_size}")
            shutil.copytree(source / "checkpoints", work / "checkpoints")
            works[name, world_size] = work
            mine[work] = {**CONFIG, **CASES[name]}
        run_trainings.run(tiny_data, mine, world_size)
    return works


@pytest.mark.parametrize("world_size", [2, 1])
@pytest.mark.parametrize("name", CASES)
def test_it_goes_on_where_it_was(
    made: Mapping[str, Path],
    resumed: Mapping[tuple[str, int], Path],
    name: str,
    world_size: int,
    run_trainings: Any,
) -> None:
    """At the same number of ranks to the bit. Lost moments: see the yardstick of test_reshard.py."""
    expected, found = run_trainings.losses(made[name]), run_trainings.losses(resumed[name, world_size])
    tolerance = 0 if world_size == 2 else 5e-4
    assert found == pytest.approx(expected, rel=tolerance, abs=0)
