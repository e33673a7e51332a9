"""A training that goes from 4 to 2 to 3 workers takes the same samples in the same order to the same loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

STAGES = (1, 3)
CONFIG: dict[str, Any] = {
    "model": {"hidden_size": 32, "num_layers": 2, "num_heads": 2},
    "steps": 12,
    "learning_rate": 0.01,
    "sequence_length": 32,
    "global_batch_size": 12,
    "micro_batch_size_per_rank": 2,
    "precision": "fp32",
    "log_every_steps": 1,
    "max_validation_sequences": 20,
    "checkpoint_every_steps": None,
}


def works(root: Path, name: str) -> dict[Path, dict[str, Any]]:
    return {root / f"{name}{stage}": {**CONFIG, "zero_stage": stage} for stage in STAGES}


@pytest.fixture(scope="module")
def root(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory, run_trainings: Any) -> Path:
    """`resized<stage>`, and `undisturbed<stage>` on 4 workers."""
    root = tmp_path_factory.mktemp("sizes")
    resized = works(root, "resized")
    run_trainings.run(tiny_data, works(root, "undisturbed") | resized, 4, leave_at=dict.fromkeys(resized, 3))
    run_trainings.run(tiny_data, resized, 2, leave_at=dict.fromkeys(resized, 7))
    run_trainings.run(tiny_data, resized, 3)
    return root


@pytest.mark.parametrize("stage", STAGES)
def test_the_same_samples_in_the_same_order_end_at_the_same_loss(root: Path, run_trainings: Any, stage: int) -> None:
    resized, undisturbed = root / f"resized{stage}", root / f"undisturbed{stage}"
    assert (resized / "attempts.log").read_text().splitlines() == ["4 0", "2 4", "3 8"]
    hashes = [
        [row["sample_hash"] for row in run_trainings.history(one) if "train_loss" in row]
        for one in (resized, undisturbed)
    ]
    assert hashes[0] == hashes[1] and len(set(hashes[0])) == 12
    assert run_trainings.losses(resized) == pytest.approx(run_trainings.losses(undisturbed), rel=1e-3)
