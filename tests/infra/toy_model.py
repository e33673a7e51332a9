"""A registered classifier of a few weights, and the message that tells MLflow of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

WORDS = {"<pad>": 0, "<unk>": 1, "甲": 2, "乙": 3}


def write_classifier(folder: Path) -> None:
    """A Hugging Face folder."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=4, intermediate_size=8, num_labels=2, pad_token_id=0, **sizes)
    BertForSequenceClassification(config).save_pretrained(folder)
    backend = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)


def model_message(run: str, key: str, folder: Path, name: str) -> dict[str, Any]:
    """A model of `run`, registered as `name`, that is its champion."""
    record = {
        "type": "model",
        "path": "model",
        "name": "toy",
        "task": "text-classification",
        "metrics": {"test_accuracy": 0.5},
        "parameters": {"seed": "0"},
        "registered_name": name,
        "alias": "champion",
    }
    return {"kind": "model", "id": run, "key": key, "path": str(folder), "time": 2, "record": record}
