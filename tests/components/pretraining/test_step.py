"""The step on Ray Train: artifact, metrics, and errors that come back as ours."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import HashStore

from components.pretraining.config import PretrainConfig
from components.pretraining.health.failures import all_come, read_failure, unwrapped, write_failure
from components.pretraining.step import check_tokenizer, pretrain
from infra.errors import ConfigError, DataError, Fault, InfrastructureError, TrainingError
from infra.journal.step import Artifact, StepContext
from infra.tracking.client import StepTracker

CONFIG: dict[str, Any] = {
    "model": {"hidden_size": 32, "num_layers": 2, "num_heads": 2},
    "steps": 6,
    "sequence_length": 32,
    "global_batch_size": 8,
    "log_every_steps": 2,
    "max_validation_sequences": 20,
    "checkpoint_every_steps": 3,
}


def context(root: Path, name: str) -> StepContext:
    """A step's context with fresh folders."""
    for folder in ("output", "work"):
        (root / folder).mkdir(parents=True)
    return StepContext(
        step=name, key="0" * 32, output=root / "output", work=root / "work", raw={}, tracker=StepTracker(step=name)
    )


def artifacts(data: Path) -> dict[str, Artifact]:
    """Inputs of the step."""
    return {
        "tokenizer": Artifact(step="tokenizer", key="1" * 32, path=data, metrics={}),
        "token_shards": Artifact(step="token_shards", key="2" * 32, path=data / "token_shards", metrics={}),
    }


def test_masked_lm_on_two_workers(ray_cluster: Mapping[str, float], tiny_data: Path, tmp_path: Path) -> None:
    here = context(tmp_path, "pretrain_mlm")
    more = {"permanent_checkpoint_every_steps": 3, "zero_stage": "auto"}
    config = PretrainConfig.model_validate({**CONFIG, **more})
    output = pretrain(config, artifacts(tiny_data), here)
    assert output.measured["zero_stage"] == 0  # anything fits the memory of a node of this Ray
    assert "zero_stage=auto: 0, the smallest that fits" in str(output.measured["zero_stage_reason"])
    assert {path.name for path in (here.output / "model").iterdir()} >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "README.md",
    }
    assert output.metrics["steps"] == 6
    assert float(output.metrics["validation_loss"] or 0) > 0
    wanted = {"train_loss", "validation_pseudo_perplexity", "pseudo_bits_per_byte", "train_flops"}
    assert wanted | {"unigram_cross_entropy", "validation_loss/even", "validation_loss/odd"} <= set(output.metrics)
    assert {"mfu", "peak_tflops", "peak_memory_mib_per_rank"} <= set(output.measured) and not output.measured[
        "restarts"
    ]
    assert "samples.json" in {record.path for record in output.records if record.type == "table"}
    assert len(json.loads((here.output / "samples.json").read_text())["data"]) == 4
    assert 0 < float(output.measured["checkpoint_stall_seconds"] or 0) < float(output.measured["seconds"] or 0)
    (lasting,) = [record for record in output.records if record.type == "checkpoint"]
    assert lasting.name == "pretrain_mlm_step_3" and (here.work / lasting.path / "manifest.json").is_file()
    rows = [json.loads(line) for line in (here.output / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "train_loss" in row] == [2, 4, 6]
    again = pretrain(config, artifacts(tiny_data), _again(here, tmp_path / "again"))
    assert again.metrics == output.metrics


def _again(first: StepContext, output: Path) -> StepContext:
    output.mkdir()
    return StepContext(step=first.step, key=first.key, output=output, work=first.work, raw={}, tracker=first.tracker)


def test_a_users_mistake_seen_by_the_workers_comes_back_as_it_is_and_is_not_retried(
    ray_cluster: Mapping[str, float], tiny_data: Path, tmp_path: Path
) -> None:
    config = PretrainConfig.model_validate({**CONFIG, "learning_rate": 1e30, "warmup_steps": 0, "precision": "fp32"})
    here = context(tmp_path, "pretrain_mlm")
    with pytest.raises(TrainingError, match=r"loss is not finite at step \d of 6 \(batch .*: lower learning_rate"):
        pretrain(config, artifacts(tiny_data), here)
    assert len((here.work / "attempts.log").read_text().splitlines()) == 1


def test_values_that_do_not_fit_are_refused_before_ray(tiny_data: Path, tmp_path: Path) -> None:
    config = PretrainConfig.model_validate({**CONFIG, "global_batch_size": 7})
    with pytest.raises(ConfigError, match=r"global_batch_size=7 must be a multiple of cluster.num_workers=2"):
        pretrain(config, artifacts(tiny_data), context(tmp_path, "pretrain_mlm"))


@pytest.mark.parametrize(
    ("objective", "advice"), [("masked_lm_nsp", "take masked_lm"), ("denoising", "leave sentence_permutation out of")]
)
def test_shards_without_sentences_are_refused_before_ray(
    tiny_data: Path, tmp_path: Path, objective: str, advice: str
) -> None:
    shutil.copytree(tiny_data, tmp_path / "data")
    path = tmp_path / "data" / "token_shards" / "shards.json"
    path.write_text(path.read_text().replace('"has_sentences": true', '"has_sentences": false'))
    config = PretrainConfig.model_validate({**CONFIG, "objective": objective})
    with pytest.raises(ConfigError, match=rf"objective={objective} reads sentences, .* have none: .* {advice}"):
        pretrain(config, artifacts(tmp_path / "data"), context(tmp_path, "pretrain_mlm"))


@pytest.mark.parametrize("error", [ConfigError("a", "b"), DataError("no text"), TrainingError("nan at step 3")])
def test_an_error_survives_the_way_from_the_worker(error: Exception, tmp_path: Path) -> None:
    write_failure(tmp_path / "failure.json", error)  # type: ignore[arg-type]
    found = read_failure(tmp_path / "failure.json")
    assert type(found) is type(error)
    assert str(found) == str(error)


@pytest.mark.parametrize(("num_failed", "together"), [(2, False), (3, True)])
def test_ranks_know_whether_all_of_them_failed(num_failed: int, together: bool) -> None:
    store = HashStore()
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda _: all_come(store, 3, 0.3), range(num_failed)))
    assert found == [together] * num_failed


