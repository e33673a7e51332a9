"""The steps `prompt_examples` (training prompts as token shards) and `prompt` (judging a decoder by prompts).

`prompt` chooses on validation rows only: which draw of demonstrations for each number of shots, and which variant
(shots, calibration) is final. Test rows are scored once, by the prompts so chosen; all variants of them are reported,
`chosen` names the final ones. The tuned decoder is judged without demonstrations, as it was tuned.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.prompting.config import PromptConfig, PromptExamplesConfig, PromptFormat, problems
from infra.errors import ConfigError
from infra.journal.step import Artifact, StepContext, StepOutput
from infra.tracking.records import FileRecord, PromptRecord

if TYPE_CHECKING:
    from components.prompting.demonstrations import Rows
    from components.prompting.distributed import ScoringPool
    from components.prompting.encoding import PromptSpec
    from components.prompting.evaluation import Prompt
    from components.prompting.worker import ScoredUnit

logger = logging.getLogger(__name__)

ROWS_PER_UNIT = 512
"""Rows of a scoring unit; fixed, so that batches are the same for any number of workers."""
EXAMPLES_SOURCE = "task"
"""The one source that training prompts are of, for losses by source."""
MAX_REGISTERED_CHARACTERS = 100_000
"""MLflow 3.17 refuses longer prompts."""


def make_prompt_examples(
    config: PromptExamplesConfig, inputs: Mapping[str, Artifact], context: StepContext
) -> StepOutput:
    """Renders training and validation rows by the template into token shards.

    Inputs: `task`, `tokenizer`. Output: shards.json, train-00000.arrow, validation-00000.arrow with `targets`, and
    unigram_counts.npy.

    Raises:
        ConfigError: the template or verbalizer does not fit the task.
        DataError: the task has no training rows.
    """
    import numpy as np
    from transformers import AutoTokenizer

    from components.prompting.encoding import PromptEncoder
    from components.prompting.examples import pack_examples
    from components.prompting.task import read_labels, read_rows, require_rows
    from components.tokenization.shards import (
        ShardIndex,
        SourceCounts,
        SplitIndex,
        record_batch,
        write_index,
        write_shard,
    )

    started = time.monotonic()
    task = inputs["task"].path
    labels = read_labels(task)
    spec = _spec(config, labels, (), "prompt")
    tokenizer = AutoTokenizer.from_pretrained(inputs["tokenizer"].path / "tokenizer", local_files_only=True)
    encoder = PromptEncoder(tokenizer, spec, config.sequence_length - 1)
    sizes = {"train": config.max_examples, "validation": config.max_validation_examples}
    metrics: dict[str, float | int | str | None] = {}
    splits = {}
    for number, (split, max_rows) in enumerate(sizes.items()):
        rows = read_rows(task, split).sample(max_rows, config.seed)
        if split == "train":
            require_rows(rows, split, "task.train")
        packed = pack_examples(encoder, rows, labels, config.sequence_length, tokenizer, config.seed)
        file = write_shard(
            context.output / f"{split}-00000.arrow",
            record_batch(packed.tokens_NL, packed.document_lengths, len(tokenizer), packed.targets_NL),
        )
        splits[split] = SplitIndex(
            files=(file,),
            num_sequences=len(packed.tokens_NL),
            num_documents=packed.num_examples,
            num_tokens=packed.num_tokens,
            by_source=(
                SourceCounts(
                    num_documents=packed.num_examples,
                    num_text_tokens=packed.num_text_tokens,
                    num_text_bytes=packed.num_text_bytes,
                ),
            ),
            num_target_tokens=packed.num_target_tokens,
        )
        metrics |= {
            f"num_{split}_examples": packed.num_examples,
            f"num_{split}_sequences": len(packed.tokens_NL),
            f"num_{split}_texts_cut": packed.num_texts_cut,
        }
        if split == "train":
            counts_V = np.bincount(packed.tokens_NL.ravel(), minlength=len(tokenizer)).astype(np.int64)
            counts_V[tokenizer.pad_token_id] -= packed.tokens_NL.size - packed.num_tokens
            np.save(context.output / "unigram_counts.npy", counts_V)
            metrics |= {"num_tokens": packed.num_tokens, "num_target_tokens": packed.num_target_tokens}
        context.tracker.progress(number + 1, len(sizes), "splits")
    write_index(
        context.output,
        ShardIndex(
            sequence_length=config.sequence_length,
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            mask_token_id=tokenizer.mask_token_id,
            sources=(EXAMPLES_SOURCE,),
            has_sentences=False,
            splits=splits,
        ),
    )
    (context.output / "prompt.json").write_text(
        json.dumps(
            {
                "prompt": spec.template.registered_form(()),
                "labels": dict(zip(labels, spec.phrases, strict=True)),
                "scores_end": encoder.scores_end,
            },
            ensure_ascii=False,
            indent=1,
        ),
        encoding="utf-8",
    )
    return StepOutput(
        metrics=metrics,
        measured={"seconds": time.monotonic() - started},
        records=(FileRecord(path="prompt.json"),),
    )


def prompt(config: PromptConfig, inputs: Mapping[str, Artifact], context: StepContext) -> StepOutput:
    """Judges the pretrained decoder (all shots) and the tuned one (without demonstrations) by prompts.

    Inputs: `task`, `pretrain_clm`, and `tune_decoder` if there is one. Output: results.json,
    predictions/<name>.parquet (id, label, predicted) and scores/<prompt>.parquet (id, log_likelihoods in label order).

    Raises:
        ConfigError: the template or verbalizer does not fit the task.
        DataError: the task has no training or test rows.
        ResourceError: the cluster has no room for a worker.
    """
    from components.corpus.evaluation_sets import require_checked
    from components.prompting.demonstrations import choose_demonstrations, permute_labels
    from components.prompting.distributed import ScoringPool
    from components.prompting.evaluation import Prompt, best, validate
    from components.prompting.report import Report
    from components.prompting.task import read_labels, read_rows, require_rows

    started = time.monotonic()
    task = inputs["task"].path
    for name in ("pretrain_clm", "tune_decoder"):
        if name in inputs and not config.allow_unchecked_model:
            require_checked(inputs[name].path, task, "prompt")
    labels = read_labels(task)
    empty = _spec(config, labels, (), "prompt")
    training = require_rows(read_rows(task, "train"), "train", "task.train")
    test = require_rows(read_rows(task, "test"), "test", "task.test").sample(config.max_test_rows, config.seed)
    prompts: list[Prompt] = []
    for shots in sorted(config.shots):
        for draw in range(config.demonstration_draws if shots else 1):
            demonstrations = choose_demonstrations(training, labels, empty.phrases, shots, config.seed, draw)
            spec = _spec(config, labels, demonstrations, "prompt")
            prompts.append(Prompt(model="base", spec=spec, shots=shots, draw=draw))
            if shots and draw == 0 and config.permuted_control:
                wrong = _spec(config, labels, permute_labels(demonstrations, empty.phrases, config.seed), "prompt")
                prompts.append(Prompt(model="base", spec=wrong, shots=shots, draw=draw, permuted=True))
    if "tune_decoder" in inputs:
        prompts.append(Prompt(model="tuned", spec=empty, shots=0, draw=0))
    validation = _validation_rows(task, training, prompts, config)
    folders = {
        "base": inputs["pretrain_clm"].path / "model",
        **({"tuned": inputs["tune_decoder"].path / "model"} if "tune_decoder" in inputs else {}),
    }
    num_final = len({(item.model, item.shots) for item in prompts})
    progress = _Progress(context, len(validation) * len(prompts) + len(test) * num_final)
    with ScoringPool(config.cluster, config.batch_size, context.work / "units", context.mirror) as pool:
        on_validation = _score(pool, prompts, validation, "validation", folders, config, progress.add)
        report = Report(labels=labels, phrases=empty.phrases, training=training, test=test, seed=config.seed)
        finalists: dict[tuple[str, int], Prompt] = {}
        variants = {}
        for item in prompts:
            found = validate(item, on_validation[item.name].scores_NK, validation, labels, config.calibrate)
            variants[item.name] = found
            report.add_validation(item, found, len(validation))
        for model, shots in dict.fromkeys((item.model, item.shots) for item in prompts):
            candidates = [
                variant
                for item in prompts
                if (item.model, item.shots) == (model, shots) and not item.permuted
                for variant in variants[item.name]
            ]
            finalists[model, shots] = best(candidates).prompt
        scoring_started = time.monotonic()
        ordered = sorted(finalists.values(), key=lambda item: item.model != "tuned")  # it is the one loaded last
        on_test = _score(pool, ordered, test, "test", folders, config, progress.add)
        scoring_seconds = time.monotonic() - scoring_started
    for item in finalists.values():
        report.add_test(item, variants[item.name], on_test[item.name], context.output)
    metrics = report.write(context.output)
    return StepOutput(
        metrics=metrics,
        measured={
            "seconds": time.monotonic() - started,
            "examples_per_second": len(test) * len(finalists) / max(1e-9, scoring_seconds),
        },
        records=(FileRecord(path="results.json"), *_prompt_records(config, list(finalists.values()))),
    )


def _spec(config: PromptFormat, labels: Sequence[str], demonstrations: Sequence[Any], where: str) -> PromptSpec:
    from components.prompting.encoding import PromptSpec
    from components.prompting.template import parse_template
    from components.prompting.verbalizer import phrases_of

    found = problems(config, labels, where)
    if found:
        raise ConfigError(*found)
    template = parse_template(config.template, instruction=config.instruction, demo_delimiter=config.demo_delimiter)
    phrases = tuple(phrases_of(labels, config.verbalizer, f"{where}.verbalizer"))
    return PromptSpec(template=template, demonstrations=tuple(demonstrations), phrases=phrases)


def _validation_rows(task: Path, training: Rows, prompts: Sequence[Prompt], config: PromptConfig) -> Rows:
    """A sample of the validation rows; of a task too small to have any, training rows that are no demonstration."""
    from components.prompting.task import read_rows

    rows = read_rows(task, "validation")
    if not len(rows):
        used = {demo.id for item in prompts for demo in item.spec.demonstrations}
        unused = [index for index, id_ in enumerate(training.ids) if id_ not in used]
        rows = training.take(unused) if unused else training
        logger.warning("the task has no validation rows; prompts are chosen on %d training rows", len(rows))
    return rows.sample(config.max_validation_rows, config.seed)


def _score(
    pool: ScoringPool,
    prompts: Sequence[Prompt],
    rows: Rows,
    stage: str,
    folders: Mapping[str, Path],
    config: PromptConfig,
    progress: Callable[[int], None],
) -> dict[str, ScoredUnit]:
    """Scores of every prompt on `rows`, by the prompt's name."""
    from components.prompting.worker import ScoringUnit, concatenate

    starts = range(0, len(rows), ROWS_PER_UNIT)
    units = [
        ScoringUnit(
            name=f"{stage}-{item.name}-{start:08d}",
            model_folder=folders[item.model],
            spec=item.spec,
            texts=tuple(rows.texts[start : start + ROWS_PER_UNIT]),
            max_length=config.max_length,
        )
        for item in prompts
        for start in starts
    ]
    scored = pool.score(units, progress)
    return {
        item.name: concatenate(scored[number * len(starts) : (number + 1) * len(starts)])
        for number, item in enumerate(prompts)
    }


