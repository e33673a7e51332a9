"""The chain rule: a text's log-likelihood is the sum of its causal log-probabilities, by every path that reports one.

    log p(x_2 .. x_n | x_1) = sum over t of log p(x_t | x_<t)

One decoder is trained for two steps under DeepSpeed and exported; the validation texts are scored by transformers, one
at a time, and that is compared with what the run reported (validation loss, perplexity, bits per byte), with the
training's own loss, and with the label scorer of the prompting stage on both of its paths.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from components.pretraining.batches import make_batch, make_objective
from components.pretraining.config import PretrainConfig
from components.pretraining.networks.models import TargetLoss
from components.prompting.encoding import EncodedPrompt
from components.prompting.scoring import LabelScorer
from components.tokenization.shards import TokenShards

LENGTH = 256
SETTINGS: dict[str, Any] = {
    "objective": "causal_lm",
    "model": {"hidden_size": 32, "num_layers": 2, "num_heads": 2},
    "steps": 2,
    "sequence_length": LENGTH,
    "global_batch_size": 4,
    "precision": "fp32",
    "max_validation_sequences": None,
    "checkpoint_every_steps": None,
}


@pytest.fixture(scope="module")
def whole_data(tmp_path_factory: pytest.TempPathFactory, make_shards: Any) -> Path:
    """Token shards in which no document is cut."""
    root = tmp_path_factory.mktemp("whole")
    make_shards(root, num_documents=300, sequence_length=LENGTH)
    return root


@pytest.fixture(scope="module")
def trained(whole_data: Path, tmp_path_factory: pytest.TempPathFactory, run_trainings: Any) -> Path:
    """Folder of what the training left."""
    work: Path = tmp_path_factory.mktemp("chain") / "work"
    run_trainings.run(whole_data, {work: SETTINGS}, 2)
    return work / "export"


@pytest.fixture(scope="module")
def texts(whole_data: Path) -> list[list[int]]:
    """The validation documents, `<s>` to `</s>`."""
    shards = TokenShards(whole_data / "token_shards", "validation")
    found = []
    for index in range(len(shards)):
        tokens, first = shards.tokens(np.asarray([index]))[0], 0
        for length in shards.document_lengths(index):
            found.append(tokens[first : first + length].tolist())
            first += length
    assert all(text[0] == 2 and text[-1] == 3 for text in found)
    return found


def load(trained: Path, attention: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(trained / "model", attn_implementation=attention).eval()


@pytest.fixture(scope="module")
def log_likelihoods(trained: Path, texts: list[list[int]]) -> list[float]:
    """Of each text, by transformers alone: the sum of its tokens' log-probabilities, in float64."""
    model = load(trained, "eager")
    found = []
    with torch.no_grad():
        for text in texts:
            ids_1L = torch.tensor([text])
            log_LV = model(input_ids=ids_1L).logits[0, :-1].double().log_softmax(dim=-1)
            found.append(float(log_LV.gather(1, ids_1L[0, 1:, None]).sum()))
    return found


@pytest.fixture(scope="module")
def reported(trained: Path) -> Mapping[str, float]:
    metrics: Mapping[str, float] = json.loads((trained / "result.json").read_text())["metrics"]
    return metrics


def test_the_reported_validation_loss_and_perplexity(
    reported: Mapping[str, float], texts: list[list[int]], log_likelihoods: list[float]
) -> None:
    targets = sum(len(text) - 1 for text in texts)
    assert reported["validation_loss"] * targets == pytest.approx(-sum(log_likelihoods), rel=1e-5)
    assert math.log(reported["validation_perplexity"]) * targets == pytest.approx(-sum(log_likelihoods), rel=1e-5)


def test_bits_per_byte_times_bytes(
    reported: Mapping[str, float], whole_data: Path, log_likelihoods: list[float]
) -> None:
    split = TokenShards(whole_data / "token_shards", "validation").split
    nats = reported["bits_per_byte"] * split.num_text_bytes * math.log(2)
    assert nats == pytest.approx(-sum(log_likelihoods), rel=1e-5)


def test_the_loss_that_is_trained(trained: Path, whole_data: Path, log_likelihoods: list[float]) -> None:
    config = PretrainConfig.model_validate(SETTINGS)
    shards = TokenShards(whole_data / "token_shards", "validation")
    indices_B = np.arange(len(shards))
    objective = make_objective(config, shards, whole_data / "tokenizer")
    batch = make_batch(shards, objective, indices_B, np.zeros_like(indices_B))
    with torch.no_grad():
        nats = float(TargetLoss(load(trained, "eager"))(**batch.to(torch.device("cpu")))[0])
    assert nats == pytest.approx(-sum(log_likelihoods), rel=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("cut", [1, 4])
def test_the_label_scorer(
    trained: Path, texts: list[list[int]], log_likelihoods: list[float], attention: str, cut: int
) -> None:
    """With sdpa on its packed path, with eager on its plain one. The text after its first `cut` tokens is a label, and
    so are the tokens before, but the first."""
    scorer = LabelScorer(load(trained, attention), batch_size=4)
    assert (scorer.refusal is None) == (attention == "sdpa")

    def score(context: list[int], label: list[int]) -> float:
        prompt = EncodedPrompt(ids=tuple(context), prefix_length=0, num_demonstrations=0, was_cut=False, context="")
        return float(scorer.score([prompt], [label]).scores_NK[0, 0])

    for text, expected in list(zip(texts, log_likelihoods, strict=True))[:8]:
        found = score(text[:cut], text[cut:])
        if cut > 1:
            found += score(text[:1], text[1:cut])
        assert found == pytest.approx(expected, rel=1e-5)
