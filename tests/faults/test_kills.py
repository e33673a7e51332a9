"""Kills one process of the micro pipeline, at points from its first file to its last message, and compares what is
left with an undisturbed run. A sample runs in `make test`, all of them in `make test-faults`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from infra.storage import manifest
from tests.faults import micro
from tests.faults.micro import Ended, Fault, Left

pytestmark = pytest.mark.slow

RENAME, MKDIR, OPEN, LINK, REMOVE = "os.rename", "os.mkdir", "open", "os.link", "os.remove"
FOURTH = r"/checkpoints/step_0000004\.[0-9a-f]+ "
"""The folder of a checkpoint, before anything is in it."""
UNIT = r"/units/\.\w+\.\d+ -> "
"""A finished unit of the sweep becomes visible."""

FAULTS = (
    # the driver: the run is over, and the next one goes on
    Fault("driver, before the run has a record", "driver", RENAME, r"/runs/\."),
    Fault("driver, when an artifact becomes visible", "driver", RENAME, "-> .*/artifacts/corpus/"),
    Fault("driver, between two checkpoints", "driver", MKDIR, FOURTH),
    Fault("driver, between two trials", "driver", RENAME, UNIT, 3),
    Fault("driver, after the last step", "driver", OPEN, "/artifacts/finetune "),
    Fault("driver, all delivered but not on record", "driver", RENAME, r"/tracking/\."),
    # the task of a step: it is tried again
    Fault("step, inside its output", "self", OPEN, r"/temporary/corpus-\S+\.(arrow|parquet|jsonl)"),
    Fault("step, before the manifest", "self", RENAME, r"/temporary/tokenizer-\S+/\.manifest"),
    Fault("step, after the manifest", "self", RENAME, "-> .*/artifacts/token_shards/"),
    Fault("step, visible but not told", "self", OPEN, "/artifacts/task "),
    Fault("step, while the weights are handed over", "self", LINK, "/export/model/", 2),
    Fault("step, in the middle of the sweep", "step", RENAME, UNIT, 2),
    # the tracker: it is started again
    Fault("tracker, before the database", "self", "sqlite3.connect", r"mlflow\.db"),
    Fault("tracker, before the first batch counts as delivered", "self", RENAME, r"-> .*\.delivered"),
    Fault("tracker, before a later batch counts as delivered", "self", RENAME, r"-> .*\.delivered", 3),
    Fault("tracker, when a message reaches the disk", "self", OPEN, r"/spool/[^ ]+\.jsonl -> a", 30),
    Fault("tracker, during the upload of the model", "self", OPEN, r"/mlartifacts/.*model\.safetensors"),
    # a training worker: Ray Train starts the workers again
    Fault("worker, inside a checkpoint", "self", OPEN, r"/step_0000004\S+/history\.jsonl -> w"),
    Fault("worker, before a checkpoint's manifest", "self", RENAME, r"/step_0000002\S+/\.manifest"),
    Fault("worker, when an old checkpoint goes", "self", REMOVE, r"/step_\S+/manifest\.json"),
    Fault("worker, when the model is whole", "self", RENAME, r"/export\.\w+\.partial -> "),
    # a trial: the step is tried again, and goes on from the finished units
    Fault("trial, before its first result", "self", RENAME, UNIT),
    Fault("trial, before a later result", "self", RENAME, UNIT, 4),
    # the Ray head, the node's raylet, the whole machine
    Fault("head, during a checkpoint", "head", MKDIR, FOURTH),
    Fault("head, during the sweep", "head", RENAME, UNIT, 2),
    Fault("raylet, during a checkpoint", "raylet", MKDIR, FOURTH),
    Fault("machine, during a checkpoint", "machine", OPEN, r"/step_0000004\S+/history\.jsonl -> w"),
    Fault("machine, when the weights become visible", "machine", RENAME, "-> .*/artifacts/pretrain_mlm/"),
    Fault("machine, during an upload", "machine", RENAME, r"-> .*\.delivered", 4),
)
SAMPLE = ("driver, between two checkpoints",)
ENDS_THE_RUN = ("driver", "head", "raylet", "machine")


@pytest.mark.parametrize(
    "fault", [pytest.param(f, id=f.name, marks=() if f.name in SAMPLE else pytest.mark.faults) for f in FAULTS]
)
def test_a_kill_loses_nothing(fault: Fault, undisturbed: Left, tmp_path: Path) -> None:
    ended = first = micro.run(tmp_path, fault)
    assert first.killed and first.killed["pids"], f"the moment never came: {ended.err}"
    runs = [ended]
    if fault.victim in ENDS_THE_RUN:
        check_end(fault, ended)
        ended = micro.run(tmp_path)
        runs.append(ended)
    assert ended.code == 0, ended.err
    steps = {step["name"]: step for step in json.loads(ended.out)["steps"]}
    newest = first.killed["checkpoint"]
    if newest is not None and steps["pretrain_mlm"]["status"] == "ran":
        measured = steps["pretrain_mlm"]["measured"]
        resumed = measured["resumed_from_step"]
        if fault.victim in ENDS_THE_RUN:  # the workers may have come to one more, or to the end, before they ended too
            assert resumed >= newest or not measured["restarts"]
        else:
            assert resumed == (0 if fault.name.startswith("tracker") else newest)
    left = micro.left(tmp_path / "root")
    assert left.keys == undisturbed.keys
    assert left.metrics == undisturbed.metrics
    assert left.files == undisturbed.files
    assert left.curves == undisturbed.curves
    assert left.num_versions == 1 and left.alias_key == left.keys["finetune"]
    assert not micro.orphans(*runs)


@pytest.mark.faults
def test_sigterm_to_the_driver_saves_at_once_and_loses_no_step(tmp_path: Path) -> None:
    """The only checkpoint is the one of the notice."""
    arguments = ("--until=pretrain_mlm", "pretrain_mlm.steps=300", "pretrain_mlm.checkpoint_every_steps=null")
    path = r"/work/pretrain_mlm/.*/attempts\.log -> a"
    first = micro.run(tmp_path / "told", Fault("SIGTERM", "driver", OPEN, path, signal="SIGTERM"), *arguments)
    assert first.code == 130, first.err
    (newest,) = tmp_path.glob("told/root/work/pretrain_mlm/*/checkpoints/step_*/manifest.json")
    step = int(newest.parent.name[5:12])
    assert 0 < step < 300
    runs = [micro.run(tmp_path / name, None, *arguments) for name in ("told", "undisturbed")]
    assert [run.code for run in runs] == [0, 0], runs[0].err
    (made,) = (one for one in json.loads(runs[0].out)["steps"] if one["name"] == "pretrain_mlm")
    assert made["measured"]["resumed_from_step"] == step
    told, undisturbed = (
        manifest.verify(next((tmp_path / name / "root/artifacts/pretrain_mlm").iterdir()))
        for name in ("told", "undisturbed")
    )
    assert told["files"] == undisturbed["files"] and told["metrics"] == undisturbed["metrics"]
    assert not micro.orphans(first, *runs)


def check_end(fault: Fault, ended: Ended) -> None:
    """A driver that lives says within seconds what was lost, and exits with 3."""
    if fault.victim in ("driver", "machine"):
        assert ended.code == -9
    else:
        assert ended.code == 3, ended.err
        assert len(re.findall("^error: ", ended.err, re.MULTILINE)) == 1, ended.err
        assert "Traceback" not in ended.err
