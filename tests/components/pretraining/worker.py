"""One rank of some trainings without Ray, started as a process: `python worker.py jobs.json`.

The environment has RANK, WORLD_SIZE and STORE (a file for the rendezvous).
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class SignalSink:
    """Disturbs the training when it tells of a step, as `processes.run` was told."""

    def __init__(self, work: Path, told: Mapping[str, Any], pids: Path, notice: Any) -> None:
        self.work, self.pids, self.notice = work, pids, notice
        self.kill_at, self.term_at, self.leave_at = (told[name] for name in ("kill_at", "term_at", "leave_at"))
        self.points_left: int | None = told["kill_after_incident"]
        self.incident = False

    def send(self, kind: str, step: str, payload: Mapping[str, Any]) -> None:
        if kind == "remade":
            with (self.work / "remade.jsonl").open("a") as stream:
                stream.write(json.dumps({"step": payload["step"], **payload["metrics"]}) + "\n")
        if kind != "metrics":
            return
        self.incident = self.incident or "skipped_batches" in payload["metrics"]
        if self.incident and self.points_left is not None:
            if self.points_left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self.points_left -= 1
        if self.kill_at is not None and payload["step"] >= self.kill_at:
            while not all((one / "manifest.json").exists() for one in self.work.glob("checkpoints/step_*")):
                time.sleep(0.01)  # the checkpoint under way
            os.kill(os.getpid(), signal.SIGKILL)  # as the machine would
        if payload["step"] == self.term_at:
            os.kill(int((self.pids / "rank1.pid").read_text()), signal.SIGTERM)
            self.term_at = None
            time.sleep(0.2)  # so that it has come before the next step
        if payload["step"] == self.leave_at:
            self.notice()


def main(path: str) -> None:
    os.environ["DS_ACCELERATOR"] = "cpu"
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    os.environ["LOCAL_RANK"] = str(rank)
    import torch
    import torch.distributed as dist

    from components.pretraining.config import PretrainConfig
    from components.pretraining.loop import train
    from components.pretraining.notice import Notice
    from components.pretraining.training import TrainingJob
    from infra.tracking.client import StepTracker

    Path(path).with_name(f"rank{rank}.pid").write_text(str(os.getpid()))
    torch.set_num_threads(1)
    store = dist.FileStore(os.environ["STORE"], world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    jobs = json.loads(Path(path).read_text())
    if jobs[0]["disturb"]:
        from disturb import disturb

        disturb(jobs[0]["disturb"], rank)
    for told in jobs:
        root, work = Path(told["data"]), Path(told["work"])
        notice = Notice().install()
        sink = SignalSink(work, told, Path(path).parent, notice)
        if rank == told["full_rank"]:  # the disk of this rank takes small files alone
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        train(
            TrainingJob(
                config=PretrainConfig.model_validate(told["config"]),
                shards=root / "token_shards",
                tokenizer=root / "tokenizer",
                work=work,
                key="k" * 32,
                name="pretrain_mlm",
                tracker=StepTracker(step="pretrain_mlm", sink=sink),
            ),
            notice,
        )
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
