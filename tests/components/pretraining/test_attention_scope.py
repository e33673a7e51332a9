"""What a document's logits depend on: on nothing but the document, or, if the config says so, on its whole sequence.

Every architecture, through every path of attention that it has, on batches made from token shards.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from components.pretraining.batches import Batch, make_batch, make_objective
from components.pretraining.config import PretrainConfig, reads_sentences
from components.pretraining.evaluation.validation import target_sources
from components.pretraining.fit import problems
from components.pretraining.networks.document_attention import DOCUMENTS
from components.pretraining.networks.models import build_model
from components.pretraining.networks.runner import Runner
from components.pretraining.objectives.objective import Targets
from components.tokenization.shards import TokenShards

SPECIAL = {"pad": 0, "bos": 2, "eos": 3}
OBJECTIVES = {
    "bert": "masked_lm",
    "modernbert": "masked_lm",
    "gpt2": "causal_lm",
    "llama": "causal_lm",
    "qwen3": "causal_lm",
    "t5": "span_corruption",
    "bart": "denoising",
}
PATHS = [
    (architecture, attention)
    for architecture in OBJECTIVES
    for attention in ("eager", "sdpa", DOCUMENTS)
    if attention != DOCUMENTS or architecture not in ("t5", "bart")
]
SEQUENCES = np.arange(40, 46)


def config_of(architecture: str, **more: Any) -> PretrainConfig:
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "architecture": architecture}
    told = {"objective": OBJECTIVES[architecture], "model": sizes, "sequence_length": 128, **more}
    return PretrainConfig.model_validate(told)


@pytest.fixture(scope="module")
def shards(text_data: Path) -> TokenShards:
    return TokenShards(text_data / "token_shards", "train")


class Changed:
    """An objective after which all documents but the second of each sequence have other tokens."""

    def __init__(self, objective: Any) -> None:
        self.objective, self.is_causal, self.reads_sentences = objective, objective.is_causal, objective.reads_sentences

    def prepare(self, sequences: Any, *, validation: bool = False) -> Targets:
        found: Targets = self.objective.prepare(sequences, validation=validation)

        def other(tokens: Any, documents: Any) -> Any:
            return np.where((documents > 0) & (documents != 2) & (tokens > 4), 5 + (tokens + 97) % 900, tokens)

        changed = replace(found, inputs_BL=other(found.inputs_BL, found.segments_BL))
        if found.decoder is not None:
            decoder = found.decoder
            inputs_BM = other(decoder.inputs_BM, decoder.segments_BM)
            changed = replace(changed, decoder=replace(decoder, inputs_BM=inputs_BM))
        return changed


def logits_of_second(config: PretrainConfig, model: Any, batch: Batch) -> torch.Tensor:
    """Of the positions of the second document of each sequence."""
    documents_BX = batch.documents_BL
    if batch.decoder_positions_BM is not None:
        numbers_T = batch.cross_attention_B1ML[:, 0].int().argmax(-1)  # type: ignore[index]
        documents_BX = batch.documents_BL.gather(1, numbers_T)
        documents_BX = torch.where(is_filled(batch), documents_BX, -1)
    with torch.no_grad():
        logits_SV = Runner(model).logits(model, batch.to(torch.device("cpu")))
    return logits_SV[(documents_BX == 1).reshape(-1)]


def is_filled(batch: Batch) -> torch.Tensor:
    """Which decoder positions have targets: all but padding."""
    assert batch.decoder_input_ids_BM is not None
    filled_BM = torch.zeros(batch.decoder_input_ids_BM.shape, dtype=torch.bool)
    filled_BM.view(-1)[batch.target_positions_T] = True
    return filled_BM


def both(
    shards: TokenShards, data: Path, architecture: str, attention: str, scope: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the second documents, beside their neighbours and beside others."""
    config = config_of(architecture)
    objective = make_objective(config, shards, data / "tokenizer")
    model = build_model(config, shards.index.vocab_size, SPECIAL).eval()
    model.set_attn_implementation(attention)
    found = []
    for one in (objective, Changed(objective)):
        batch = make_batch(shards, one, SEQUENCES, np.zeros_like(SEQUENCES), attention_scope=scope)  # type: ignore[arg-type]
        found.append(logits_of_second(config, model, batch))
    assert len(found[0]) > 10
    return found[0], found[1]


@pytest.mark.parametrize(("architecture", "attention"), PATHS)
def test_the_logits_of_a_document_do_not_depend_on_its_neighbours(
    shards: TokenShards, text_data: Path, architecture: str, attention: str
) -> None:
    as_it_is, beside_others = both(shards, text_data, architecture, attention, "document")
    assert torch.equal(as_it_is, beside_others) or (as_it_is - beside_others).abs().max() < 1e-6
    assert as_it_is.std() > 1e-3


