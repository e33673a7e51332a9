"""`submit`, `status` and `stop` on a real cluster with a token: one job a run, and whatever dies, nothing is lost."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.storage import manifest
from infra.storage.objects import ObjectStore
from tests.clusters import Cluster, Forwarder, ray_cluster_of_three, start
from tests.faults import micro
from tests.pipelines.conftest import PROJECT, Done

pytestmark = pytest.mark.slow
ARGUMENTS = tuple(word for word in micro.ARGUMENTS if word != "--json" and not word.startswith("--until"))
LONG = "pretrain_mlm.steps=60"
"""So that a checkpoint is seen while the training goes on."""
RARELY = "pretrain_mlm.checkpoint_every_steps=10000"
ENDLESS = "pretrain_mlm.steps=20000"
"""So that a training goes on until somebody ends it, however slow the machine is at that."""
MADE_BEFORE = ("task", "corpus", "tokenizer", "token_shards")
TIMEOUT_SECONDS = 240


@pytest.fixture(scope="module")
def cluster(s3_variables: Mapping[str, str]) -> Iterator[Cluster]:
    with ray_cluster_of_three(s3_variables) as one:
        yield one


@dataclass(frozen=True)
class Fromzero:
    """The command line, with `--address` of the cluster."""

    cluster: Cluster

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        words = ["-m", "pipelines.cli", *arguments]
        if arguments[0] not in ("plan", "run"):
            words += ["--address", self.cluster.url]
        return start(self.cluster, *words, project=PROJECT, **variables)

    def __call__(self, *arguments: str, **variables: str) -> Done:
        return ended(self.start(*arguments, **variables))

    def submit(self, root: Path, *more: str, steps: str = LONG) -> subprocess.Popen[str]:
        """The micro pipeline up to its training."""
        return self.start("submit", *ARGUMENTS, steps, "--until=pretrain_mlm", f"storage.root={root}", *more)


@pytest.fixture(scope="module")
def fromzero(cluster: Cluster) -> Fromzero:
    return Fromzero(cluster)


def ended(process: subprocess.Popen[str]) -> Done:
    try:
        out, err = process.communicate(timeout=TIMEOUT_SECONDS)
    finally:
        process.kill()
    return Done(process.returncode, out, err)


def until(what: Callable[[], Any], process: subprocess.Popen[str] | None = None) -> Any:
    """What `what` returns, once it is something."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not (found := what()):
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, ended(process)
        time.sleep(0.02)
    return found


@dataclass(frozen=True)
class Twice:
    """What became of two submissions at the same instant."""

    root: Path
    results: tuple[Done, Done]


@pytest.fixture(scope="module")
def undisturbed(fromzero: Fromzero, tmp_path_factory: pytest.TempPathFactory) -> Twice:
    root = tmp_path_factory.mktemp("undisturbed") / "root"
    both = [fromzero.submit(root, "--json"), fromzero.submit(root, "--json", "cluster.object_store_memory_mib=600")]
    one, other = (ended(process) for process in both)
    return Twice(root, (one, other))


@pytest.fixture
def prepared(undisturbed: Twice, tmp_path: Path) -> Path:
    """A root with all but the training."""
    root = tmp_path / "root"
    for step in MADE_BEFORE:
        shutil.copytree(undisturbed.root / "artifacts" / step, root / "artifacts" / step)
    return root


def left(root: Path) -> dict[str, Any]:
    """Key, metrics to the bit and files of every step."""
    found = {}
    for path in sorted((root / "artifacts").glob("*/*")):
        content = manifest.verify(path)
        files = {name: file["sha256"] for name, file in content["files"].items() if name not in micro.MEASURED}
        assert content["step"] not in found
        found[content["step"]] = (content["key"], content["metrics"], files)
    return found


def records(root: Path) -> list[dict[str, Any]]:
    """The records of the runs, the oldest first."""
    return [json.loads(path.read_text()) for path in sorted((root / "runs").glob("*.json"))]


