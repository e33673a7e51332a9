"""Losses of packed batches against transformers' own, document by document.

Their side is what a user of transformers would do: each document in a row of its own, padded, labels -100 where there
is no target, `.loss`. Ours has several documents in a row, kept apart by masks and positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForSeq2SeqLM

from components.pretraining.batches import Batch, attention_mask, make_batch, make_objective, read_sequences
from components.pretraining.config import PretrainConfig
from components.pretraining.export import write_export
from components.pretraining.networks.models import TargetLoss, build_model
from components.pretraining.objectives.masked_lm_nsp import MaskedLmNsp
from components.pretraining.objectives.objective import Sequences, Targets
from components.tokenization.shards import TokenShards

CPU = torch.device("cpu")
SPECIAL = {"pad": 0, "bos": 2, "eos": 3}
INDICES = np.asarray([0, 5, 9, 14, 20, 31, 40, 52])
SIZES = {"hidden_size": 32, "num_layers": 2, "num_heads": 2}


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    """For all tests here."""
    with torch.no_grad():
        yield


def config_of(objective: str, **more: Any) -> PretrainConfig:
    return PretrainConfig.model_validate({"objective": objective, "sequence_length": 32, "model": SIZES, **more})


def made(data: Path, config: PretrainConfig) -> tuple[Batch, Targets]:
    """A batch, and what its objective says of the same sequences."""
    shards = TokenShards(data / "token_shards", "train")
    objective = make_objective(config, shards, data / "tokenizer")
    epochs_B = np.zeros_like(INDICES)
    sequences: Sequences = read_sequences(shards, INDICES, epochs_B, sentences=objective.reads_sentences)
    if isinstance(objective, MaskedLmNsp):
        partners_B = objective.partner_indices(sequences, len(shards), validation=False)
        partners = read_sequences(shards, partners_B, epochs_B, sentences=True)  # type: ignore[arg-type]
        sequences = replace(sequences, partners=partners)
    return make_batch(shards, objective, INDICES, epochs_B), objective.prepare(sequences)


def one_by_one(segments_BX: Any, *arrays_BX: Any, fills: tuple[int, ...]) -> list[torch.Tensor]:
    """Each document of packed arrays in a row of its own, padded."""
    found: list[list[Any]] = [[] for _ in arrays_BX]
    for row, segments_X in enumerate(segments_BX):
        for number in range(1, int(segments_X.max()) + 1):
            for place, array_BX in enumerate(arrays_BX):
                found[place].append(torch.from_numpy(array_BX[row][segments_X == number]))
    pad = nn.utils.rnn.pad_sequence
    return [pad(rows, batch_first=True, padding_value=fill) for rows, fill in zip(found, fills, strict=True)]


def added(mask: torch.Tensor) -> torch.Tensor:
    """A boolean mask as what eager attention adds to its scores."""
    return torch.where(mask, 0.0, -1e4)


def mean_loss(model: Any, batch: Batch) -> float:
    """The loss of a packed batch: each summed loss over its targets."""
    losses_K = TargetLoss(model)(**batch.to(CPU))
    return float((losses_K / torch.tensor(batch.num_targets_K)).sum())


@pytest.mark.parametrize("unit", ["token", "word", "span"])
@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_masked_lm(tiny_data: Path, architecture: str, unit: str) -> None:
    config = config_of("masked_lm", masking_unit=unit, model={**SIZES, "architecture": architecture})
    batch, targets = made(tiny_data, config)
    model = build_model(config, 512, SPECIAL).eval()
    labels_BL = np.where(targets.mask_BX, targets.labels_BX, -100)
    ids, labels, real = one_by_one(
        targets.segments_BL, targets.inputs_BL, labels_BL, np.ones_like(labels_BL), fills=(0, -100, 0)
    )
    theirs = model(input_ids=ids, attention_mask=real, labels=labels).loss
    assert len(ids) > len(INDICES)  # some share a row
    assert mean_loss(model, batch) == pytest.approx(float(theirs), rel=1e-5)


def test_masked_lm_and_next_sentences(text_data: Path) -> None:
    config = config_of("masked_lm_nsp", sequence_length=128)
    batch, targets = made(text_data, config)
    model = build_model(config, 1024, SPECIAL).eval()
    labels_BL = np.where(targets.mask_BX, targets.labels_BX, -100)
    next_BL = np.full_like(labels_BL, -100)
    assert targets.pair_positions_P is not None
    next_BL.reshape(-1)[targets.pair_positions_P] = targets.pair_labels_P
    ids, labels, real, types, following = one_by_one(
        targets.segments_BL,
        targets.inputs_BL,
        labels_BL,
        np.ones_like(labels_BL),
        targets.token_types_BL,
        next_BL,
        fills=(0, -100, 0, 0, -100),
    )
    theirs = model(
        input_ids=ids, attention_mask=real, token_type_ids=types, labels=labels, next_sentence_label=following[:, 0]
    ).loss
    assert batch.num_targets_K[1] > 3
    assert mean_loss(model, batch) == pytest.approx(float(theirs), rel=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2"])
def test_causal_lm(tiny_data: Path, architecture: str) -> None:
    config = config_of("causal_lm", model={**SIZES, "architecture": architecture})
    batch, targets = made(tiny_data, config)
    model = build_model(config, 512, SPECIAL).eval()
    ids, real = one_by_one(targets.segments_BL, targets.inputs_BL, np.ones_like(targets.inputs_BL), fills=(0, 0))
    labels = torch.where(real.bool(), ids, -100)  # transformers shifts them
    theirs = model(input_ids=ids, attention_mask=real, labels=labels).loss
    assert mean_loss(model, batch) == pytest.approx(float(theirs), rel=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2"])
def test_prefix_lm(tiny_data: Path, architecture: str) -> None:
    """Transformers is given the mask of each document alone."""
    config = config_of("prefix_lm", model={**SIZES, "architecture": architecture})
    batch, targets = made(tiny_data, config)
    model = build_model(config, 512, SPECIAL).eval()
    assert targets.prefix_BL is not None
    ids, real, prefix = one_by_one(
        targets.segments_BL,
        targets.inputs_BL,
        np.ones_like(targets.inputs_BL),
        targets.prefix_BL.astype(np.int64),
        fills=(0, 0, 0),
    )
    seen = attention_mask(real.numpy(), causal=True, prefix_BL=prefix.bool().numpy())
    labels = torch.where(real.bool() & ~prefix.bool(), ids, -100)
    theirs = model(input_ids=ids, attention_mask=added(torch.from_numpy(seen)), labels=labels).loss
    assert mean_loss(model, batch) == pytest.approx(float(theirs), rel=1e-5)


def decoder_rows(targets: Targets) -> list[torch.Tensor]:
    """What a user of an encoder-decoder of transformers gives: input ids, attention mask, labels."""
    assert targets.decoder is not None
    ids, real = one_by_one(targets.segments_BL, targets.inputs_BL, np.ones_like(targets.inputs_BL), fills=(0, 0))
    (labels,) = one_by_one(targets.decoder.segments_BM, targets.labels_BX, fills=(-100,))
    return [ids, real, labels]


@pytest.mark.parametrize(("objective", "architecture"), [("span_corruption", "t5"), ("denoising", "bart")])
def test_encoder_decoders(text_data: Path, objective: str, architecture: str) -> None:
    config = config_of(objective, sequence_length=128, model={**SIZES, "architecture": architecture})
    batch, targets = made(text_data, config)
    model = build_model(config, 1024, SPECIAL).eval()
    ids, real, labels = decoder_rows(targets)
    theirs = model(input_ids=ids, attention_mask=real, labels=labels).loss
    assert len(ids) > len(INDICES)  # some share a row
    assert mean_loss(model, batch) == pytest.approx(float(theirs), rel=1e-5)


@pytest.mark.parametrize("objective", ["span_corruption", "denoising"])
@pytest.mark.parametrize(("start_from", "architecture"), [(None, "t5"), (None, "bart"), ("denoising", "bart")])
def test_an_exported_decoder_starts_as_it_was_trained_to(
    text_batch: Callable[..., Batch],
    text_data: Path,
    tmp_path: Path,
    objective: str,
    start_from: str | None,
    architecture: str,
) -> None:
    """Whatever the architecture, and whatever the model that it started from did."""
    sizes = {"architecture": architecture, "hidden_size": 32, "num_layers": 1, "num_heads": 2}
    model = {**sizes, "vocab_multiple": 128}
    if start_from:
        told = PretrainConfig.model_validate({"objective": start_from, "model": sizes | {"vocab_multiple": 1280}})
        build_model(told, 1024, SPECIAL).save_pretrained(tmp_path / "start")
        model = {"init_from": str(tmp_path / "start")}
    config = PretrainConfig.model_validate({"objective": objective, "model": model})
    made = build_model(config, 1024, SPECIAL)
    write_export(
        tmp_path,
        attempt="a",
        model=made,
        state=made.state_dict(),
        tokenizer=text_data / "tokenizer",
        card="",
        history=[],
        samples={},
        result={},
    )
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "export" / "model")
    batch = text_batch(objective, [0])
    said = loaded.generate(input_ids=batch.input_ids_BL, max_new_tokens=3, do_sample=False)
    first = int(batch.decoder_input_ids_BM[0, 0])
    assert loaded.config.decoder_start_token_id == int(said[0, 0]) == first
