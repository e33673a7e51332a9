"""One rank that drives the engine without the loop, started as a process: `python engine_worker.py jobs.json`.

Each job trains some batches three ways and writes what came out to `engine.json` of its work folder.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

BATCHES = (0, 1, 2, 3)
SKIPPED = 1


def main(path: str) -> None:
    os.environ["DS_ACCELERATOR"] = "cpu"
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    os.environ["LOCAL_RANK"] = str(rank)
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    store = dist.FileStore(os.environ["STORE"], world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    for told in json.loads(Path(path).read_text()):
        data, config = Path(told["data"]), told["config"]
        found = {
            "without": drive(data, config, [step for step in BATCHES if step != SKIPPED], None),
            "skip": drive(data, config, BATCHES, "skip"),
            "bad": drive(data, config, BATCHES, "bad"),
        }
        if rank == 0:
            (Path(told["work"]) / "engine.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def drive(data: Path, values: Any, batches: Any, special: str | None) -> dict[str, Any]:
    """Trains on the batches; number SKIPPED is skipped, or its gradient is made NaN.

    Returns:
        `losses`, `norms` (before and after each update), `applied`, and `weights`: a digest.
    """
    import hashlib

    import torch
    import torch.distributed as dist

    from components.pretraining.batches import make_batch, make_objective
    from components.pretraining.config import PretrainConfig
    from components.pretraining.engine.engine import TrainingEngine
    from components.pretraining.networks.models import TargetLoss, build_model
    from components.pretraining.sampler import Sampler
    from components.tokenization.shards import TokenShards

    config = PretrainConfig.model_validate(values)
    rank, world_size, shards = dist.get_rank(), dist.get_world_size(), TokenShards(data / "token_shards", "train")
    module = TargetLoss(build_model(config, shards.index.vocab_size, {"pad": 0, "bos": 2, "eos": 3}))
    engine, objective = TrainingEngine(module, config, world_size), make_objective(config, shards, data / "tokenizer")
    sampler = Sampler(num_sequences=len(shards), global_batch_size=config.global_batch_size, seed=config.seed)
    found: dict[str, Any] = {"losses": [], "norms": [], "applied": []}
    for count, step in enumerate(batches):
        indices_G, epochs_G = sampler.global_batch(step)
        mine = slice(rank * len(indices_G) // world_size, (rank + 1) * len(indices_G) // world_size)
        whole = make_batch(shards, objective, indices_G, epochs_G)
        size, total = engine.micro_batch_size, torch.zeros(1)
        engine.set_learning_rate(config.learning_rate * (1 - 0.1 * (count - (special is not None and count > SKIPPED))))
        bad = special == "bad" and step == SKIPPED
        weights_K = torch.tensor([float("nan") if bad else 1.0 / whole.num_targets_K[0]])
        for at in range(mine.start, mine.stop, size):
            batch = make_batch(shards, objective, indices_G[at : at + size], epochs_G[at : at + size])
            total += engine.accumulate(batch.to(engine.device), weights_K)
        dist.all_reduce(total)
        before = engine.gradient_norm()
        if special == "skip" and step == SKIPPED:
            engine.skip()
            continue
        found["applied"].append(engine.update())
        found["norms"].append([before, engine.gradient_norm()])
        found["losses"].append(float(total) / whole.num_targets_K[0])
    state = engine.full_state()
    content = b"".join(state[name].numpy().tobytes() for name in sorted(state))
    return {**found, "weights": hashlib.sha256(content).hexdigest()}


if __name__ == "__main__":
    main(sys.argv[1])
