"""A killed training goes on from its newest complete checkpoint and makes the same model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

CONFIG: dict[str, Any] = {
    "model": {"hidden_size": 32, "num_layers": 2, "num_heads": 2},
    "steps": 12,
    "learning_rate": 0.01,
    "sequence_length": 32,
    "global_batch_size": 8,
    "log_every_steps": 1,
    "max_validation_sequences": 20,
    "checkpoint_every_steps": 3,
    "keep_checkpoints": 2,
    "validation_every_steps": 4,
}
RETENTION = {
    **CONFIG,
    "checkpoint_every_steps": 1,
    "keep_checkpoints": 1,
    "keep_best_checkpoints": 1,
    "permanent_checkpoint_every_steps": 9,
}
WEIGHTS = "export/model/model.safetensors"


@pytest.fixture(scope="module")
def killed(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory, run_trainings: Any) -> Path:
    """The work folder of a training on two ranks killed at step 8, after the checkpoints of steps 3 and 6."""
    work = tmp_path_factory.mktemp("resume") / "killed"
    run_trainings.run(tiny_data, {work: CONFIG}, 2, kill_at=8)
    return work


@pytest.fixture(scope="module")
def outcome(killed: Path, tiny_data: Path, run_trainings: Any) -> Mapping[str, Path]:
    """That training gone on with, beside one never killed and ones whose checkpoints were damaged before."""
    import shutil

    root = killed.parent
    works = {name: root / name for name in ("resumed", "damaged", "unfinished", "retained", "left", "undisturbed")}
    for name in ("resumed", "damaged", "unfinished", "retained"):
        shutil.copytree(killed, works[name])
    run_trainings.run(tiny_data, {works["left"]: CONFIG}, 2, term_at=6)
    assert not (works["left"] / "export").exists()
    newest = next((works["damaged"] / "checkpoints").glob("step_0000006.*"))
    part = next(newest.glob("state/*optim_states.pt"))
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    next((works["unfinished"] / "checkpoints").glob("step_0000006.*/manifest.json")).unlink()
    said = run_trainings.run(tiny_data, {**dict.fromkeys(works.values(), CONFIG), works["retained"]: RETENTION}, 2)
    (root / "said.txt").write_text(said)
    return {**works, "said": root / "said.txt"}


def test_a_kill_leaves_complete_checkpoints_only(killed: Path) -> None:
    assert sorted(path.name[:12] for path in (killed / "checkpoints").iterdir()) == ["step_0000003", "step_0000006"]
    assert not (killed / "export").exists()


@pytest.mark.parametrize("name", ["resumed", "damaged", "unfinished", "retained", "left"])
def test_losses_and_weights_are_those_of_an_undisturbed_run_to_the_bit(
    outcome: Mapping[str, Path], name: str, run_trainings: Any
) -> None:
    assert run_trainings.history(outcome[name]) == run_trainings.history(outcome["undisturbed"])
    assert (outcome[name] / WEIGHTS).read_bytes() == (outcome["undisturbed"] / WEIGHTS).read_bytes()


def test_a_damaged_checkpoint_is_named_and_set_aside(outcome: Mapping[str, Path]) -> None:
    aside = [path.name for path in (outcome["damaged"] / "checkpoints").glob("damaged_*")]
    assert len(aside) == 1
    assert aside[0].startswith("damaged_step_0000006")
    said = outcome["said"].read_text()
    assert "damaged checkpoint" in said
    assert "optim_states.pt differs from its manifest" in said


def test_only_the_newest_checkpoints_are_kept(outcome: Mapping[str, Path]) -> None:
    kept = sorted(path.name[:12] for path in (outcome["undisturbed"] / "checkpoints").iterdir())
    assert kept == ["step_0000006", "step_0000009"]


def test_the_best_and_the_permanent_ones_stay_beside_the_newest(
    outcome: Mapping[str, Path], run_trainings: Any
) -> None:
    losses = {
        row["step"]: row["validation_loss"]
        for row in run_trainings.history(outcome["retained"])
        if "validation_loss" in row
    }
    assert losses[8] < losses[4]
    kept = sorted(path.name[:12] for path in (outcome["retained"] / "checkpoints").iterdir())
    assert kept == ["step_0000008", "step_0000009", "step_0000011"]


def test_sigterm_to_one_rank_saves_on_all_after_the_step_and_loses_none(outcome: Mapping[str, Path]) -> None:
    assert (outcome["left"] / "attempts.log").read_text().splitlines() == ["2 0", "2 7"]


def test_a_disk_that_is_full_on_one_rank_is_one_clear_line_on_all(
    tiny_data: Path, tmp_path: Path, run_trainings: Any
) -> None:
    with pytest.raises(RuntimeError) as caught:
        run_trainings.run(tiny_data, {tmp_path: CONFIG}, 2, full_rank=1)
    said = re.findall(r"StorageError: (.*)", str(caught.value))
    assert len(said) == 2 and said[0] == said[1] and "File too large" in said[0], str(caught.value)
    assert not list(tmp_path.glob("checkpoints/*/manifest.json"))


def test_the_manifest_says_what_it_must(killed: Path) -> None:
    manifest = json.loads(next((killed / "checkpoints").glob("step_0000006.*/manifest.json")).read_text())
    assert manifest["num_samples"] == 6 * 8
    assert (manifest["world_size"], manifest["zero_stage"], manifest["config_digest"]) == (2, 1, "k" * 32)
    assert "history.jsonl" in manifest["files"]


def test_an_unsigned_checkpoint_is_refused_where_a_key_is_set(killed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from components.pretraining.checkpoints.checkpoint import verify
    from infra.errors import DamagedArtifactError

    monkeypatch.setenv("FROMZERO_SIGNING_KEY", "k")
    with pytest.raises(DamagedArtifactError, match="not signed"):
        verify(next((killed / "checkpoints").glob("step_0000006.*")), "k" * 32)
