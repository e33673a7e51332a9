"""One rank of some trainings without Ray, started as a process: `python worker.py jobs.json`.

The environment has RANK, WORLD_SIZE and STORE (a file for the rendezvous).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class KillSink:
    """Kills its own process, as the machine would, when the training tells of a step."""

    def __init__(self, step: int | None) -> None:
        self.step = step

    def send(self, kind: str, step: str, payload: Mapping[str, Any]) -> None:
        if kind == "metrics" and self.step is not None and payload["step"] >= self.step:
            os.kill(os.getpid(), 9)


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

    notice = Notice().install()
    torch.set_num_threads(1)
    store = dist.FileStore(os.environ["STORE"], world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    for told in json.loads(Path(path).read_text()):
        root = Path(told["data"])
        train(
            TrainingJob(
                config=PretrainConfig.model_validate(told["config"]),
                shards=root / "token_shards",
                tokenizer=root / "tokenizer",
                work=Path(told["work"]),
                key="k" * 32,
                name="pretrain_mlm",
                tracker=StepTracker(step="pretrain_mlm", sink=KillSink(told.get("kill_at"))),
            ),
            notice,
        )
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
