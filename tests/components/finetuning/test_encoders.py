"""What pretraining leaves of each objective that makes an encoder, or an encoder-decoder, can be fine-tuned."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from components.finetuning import data, models, sweep, units
from components.finetuning.config import FinetuneConfig
from components.finetuning.predict import Classifier
from components.finetuning.trial import Job, run_unit
from components.pretraining.config import PretrainConfig, num_sentinels
from components.pretraining.export import write_export
from components.pretraining.networks.models import build_model
from infra.journal.step import Artifact

EXPORTS = [("masked_lm", None), ("masked_lm_nsp", "bert"), ("span_corruption", "t5"), ("denoising", "bart")]
CONFIG = FinetuneConfig(epochs_small=(2,), num_trials=3, label_budgets=(96, "all"), batch_sizes=(16,))


def export(objective: str, architecture: str | None, tokenizer: Path, work: Path) -> Path:
    """The folder `model/` that a pretraining of no steps would leave."""
    from transformers import AutoTokenizer

    sizes = {"architecture": architecture, "hidden_size": 32, "num_layers": 2, "num_heads": 2}
    told = {"objective": objective, "model": sizes, "sequence_length": 64}
    config = PretrainConfig.model_validate(told)
    words = AutoTokenizer.from_pretrained(tokenizer)
    model = build_model(config, len(words), {"pad": 0, "bos": 2, "eos": 3})
    work.mkdir()
    write_export(
        work,
        attempt="one",
        model=model,
        state={name: parameter.detach() for name, parameter in model.named_parameters()},
        tokenizer=tokenizer,
        num_sentinels=num_sentinels(config),
        card="",
        history=[],
        samples={"columns": [], "data": []},
        result={},
    )
    return work / "export" / "model"


@pytest.mark.parametrize(("objective", "architecture"), EXPORTS)
def test_an_export_is_fine_tuned_saved_and_predicts(
    objective: str, architecture: str | None, inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    encoder = export(objective, architecture, inputs["pretrain_mlm"].path / "model", tmp_path / "work")
    tokenizer = models.load_tokenizer(encoder)
    labels = data.read_labels(inputs["task"].path)
    length = models.text_length_limit(encoder, 48)
    (tmp_path / "data").mkdir()
    for split in data.SPLITS:
        encoded = data.encode_split(data.read_split(inputs["task"].path, split), labels, tokenizer, length)
        data.save_encoded(tmp_path / "data", split, encoded)
    job = Job(
        config=CONFIG,
        encoder=encoder,
        data=tmp_path / "data",
        units=tmp_path / "units",
        labels=tuple(labels),
        pad_token_id=tokenizer.pad_token_id,
    )
    plan = sweep.make_sweep(CONFIG, "pretrained", 96, num_rows=96, mean_length=20.0, largest=True)
    unit = sweep.rung_unit(plan, 1, 0)
    fast = dataclasses.replace(unit.hyperparameters, learning_rate=5e-3, dropout=0.1)
    unit = dataclasses.replace(unit, hyperparameters=fast, until_step=30, total_steps=30, judge="test")
    list(run_unit(job, unit))
    result = units.read_result(job.units / unit.name)
    losses = [point["train_loss"] for _, point in result.history if "train_loss" in point]
    assert losses[-1] < losses[0]
    assert result.train_flops > 0
    classifier: Any = models.build_classifier(encoder, "scratch", labels, dropout=0.1)
    units.load_state(job.units / unit.name, classifier)
    classifier.save_pretrained(tmp_path / "classifier")
    models.load_tokenizer(encoder, length).save_pretrained(tmp_path / "classifier")
    found = Classifier.load(tmp_path / "classifier").predict(["a person who sails", "a tool", "a large animal"])
    assert all(prediction.label in labels for prediction in found)


@pytest.mark.parametrize(("objective", "architecture"), EXPORTS)
def test_a_classifier_takes_over_every_weight_of_the_export(
    objective: str, architecture: str | None, inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    encoder = export(objective, architecture, inputs["pretrain_mlm"].path / "model", tmp_path / "work")
    first, second, scratch = (
        models.build_classifier(encoder, init, ["a", "b"], seed=seed)
        for init, seed in (("pretrained", 1), ("pretrained", 2), ("scratch", 1))
    )
    theirs = dict(first.named_parameters())
    new = [name for name, weight in second.named_parameters() if not torch.equal(weight, theirs[name])]
    assert new
    assert all(name.startswith(("classif", "head", "score")) for name in new)
    taken = [name for name, weight in scratch.named_parameters() if not torch.equal(weight, theirs[name])]
    assert set(taken) > set(new) or len(taken) > len(new)


def test_an_export_of_span_corruption_needs_nothing_of_ours(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig

    plain = inputs["pretrain_mlm"].path / "model"
    folder = export("span_corruption", "t5", plain, tmp_path / "work")
    before, tokenizer = len(AutoTokenizer.from_pretrained(plain)), AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    assert tokenizer.convert_tokens_to_ids(["<extra_id_0>", "<extra_id_99>"]) == [before, before + 99]
    ids = tokenizer("a tool <extra_id_0> cutting <extra_id_1>", return_tensors="pt").input_ids
    assert {before, before + 1} < set(ids[0].tolist())
    assert model.config.vocab_size == model.get_input_embeddings().weight.shape[0] >= before + 100
    assert model.config.vocab_size % 64 == 0
    told = GenerationConfig.from_pretrained(folder)
    assert (told.pad_token_id, told.eos_token_id, told.decoder_start_token_id) == (0, 3, 0)
    assert model.generate(ids, max_new_tokens=5).shape[1] <= 6


def test_an_export_of_denoising_starts_its_decoder_with_the_end(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM, GenerationConfig

    folder = export("denoising", "bart", inputs["pretrain_mlm"].path / "model", tmp_path / "work")
    told = GenerationConfig.from_pretrained(folder)
    assert (told.bos_token_id, told.decoder_start_token_id, told.forced_eos_token_id) == (2, 3, 3)
    generated = AutoModelForSeq2SeqLM.from_pretrained(folder).generate(torch.tensor([[2, 50, 3]]), max_new_tokens=4)
    assert generated[0, 0] == 3
