"""Artifacts in the layout of the real steps, with predictions of chosen accuracy on real glosses."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.journal.step import Artifact, StepContext
from infra.tracking.client import StepTracker

GLOSSES = Path(__file__).parents[3] / "conf/data/wordnet/noun_files.jsonl.gz"
LABELS = ["noun.animal", "noun.artifact", "noun.person", "noun.plant"]
Rows = list[tuple[str, str, str]]


def gloss_rows(count: int) -> Rows:
    """(id, text, label), every label as often."""
    with gzip.open(GLOSSES, "rt", encoding="utf-8") as stream:
        found = list({row["text"]: row for row in map(json.loads, stream)}.values())
    by_label = [[row for row in found if row["label"] == label][: count // len(LABELS)] for label in LABELS]
    rows = [row for group in zip(*by_label, strict=True) for row in group]
    return [(hashlib.sha256(row["text"].encode()).hexdigest()[:32], row["text"], row["label"]) for row in rows]


def write_task(folder: Path, splits: dict[str, Rows], labels: list[str]) -> Artifact:
    folder.mkdir(parents=True)
    (folder / "labels.json").write_text(json.dumps(labels, ensure_ascii=False), encoding="utf-8")
    for split, rows in splits.items():
        columns = {name: [row[index] for row in sorted(rows)] for index, name in enumerate(("id", "text", "label"))}
        pq.write_table(pa.table(columns), folder / f"{split}.parquet")
    return Artifact(step="task", key="a" * 32, path=folder, metrics={})


def write_predictions(path: Path, rows: Rows, labels: list[str], accuracy: float, seed: int) -> None:
    """Predictions of which just the share `accuracy` is right: on a set of rows that grows with `accuracy`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(seed).permutation(len(rows))
    right = set(order[: round(accuracy * len(rows))].tolist())
    predicted = [
        label if index in right else labels[(labels.index(label) + 1) % len(labels)]
        for index, (_, _, label) in enumerate(sorted(rows))
    ]
    ids, truth = [row[0] for row in sorted(rows)], [row[2] for row in sorted(rows)]
    pq.write_table(pa.table({"id": ids, "label": truth, "predicted": predicted}), path)


MakeInputs = Callable[..., dict[str, Artifact]]


@pytest.fixture
def make_inputs(tmp_path: Path) -> MakeInputs:
    """Inputs of `compare` by the accuracies of the four ways with language models."""

    def make(
        *,
        base: float = 0.27,
        tuned: float = 0.6,
        scratch: float = 0.7,
        pretrained: float = 0.9,
        num_prompted: int | None = None,
        rows: Rows | None = None,
        labels: list[str] | None = None,
    ) -> dict[str, Artifact]:
        names = labels or LABELS
        found = rows or gloss_rows(800)
        train, test = found[: len(found) // 2], found[len(found) // 2 :]
        task = write_task(tmp_path / "task", {"train": train, "validation": train[:40], "test": test}, names)

        def artifact(step: str, metrics: dict[str, float], **measured: float) -> Artifact:
            folder = tmp_path / step
            folder.mkdir()
            return Artifact(step=step, key="b" * 32, path=folder, metrics=metrics, measured=measured)

        finetune = artifact("finetune", {}, champion_fit_seconds=31.0, scratch_fit_seconds=29.0)
        runs = []
        for init, accuracy in (("pretrained", pretrained), ("scratch", scratch)):
            name = f"{init}_all_seed0"
            write_predictions(finetune.path / f"predictions/{name}.parquet", test, names, accuracy, 1)
            about: dict[str, Any] = {"name": name, "init": init, "budget": "all", "num_labels": 400, "steps": 25}
            runs.append(about | {"train_flops": 4e13, "predictions": f"predictions/{name}.parquet"})
        document = {
            "runs": runs,
            "champion": "pretrained_all_seed0",
            "scratch_champion": "scratch_all_seed0",
            "inference_flops_per_example": 3e8,
        }
        (finetune.path / "results.json").write_text(json.dumps(document))
        prompt = artifact("prompt", {})
        judged = sorted(test)[:num_prompted]
        for model, accuracy in (("base", base), ("tuned", tuned)):
            write_predictions(prompt.path / f"predictions/{model}_0shot.parquet", judged, names, accuracy, 1)
        evaluations = [
            {
                "name": f"{model}_0shot",
                "model": model,
                "shots": 0,
                "calibrated": model == "base",
                "predictions": f"predictions/{model}_0shot.parquet",
                "inference_flops_per_example": 1e9,
            }
            for model in ("base", "tuned")
        ]
        chosen = {"base": "base_0shot", "tuned": "tuned_0shot"}
        (prompt.path / "results.json").write_text(json.dumps({"evaluations": evaluations, "chosen": chosen}))
        return {
            "task": task,
            "finetune": finetune,
            "prompt": prompt,
            "pretrain_mlm": artifact("pretrain_mlm", {"train_flops": 2e13}, seconds=150.0),
            "pretrain_clm": artifact("pretrain_clm", {"train_flops": 3e13}, seconds=140.0),
            "tune_decoder": artifact("tune_decoder", {"train_flops": 1e13}, seconds=40.0),
        }

    return make


@pytest.fixture
def context(tmp_path: Path) -> StepContext:
    (tmp_path / "output").mkdir()
    tracker = StepTracker(step="compare")
    return StepContext(step="compare", key="c" * 32, output=tmp_path / "output", work=tmp_path, raw={}, tracker=tracker)
