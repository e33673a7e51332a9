"""Validation and samples of trained models against transformers alone, document by document, and against counts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from components.pretraining.batches import make_batch, make_objective
from components.pretraining.config import PretrainConfig
from components.pretraining.evaluation.samples import Place, choose
from components.pretraining.evaluation.validation import MAX_SOURCES, Evaluation, reported_sources, validation_indices
from components.pretraining.networks.runner import model_mask
from components.tokenization.shards import ShardIndex, SourceCounts, TokenShards, write_index

TINY: dict[str, Any] = {
    "model": {"hidden_size": 32, "num_layers": 2, "num_heads": 2},
    "steps": 6,
    "learning_rate": 0.02,
    "warmup_steps": 1,
    "sequence_length": 32,
    "global_batch_size": 8,
    "micro_batch_size_per_rank": 3,
    "max_validation_sequences": 20,
    "log_every_steps": 2,
    "validation_every_steps": 3,
    "samples_every_steps": 2,
    "sample_tokens": 8,
    "num_samples": 5,
    "checkpoint_every_steps": 2,
    "precision": "fp32",
}
NAMES = ("even", "odd")
END = 3


@pytest.fixture(scope="module")
def trained(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory, run_trainings: Any) -> Mapping[str, Path]:
    """Trainings on two ranks: their work folders by name. `killed` died at step 4, after it took samples."""
    root = tmp_path_factory.mktemp("evaluated")
    works = {
        root / "causal": {**TINY, "objective": "causal_lm", "zero_stage": 3},
        root / "masked": {**TINY, "objective": "masked_lm"},
    }
    run_trainings.run(tiny_data, works, 2)
    killed = {root / "killed": works[root / "masked"]}
    run_trainings.run(tiny_data, killed, 2, kill_at=4)
    run_trainings.run(tiny_data, killed, 2)
    return {name: root / name for name in ("causal", "masked", "killed")}


def metrics_of(work: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((work / "export" / "result.json").read_text())["metrics"]
    return found


def table_of(work: Path) -> tuple[list[str], list[list[Any]]]:
    content = json.loads((work / "export" / "samples.json").read_text())
    return content["columns"], content["data"]


def setting(objective: str, data: Path) -> tuple[PretrainConfig, TokenShards]:
    config = PretrainConfig.model_validate({**TINY, "objective": objective})
    return config, TokenShards(data / "token_shards", "validation")


def load(work: Path, kind: str) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    loader = AutoModelForCausalLM if kind == "causal" else AutoModelForMaskedLM
    return loader.from_pretrained(work / "export" / "model").eval()


def nats_by_hand(kind: str, work: Path, data: Path) -> dict[str, list[float]]:
    """The loss of each target by the name of its source: each document of a decoder alone, without any mask."""
    config, shards = setting(f"{kind}_lm", data)
    model, found = load(work, kind), {name: [] for name in NAMES}
    for index in validation_indices(len(shards), config).tolist():
        one = np.asarray([index])
        batch = make_batch(shards, make_objective(config, shards, data / "tokenizer"), one, one * 0, validation=True)
        targets = dict(zip(batch.target_positions_T.tolist(), batch.target_ids_T.tolist(), strict=True))
        start = 0
        for length, source in zip(shards.document_lengths(index), shards.document_sources(index), strict=True):
            span = batch.input_ids_BL[:, start : start + length]
            with torch.no_grad():
                logits_LV = model(input_ids=span).logits[0].log_softmax(-1)
            of_document = {at - start: id_ for at, id_ in targets.items() if start <= at < start + length}
            found[NAMES[source]] += [-float(logits_LV[at, id_]) for at, id_ in of_document.items()]
            start += length
    return found


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_losses_by_source_are_those_of_each_document_alone_and_sum_to_the_total(
    trained: Mapping[str, Path], tiny_data: Path, kind: str
) -> None:
    found, wanted = metrics_of(trained[kind]), nats_by_hand(kind, trained[kind], tiny_data)
    for name in NAMES:
        assert len(wanted[name]) > 20
        assert found[f"validation_loss/{name}"] == pytest.approx(np.mean(wanted[name]), rel=1e-5)
    numbers = [len(wanted[name]) for name in NAMES]
    together = sum(found[f"validation_loss/{name}"] * number for name, number in zip(NAMES, numbers, strict=True))
    assert found["validation_loss"] == pytest.approx(together / sum(numbers), rel=1e-9)


@pytest.mark.parametrize(
    ("kind", "perplexity", "bits"),
    [
        ("causal", "validation_perplexity", "bits_per_byte"),
        ("masked", "validation_pseudo_perplexity", "pseudo_bits_per_byte"),
    ],
)
def test_what_is_no_perplexity_is_not_named_so(
    trained: Mapping[str, Path], tiny_data: Path, kind: str, perplexity: str, bits: str
) -> None:
    found = metrics_of(trained[kind])
    told = {name.partition("/")[0] for name in found if name.startswith("validation") or "bits" in name}
    assert told == {"validation_loss", perplexity, bits}
    split = setting(f"{kind}_lm", tiny_data)[1].split
    for name, counts in zip(NAMES, split.by_source, strict=True):
        loss = found[f"validation_loss/{name}"]
        assert found[f"{perplexity}/{name}"] == pytest.approx(math.exp(loss))
        if kind == "masked":  # all its targets are text
            expected = loss / math.log(2) * counts.num_text_tokens / counts.num_text_bytes
            assert found[f"{bits}/{name}"] == pytest.approx(expected)
    assert min(found[f"{bits}/{name}"] for name in NAMES) < found[bits] < max(found[f"{bits}/{n}"] for n in NAMES)


def test_bits_per_byte_by_hand(trained: Mapping[str, Path], tiny_data: Path) -> None:
    """The bits of all targets of whole documents over the bytes that their text targets stand for on average."""
    found, nats = metrics_of(trained["causal"]), nats_by_hand("causal", trained["causal"], tiny_data)
    config, shards = setting("causal_lm", tiny_data)
    num_text_targets = num_nats = 0.0
    for index in validation_indices(len(shards), config).tolist():
        tokens, start = shards.tokens(np.asarray([index]))[0].tolist(), 0
        for length in shards.document_lengths(index):
            num_text_targets += sum(token != END for token in tokens[start + 1 : start + length])
            start += length
    num_nats = sum(map(sum, nats.values()))
    num_bytes = num_text_targets * shards.split.num_text_bytes / shards.split.num_text_tokens
    assert found["bits_per_byte"] == pytest.approx(num_nats / math.log(2) / num_bytes, rel=1e-5)


def test_points_on_the_way_are_told_by_source_too(trained: Mapping[str, Path], run_trainings: Any) -> None:
    points = [row for row in run_trainings.history(trained["masked"]) if "validation_loss" in row]
    assert [row["step"] for row in points] == [3, 6]
    assert all(f"validation_pseudo_perplexity/{name}" in row for row in points for name in NAMES)
    assert points[1]["validation_loss/odd"] == metrics_of(trained["masked"])["validation_loss/odd"]


def text_of(data: Path, ids: list[int]) -> str:
    tokenizer = Tokenizer.from_file(str(data / "tokenizer" / "tokenizer.json"))
    text: str = tokenizer.decode(ids, skip_special_tokens=False)
    return text


def document(shards: TokenShards, place: Place) -> list[int]:
    tokens: list[int] = shards.tokens(np.asarray([place.sequence]))[
        0, place.start : place.start + place.length
    ].tolist()
    return tokens


def test_a_decoder_continues_as_generate_does(trained: Mapping[str, Path], tiny_data: Path) -> None:
    """At ZeRO 3 on two ranks; the first rows, of steps before, are of other weights."""
    names, rows = table_of(trained["causal"])
    assert names == ["step", "source", "prompt", "continuation", "reference"]
    assert [row[0] for row in rows] == [2] * 5 + [4] * 5 + [6] * 5
    config, shards = setting("causal_lm", tiny_data)
    model, places = load(trained["causal"], "causal"), choose(shards, config, 5)
    assert [place.source for place in places] == [0, 1, 0, 1, 0]
    for place, row in zip(places, rows[-5:], strict=True):
        tokens = document(shards, place)
        cut = min(len(tokens) // 2, 8)
        generated = model.generate(
            input_ids=torch.tensor([tokens[:cut]]),
            attention_mask=torch.ones(1, cut, dtype=torch.int64),
            do_sample=False,
            max_new_tokens=8,
            eos_token_id=END,
            pad_token_id=0,
        )[0, cut:].tolist()
        texts = [text_of(tiny_data, ids) for ids in (tokens[:cut], generated, tokens[cut:][:8])]
        assert row == [6, NAMES[place.source], *texts]
    assert len({row[3] for row in rows}) > 3


def test_an_encoder_fills_in_what_is_likeliest(trained: Mapping[str, Path], tiny_data: Path) -> None:
    names, rows = table_of(trained["masked"])
    assert names == ["step", "source", "masked_text", "filled_in_text", "true_text"]
    config, shards = setting("masked_lm", tiny_data)
    model = load(trained["masked"], "masked")
    num_filled = 0
    left = iter(rows[-5:])
    for place in choose(shards, config, 20):
        one = np.asarray([place.sequence])
        batch = make_batch(
            shards, make_objective(config, shards, tiny_data / "tokenizer"), one, one * 0, validation=True
        )
        with torch.no_grad():
            logits_BLV = model(
                input_ids=batch.input_ids_BL,
                attention_mask=model_mask(model, batch.attention_B1LL),
                position_ids=batch.positions_BL,
            ).logits
        of_document_T = (batch.target_positions_T >= place.start) & (
            batch.target_positions_T < place.start + place.length
        )
        if not of_document_T.any() or (row := next(left, None)) is None:
            continue
        filled_L = batch.input_ids_BL[0].clone()
        filled_L[batch.target_positions_T] = logits_BLV[0].argmax(-1)[batch.target_positions_T]
        shown = slice(place.start, place.start + min(place.length, 8))
        texts = [text_of(tiny_data, ids[shown].tolist()) for ids in (batch.input_ids_BL[0], filled_L)]
        assert row == [6, NAMES[place.source], *texts, text_of(tiny_data, document(shards, place)[:8])]
        num_filled += "<mask>" in row[2]
    assert next(left, None) is None and num_filled > 2 and not any("<mask>" in row[3] for row in rows[-5:])


def test_a_resumed_training_has_each_row_once(trained: Mapping[str, Path]) -> None:
    assert (trained["killed"] / "attempts.log").read_text().split() == ["2", "0", "2", "2"]
    for name in ("samples.json", "metrics.jsonl"):
        undisturbed = (trained["masked"] / "export" / name).read_bytes()
        assert (trained["killed"] / "export" / name).read_bytes() == undisturbed


def test_the_rates_are_measured(trained: Mapping[str, Path]) -> None:
    for work in trained.values():
        result = json.loads((work / "export" / "result.json").read_text())
        measured, metrics = result["measured"], result["metrics"]
        assert 0 < measured["mfu"] < 1.2 and 0 < measured["data_fraction"] < 1
        assert 0.001 < measured["peak_tflops"] < 1000 and 50 < measured["peak_memory_mib_per_rank"] < 20_000
        assert measured["evaluation_seconds"] > 0
        seconds = measured["train_seconds"]
        if work.name != "killed":
            assert measured["tokens_per_second"] == pytest.approx(metrics["num_tokens"] / seconds)
            assert measured["steps_per_second"] == pytest.approx(6 / seconds)
            peak = measured["peak_tflops"] * 1e12
            assert measured["mfu"] == pytest.approx(metrics["train_flops"] / seconds / peak)


def test_many_sources_are_told_of_the_largest_and_the_rest_together(tiny_data: Path, tmp_path: Path) -> None:
    original = TokenShards(tiny_data / "token_shards", "validation")
    sources = tuple(f"s{number}" for number in range(MAX_SOURCES + 3))
    counts = [SourceCounts(num_documents=1, num_text_tokens=5, num_text_bytes=10 * n + 10) for n in range(len(sources))]
    for file in original.split.files:
        (tmp_path / file.path).symlink_to(tiny_data / "token_shards" / file.path)
    split = original.split.model_copy(update={"by_source": tuple(counts)})
    update = {"sources": sources, "splits": {"validation": split}}
    write_index(tmp_path, ShardIndex.model_validate(original.index.model_copy(update=update).model_dump()))
    shards = TokenShards(tmp_path, "validation")
    groups = dict(reported_sources(shards))
    assert len(groups) == MAX_SOURCES + 1 and groups["other sources"].tolist() == [2, 1, 0]
    ones = np.ones(len(sources), dtype=np.int64)
    evaluation = Evaluation(
        objective="causal_lm",
        nats_S=np.arange(len(sources), dtype=np.float64),
        num_targets_S=ones,
        num_text_targets_S=ones,
        target_counts_V=ones,
    )
    found = evaluation.metrics(shards)
    assert found["validation_loss/other sources"] == 1.0 and found["validation_loss/s22"] == 22.0
    assert "validation_loss/s2" not in found
