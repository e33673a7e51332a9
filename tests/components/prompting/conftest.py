"""Tiny real tokenizers, models and tasks for the tests of prompting."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.journal.step import Artifact

SPECIAL = ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]
TEXTS = [
    "a tool used for cutting wood or metal",
    "a person who travels by sea",
    "an instrument for measuring time",
    "someone who teaches children to read",
    "the act of moving from one place to another",
    "a vessel made of glass",
    "a woman who governs a country",
    "Definition: something\nCategory: artifact\n\nperson act world affairs sports news",
]
CHINESE = [
    "一种用来切割木头的工具",
    "在海上旅行的人",
    "测量时间的仪器",
    "类别为体育新闻",
    "为体为体为体",
    "文本：教孩子读书的人",
]


def _wrap(tokenizer: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    names = ("pad_token", "unk_token", "bos_token", "eos_token", "mask_token")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **dict(zip(names, SPECIAL, strict=True)))


@pytest.fixture(scope="session")
def byte_tokenizer() -> Any:
    """Byte-level BPE over English and Chinese."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((TEXTS + CHINESE) * 3, trainer)
    return _wrap(tokenizer)


@pytest.fixture(scope="session")
def wordpiece_tokenizer() -> Any:
    """WordPiece, which drops newlines and spaces."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=260, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator((TEXTS + CHINESE) * 3, trainer)
    return _wrap(tokenizer)


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    """Builds a tiny model with random weights: `llama` (grouped queries), `gpt2`, `qwen3` or `mistral` (a window)."""

    def build(kind: str, vocab_size: int, positions: int = 256) -> Any:
        import torch
        from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig, Qwen3Config

        torch.manual_seed(3)
        sizes = {
            "vocab_size": vocab_size,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": positions,
            "initializer_range": 0.3,
            "pad_token_id": 0,
            "bos_token_id": 2,
            "eos_token_id": 3,
        }
        if kind == "gpt2":
            config: Any = GPT2Config(
                vocab_size=vocab_size, n_embd=32, n_layer=2, n_head=4, n_positions=positions, initializer_range=0.3,
                bos_token_id=2, eos_token_id=3,
            )  # fmt: skip
        elif kind == "mistral":
            config = MistralConfig(**sizes, sliding_window=8)
        elif kind == "qwen3":
            config = Qwen3Config(**sizes, head_dim=8)
        else:
            config = LlamaConfig(**sizes)
        return AutoModelForCausalLM.from_config(config).eval()

    return build


@pytest.fixture
def make_task(tmp_path: Path) -> Callable[..., Artifact]:
    """Writes a task artifact from rows (text, label) by split."""

    def build(splits: dict[str, Sequence[tuple[str, str]]], labels: Sequence[str]) -> Artifact:
        folder = tmp_path / "task"
        folder.mkdir(exist_ok=True)
        (folder / "labels.json").write_text(json.dumps(sorted(labels)), encoding="utf-8")
        for split in ("train", "validation", "test"):
            rows = splits.get(split, [])
            columns = {
                "id": [f"{split[0]}{number:031x}" for number in range(len(rows))],
                "text": [text for text, _ in rows],
                "label": [label for _, label in rows],
            }
            table = pa.table(columns, schema=pa.schema([(name, pa.string()) for name in columns]))
            pq.write_table(table, folder / f"{split}.parquet")
        return artifact("task", folder)

    return build


def artifact(step: str, folder: Path) -> Artifact:
    """An artifact of `step` at `folder`."""
    return Artifact(step=step, key="0" * 32, path=folder, metrics={})