def checkpoint(root: Path, step: int) -> Callable[[], bool]:
    return lambda: any(root.glob(f"work/pretrain_mlm/*/checkpoints/step_{step:07}*/manifest.json"))


def checkpoints(root: Path) -> list[Path]:
    return list(root.glob("work/pretrain_mlm/*/checkpoints/step_*/manifest.json"))


def measured(root: Path) -> dict[str, Any]:
    (path,) = (root / "artifacts" / "pretrain_mlm").iterdir()
    return dict(manifest.read(path)["measured"])


def test_the_same_twice_at_once_is_one_job(undisturbed: Twice) -> None:
    one, other = undisturbed.results
    assert (one.code, other.code) == (0, 0), one.err + other.err
    assert one.json["submission_id"] == other.json["submission_id"]
    assert sorted([one.json["joined"], other.json["joined"]]) == [False, True]
    assert all("[5/5] pretrain_mlm done" in done.err for done in undisturbed.results)
    (record,) = records(undisturbed.root)
    assert record["status"] == "FINISHED" and record["submission_id"] == one.json["submission_id"]
    assert set(left(undisturbed.root)) == {*MADE_BEFORE, "pretrain_mlm"}
    tags = json.dumps(manifest.read(next((undisturbed.root / "artifacts" / "task").iterdir()))["tags"])
    assert "git_commit" in tags


def test_a_node_that_dies_during_the_training_costs_a_checkpoint_interval(
    cluster: Cluster, fromzero: Fromzero, undisturbed: Twice, prepared: Path
) -> None:
    follower = fromzero.submit(prepared)
    until(checkpoint(prepared, 4), follower)
    (worker,) = cluster.processes("ray::RayTrainWorker") or cluster.processes("RayTrainWorker")
    raylet = next(one for one in worker.parents() if "raylet" in one.name())
    raylet.send_signal(signal.SIGKILL)
    cluster.start_node(4)
    done = ended(follower)
    assert done.code == 0, done.out + done.err
    assert left(prepared) == left(undisturbed.root)
    assert measured(prepared)["restarts"] == 1


@pytest.mark.faults
def test_a_driver_that_was_killed_is_submitted_again_and_goes_on(
    fromzero: Fromzero, undisturbed: Twice, prepared: Path
) -> None:
    follower = fromzero.submit(prepared)
    until(checkpoint(prepared, 4), follower)
    (record,) = records(prepared)
    os.kill(record["process"]["pid"], signal.SIGKILL)
    killed = ended(follower)
    assert killed.code == 3 and "died (exit code -9)" in killed.err, killed.err
    again = ended(fromzero.submit(prepared, "--json"))
    assert again.code == 0, again.out + again.err
    assert again.json["submission_id"].endswith("-2") and again.json["joined"] is False
    assert left(prepared) == left(undisturbed.root)
    assert measured(prepared)["resumed_from_step"] >= 4
    assert [record["status"] for record in records(prepared)] == ["KILLED", "FINISHED"]


def test_who_stops_following_leaves_the_run_and_stop_ends_it(
    cluster: Cluster, fromzero: Fromzero, prepared: Path
) -> None:
    follower = fromzero.submit(prepared, RARELY, steps=ENDLESS)
    until(lambda: cluster.processes("RayTrainWorker"), follower)
    follower.send_signal(signal.SIGINT)
    left_alone = ended(follower)
    assert left_alone.code == 130 and "Traceback" not in left_alone.err, left_alone.err
    name = left_alone.err.split()[0]
    assert f"{name} goes on\n" in left_alone.err and f"fromzero stop {name} --address" in left_alone.err
    joined = ended(fromzero.submit(prepared, "--detach", RARELY, steps=ENDLESS))
    assert joined.code == 0 and f"{name} goes on already" in joined.err
    (running,) = fromzero("status", name[:20], "--json").json["submissions"]
    assert running["status"] == "RUNNING" and running["run"]["status"] == "RUNNING"
    driver = psutil.Process(running["run"]["process"]["pid"])
    until(lambda: any(prepared.glob("work/pretrain_mlm/*/attempts.log")))
    stopped = fromzero("stop", name, "--json")
    assert stopped.code == 0, stopped.err
    assert stopped.json["status"] == "STOPPED" and stopped.json["run"]["status"] == "KILLED"
    assert not driver.is_running()
    until(lambda: not cluster.processes("RayTrainWorker"))
    assert checkpoints(prepared)  # the one that it made when it was told to stop
    shown = fromzero("status")
    assert shown.code == 0 and re.search(rf"{name} .*STOPPED.* KILLED", shown.out)


