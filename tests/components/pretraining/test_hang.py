"""A rank that hangs is found and named: the rule on what ranks tell, then real processes."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from components.pretraining.checkpoints import writer
from components.pretraining.checkpoints.checkpoint import CheckpointStore
from components.pretraining.checkpoints.retention import Retention
from components.pretraining.health.hang import HANG_NAME, Beat, culprits, in_collective, report, stack_of
from components.pretraining.health.watchdog import Watchdog
from infra.errors import InfrastructureError

CONFIG: dict[str, Any] = {
    "model": {"hidden_size": 32, "num_layers": 2, "num_heads": 2},
    "steps": 8,
    "sequence_length": 32,
    "global_batch_size": 6,
    "log_every_steps": 1,
    "max_validation_sequences": 8,
    "checkpoint_every_steps": None,
    "health": {"hang_timeout_seconds": 5},
}


def beat(rank: int, phase: str = "reduce", **values: Any) -> Beat:
    return Beat.model_validate(
        {"rank": rank, "host": "node", "pid": 100 + rank, "step": 7, "phase": phase, "seconds": 9.0, **values}
    )


@pytest.mark.parametrize(
    ("beats", "ranks"),
    [
        ([beat(0, waits=True), beat(1, "data"), beat(2, waits=True)], [1]),
        ([beat(0, waits=True), beat(1, "data"), beat(2, waits=True, answers=False)], [2]),
        ([beat(0, waits=True), beat(1, waits=True, step=6)], [1]),
        ([beat(0, "backward", waits=True, micro_batch=2), beat(1, "backward", waits=True, micro_batch=1)], [1]),
        ([beat(0, "update"), beat(1, "backward")], [1]),
        ([beat(0, waits=True), beat(1, waits=True)], []),
        ([beat(0, "data")], [0]),
    ],
)
def test_the_culprit_is_the_rank_that_the_others_wait_for(beats: list[Beat], ranks: list[int]) -> None:
    assert [one.rank for one in culprits(beats)] == ranks


def test_the_report_says_who_where_and_since_when() -> None:
    told = report([beat(0, waits=True), beat(1, "data", stack="  File a\n    b()\n")], 5)
    assert told.splitlines() == [
        "rank 1 hangs: no progress for 5 s (health.hang_timeout_seconds)",
        "  rank 1 (host node, pid 101): step 7, phase data, for 9 s",
        "      File a",
        "        b()",
        "  rank 0 (host node, pid 100): step 7, phase reduce, for 9 s, waits in a collective",
    ]
    assert "does not answer" in report([beat(0, waits=True), beat(1, answers=False)], 5)
    assert report([beat(0, waits=True), beat(1, waits=True)], 5).startswith("no rank is behind the others")


def test_a_sleeping_thread_is_in_no_collective_and_its_stack_is_shown() -> None:
    def napping(event: threading.Event) -> None:
        event.wait(20)

    event = threading.Event()
    thread = threading.Thread(target=napping, args=(event,))
    thread.start()
    time.sleep(0.1)
    assert thread.ident is not None
    assert "in napping" in stack_of(thread.ident)
    assert not in_collective(thread.ident)
    event.set()
    thread.join()
    assert stack_of(thread.ident) == "its training thread has ended"


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_rank_that_waits_does_not_hang_while_another_goes_on(alone: None) -> None:
    watchdog = Watchdog(0.3, lambda report: None)
    store = dist.HashStore()
    watchdog.begin(1)
    watchdog._look(store)
    time.sleep(0.4)
    watchdog._look(store)
    assert watchdog._stuck()
    store.add("moves", 1)  # by another rank
    watchdog._look(store)
    assert not watchdog._stuck()


def test_who_waits_for_a_checkpoint_tells_that_the_writing_goes_on(
    alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "LOOK_SECONDS", 0.05)
    marks: list[float] = []
    store = CheckpointStore(tmp_path, "digest", Retention(newest=1), mark=lambda: marks.append(time.monotonic()))
    waiting = writer.CheckpointWriter(store)

    told_while_idle = []

    def write() -> None:
        deadline = time.monotonic() + 30
        while len(marks) < 3 and time.monotonic() < deadline:
            writer._save({"weight": 0}, tmp_path / "weight", waiting._move)
            time.sleep(0.01)
        told = len(marks)
        time.sleep(1)  # twenty looks
        told_while_idle.append(len(marks) - told)

    waiting._thread = threading.Thread(target=write)
    waiting._thread.start()
    waiting.wait()
    assert len(marks) >= 3
    assert told_while_idle[0] <= 1  # for what is written, not for each look


@pytest.mark.parametrize(("rank", "how"), [(1, "sleep"), (0, "stop"), (2, "stop")])
def test_a_rank_that_hangs_is_named_and_all_ranks_end(
    tiny_data: Path, tmp_path: Path, run_trainings: Any, rank: int, how: str
) -> None:
    """Of three: the culprit asleep, or its process stopped, that of rank 0 too, which has the watchdogs' store."""
    hang = {"step": 3, "rank": rank, "how": how}
    started = time.monotonic()
    with pytest.raises(RuntimeError) as raised:
        run_trainings.run(tiny_data, {tmp_path / "work": CONFIG}, 3, disturb={"hang": hang})
    assert time.monotonic() - started < 90
    told = (tmp_path / "work" / HANG_NAME).read_text()
    assert told.startswith(f"rank {rank} hangs: no progress for 5 s")
    said = str(raised.value)
    codes = json.loads(said.partition("exit codes ")[2].partition(":\n")[0])
    assert codes[rank] == (75 if how == "sleep" else -9)
    others = [code for other, code in enumerate(codes) if other != rank]
    assert others == [1, 1]
    assert said.count("infra.errors.InfrastructureError: rank") == 2
    culprit = told.splitlines()[1]
    assert f"rank {rank} (host " in culprit
    if how == "sleep":
        assert "step 4, phase data" in culprit
        assert "time.sleep(600)" in told
        assert told.count("waits in a collective") == 2
    else:
        assert "its process does not answer for" in culprit
        last = int(culprit.partition("what it told last: step ")[2].partition(",")[0])
        assert last <= 4  # a beat is told once a period, so it may be some steps old, and says so


