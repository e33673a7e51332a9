"""What `plan` says that trainings will take."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from infra.errors import ConfigError
from pipelines.compose import load_config
from pipelines.estimates import Estimate, estimates, rows
from pipelines.runner import prepare

LARGE = ["cluster=gpu64", "model=7b", "pretrain=7b", "prompt=gpu_cluster", "tokenizer=gpu_cluster"]
KINDS = ("laptop", "gpu", "gpu_cluster")
HEAVY = ("torch", "ray", "transformers", "deepspeed", "mlflow")


def planned(arguments: list[str], root: Path) -> dict[str, Estimate]:
    told = [*arguments, f"storage.root={root}"]
    return {one.step: one for one in estimates(prepare("llm", load_config("llm", told), told).plan)}


def test_a_7b_model_on_64_gpus(tmp_path: Path) -> None:
    found = planned(LARGE, tmp_path)
    decoder = found["pretrain_clm"]
    assert decoder.scale.num_parameters == pytest.approx(6.74e9, rel=0.01)
    assert decoder.scale.tokens_per_parameter == pytest.approx(20, rel=0.01)
    assert decoder.choice is not None and decoder.fits
    assert decoder.needed_bytes_by_stage[0] > 79 * 2**30
    assert found["tune_decoder"].scale.num_parameters == decoder.scale.num_parameters
    assert {name for name, _ in rows(list(found.values()))} >= {"hours", "FLOPs", "ZeRO stage", "a checkpoint"}


def test_the_plan_has_it_as_json_and_as_a_table_without_heavy_imports(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pipelines.cli import main\n"
        f"sys.argv = ['fromzero', 'plan', 'llm', *{[*LARGE, f'storage.root={tmp_path}']!r}, *sys.argv[1:]]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    outputs = []
    for options in ([], ["--json"]):
        command = [sys.executable, "-c", code, *options]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
        assert done.stderr.splitlines()[-1] == "[]"
        outputs.append(done.stdout)
    assert "zero_stage=auto" in outputs[0] and "Hoffmann" in outputs[0]
    steps: dict[str, Any] = {step["name"]: step for step in json.loads(outputs[1])["steps"]}
    told = steps["pretrain_clm"]["estimate"]
    assert set(told["memory_bytes_per_rank_by_stage"]) == set("0123")
    assert told["hours"] > 0 and told["states"]["weights"] > 0 and told["zero_stage"] == 1
    assert "estimate" not in steps["corpus"]


@pytest.mark.parametrize("cluster", KINDS)
@pytest.mark.parametrize("model", KINDS)
@pytest.mark.parametrize("pretrain", KINDS)
def test_every_combination_of_groups_plans(cluster: str, model: str, pretrain: str, tmp_path: Path) -> None:
    arguments = [f"cluster={cluster}", f"model={model}", f"pretrain={pretrain}"]
    if (model, pretrain) == ("laptop", "gpu_cluster"):
        with pytest.raises(ConfigError, match="max_position_embeddings=512 must be at least"):
            planned(arguments, tmp_path)
        return
    found = planned(arguments, tmp_path)
    assert set(found) == {"pretrain_mlm", "pretrain_clm", "tune_decoder"}
    assert all(one.scale.flops > 0 and one.fits in (True, False, None) for one in found.values())


def test_auto_stays_open_where_only_the_workers_know_their_memory(tmp_path: Path) -> None:
    arguments = ["cluster=gpu_cluster", "pretrain_mlm.zero_stage=auto", "pretrain_clm.zero_stage=auto"]
    found = planned(arguments, tmp_path)["pretrain_mlm"]
    assert found.is_stage_open and found.to_json()["zero_stage"] is None and found.fits is None


def test_what_fits_nowhere_is_told_for_every_training(tmp_path: Path) -> None:
    arguments = ["pretrain_mlm.zero_stage=auto", "pretrain_clm.zero_stage=auto", "cluster.memory_gib_per_worker=0.5"]
    with pytest.raises(ConfigError) as caught:
        planned(arguments, tmp_path)
    assert [line.split(".")[0] for line in caught.value.problems] == ["pretrain_mlm", "pretrain_clm"]


def test_what_must_fit_is_that_of_the_fewest_workers(tmp_path: Path) -> None:
    few, elastic = (planned([f"cluster.num_workers={told}"], tmp_path)["pretrain_mlm"] for told in ("1", "[1,2]"))
    assert elastic.needed_bytes_by_stage == few.needed_bytes_by_stage