class _Progress:
    """Adds up finished rows and tells the tracker, at most once a second."""

    def __init__(self, context: StepContext, total: int) -> None:
        self._tracker = context.tracker
        self._total = total
        self._done = 0
        self._told = 0.0

    def add(self, rows: int) -> None:
        self._done += rows
        now = time.monotonic()
        if now - self._told >= 1.0 or self._done == self._total:
            self._told = now
            self._tracker.progress(self._done, self._total, "prompts")


def _prompt_records(config: PromptConfig, finalists: Sequence[Prompt]) -> tuple[PromptRecord, ...]:
    """One registered prompt for each number of shots; base and tuned share the one without demonstrations."""
    records = []
    for shots, item in sorted({item.shots: item for item in reversed(finalists)}.items()):
        text = item.spec.template.registered_form(item.spec.demonstrations)
        if len(text) > MAX_REGISTERED_CHARACTERS:
            logger.warning(
                "the prompt of %d shots has %d characters; MLflow takes %d, so it is only in results.json",
                shots,
                len(text),
                MAX_REGISTERED_CHARACTERS,
            )
            continue
        tags = {"shots": str(shots), "draw": str(item.draw), "num_labels": str(len(item.spec.phrases))}
        records.append(PromptRecord(name=f"fromzero-{config.name}-{shots}shot", template=text, tags=tags))
    return tuple(records)
