"""A training goes on at another world size or ZeRO stage where it was: fp32 weights, moments and step are the same."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

CONFIG: dict[str, Any] = {
    "model": {"hidden_size": 32, "num_layers": 2, "num_heads": 2},
    "steps": 9,
    "learning_rate": 0.01,
    "sequence_length": 32,
    "global_batch_size": 8,
    "micro_batch_size_per_rank": 2,
    "log_every_steps": 1,
    "max_validation_sequences": 20,
    "checkpoint_every_steps": 6,
    "validation_every_steps": None,
}
MADE = [(0, "fp32"), (1, "fp32"), (3, "fp32"), (0, "bf16"), (1, "bf16"), (3, "bf16")]
CASES = [  # (stage, precision, stage then, ranks then); 2 ranks before
    *((a, "fp32", b, 2) for a, b in ((0, 1), (0, 3), (1, 0), (1, 2), (1, 3), (3, 0), (3, 1), (3, 2))),
    *((a, "bf16", b, 2) for a, b in ((0, 3), (1, 0), (3, 1))),
    *((a, "bf16", a, 2) for a in (0, 3)),
    *((a, "fp32", b, 1) for a, b in ((1, 1), (3, 3), (3, 0), (0, 0))),
    *((a, "fp32", b, 4) for a, b in ((1, 1), (3, 3), (0, 1))),
]
TOLERANCE = {"fp32": 2e-5, "bf16": 5e-3}


def configured(stage: int, precision: str) -> dict[str, Any]:
    return {**CONFIG, "zero_stage": stage, "precision": precision}


@pytest.fixture(scope="module")
def made(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory, run_trainings: Any) -> Mapping[Any, Path]:
    """Finished trainings of two ranks by (stage, precision), each with a checkpoint of step 6 of 9."""
    root = tmp_path_factory.mktemp("reshard")
    works = {case: root / f"stage{case[0]}-{case[1]}" for case in MADE}
    run_trainings.run(tiny_data, {work: configured(*case) for case, work in works.items()}, 2)
    return works


@pytest.fixture(scope="module")
def resumed(made: Mapping[Any, Path], tiny_data: Path, run_trainings: Any) -> Mapping[Any, Path]:
    """These gone on with from step 6, by case."""
    works = {}
    for case in CASES:
        source = made[case[:2]]
        works[case] = source.with_name("-".join(map(str, case)))
        shutil.copytree(source / "checkpoints", works[case] / "checkpoints")
    for num_ranks in (1, 2, 4):
        trainings = {works[case]: configured(case[2], case[1]) for case in CASES if case[3] == num_ranks}
        run_trainings.run(tiny_data, trainings, num_ranks)
    return works


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_training_goes_on_where_it_was(
    made: Mapping[Any, Path], resumed: Mapping[Any, Path], run_trainings: Any, case: tuple[int, str, int, int]
) -> None:
    """Wrong weights, moments or step counts would show in the losses of steps 7 to 9."""
    expected, found = run_trainings.losses(made[case[:2]]), run_trainings.losses(resumed[case])
    assert found[:6] == expected[:6]
    same = case[0] == case[2] and case[3] == 2
    assert found[6:] == pytest.approx(expected[6:], rel=0 if same else TOLERANCE[case[1]])


def test_the_checkpoint_of_the_start_can_be_cut_anew_too(tiny_data: Path, tmp_path: Path, run_trainings: Any) -> None:
    """A training that may roll back saves before its first step, when the optimizer has no moments yet."""
    told = {**CONFIG, "steps": 4, "precision": "fp32", "checkpoint_every_steps": None}
    told["health"] = {"on_loss_spike": "rollback"}
    stages = {0: 3, 1: 0, 3: 1}
    works = {stage: tmp_path / f"stage{stage}" for stage in stages}
    run_trainings.run(tiny_data, {work: {**told, "zero_stage": stage} for stage, work in works.items()}, 2)
    then = {}
    for stage, work in works.items():
        shutil.copytree(work / "checkpoints", tmp_path / f"then{stage}" / "checkpoints")
        then[tmp_path / f"then{stage}"] = {**told, "zero_stage": stages[stage]}
    run_trainings.run(tiny_data, then, 1)
    for stage, work in works.items():
        expected = run_trainings.losses(work)
        assert run_trainings.losses(tmp_path / f"then{stage}") == pytest.approx(expected, rel=TOLERANCE["fp32"])


def test_the_tolerance_would_not_forgive_lost_moments(
    made: Mapping[Any, Path], tiny_data: Path, run_trainings: Any
) -> None:
    """The same without moments, as a yardstick: a copy whose optimizer starts anew at step 6."""
    import torch

    source = made[1, "fp32"]
    work = source.with_name("yardstick")
    shutil.copytree(source / "checkpoints", work / "checkpoints")
    for path in work.glob("checkpoints/step_0000006.*/state/*optim_states.pt"):
        content = torch.load(path, weights_only=False)
        for state in content["optimizer_state_dict"]["base_optimizer_state"]["state"].values():
            state["exp_avg"].zero_()
            state["exp_avg_sq"].zero_()
        torch.save(content, path)
        _sign_again(path)
    run_trainings.run(tiny_data, {work: configured(2, "fp32")}, 2)
    expected = run_trainings.losses(source)[7:]
    assert run_trainings.losses(work)[7:] != pytest.approx(expected, rel=10 * TOLERANCE["fp32"])


def _sign_again(path: Path) -> None:
    import json

    from infra.storage import manifest

    folder = path.parents[1]
    read = json.loads((folder / "manifest.json").read_text())
    content = {name: value for name, value in read.items() if name not in manifest.SEALS}
    content["files"][path.relative_to(folder).as_posix()] = manifest.entry(path)
    (folder / "manifest.json").write_text(json.dumps(manifest.sealed(content)))
