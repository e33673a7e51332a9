"""Every network under DeepSpeed on two ranks and at ZeRO 0 and 3, with dropout and activations computed again, against
one rank that takes the whole batch at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from components.pretraining.config import KINDS

OBJECTIVES = {"encoder": "masked_lm", "encoder_decoder": "denoising", "decoder": "causal_lm"}
ROOT = Path(__file__).parents[3]


def job(architecture: str, kind: str, stage: int, size: int, *, again: bool) -> dict[str, Any]:
    dropout = 0.0 if architecture in ("llama", "qwen3") else 0.2
    sizes = {"architecture": architecture, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "dropout": dropout}
    return {
        "objective": OBJECTIVES[kind],
        "model": sizes,
        "sequence_length": 32,
        "global_batch_size": 4,
        "micro_batch_size_per_rank": size,
        "precision": "fp32",
        "zero_stage": stage,
        "activation_checkpointing": again,
    }


def run(folder: Path, jobs: dict[str, Any], world_size: int) -> dict[str, list[float]]:
    folder.mkdir()
    (folder / "jobs.json").write_text(json.dumps({"jobs": jobs, "out": str(folder / "out.json")}))
    settings = {"PYTHONPATH": str(ROOT), "STORE": str(folder / "store"), "WORLD_SIZE": str(world_size)}
    command = [sys.executable, str(Path(__file__).with_name("network_worker.py")), str(folder / "jobs.json")]
    ranks = [
        subprocess.Popen(
            command,
            env={**os.environ, **settings, "RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]
    try:
        told = [rank.communicate(timeout=240)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert all(rank.returncode == 0 for rank in ranks), "\n".join(told)[-4000:]
    found: dict[str, list[float]] = json.loads((folder / "out.json").read_text())
    return found


def test_the_losses_do_not_depend_on_ranks_stages_micro_batches_or_recomputation(tmp_path: Path) -> None:
    plain = {name: job(name, kind, 0, 4, again=False) for name, kind in KINDS.items()}
    spread = {
        f"{name} {stage}": job(name, kind, stage, 1, again=stage == 3)
        for name, kind in KINDS.items()
        for stage in (0, 3)
    }
    expected = run(tmp_path / "one", plain, 1)
    found = run(tmp_path / "two", spread, 2)
    for name, losses in found.items():
        assert losses == pytest.approx(expected[name.split()[0]], rel=2e-5), name
        assert losses[-1] < losses[0] + 0.5