@pytest.mark.faults
def test_under_ray_the_report_is_the_error_and_the_run_goes_on(
    ray_cluster: Mapping[str, float], tiny_data: Path, tmp_path: Path
) -> None:
    """Rank 0 hangs once, when it tells of step 3; what Ray itself knows is that a worker died."""
    from components.pretraining import distributed
    from components.pretraining.config import PretrainConfig
    from components.pretraining.loop import ATTEMPTS_NAME
    from components.pretraining.training import TrainingJob
    from infra.tracking.client import StepTracker

    trace = tmp_path / "hung"

    class Hanging:
        def send(self, kind: str, step: str, payload: Mapping[str, Any]) -> None:
            if kind == "metrics" and payload["step"] == 3 and not trace.exists():
                trace.touch()
                time.sleep(600)

    cluster = {"num_workers": 2, "max_restarts": 0}
    (tmp_path / "work").mkdir()
    job = TrainingJob(
        config=PretrainConfig.model_validate(
            {**CONFIG, "checkpoint_every_steps": 2, "cluster": cluster, "micro_batch_size_per_rank": 3}
        ),
        shards=tiny_data / "token_shards",
        tokenizer=tiny_data / "tokenizer",
        work=tmp_path / "work",
        key="k" * 32,
        name="pretrain_mlm",
        tracker=StepTracker(step="pretrain_mlm", sink=Hanging()),
    )
    with pytest.raises(InfrastructureError) as raised:
        distributed.run_distributed(job, "hang")
    told = str(raised.value)
    assert told.startswith("rank 0 hangs: no progress for 5 s")
    assert "time.sleep(600)" in told
    assert "step 3, phase update" in told
    distributed.run_distributed(job, "hang")
    assert (job.work / "export" / "result.json").exists()
    assert (job.work / ATTEMPTS_NAME).read_text() == "2 0\n2 2\n"
    assert told == next(job.work.glob(f"before.*.{HANG_NAME}")).read_text().strip()
