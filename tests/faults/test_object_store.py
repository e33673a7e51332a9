"""The micro pipeline on a root on an object store: one machine dies, driver and workers alike, and another, which has a
local folder of its own, goes on. What is left equals an undisturbed run on a local root."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path

import pytest

from infra.storage.objects import ObjectStore
from tests.faults import micro
from tests.faults.micro import Fault, Left
from tests.faults.test_kills import FOURTH, MKDIR, RENAME, UNIT
from tests.pipelines.conftest import run_cli

pytestmark = pytest.mark.slow

RAW = Path(__file__).resolve().parents[2] / "conf" / "data" / "wordnet" / "glosses.jsonl.gz"
RAY = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray"
CHECKPOINTS = Fault("machine, between two checkpoints", "machine", MKDIR, FOURTH)
TRIALS = Fault("machine, between two trials", "machine", RENAME, UNIT, 3)


@pytest.mark.parametrize(
    "fault", [pytest.param(CHECKPOINTS), pytest.param(TRIALS, marks=pytest.mark.faults)], ids=lambda fault: fault.name
)
def test_another_machine_goes_on_where_one_died(
    fault: Fault, undisturbed: Left, s3_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = uuid.uuid4().hex
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    objects = ObjectStore.open(s3_uri)
    objects.upload(RAW.parent, [RAW.name], "raw")
    facts = "text_column: text, name: wordnet, license: WordNet 3.1 (Princeton University)"
    place = [f"storage.root={s3_uri}/root", f"corpus.sources=[{{path: {s3_uri}/raw/*.gz, {facts}}}]"]
    killed = micro.run(tmp_path / "one", fault, *place, f"storage.local={tmp_path / 'one' / 'root'}")
    assert killed.code == -9 and killed.killed, killed.err
    work = objects.sizes("root/work")
    assert any(name.endswith("/manifest.json" if fault is CHECKPOINTS else "/result.json") for name in work), work

    ended = micro.run(tmp_path / "two", None, *place, f"storage.local={tmp_path / 'two' / 'root'}")
    assert ended.code == 0, ended.err
    steps = {step["name"]: step for step in json.loads(ended.out)["steps"]}
    if fault is CHECKPOINTS:
        assert {name for name, step in steps.items() if step["status"] == "ran"} == {"pretrain_mlm", "finetune"}
        assert steps["pretrain_mlm"]["measured"]["resumed_from_step"] == micro.CHECKPOINT_EVERY_STEPS
    else:
        assert {name for name, step in steps.items() if step["status"] == "ran"} == {"finetune"}
        assert len([name for name in work if name.endswith("/result.json")]) == 2
    left = micro.left(tmp_path / "two" / "root")
    assert (left.keys, left.metrics, left.files) == (undisturbed.keys, undisturbed.metrics, undisturbed.files)
    assert left.curves == undisturbed.curves
    assert left.num_versions == 1 and left.alias_key == left.keys["finetune"]
    there = objects.sizes("root")
    assert {name.partition("/")[0] for name in there} == {"artifacts", "runs", "tracking", "units"}
    assert len({name.split("/")[2] for name in there if name.startswith("artifacts/")}) == len(left.keys)
    assert not micro.orphans(killed, ended)

    local = tmp_path / "three" / "root"
    planned = run_cli("plan", *micro.ARGUMENTS, *place, f"storage.local={local}", cwd=tmp_path)
    assert [step["status"] for step in planned.json["steps"]] == ["reused"] * len(left.keys), planned.err
    kept = {path.name for path in local.rglob("*") if path.is_file()}
    assert kept <= {"stands_for", "digests.json"}
    status = run_cli("status", "--json", *place[:1], f"storage.local={local}", cwd=tmp_path)
    assert [run["status"] for run in status.json["runs"]] == ["FINISHED", "KILLED"]
    written = [*tmp_path.rglob("*"), *RAY.glob("session_*/logs/*")]
    assert not [path for path in written if path.is_file() and secret.encode() in path.read_bytes()]
    contents = objects.read_all(f"root/{name}" for name in there)
    assert not [name for name, data in contents.items() if secret.encode() in data]
