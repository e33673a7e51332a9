"""A fit resumes to the bit, and its saved model gives the accuracy that was reported."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from components.finetuning import data, models, sweep, units
from components.finetuning.config import FinetuneConfig
from components.finetuning.predict import Classifier
from components.finetuning.trial import Fit, Job, run_unit, schedule
from infra.errors import DamagedArtifactError, TrainingError, UserError
from infra.journal.step import Artifact
from infra.storage.mirror import Mirror
from infra.storage.objects import ObjectStore

CONFIG = FinetuneConfig(epochs_small=(2,), num_trials=3, label_budgets=(96, "all"), batch_sizes=(16,))


@pytest.fixture
def job(inputs: dict[str, Artifact], tmp_path: Path) -> Job:
    encoder = inputs["pretrain_mlm"].path / "model"
    tokenizer = models.load_tokenizer(encoder)
    labels = data.read_labels(inputs["task"].path)
    (tmp_path / "data").mkdir()
    for split in data.SPLITS:
        encoded = data.encode_split(data.read_split(inputs["task"].path, split), labels, tokenizer, 48)
        data.save_encoded(tmp_path / "data", split, encoded)
    return Job(
        config=CONFIG,
        encoder=encoder,
        data=tmp_path / "data",
        units=tmp_path / "units",
        labels=tuple(labels),
        pad_token_id=tokenizer.pad_token_id,
    )


@pytest.fixture
def plan() -> sweep.Sweep:
    return sweep.make_sweep(CONFIG, "pretrained", 96, num_rows=96, mean_length=20.0, largest=True)


def run(job: Job, unit: sweep.Unit) -> units.UnitResult:
    assert sum(run_unit(job, unit)) > 0 or unit.resume
    return units.read_result(job.units / unit.name)


def long_unit(plan: sweep.Sweep) -> sweep.Unit:
    """Long and fast enough to learn something."""
    unit = sweep.rung_unit(plan, 1, 0)
    fast = dataclasses.replace(unit.hyperparameters, learning_rate=5e-3, dropout=0.0, label_smoothing=0.0)
    return dataclasses.replace(unit, hyperparameters=fast, budget="all", until_step=120, total_steps=120)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_a_fit_stopped_at_a_rung_and_gone_on_with_equals_one_never_stopped(job: Job, plan: sweep.Sweep) -> None:
    first, second = sweep.rung_unit(plan, 0, 0), sweep.rung_unit(plan, 0, 1)
    whole = dataclasses.replace(second, name="whole", resume=None)
    assert 0 < first.until_step < whole.until_step
    run(job, first)
    in_parts, at_once = run(job, second), run(job, whole)
    assert in_parts.metrics == at_once.metrics
    assert (in_parts.step, in_parts.num_tokens, in_parts.train_flops) == (
        at_once.step,
        at_once.num_tokens,
        at_once.train_flops,
    )
    names = (second.name, "whole")
    parts, once = (Fit(job, dataclasses.replace(second, name="x", resume=name)) for name in names)
    assert all(torch.equal(a, b) for a, b in zip(parts.model.parameters(), once.model.parameters(), strict=True))


def test_training_lowers_the_loss_and_moves_every_weight(job: Job, plan: sweep.Sweep) -> None:
    unit = long_unit(plan)
    fit = Fit(job, unit)
    before = weights(fit.model)
    list(fit.train())
    losses = [point["train_loss"] for _, point in fit.history]
    assert losses[-1] < losses[0] - 0.1
    after = weights(fit.model)
    still = [name for name in before if torch.equal(before[name], after[name])]
    assert [name for name in still if "position_ids" not in name and "token_type" not in name] == []


def test_pretrained_starts_from_the_encoder_and_scratch_does_not(job: Job) -> None:
    from safetensors.torch import load_file

    name = "bert.embeddings.word_embeddings.weight"
    saved = load_file(job.encoder / "model.safetensors")[name]
    pretrained, scratch, again = (
        models.build_classifier(job.encoder, init, job.labels, seed=5).state_dict()
        for init in ("pretrained", "scratch", "pretrained")
    )
    assert torch.equal(pretrained[name], saved)
    assert not torch.equal(scratch[name], saved)
    assert all(torch.equal(pretrained[key], again[key]) for key in pretrained)


def test_a_classifier_that_can_pool_over_all_tokens_does(tmp_path: Path) -> None:
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    config = ModernBertConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0),
    )
    ModernBertForMaskedLM(config).save_pretrained(tmp_path)
    model: Any = models.build_classifier(tmp_path, "pretrained", ["a", "b"], dropout=0.3)
    assert model.config.classifier_pooling == "mean"
    assert model.config.mlp_dropout == 0.3


def test_a_diverged_trial_is_the_worst_and_a_diverged_final_fit_an_error(job: Job, plan: sweep.Sweep) -> None:
    wild = dataclasses.replace(plan.trials[0], learning_rate=1e30)
    plan = dataclasses.replace(plan, trials=(wild, *plan.trials[1:]))
    result = run(job, sweep.rung_unit(plan, 0, 0))
    assert result.diverged
    assert result.metrics["validation_accuracy"] < 0
    with pytest.raises(TrainingError, match=r"learning rate 1e\+30; lower finetune.learning_rate_max"):
        run(job, dataclasses.replace(sweep.final_unit(plan, 0, 1), name="final"))


def test_a_diverged_trial_that_must_go_on_for_want_of_others_stays_the_worst(job: Job, plan: sweep.Sweep) -> None:
    wild = dataclasses.replace(plan.trials[0], learning_rate=1e30)
    plan = dataclasses.replace(plan, trials=(wild, *plan.trials[1:]))
    run(job, sweep.rung_unit(plan, 0, 0))
    assert run(job, sweep.rung_unit(plan, 0, 1)).diverged


def test_finished_units_are_taken_up_only_if_whole_and_of_the_same_settings(job: Job, plan: sweep.Sweep) -> None:
    unit = sweep.rung_unit(plan, 0, 0)
    assert units.finished(job.units / unit.name, unit) is None
    result = run(job, unit)
    folder = job.units / unit.name
    assert units.finished(folder, unit) == result
    assert units.finished(folder, dataclasses.replace(unit, until_step=99)) is None
    state = folder / units.STATE
    state.write_bytes(state.read_bytes()[:-1] + b"x")
    assert units.finished(folder, unit) is None
    with pytest.raises(DamagedArtifactError, match="not what was written"):
        units.load_state(folder, Fit(job, unit).model)
    (folder / units.RESULT).write_text("{")
    assert units.finished(folder, unit) is None


def test_a_dropped_state_leaves_a_result_that_verifies(job: Job, plan: sweep.Sweep) -> None:
    unit = sweep.rung_unit(plan, 0, 0)
    result = run(job, unit)
    units.drop_state(job.units / unit.name)
    kept = units.finished(job.units / unit.name, unit)
    assert kept is not None and kept.metrics == result.metrics
    assert not (job.units / unit.name / units.STATE).exists()
    with pytest.raises(DamagedArtifactError, match="has no saved state"):
        units.load_state(job.units / unit.name, Fit(job, unit).model)


def test_another_machine_takes_up_a_unit_and_goes_on_from_it(
    job: Job, plan: sweep.Sweep, s3_uri: str, tmp_path: Path
) -> None:
    objects = ObjectStore.open(s3_uri)
    here, there = (
        dataclasses.replace(job, units=tmp_path / name / "work" / "units", mirror=Mirror(tmp_path / name, objects))
        for name in ("here", "there")
    )
    first, second = sweep.rung_unit(plan, 0, 0), sweep.rung_unit(plan, 0, 1)
    result = run(here, first)
    assert run(there, second).metrics == run(here, second).metrics
    copy = there.units / first.name
    (copy / units.STATE).write_bytes(b"damaged")
    assert units.finished(copy, first, there.mirror) == result
    units.drop_state(here.units / first.name, here.mirror)
    assert set(objects.sizes(f"work/units/{first.name}")) == {units.RESULT}


def test_the_learning_rate_rises_falls_and_ends_above_nothing() -> None:
    rates = [schedule(step, 20, 0.2) for step in range(20)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert all(a > b > 0 for a, b in itertools.pairwise(rates[4:]))
    assert schedule(0, 1, 0.9) == 1.0


def test_prediction_gives_the_labels_of_the_evaluation_in_any_order(
    job: Job, plan: sweep.Sweep, inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    unit = long_unit(plan)
    fit = Fit(job, unit)
    list(fit.train())
    test = data.load_encoded(job.data, "test")
    predicted_N, found = fit.judge(test, np.arange(len(test)))
    fit.model.save_pretrained(tmp_path / "model")
    models.load_tokenizer(job.encoder, 48).save_pretrained(tmp_path / "model")
    split = data.read_split(inputs["task"].path, "test")
    predictions = Classifier.load(tmp_path / "model").predict(split.texts)
    assert [prediction.label for prediction in predictions] == [job.labels[index] for index in predicted_N]
    assert all(1 / 3 <= prediction.probability <= 1 for prediction in predictions)
    assert found["accuracy"] == np.mean(predicted_N == test.label_N)
    assert len(set(predicted_N.tolist())) > 1
    assert Classifier.load(tmp_path / "model").predict([]) == []


def test_a_folder_without_a_model_is_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json is missing"):
        Classifier.load(tmp_path)
