"""The step `compare`: every way to classify on the same test texts, with cost, in one table, picture and sentence.

Writes `comparison.json` and `comparison.md`, `comparison.png`, `measured.json` (seconds: not the same twice) and
`predictions/<way>.parquet` of the two baselines made here.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from components.comparison.config import CompareConfig
from infra.journal.step import Artifact, Scalar, StepContext, StepOutput
from infra.tracking.records import FileRecord

logger = logging.getLogger(__name__)


def compare(config: CompareConfig, inputs: Mapping[str, Artifact], context: StepContext) -> StepOutput:
    """Compares majority class, TF-IDF, prompting and fine-tuning.

    Args:
        config: of the baselines.
        inputs: `task`, `pretrain_mlm`, `pretrain_clm`, `finetune`, `prompt`, and `tune_decoder` if there is one.
        context: where to write.

    Raises:
        DataError: predictions that belong to another task.
    """
    from components.comparison import baselines, plot, report
    from components.comparison.verdict import decide
    from components.comparison.ways import JudgedSplit, finetuned_ways, prompted_ways
    from components.finetuning.data import read_labels, read_split

    start = time.monotonic()
    task = inputs["task"].path
    labels = read_labels(task)
    train, rows = read_split(task, "train"), read_split(task, "test")
    position = {label: index for index, label in enumerate(labels)}
    test = JudgedSplit(
        ids=rows.ids,
        label={row_id: position[label] for row_id, label in zip(rows.ids, rows.labels, strict=True)},
        labels=labels,
        seed=config.seed,
    )
    makers: dict[str, tuple[str, Callable[[], Any]]] = {
        "majority": ("majority class", lambda: baselines.majority(train.labels, len(rows.ids))),
        "tfidf": (
            "TF-IDF + logistic regression",
            lambda: baselines.tfidf(config, train.texts, train.labels, rows.texts),
        ),
    }
    ways = []
    for done, (name, (title, make)) in enumerate(makers.items()):
        began = time.monotonic()
        baseline = make()
        ways.append(
            test.way(
                dict(zip(rows.ids, baseline.predicted, strict=True)),
                name=name,
                title=title,
                family="baseline",
                adaptation_flops=baseline.train_flops,
                pretraining_flops=0.0,
                detail=baseline.detail,
                adaptation_seconds=time.monotonic() - began,
                pretraining_seconds=0.0,
            )
        )
        _write_predictions(context.output / "predictions" / f"{name}.parquet", rows, baseline.predicted)
        context.tracker.progress(done + 1, len(makers), "baselines")
    ways += prompted_ways(test, inputs["prompt"], inputs["pretrain_clm"], inputs.get("tune_decoder"))
    ways += finetuned_ways(test, inputs["finetune"], inputs["pretrain_mlm"])
    verdict = decide(test, ways)
    logger.info("%s", verdict.sentence)
    _write_json(context.output / "comparison.json", report.document(test, ways, verdict))
    _write_json(context.output / "measured.json", report.seconds_document(ways))
    (context.output / "comparison.md").write_text(report.markdown(test, ways, verdict), encoding="utf-8")
    plot.draw(context.output / "comparison.png", ways, 1 / len(labels), len(rows.ids))
    metrics: dict[str, Scalar] = {"use": verdict.use, "best": verdict.best, "verdict": verdict.sentence}
    for way in ways:
        metrics |= way.scores.as_metrics(f"{way.name}_test_")
        metrics[f"{way.name}_train_flops"] = way.train_flops
    return StepOutput(
        metrics=metrics,
        measured={
            "seconds": time.monotonic() - start,
            **{f"{way.name}_seconds": way.adaptation_seconds for way in ways if way.family == "baseline"},
        },
        records=tuple(FileRecord(path=name) for name in ("comparison.json", "comparison.md", "comparison.png")),
    )


def _write_predictions(path: Path, rows: Any, predicted: list[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"id": rows.ids, "label": rows.labels, "predicted": predicted}), path)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
