"""Runs trainings on some processes with gloo, without Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[3]
TIMEOUT_SECONDS = 300


def run(
    data: Path,
    works: Mapping[Path, Mapping[str, Any]],
    world_size: int,
    *,
    kill_at: int | None = None,
    kill_after_incident: int | None = None,
    disturb: Mapping[str, Any] | None = None,
    term_at: int | None = None,
    leave_at: Mapping[Path, int] | None = None,
    full_rank: int | None = None,
    environment: Mapping[str, str] | None = None,
    program: str = "worker.py",
) -> str:
    """Trains one after another in the same processes; returns what rank 0 said.

    Fails unless all ranks end well, or `kill_at` is given.

    Args:
        data: has `token_shards/` and `tokenizer/`.
        works: the config of each training by its work folder.
        world_size: processes.
        kill_at: all ranks are killed when rank 0 logs this step.
        kill_after_incident: all ranks are killed when rank 0 has logged so many points after an incident.
        disturb: what `disturb.py` does to all of them.
        kill_at: all ranks are killed when rank 0 logs this step and the checkpoints before it are whole.
        term_at: SIGTERM comes to rank 1 when rank 0 logs this step.
        leave_at: rank 0 is told to leave when it logs this step, by work folder.
        full_rank: the files of this rank cannot become large.
        environment: more variables.
        program: what each process runs.
    """
    jobs = []
    for work, config in works.items():
        work.mkdir(parents=True, exist_ok=True)
        full = {"cluster": {"num_workers": world_size}, **config}
        disturbance = {
            "kill_at": kill_at,
            "term_at": term_at,
            "leave_at": (leave_at or {}).get(work),
            "full_rank": full_rank,
            "kill_after_incident": kill_after_incident,
            "disturb": disturb,
        }
        jobs.append({"data": str(data), "work": str(work), "config": full, **disturbance})
    home = next(iter(works))
    path = home / "jobs.json"
    path.write_text(json.dumps(jobs))
    base = {**os.environ, "WORLD_SIZE": str(world_size), "STORE": str(home / f"store-{uuid.uuid4().hex}")}
    base |= {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **(environment or {})}
    command = [sys.executable, str(Path(__file__).with_name(program)), str(path)]
    logs = [home / f"rank{rank}.log" for rank in range(world_size)]
    ranks = []
    for rank, log in enumerate(logs):
        with log.open("w") as stream:
            ranks.append(
                subprocess.Popen(command, env=base | {"RANK": str(rank)}, stdout=stream, stderr=subprocess.STDOUT)
            )
    try:
        codes = [ranks[0].wait(TIMEOUT_SECONDS)]
        if kill_at is not None or kill_after_incident is not None:
            for process in ranks[1:]:
                process.kill()
        codes += [process.wait(TIMEOUT_SECONDS) for process in ranks[1:]]
    finally:
        for process in ranks:
            if process.poll() is None:
                process.kill()
    if kill_at is None and kill_after_incident is None and any(codes):
        said = "\n".join(log.read_text() for log in logs)
        raise RuntimeError(f"exit codes {codes}:\n{said}")
    return logs[0].read_text()


def history(work: Path) -> list[dict[str, float]]:
    """Rows of `metrics.jsonl` of a finished training."""
    lines = (work / "export" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def losses(work: Path) -> list[float]:
    """Training losses of a finished training."""
    return [row["train_loss"] for row in history(work) if "train_loss" in row]
