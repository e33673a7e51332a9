"""One seed, two roots: the same keys, shards, losses, models and chosen trial."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.storage import manifest
from tests.pipelines.conftest import Smoke, run_cli

pytestmark = pytest.mark.slow


def test_two_roots_agree(smoke: Smoke, tmp_path: Path) -> None:
    done = run_cli("run", "smoke", "--json", f"storage.root={tmp_path / 'other'}", cwd=tmp_path)
    assert done.code == 0, done.err
    first = {step["name"]: step for step in smoke.result.json["steps"]}
    second = {step["name"]: step for step in done.json["steps"]}
    assert {n: s["key"] for n, s in first.items()} == {n: s["key"] for n, s in second.items()}
    assert {n: s["metrics"] for n, s in first.items()} == {n: s["metrics"] for n, s in second.items()}
    assert "chosen_trial" in first["finetune"]["metrics"]
    for name, step in first.items():
        folders = [root / "artifacts" / name / step["key"] for root in (smoke.root, tmp_path / "other")]
        files = [manifest.read(folder)["files"] for folder in folders]
        exact = [
            {p: f["sha256"] for p, f in listed.items() if p.endswith((".arrow", ".safetensors", "tokenizer.json"))}
            for listed in files
        ]
        assert exact[0] == exact[1], name
