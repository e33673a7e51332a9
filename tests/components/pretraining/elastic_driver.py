"""The driver of one training on a Ray cluster: `python elastic_driver.py data work config.json`.

Rank 0 writes each step that it logs into `steps.log`, and takes its time with each until `fast` is in the work folder.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SLOW_SECONDS = 0.3


class SlowSink:
    """Lets things happen while a training of few steps goes on."""

    def __init__(self, work: Path) -> None:
        self.work = work

    def send(self, kind: str, step: str, payload: Mapping[str, Any]) -> None:
        if kind == "metrics" and "train_loss" in payload["metrics"]:
            with (self.work / "steps.log").open("a") as stream:
                stream.write(f"{payload['step']}\n")
            if not (self.work / "fast").exists():
                time.sleep(SLOW_SECONDS)


def main(data: Path, work: Path, told: str) -> None:
    from components.pretraining.config import PretrainConfig
    from components.pretraining.distributed import run_distributed
    from components.pretraining.training import TrainingJob
    from infra.cluster.session import ray_session
    from infra.tracking.client import StepTracker

    config = PretrainConfig.model_validate_json(told)
    job = TrainingJob(
        config=config,
        shards=data / "token_shards",
        tokenizer=data / "tokenizer",
        work=work,
        key="k" * 32,
        name="pretrain_mlm",
        tracker=StepTracker(step="pretrain_mlm", sink=SlowSink(work)),
    )
    with ray_session(config.cluster):
        run_distributed(job, "elastic")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
