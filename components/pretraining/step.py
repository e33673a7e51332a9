"""The step that pretrains, or further trains, a language model: `pretrain_mlm`, `pretrain_clm`, `tune_decoder`."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from components.pretraining.checkpoints.checkpoint import FOLDER_NAME, CheckpointStore
from components.pretraining.checkpoints.retention import Retention
from components.pretraining.config import TASKS, PretrainConfig, reads_sentences
from components.pretraining.estimates.zero_stage import StageChoice, choose_stage, with_sizes_of
from components.pretraining.fit import problems
from components.tokenization.pieces import piece_ids, special_pieces
from infra.errors import ConfigError, DataError
from infra.journal.step import Artifact, StepContext, StepOutput
from infra.storage.raw import RawFile, digest_file
from infra.tracking.records import CheckpointRecord, FileRecord, ModelRecord, TableRecord

logger = logging.getLogger(__name__)


def pretrain(config: PretrainConfig, inputs: Mapping[str, Artifact], context: StepContext) -> StepOutput:
    """Trains a language model on token shards.

    Args:
        config: of the training; `objective` says which of the three it is.
        inputs: `tokenizer` (a folder `tokenizer/`), `token_shards`, and optionally `init` (a folder `model/` to start
            from, in place of `model.init_from`).
        context: `model/`, `metrics.jsonl` and `samples.json` go to its output, checkpoints to its work folder.

    Raises:
        ConfigError: values that do not fit one another, the token shards, or the model to start from.
        DataError: token shards without a sequence to train on or to validate with.
        TrainingError: a loss that is not a finite number.
        InfrastructureError: the workers failed more often than they are started again.
    """
    from components.corpus import evaluation_sets
    from components.pretraining.distributed import run_distributed, worker_memory
    from components.pretraining.export import EXPORT_NAME, HISTORY_NAME, MODEL_NAME, SAMPLES_NAME, read_result
    from components.pretraining.loop import ATTEMPTS_NAME
    from components.pretraining.training import TrainingJob
    from components.tokenization.shards import INDEX_NAME

    started = time.time()
    if "init" in inputs:
        model = config.model.model_copy(update={"init_from": str(inputs["init"].path / MODEL_NAME)})
        config = config.model_copy(update={"model": model})
    found = problems(config, context.step)
    if found:
        raise ConfigError(*found)
    num_new = 0
    if config.model.init_from and "init" not in inputs:
        check_unchanged(context.raw.get("init_from", ()))
        num_new = check_tokenizer(Path(config.model.init_from), inputs["tokenizer"].path / "tokenizer", context.step)
    shards = _shards_folder(inputs["token_shards"].path)
    check_vocabulary(config, shards, context.step, num_new)
    check_sentences(config, shards, context.step)
    choice = None
    if config.zero_stage == "auto":
        for path in (shards / INDEX_NAME, Path(config.model.init_from or "/") / "config.json"):
            context.mirror.pull(path)
        choice = _chosen_stage(config, shards, worker_memory(config.cluster), context.step)
        logger.info("%s: %s", context.step, choice.reason)
        config = config.model_copy(update={"zero_stage": choice.stage})
        if found := problems(config, context.step):
            raise ConfigError(*found)
    work, mirror = context.work, context.mirror
    mirror.pull(work / EXPORT_NAME)
    result = read_result(work)
    if result is None:
        job = TrainingJob(
            config=config,
            shards=shards,
            tokenizer=inputs["tokenizer"].path / "tokenizer",
            work=work,
            key=context.key,
            name=context.step,
            tracker=context.tracker,
            mirror=mirror,
            data_license=config.data_license,
        )
        run_distributed(job, f"{context.step}-{context.key[:8]}")
        mirror.pull(work / EXPORT_NAME)
        result = read_result(work)
    if result is None:
        raise ConfigError(
            f"{context.step}: the workers wrote no result that this process can see in {work}: "
            "storage.root must be a folder that all nodes share"
        )
    for name in (MODEL_NAME, HISTORY_NAME, SAMPLES_NAME):
        _link_or_copy(work / EXPORT_NAME / name, context.output / name)
    if config.model.init_from and "init" not in inputs:
        evaluation_sets.write_unknown(context.output, Path(config.model.init_from).name)
    else:
        evaluation_sets.carry(inputs["init" if "init" in inputs else "token_shards"].path, context.output)
    metrics = result["metrics"]
    mirror.pull(work / ATTEMPTS_NAME)
    attempts = (work / ATTEMPTS_NAME).read_text(encoding="utf-8").splitlines()
    measured = {
        **result["measured"],
        "restarts": len(attempts) - 1,
        "resumed_from_step": int(attempts[-1].split()[1]),
        "seconds": time.time() - started,
    }
    if choice is not None:
        measured |= {"zero_stage": choice.stage, "zero_stage_reason": choice.reason}
    if result["first_step_at"] is not None:
        measured["start_seconds"] = max(0.0, result["first_step_at"] - started)
    return StepOutput(
        metrics=metrics,
        measured=measured,
        records=(
            _model_record(config, context.step, metrics),
            FileRecord(path=HISTORY_NAME),
            TableRecord(path=SAMPLES_NAME),
            *_lasting_checkpoints(config, context),
        ),
    )


def _chosen_stage(config: PretrainConfig, shards: Path, memory_bytes: float, step: str) -> StageChoice:
    """What `zero_stage=auto` stands for on workers of so much memory.

    Raises:
        ConfigError: no stage fits.
    """
    from components.tokenization.shards import INDEX_NAME, ShardIndex

    vocab_size = ShardIndex.model_validate_json((shards / INDEX_NAME).read_bytes()).vocab_size
    if config.model.init_from:
        config, vocab_size = with_sizes_of(config, Path(config.model.init_from))
    return choose_stage(config, vocab_size, memory_bytes, step)


def _model_record(config: PretrainConfig, name: str, metrics: Mapping[str, Any]) -> ModelRecord | FileRecord:
    """The model for MLflow; of an encoder-decoder its card, for transformers 5 has no pipeline that runs one."""
    if config.kind == "encoder_decoder":
        return FileRecord(path="model/README.md", folder="model")
    return ModelRecord(
        path="model",
        name=name,
        task=TASKS[config.kind],
        metrics={name: float(value) for name, value in metrics.items()},
        parameters={"objective": config.objective, "precision": config.precision},
    )


def _lasting_checkpoints(config: PretrainConfig, context: StepContext) -> Iterator[CheckpointRecord]:
    """Records of the permanent and the best checkpoints, which stay when the step is finished."""
    store = CheckpointStore(context.work / FOLDER_NAME, context.key, Retention.of(config), context.mirror)
    for name, made in sorted(store.lasting().items()):
        loss = made.validation_loss
        yield CheckpointRecord(
            path=f"{FOLDER_NAME}/{name}",
            name=f"{context.step}_step_{made.progress.step}",
            metrics={"validation_loss": loss} if loss is not None else {},
        )


def check_unchanged(files: Iterable[RawFile]) -> None:
    """Whether the files of a model to start from are those that the key was made of.

    Raises:
        DataError: one is not.
    """
    for file in files:
        if digest_file(Path(file.path)) != file.digest:
            raise DataError(f"{file.path}: has changed since the run was planned; run again")


def check_tokenizer(init_from: Path, tokenizer: Path, where: str) -> int:
    """Compares the vocabulary of a model to start from with that of the token shards.

    Returns:
        How many special tokens the tokenizer has that the model's has not: those that the step `tokenizer` added.

    Raises:
        ConfigError: they give a token other ids, so that the model would read another text.
    """
    theirs, ours = (_vocabulary(folder / "tokenizer.json") for folder in (init_from, tokenizer))
    if theirs is None or ours is None:
        logger.warning("%s: no tokenizer.json, so nobody can tell whether it reads the same ids", init_from)
        return 0
    new = ours.keys() - theirs.keys()
    told = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))
    if not theirs.items() <= ours.items() or not new <= special_pieces(told):
        raise ConfigError(
            f"{where}.model.init_from={init_from}: its tokenizer is not that of this pipeline ({len(theirs)} and "
            f"{len(ours)} tokens): set tokenizer.kind=existing tokenizer.path={init_from}, or start from a model that "
            "was made with this tokenizer"
        )
    return len(new)


def check_vocabulary(config: PretrainConfig, shards: Path, where: str, num_new: int = 0) -> None:
    """Whether the network suits the tokens: enough rows in a model to start from, a budget that pays the embeddings.

    Args:
        config: of the training.
        shards: folder of the token shards.
        where: the step.
        num_new: tokens for which a model to start from gets new rows, if it has none.

    Raises:
        ConfigError: it does not.
    """
    from components.pretraining.networks.init_from import start_problems
    from components.pretraining.networks.sizes import size_problems
    from components.tokenization.shards import TokenShards

    vocab_size = TokenShards(shards, "train").index.vocab_size
    if config.model.init_from is not None:
        found = start_problems(config, f"{where}.model", vocab_size, num_new)
    else:
        found = size_problems(config, where, vocab_size)
    if found:
        raise ConfigError(*found)


def check_sentences(config: PretrainConfig, shards: Path, where: str) -> None:
    """Whether the token shards have the sentences that the objective reads.

    Raises:
        ConfigError: they do not.
    """
    from components.tokenization.shards import TokenShards

    if reads_sentences(config) and not TokenShards(shards, "train").index.has_sentences:
        fit = (
            "take masked_lm"
            if config.objective == "masked_lm_nsp"
            else f"leave sentence_permutation out of {where}.noise"
        )
        raise ConfigError(
            f"{where}.objective={config.objective} reads sentences, and the token shards in {shards} have none: "
            f"nobody can tell the words of their tokenizer; {fit}, or train the tokenizer here (tokenizer.kind)"
        )


def _vocabulary(path: Path) -> dict[str, int] | None:
    """Token ids; None without the file."""
    if not path.is_file():
        return None
    return piece_ids(json.loads(path.read_text(encoding="utf-8")))


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
