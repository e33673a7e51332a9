"""The step that pretrains, or further trains, a language model: `pretrain_mlm`, `pretrain_clm`, `tune_decoder`."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from components.pretraining.config import PretrainConfig, problems
from infra.errors import ConfigError
from infra.journal.step import Artifact, StepContext, StepOutput
from infra.tracking.records import FileRecord, ModelRecord

DETERMINISTIC_METRICS = (
    "train_loss",
    "validation_loss",
    "validation_perplexity",
    "bits_per_byte",
    "unigram_cross_entropy",
    "train_flops",
    "num_parameters",
    "steps",
    "num_tokens",
)


def pretrain(config: PretrainConfig, inputs: Mapping[str, Artifact], context: StepContext) -> StepOutput:
    """Trains a language model on token shards.

    Args:
        config: of the training; `objective` says which of the three it is.
        inputs: `tokenizer` (a folder `tokenizer/`), `token_shards`, and optionally `init` (a folder `model/` to start
            from, in place of `model.init_from`).
        context: `model/` and `metrics.jsonl` go to its output, checkpoints to its work folder.

    Raises:
        ConfigError: values that do not fit one another, the token shards, or the model to start from.
        DataError: token shards without a sequence to train on or to validate with.
        TrainingError: a loss that is not a finite number.
        InfrastructureError: the workers failed more often than they are started again.
    """
    from components.pretraining.distributed import ATTEMPTS_NAME, run_distributed
    from components.pretraining.export import EXPORT_NAME, HISTORY_NAME, MODEL_NAME, read_result
    from components.pretraining.loop import TrainingJob

    started = time.time()
    if "init" in inputs:
        model = config.model.model_copy(update={"init_from": str(inputs["init"].path / MODEL_NAME)})
        config = config.model_copy(update={"model": model})
    found = problems(config, context.step)
    if found:
        raise ConfigError(*found)
    work = context.work.resolve()
    result = read_result(work)
    if result is None:
        job = TrainingJob(
            config=config,
            shards=_shards_folder(inputs["token_shards"].path),
            tokenizer=inputs["tokenizer"].path / "tokenizer",
            work=work,
            key=context.key,
            name=context.step,
            tracker=context.tracker,
            data_license=config.data_license,
        )
        run_distributed(job, f"{context.step}-{context.key[:8]}")
        result = read_result(work)
    if result is None:
        raise ConfigError(
            f"{context.step}: the workers wrote no result that this process can see in {work}: "
            "storage.root must be a folder that all nodes share"
        )
    for name in (MODEL_NAME, HISTORY_NAME):
        _link_or_copy(work / EXPORT_NAME / name, context.output / name)
    metrics = {name: result["metrics"][name] for name in DETERMINISTIC_METRICS if name in result["metrics"]}
    attempts = work / ATTEMPTS_NAME
    num_attempts = len(attempts.read_text(encoding="utf-8").splitlines()) if attempts.is_file() else 1
    measured = {**result["measured"], "restarts": num_attempts - 1, "seconds": time.time() - started}
    if result["first_step_at"] is not None:
        measured["start_seconds"] = max(0.0, result["first_step_at"] - started)
    return StepOutput(
        metrics=metrics,
        measured=measured,
        records=(
            ModelRecord(
                path=MODEL_NAME,
                name=context.step,
                task="fill-mask" if config.objective == "masked_lm" else "text-generation",
                metrics={name: float(value) for name, value in metrics.items()},
                parameters={"objective": config.objective, "precision": config.precision},
            ),
            FileRecord(path=HISTORY_NAME),
        ),
    )


def _shards_folder(artifact: Path) -> Path:
    """Where `shards.json` is: the artifact's folder, or the folder `token_shards` in it."""
    inner = artifact / "token_shards"
    return inner if inner.is_dir() else artifact


def _link_or_copy(source: Path, target: Path) -> None:
    """Copies a file or folder, by hard links where both are on one file system: the weights need no second place."""

    def transfer(one: str, other: str) -> str:
        try:
            os.link(one, other)
        except OSError:
            shutil.copy2(one, other)
        return other

    if source.is_dir():
        shutil.copytree(source, target, copy_function=transfer)
    else:
        transfer(str(source), str(target))
