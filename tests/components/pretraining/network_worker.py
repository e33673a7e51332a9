"""One rank of a few steps of several networks on batches packed by hand: `python network_worker.py jobs.json`.

The environment has RANK, WORLD_SIZE and STORE. Rank 0 writes the summed losses of each step, by job.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

STEPS = 3


def main(path: str) -> None:
    os.environ["DS_ACCELERATOR"] = "cpu"
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    os.environ["LOCAL_RANK"] = str(rank)
    sys.path.insert(0, str(Path(__file__).parent))
    import packed
    import torch
    import torch.distributed as dist

    from components.pretraining.config import PretrainConfig
    from components.pretraining.engine.engine import TrainingEngine
    from components.pretraining.networks.models import TargetLoss, build_model

    torch.set_num_threads(1)
    store = dist.FileStore(os.environ["STORE"], world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    told: dict[str, Any] = json.loads(Path(path).read_text())
    found: dict[str, list[float]] = {}
    for name, values in told["jobs"].items():
        config = PretrainConfig.model_validate(values)
        module = TargetLoss(build_model(config, 500, {"pad": 0, "bos": 2, "eos": 3}))
        engine = TrainingEngine(module, config, world_size)
        losses = []
        for step in range(STEPS):
            documents = packed.documents(config.kind, (9, 13, 6, 11, 17, 8, 5), seed=step)
            rows = [documents[:2], documents[2:4], documents[4:5], documents[5:]]
            weight = 1 / len(packed.pack(rows, config.kind, 32)["target_ids_T"])
            size, summed = engine.micro_batch_size, torch.zeros(1, dtype=torch.float64)
            share = 4 // world_size
            for first in range(rank * share, (rank + 1) * share, size):
                batch = packed.pack(rows[first : first + size], config.kind, 32)
                batch["sample_keys_B"] = torch.arange(first, first + size) * 1_000_003 + step
                summed += engine.accumulate(batch, torch.tensor([weight])).double()
            dist.all_reduce(summed)
            engine.set_learning_rate(0.01)
            engine.update()
            losses.append(float(summed) * weight)
        found[name] = losses
    if rank == 0:
        Path(told["out"]).write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
