"""Raw text to packed shards by the steps `corpus` and `token_shards`, on a local Ray as a run starts it.

`python -m tests.benchmarks.peers.ours SETTINGS.json`; prints one line of JSON. Seconds are those of planning (the
digests of the raw files) and of both steps with everything that they start; Ray's start and end stand apart. The steps
do more than the other sides: they clean, drop duplicates and what is in the evaluation texts, split, check digests and
pack whole documents.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from components.corpus.config import CorpusConfig, TaskConfig
from components.corpus.step import make_corpus, make_task
from components.tokenization.config import TokenShardsConfig
from components.tokenization.step import make_token_shards
from infra.cluster.config import ClusterConfig
from infra.cluster.session import ray_session
from infra.journal.step import Artifact, StepContext
from infra.storage.raw import resolve
from infra.tracking.client import StepTracker

TASK_ROWS = 2000


def context(work: Path, name: str, **raw: Any) -> StepContext:
    """A step's context, its folders new."""
    output = work / name / "output"
    output.mkdir(parents=True)
    (work / name / "work").mkdir()
    tracker = StepTracker(step=name)
    return StepContext(
        step=name,
        key="0" * 32,
        output=output,
        work=work / name / "work",
        raw=raw,
        tracker=tracker,
        units=work / "units",
    )


def task(work: Path) -> Artifact:
    """Labelled rows of random letters, so that no document is one of them or overlaps with one."""
    rng = np.random.default_rng(0)
    path = work / "task.jsonl"
    rows = ("".join(chr(97 + letter) for letter in rng.integers(0, 26, 80)) for _ in range(TASK_ROWS))
    split = (" ".join(row[i : i + 8] for i in range(0, 80, 8)) for row in rows)
    path.write_text("".join(json.dumps({"text": row, "label": str(i % 2)}) + "\n" for i, row in enumerate(split)))
    made = context(work, "task", train=resolve(str(path), None, "task"))
    output = make_task(TaskConfig(train=str(path)), {}, made)
    return Artifact(step="task", key="0" * 32, path=made.output, metrics=output.metrics)


def cpu_seconds() -> float:
    """Of this process and all that it has started, while they are there."""
    import psutil

    total = 0.0
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def main() -> None:
    """One side, once."""
    settings = json.loads(Path(sys.argv[1]).read_text())
    work = Path(settings["work"])
    evaluation = task(work)
    tokenizer = Artifact(step="tokenizer", key="0" * 32, path=Path(settings["tokenizer"]).parent, metrics={})
    pattern = str(Path(settings["files"][0]).parent / "part-*.jsonl*")
    config = CorpusConfig.model_validate({"sources": [{"path": pattern}], **settings["corpus"]})
    parts: dict[str, float] = {}
    started = time.perf_counter()
    with ray_session(ClusterConfig(num_cpus=int(settings["num_processes"]))):
        began = last = time.perf_counter()

        def lap(name: str) -> None:
            nonlocal last
            now = time.perf_counter()
            parts[name], last = now - last, now

        raw = resolve(pattern, None, "corpus")
        lap("plan")
        corpus_context = context(work, "corpus", source0=raw)
        made = make_corpus(config, {"task": evaluation}, corpus_context)
        lap("corpus")
        corpus = Artifact(step="corpus", key="0" * 32, path=corpus_context.output, metrics=made.metrics)
        shards_context = context(work, "token_shards")
        shards = make_token_shards(
            TokenShardsConfig(sequence_length=int(settings["sequence_length"])),
            {"corpus": corpus, "tokenizer": tokenizer},
            shards_context,
        )
        lap("token_shards")
        ended = time.perf_counter()
        used = cpu_seconds()
    stopped = time.perf_counter()
    metrics = shards.metrics
    told = {
        "seconds": ended - began,
        "ray_start_seconds": began - started,
        "ray_stop_seconds": stopped - ended,
        "parts": parts,
        "num_documents": made.metrics["num_documents_kept"],
        "num_tokens": int(metrics["num_tokens"] or 0) + int(metrics["num_validation_tokens"] or 0),
        "padding_fraction": metrics["padding_fraction"],
        "cpu_seconds": used,
    }
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