@pytest.mark.faults
def test_of_two_runs_that_need_one_step_one_works_and_one_names_it(fromzero: Fromzero, tmp_path: Path) -> None:
    root = tmp_path / "root"
    both = [fromzero.start("submit", *ARGUMENTS, f"--until={s}", f"storage.root={root}") for s in ("task", "corpus")]
    done = sorted((ended(process) for process in both), key=lambda one: one.code)
    assert [one.code for one in done] == [0, 3], [one.err for one in done]
    assert "is being made by process " in done[1].out


HOLDER = """
import sys, time
from pathlib import Path
from infra.cluster.config import ClusterConfig
from infra.cluster.session import ray_session
from infra.journal.claims import claimed_on_cluster
address, root, step, key = sys.argv[1:]
with ray_session(ClusterConfig(address=address)):
    with claimed_on_cluster(root, [(step, key)], "the-other-run"):
        print("held", flush=True)
        time.sleep(600)
"""


def test_a_driver_on_another_node_is_named_and_a_dead_one_lets_go(
    cluster: Cluster, fromzero: Fromzero, tmp_path: Path
) -> None:
    """No file of the root is locked: as where its file system carries no locks."""
    root = tmp_path / "root"
    options = (*ARGUMENTS, "--until=task", f"storage.root={root}", "--json")
    (task,) = fromzero("plan", *options).json["steps"]
    holder = start(cluster, "-c", HOLDER, cluster.address, str(root), "task", task["key"], project=PROJECT)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    (actor,) = cluster.processes("ray::ClaimsActor")
    actor.kill()  # it is started again, and knows what was held
    refused = fromzero("run", *options, f"cluster.address={cluster.address}")
    assert refused.code == 3, refused.err
    (problem,) = refused.json["errors"]
    assert f"task {task['key'][:12]} is being made by process {holder.pid} on " in problem
    assert "(run the-other-run)" in problem
    holder.kill()
    holder.wait()
    taken = fromzero("run", *options, f"cluster.address={cluster.address}")
    assert taken.code == 0, taken.err
    statuses = [(record["status"], len(record["errors"])) for record in records(root)]
    assert statuses == [("FAILED", 1), ("FINISHED", 0)]


FOLLOWER = """
import sys
from infra.cluster import jobs
jobs.LOST_SECONDS, jobs.QUIET_SECONDS = 5.0, 1.0
request = jobs.Request(pipeline="p", run=sys.argv[2], root=None, entrypoint=sys.argv[3], variables={})
cluster = jobs.Jobs(sys.argv[1])
one, is_new = cluster.submit(request, None)
print(cluster.follow(one.id, sys.stdout.write).code)
"""
COUNT = "for number in $(seq 100 130); do echo line $number; sleep 0.3; done; exit 2"


@pytest.mark.faults
def test_a_dashboard_that_is_away_for_a_while_costs_no_line_and_for_ever_ends_with_a_word(cluster: Cluster) -> None:
    between = Forwarder(int(cluster.url.rpartition(":")[2]))
    between.lead()
    url = f"http://127.0.0.1:{between.port}"
    follower = start(cluster, "-u", "-c", FOLLOWER, url, "p-a", COUNT, project=PROJECT)
    assert follower.stdout is not None
    said = [follower.stdout.readline()]
    while "line 105" not in said[-1]:
        said.append(follower.stdout.readline())
    between.cut()
    time.sleep(2)
    between.lead()
    said += follower.stdout.readlines()
    lines = re.findall(r"^(?:line )?(\d+)$", "".join(said), re.MULTILINE)
    assert lines == [*(str(number) for number in range(100, 131)), "2"], ended(follower)
    follower = start(cluster, "-u", "-c", FOLLOWER, url, "p-b", COUNT, project=PROJECT)
    assert follower.stdout is not None
    while "line 101" not in follower.stdout.readline():
        pass
    between.cut()
    done = ended(follower)
    assert done.err.splitlines()[-1].startswith(f"infra.errors.ClusterLostError: {url} has not answered for 5 s (")


