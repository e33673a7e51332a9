"""The step `finetune`: a sweep and final fits at each label budget, from pretrained and from random weights.

Writes `model/` (the champion), `results.json`, `trials.json`, `measured.json` (seconds: not the same twice),
`predictions.parquet` (the champion's) and `predictions/<start>_<budget>_seed<k>.parquet`.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.finetuning.config import Budget, FinetuneConfig, problems
from infra.errors import ConfigError, DataError
from infra.journal.step import Artifact, Scalar, StepContext, StepOutput
from infra.tracking.records import FileRecord, ModelRecord

logger = logging.getLogger(__name__)


def finetune(config: FinetuneConfig, inputs: Mapping[str, Artifact], context: StepContext) -> StepOutput:
    """Fine-tunes and chooses a classifier.

    Args:
        config: what to try.
        inputs: `task` and `pretrain_mlm`.
        context: where to write; `context.work` keeps finished units of the sweep.

    Raises:
        ConfigError: values that do not fit together.
        DataError: a split of the task is empty, or it has fewer than two labels.
        TrainingError: a final fit diverged.
    """
    if found := problems(config):
        raise ConfigError(*found)
    from components.corpus.evaluation_sets import require_checked
    from components.finetuning import distributed
    from components.finetuning import results as reporting
    from components.finetuning.data import load_encoded, read_labels
    from components.finetuning.metrics import Interval
    from components.finetuning.models import text_length_limit
    from components.finetuning.sweep import chosen_trial
    from components.finetuning.units import load_predictions

    start = time.monotonic()
    task, encoder = inputs["task"].path, inputs["pretrain_mlm"].path / "model"
    if not config.allow_unchecked_model:
        require_checked(inputs["pretrain_mlm"].path, task, "finetune")
    labels = read_labels(task)
    if len(labels) < 2:
        raise DataError(f"task: {len(labels)} label(s); a classifier needs 2 or more different labels")
    max_length = text_length_limit(encoder, config.max_length)
    job = _prepare(config, task, encoder, labels, max_length, context)
    test = load_encoded(job.data, "test")
    sweeps = _sweeps(config, job)
    results = distributed.run_sweeps(job, sweeps, context.work / "tune", context.tracker)
    metrics = distributed.selection_metrics(job, results)
    runs = [
        reporting.FinalRun(
            unit=unit,
            result=results[unit.name],
            predicted_N=load_predictions(job.units / unit.name),
            num_rows=sweep.num_rows,
        )
        for sweep in sweeps
        for unit in reporting.final_units(sweep, metrics)
    ]
    largest = next(sweep for sweep in sweeps if sweep.keep_weights)
    champion = reporting.choose_champion(runs, largest, f"validation_{config.selection_metric}")
    rivals = [sweep for sweep in sweeps if (sweep.init, sweep.budget) == ("scratch", largest.budget)]
    rival = reporting.choose_champion(runs, rivals[0], f"validation_{config.selection_metric}") if rivals else None
    rows = {run.unit.name: reporting.describe_run(run, test, labels, config.seed) for run in runs}
    best = rows[champion.unit.name]
    budgets = list(dict.fromkeys(sweep.budget for sweep in sweeps))
    gains: dict[Budget, Interval] = {}
    for budget in budgets:
        gain = reporting.pretraining_gain(runs, budget, test, config.seed)
        if gain is not None:
            gains[budget] = gain

    _save_champion(job, champion.unit, context.output / "model", max_length)
    keys = {name: artifact.key for name, artifact in inputs.items()}
    card = reporting.model_card(config, best, labels, keys, max_length)
    (context.output / "model" / "README.md").write_text(card, encoding="utf-8")
    for run in runs:
        reporting.write_predictions(context.output / run.predictions_path, test.ids, labels, test, run)
    shutil.copyfile(context.output / champion.predictions_path, context.output / "predictions.parquet")
    truncated = {split: load_encoded(job.data, split).num_truncated for split in ("train", "validation", "test")}
    document = {
        "labels": labels,
        "max_length": max_length,
        "num_rows": {split: len(load_encoded(job.data, split)) for split in ("train", "validation", "test")},
        "num_truncated": truncated,
        "budgets": budgets,
        "champion": champion.unit.name,
        "scratch_champion": rival.unit.name if rival else None,
        "inference_flops_per_example": _inference_flops(context.output / "model", test),
        "runs": list(rows.values()),
        "pretraining_gain": [
            {"budget": budget, "mean": gain.value, "low": gain.low, "high": gain.high} for budget, gain in gains.items()
        ],
        **reporting.describe_errors(champion, test, labels),
    }
    _write_json(context.output / "results.json", document)
    trials = [reporting.describe_sweep(sweep, results, metrics) for sweep in sweeps]
    _write_json(context.output / "trials.json", trials)
    unit_seconds = {name: results[name].seconds for name in sorted(results)}
    _write_json(context.output / "measured.json", {"unit_seconds": unit_seconds})
    scratch = rows[rival.unit.name] if rival else None
    fits = {"champion_fit_seconds": champion} | ({"scratch_fit_seconds": rival} if rival else {})
    summary: dict[str, Scalar] = {
        **{f"test_{name}": best[name] for name in _SCORES},
        **({f"scratch_test_{name}": scratch[name] for name in _SCORES} if scratch else {}),
        **{
            f"pretraining_gain_{budget}{suffix}": value
            for budget, gain in gains.items()
            for suffix, value in (("", gain.value), ("_low", gain.low), ("_high", gain.high))
        },
        "validation_accuracy": best["validation_accuracy"],
        "validation_macro_f1": best["validation_macro_f1"],
        "num_test_rows": best["num_test_rows"],
        "num_test_correct": best["num_correct"],
        "num_truncated_train": truncated["train"],
        "num_truncated_test": truncated["test"],
        "chosen_trial": f"{largest.name}_trial{chosen_trial(largest, metrics)}",
        **{f"chosen_{name}": value for name, value in best["hyperparameters"].items()},
        "train_flops": best["train_flops"],
        "sweep_flops": sum(trial["train_flops"] for sweep in trials for trial in sweep["trials"]),
    }
    seconds = time.monotonic() - start
    examples = sum(result.num_texts_own for result in results.values())
    return StepOutput(
        metrics=summary,
        measured={
            "seconds": seconds,
            "examples_per_second": examples / seconds,
            "units_seconds": sum(unit_seconds.values()),
            **{name: _fit_seconds(run.unit, results) for name, run in fits.items()},
        },
        records=(
            ModelRecord(
                path="model",
                name="classifier",
                task="text-classification",
                registered_name=config.registered_model,
                alias="champion",
                metrics={f"test_{name}": best[name] for name in _SCORES},
                parameters={name: str(value) for name, value in best["hyperparameters"].items()},
            ),
            *(FileRecord(path=name) for name in ("results.json", "trials.json", "predictions.parquet")),
            *_trial_records(sweeps, results, metrics),
        ),
    )


_SCORES = tuple(f"{name}{suffix}" for name in ("accuracy", "macro_f1") for suffix in ("", "_low", "_high"))


def _prepare(
    config: FinetuneConfig, task: Path, encoder: Path, labels: Sequence[str], max_length: int, context: StepContext
) -> Any:
    """Tokenizes the task into the work folder and says what all units share."""
    from components.finetuning.data import SPLITS, encode_split, read_split, save_encoded
    from components.finetuning.models import load_tokenizer
    from components.finetuning.trial import Job

    tokenizer = load_tokenizer(encoder)
    data = context.work / "data"
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir(parents=True)
    for split in SPLITS:
        encoded = encode_split(read_split(task, split), labels, tokenizer, max_length)
        if encoded.num_truncated:
            logger.warning(
                "%s: %d of %d texts are longer than %d tokens and are cut; finetune.max_length raises that",
                split,
                encoded.num_truncated,
                len(encoded),
                max_length,
            )
        save_encoded(data, split, encoded)
    context.mirror.push(data)
    return Job(
        config=config,
        encoder=encoder.absolute(),
        data=data.absolute(),
        units=(context.work / "units").absolute(),
        labels=tuple(labels),
        pad_token_id=tokenizer.pad_token_id,
        mirror=context.mirror,
    )


def _sweeps(config: FinetuneConfig, job: Any) -> list[Any]:
    """One sweep for each start and label budget; a budget of no fewer labels than there are counts as `all`."""
    from components.finetuning.data import load_encoded
    from components.finetuning.sweep import Init, make_sweep

    train = load_encoded(job.data, "train")
    numbers = sorted(budget for budget in config.label_budgets if budget != "all")
    budgets: list[Budget] = [budget for budget in numbers if budget < len(train)]
    dropped = [budget for budget in numbers if budget >= len(train)]
    if dropped:
        logger.warning(
            "finetune.label_budgets: %s is not less than the %d training labels there are and counts as all",
            dropped,
            len(train),
        )
    if dropped or "all" in config.label_budgets:
        budgets.append("all")
    starts: tuple[Init, ...] = ("pretrained", "scratch") if config.compare_with_scratch else ("pretrained",)
    mean_length = float(train.lengths_N.mean())
    return [
        make_sweep(
            config,
            init,
            budget,
            num_rows=len(train) if budget == "all" else budget,
            mean_length=mean_length,
            largest=budget == budgets[-1],
        )
        for budget in budgets
        for init in starts
    ]


def _save_champion(job: Any, unit: Any, folder: Path, max_length: int) -> None:
    """Writes the champion as a Hugging Face folder: fp32 safetensors, label names, and the tokenizer."""
    from components.finetuning.models import build_classifier, load_tokenizer
    from components.finetuning.units import load_state

    dropout = unit.hyperparameters.dropout
    model: Any = build_classifier(job.encoder, "scratch", job.labels, dropout=dropout)
    load_state(job.units / unit.name, model)
    model.save_pretrained(folder)
    load_tokenizer(job.encoder, max_length).save_pretrained(folder)


def _inference_flops(folder: Path, test: Any) -> float:
    """FLOPs to classify one test text."""
    from transformers import AutoConfig

    from components.finetuning.models import training_flops

    num_tokens = int(test.lengths_N.sum())
    return training_flops(AutoConfig.from_pretrained(folder), num_tokens, len(test), training=False) / len(test)


def _fit_seconds(unit: Any, results: Mapping[str, Any]) -> float:
    """Seconds of one final fit, those of the rungs it went on from included."""
    seconds: float = results[unit.name].seconds
    if unit.resume is not None:
        trial = unit.resume.rpartition("_rung")[0]
        seconds += sum(result.seconds for name, result in results.items() if name.rpartition("_rung")[0] == trial)
    return seconds


def _trial_records(sweeps: Sequence[Any], results: Mapping[str, Any], metrics: Mapping[str, float]) -> list[Any]:
    """Each trial as it ended, and each final fit: what a lost tracking server is filled from again."""
    from components.finetuning.distributed import trial_record
    from components.finetuning.results import final_units
    from components.finetuning.sweep import Sweep, rung_unit

    records: dict[str, Any] = {}
    sweep: Sweep
    for sweep in sweeps:
        units = [rung_unit(sweep, trial, rung) for rung in range(sweep.num_rungs) for trial in range(len(sweep.trials))]
        for unit in [*units, *final_units(sweep, metrics)]:
            if unit.name in results:  # of a trial, the last rung that it came to
                record = trial_record(sweep, unit, results)
                records[record.trial_id] = record
    return list(records.values())


def _write_json(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
