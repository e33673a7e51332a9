"""Folders that a training cannot start from are refused by their config.json alone, all reasons at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from components.pretraining.config import PretrainConfig
from components.pretraining.fit import problems
from components.pretraining.networks.init_from import start_problems

BERT = {"model_type": "bert", "architectures": ["BertForMaskedLM"], "vocab_size": 512, "max_position_embeddings": 128}
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 512}
T5 = {
    "model_type": "t5",
    "architectures": ["T5ForConditionalGeneration"],
    "vocab_size": 612,
    "is_encoder_decoder": True,
}


def config(folder: Path, described: dict[str, Any], objective: str, **model: Any) -> PretrainConfig:
    (folder / "config.json").write_text(json.dumps(described))
    told = {"objective": objective, "model": {"init_from": str(folder), **model}}
    return PretrainConfig.model_validate(told)


@pytest.mark.parametrize(
    ("described", "objective", "model", "message"),
    [
        (LLAMA, "masked_lm", {}, "it is decoder (llama, LlamaForCausalLM), and objective=masked_lm takes an encoder"),
        (BERT, "causal_lm", {}, "it is encoder (bert, BertForMaskedLM), and objective=causal_lm takes a decoder"),
        (T5, "masked_lm", {}, "it is encoder_decoder (t5"),
        ({"model_type": "vit", "vocab_size": 512}, "masked_lm", {}, "tells no kind of network (vit, no architecture)"),
        (BERT | {"vocab_size": 499}, "masked_lm", {}, "its vocab_size is 499, the token shards have 500 tokens: use"),
        (T5 | {"vocab_size": 599}, "span_corruption", {}, "the token shards have 500 tokens and 100 sentinels"),
        (BERT | {"max_position_embeddings": 64}, "masked_lm", {}, "it has 64 positions, less than sequence_length=128"),
        (
            BERT | {"model_type": "roberta", "architectures": ["RobertaForMaskedLM"], "max_position_embeddings": 128},
            "masked_lm", {}, "it has 126 positions",
        ),
        (LLAMA | {"sliding_window": 64}, "causal_lm", {}, "a sliding_window of 64"),
        (LLAMA, "causal_lm", {"dropout": 0.1}, "llama drops no hidden states: set dropout=0"),
        (LLAMA, "causal_lm", {"architecture": "qwen3"}, "model_type is llama, and architecture=qwen3"),
        (
            BERT | {"model_type": "electra", "architectures": ["ElectraForMaskedLM"]},
            "masked_lm_nsp", {}, "electra has no head for next-sentence prediction",
        ),
        ({"vocab_size": 512}, "masked_lm", {}, "not a Hugging Face model folder: config.json names no model_type"),
    ],
)  # fmt: skip
def test_a_wrong_start_is_named(
    described: dict[str, Any], objective: str, model: dict[str, Any], message: str, tmp_path: Path
) -> None:
    found = start_problems(config(tmp_path, described, objective, **model), "pretrain_mlm.model", 500)
    assert len(found) == 1
    assert message in found[0]
    assert found[0].startswith(f"pretrain_mlm.model.init_from={tmp_path}: ")


@pytest.mark.parametrize(
    ("described", "objective"),
    [
        (BERT, "masked_lm"),
        (BERT | {"architectures": ["BertForPreTraining"]}, "masked_lm_nsp"),
        (BERT | {"architectures": ["BertModel"]}, "masked_lm"),
        (LLAMA, "prefix_lm"),
        (LLAMA | {"sliding_window": 64, "use_sliding_window": False}, "label_lm"),
        (T5, "span_corruption"),
        (T5, "denoising"),
    ],
)
def test_a_right_start_has_no_problem(described: dict[str, Any], objective: str, tmp_path: Path) -> None:
    assert start_problems(config(tmp_path, described, objective), "pretrain_mlm.model", 500) == []


def test_rows_for_added_special_tokens_may_be_missing_and_more_rows_than_tokens_are_usual(tmp_path: Path) -> None:
    def found(num_new: int, **described: Any) -> list[str]:
        return start_problems(config(tmp_path, BERT | described, "masked_lm"), "pretrain_mlm.model", 500, num_new)

    assert not found(0, vocab_size=512) and not found(2, vocab_size=498)
    assert "its vocab_size is 497" in found(2, vocab_size=497)[0]


def test_all_problems_are_told_at_once_before_anything_starts(tmp_path: Path) -> None:
    described = LLAMA | {"max_position_embeddings": 64, "sliding_window": 32}
    found = problems(config(tmp_path, described, "masked_lm", dropout=0.1), "pretrain_mlm")
    assert [line.partition(": ")[2][:12] for line in found] == [
        "it is decode",
        "it has 64 po",
        "its attentio",
        "llama drops ",
    ]


def test_the_check_needs_no_torch(tmp_path: Path) -> None:
    code = "import sys, components.pretraining.fit, components.pretraining.networks.sizes; "
    code += "sys.exit(len({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[3]).returncode == 0