@pytest.mark.parametrize(
    ("architecture", "attention"), [path for path in PATHS if OBJECTIVES[path[0]] in ("masked_lm", "causal_lm")]
)
def test_with_the_scope_of_a_sequence_they_do(
    shards: TokenShards, text_data: Path, architecture: str, attention: str
) -> None:
    as_it_is, beside_others = both(shards, text_data, architecture, attention, "sequence")
    changed_S = (as_it_is - beside_others).abs().amax(-1) > 1e-5
    assert changed_S.all()  # each of its positions sees the document before it


@pytest.mark.parametrize("architecture", ["modernbert", "llama"])
def test_all_paths_of_attention_agree_on_what_a_sequence_sees(
    shards: TokenShards, text_data: Path, architecture: str
) -> None:
    found = [
        both(shards, text_data, architecture, attention, "sequence")[0] for attention in ("eager", "sdpa", DOCUMENTS)
    ]
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, atol=1e-5, rtol=1e-4)


def batch_of(shards: TokenShards, data: Path, scope: Any, architecture: str = "llama") -> Batch:
    objective = make_objective(config_of(architecture), shards, data / "tokenizer")
    return make_batch(shards, objective, SEQUENCES, np.zeros_like(SEQUENCES), attention_scope=scope)


def test_positions_run_through_the_sequence_or_restart_in_each_document(shards: TokenShards, text_data: Path) -> None:
    lengths = [shards.document_lengths(index) for index in SEQUENCES.tolist()]
    for scope, parts in (("document", lengths), ("sequence", [[sum(row)] for row in lengths])):
        batch = batch_of(shards, text_data, scope)
        padded = [[*row, 128 - sum(row)] for row in parts]
        assert batch.positions_BL.tolist() == [[place for n in row for place in range(n)] for row in padded]
        seen = batch.attention_B1LL
        assert seen is not None
        for row, found in zip(parts, seen[:, 0].int(), strict=True):
            blocks = torch.block_diag(*(torch.ones(n, n).tril() for n in row)).int()
            assert torch.equal(found[: sum(row), : sum(row)], blocks)
            assert found[: sum(row), sum(row) :].sum() == 0


@pytest.mark.parametrize("architecture", ["llama", "modernbert"])
def test_targets_and_their_sources_are_the_same_in_both_scopes(
    shards: TokenShards, text_data: Path, architecture: str
) -> None:
    one, other = (batch_of(shards, text_data, scope, architecture) for scope in ("document", "sequence"))
    assert one.target_ids_T.tolist() == other.target_ids_T.tolist()
    assert one.target_positions_T.tolist() == other.target_positions_T.tolist()
    assert one.num_tokens == other.num_tokens
    sources = [target_sources(batch, shards, SEQUENCES).tolist() for batch in (one, other)]
    assert sources[0] == sources[1] and set(sources[0]) == {0, 1}


@pytest.mark.parametrize("objective", ["masked_lm_nsp", "span_corruption", "denoising", "prefix_lm", "label_lm"])
def test_objectives_of_documents_refuse_the_scope_of_a_sequence(objective: str) -> None:
    told = PretrainConfig.model_validate({"objective": objective, "attention_scope": "sequence"})
    (problem,) = [one for one in problems(told) if "attention_scope" in one]
    assert problem == (
        f"pretrain.attention_scope=sequence does not go with pretrain.objective={objective}, which is of documents: "
        "set it to document, or take masked_lm or causal_lm"
    )
    for fitting in ("masked_lm", "causal_lm"):
        fits = PretrainConfig.model_validate({"objective": fitting, "attention_scope": "sequence"})
        assert not problems(fits)


@pytest.mark.parametrize(
    ("objective", "more"),
    [
        ("masked_lm", {}),
        ("masked_lm_nsp", {}),
        ("span_corruption", {}),
        ("denoising", {}),
        ("denoising", {"noise": ["text_infilling"]}),
        ("causal_lm", {}),
        ("prefix_lm", {}),
        ("label_lm", {}),
    ],
)
def test_the_config_knows_which_objectives_read_sentences(
    shards: TokenShards, text_data: Path, objective: str, more: dict[str, Any]
) -> None:
    config = PretrainConfig.model_validate({"objective": objective, **more})
    assert make_objective(config, shards, text_data / "tokenizer").reads_sentences == reads_sentences(config)