class GroupError(Exception):
    """As Ray Train's WorkerGroupError."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("Traceback of the worker")
        self.worker_failures = {1: cause}


def test_a_foreign_error_names_the_worker() -> None:
    found = unwrapped(GroupError(RuntimeError("connection closed by peer")), 2)
    assert isinstance(found, InfrastructureError)
    assert "training worker 1 failed" in str(found)
    assert "connection closed by peer" in str(found)


def test_a_bug_in_a_worker_is_a_bug_with_its_traceback() -> None:
    found = unwrapped(GroupError(KeyError("no such weight")), 2)
    assert found.fault is Fault.BUG
    assert "Traceback of the worker" in str(found)


def test_a_model_that_reads_other_ids_is_no_start(tiny_data: Path, tmp_path: Path) -> None:
    ours = tiny_data / "tokenizer"
    check_tokenizer(ours, ours, "pretrain_mlm")
    check_tokenizer(tmp_path, ours, "pretrain_mlm")  # without a tokenizer nobody can tell
    told = json.loads((ours / "tokenizer.json").read_text())
    names = list(told["model"]["vocab"])
    told["model"]["vocab"][names[-1]], told["model"]["vocab"][names[-2]] = len(names) - 2, len(names) - 1
    (tmp_path / "tokenizer.json").write_text(json.dumps(told))
    with pytest.raises(ConfigError, match=r"model\.init_from=.* its tokenizer is not that of this pipeline"):
        check_tokenizer(tmp_path, ours, "pretrain_mlm")


def test_a_model_may_lack_the_special_tokens_that_were_added_to_its_tokenizer(tiny_data: Path, tmp_path: Path) -> None:
    theirs, ours = tiny_data / "tokenizer", tmp_path / "ours"
    told = json.loads((theirs / "tokenizer.json").read_text())
    size = len(told["model"]["vocab"])
    told["added_tokens"].append(told["added_tokens"][0] | {"id": size, "content": "<new>"})
    ours.mkdir()
    (ours / "tokenizer.json").write_text(json.dumps(told))
    assert check_tokenizer(theirs, ours, "pretrain_mlm") == 1
    told["added_tokens"][-1]["special"] = False
    (ours / "tokenizer.json").write_text(json.dumps(told))
    with pytest.raises(ConfigError, match=r"set tokenizer\.kind=existing tokenizer\.path="):
        check_tokenizer(theirs, ours, "pretrain_mlm")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            {"target_parameters": "20k"},
            r"pretrain_mlm\.model\.target_parameters=20,000: the smallest modernbert with 512",
        ),
        ({"init_from": "start"}, r"pretrain_mlm\.model\.init_from=.*its vocab_size is 100, the token shards have 512"),
    ],
)
def test_a_network_that_does_not_suit_the_tokens_is_refused_before_ray(
    model: dict[str, Any], message: str, tiny_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "start").mkdir()
    described = {"model_type": "bert", "architectures": ["BertForMaskedLM"], "vocab_size": 100}
    (tmp_path / "start" / "config.json").write_text(json.dumps(described))
    if "init_from" in model:
        model = {"init_from": str(tmp_path / "start")}
    config = PretrainConfig.model_validate({**CONFIG, "model": model})
    with pytest.raises(ConfigError, match=message):
        pretrain(config, artifacts(tiny_data), context(tmp_path / "step", "pretrain_mlm"))


def test_planning_imports_nothing_heavy() -> None:
    code = "import sys, components.pretraining.config, components.pretraining.step; "
    code += "heavy = {'torch', 'ray', 'transformers', 'deepspeed', 'mlflow', 'numpy'}; "
    code += "sys.exit(len(heavy & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[3])
    assert done.returncode == 0