def test_a_night_without_new_text_makes_nothing_again(fromzero: Fromzero, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    rows = "".join(json.dumps({"text": f"on monday the {n} of us went home"}) + "\n" for n in range(300))
    (tmp_path / "texts" / "monday.jsonl").write_text(rows)
    words = (
        *ARGUMENTS[1:],
        "--until=corpus",
        f"corpus.sources=[{{path: {tmp_path / 'texts'}}}]",
        f"storage.root={tmp_path / 'root'}",
    )
    first = fromzero("submit", "nightly", *words, "--json")
    assert first.code == 0, first.err
    second = fromzero("submit", "nightly", *words, "--json")
    assert second.code == 0, second.err
    assert second.json["submission_id"] == first.json["submission_id"] + "-2"
    assert "[2/2] corpus reused" in second.err and len(records(tmp_path / "root")) == 1


@pytest.mark.faults
def test_on_an_object_store_the_nodes_share_no_disk(
    fromzero: Fromzero, undisturbed: Twice, s3_uri: str, tmp_path: Path
) -> None:
    """The run, its steps and their artifacts are seen from a machine that has none of the files."""
    place = [f"storage.root={s3_uri}/root", f"storage.local={tmp_path / 'local'}"]
    done = fromzero("submit", *ARGUMENTS, "--until=token_shards", *place)
    assert done.code == 0, done.err
    shutil.rmtree(tmp_path / "local")
    (one,) = (s for s in fromzero("status", "--json").json["submissions"] if s["root"] == f"{s3_uri}/root")
    assert (one["status"], one["run"]["status"]) == ("SUCCEEDED", "FINISHED")
    made = {step["name"]: step["key"] for step in one["run"]["steps"]}
    assert set(made) == set(MADE_BEFORE)
    expected = left(undisturbed.root)
    objects = ObjectStore.open(f"{s3_uri}/root")
    for step, key in made.items():
        content = json.loads(objects.read(f"artifacts/{step}/{key}/manifest.json"))
        assert (key, content["metrics"]) == expected[step][:2]


@pytest.mark.parametrize(
    ("variables", "code", "message"),
    [
        ({"RAY_AUTH_TOKEN": "0" * 64}, 2, "the token is wrong; set RAY_AUTH_MODE=token"),
        ({"RAY_AUTH_MODE": "disabled"}, 2, "the token is missing; set RAY_AUTH_MODE=token"),
    ],
)
def test_a_token_that_is_missing_or_wrong_is_one_clear_line(
    fromzero: Fromzero, variables: dict[str, str], code: int, message: str
) -> None:
    for command in (["submit", "smoke", "--detach"], ["status"], ["stop", "smoke"]):
        done = fromzero(*command, **variables)
        assert done.code == code and message in done.err and done.err.count("\n") == 1, done.err


def test_an_unknown_submission_is_told_with_those_that_there_are(fromzero: Fromzero, undisturbed: Twice) -> None:
    name = undisturbed.results[0].json["submission_id"]
    for command in ("status", "stop"):
        done = fromzero(command, "nope", "--json")
        assert done.code == 2 and "there is no submission nope" in done.json["errors"][0]
        assert name in done.json["errors"][0]


def test_the_token_is_in_no_file_and_no_answer(cluster: Cluster, fromzero: Fromzero, undisturbed: Twice) -> None:
    token = cluster.environment["RAY_AUTH_TOKEN"].encode()
    files = [path for folder in (undisturbed.root, cluster.folder) for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 50
    assert [path for path in files if token in path.read_bytes()] == []
    assert token.decode() not in fromzero("status", "--json").out
