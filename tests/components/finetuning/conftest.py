"""A tiny task of real glosses and a tiny encoder with random weights, in the layout of real artifacts."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.journal.step import Artifact, StepContext
from infra.tracking.client import StepTracker

GLOSSES = Path(__file__).parents[3] / "conf/data/wordnet/noun_files.jsonl.gz"
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]
LABELS = ("noun.animal", "noun.artifact", "noun.person")
SPLIT_ROWS = {"train": 240, "validation": 60, "test": 90}

Rows = list[tuple[str, str]]


class ListSink:
    """Keeps what a step sends."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, Mapping[str, Any]]] = []

    def send(self, kind: str, step: str, payload: Mapping[str, Any]) -> None:
        self.messages.append((kind, payload))


def write_task(folder: Path, splits: Mapping[str, Rows], labels: list[str]) -> Artifact:
    folder.mkdir(parents=True)
    (folder / "labels.json").write_text(json.dumps(labels, ensure_ascii=False), encoding="utf-8")
    for split, rows in splits.items():
        named = sorted((hashlib.sha256(text.encode()).hexdigest()[:32], text, label) for text, label in rows)
        columns = {name: [row[index] for row in named] for index, name in enumerate(("id", "text", "label"))}
        pq.write_table(
            pa.table(columns, pa.schema([(name, pa.string()) for name in columns])), folder / f"{split}.parquet"
        )
    return Artifact(step="task", key="a" * 32, path=folder, metrics={})


def write_encoder(folder: Path, texts: list[str], *, max_positions: int = 64) -> Artifact:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder / "model")
    torch.manual_seed(7)
    config = BertConfig(
        vocab_size=backend.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=max_positions,
        pad_token_id=0,
    )
    BertForMaskedLM(config).save_pretrained(folder / "model")
    return Artifact(step="pretrain_mlm", key="b" * 32, path=folder, metrics={"train_flops": 1e12})


def gloss_rows() -> Rows:
    with gzip.open(GLOSSES, "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    return [(row["text"], row["label"]) for row in rows if row["label"] in LABELS]


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """A task of three classes and an encoder."""
    root = tmp_path_factory.mktemp("finetuning")
    wanted = sum(SPLIT_ROWS.values())
    by_label = [[row for row in gloss_rows() if row[1] == label][: wanted // 3] for label in LABELS]
    rows = [row for group in zip(*by_label, strict=True) for row in group]
    splits, start = {}, 0
    for split, count in SPLIT_ROWS.items():
        splits[split] = rows[start : start + count]
        start += count
    task = write_task(root / "task", splits, list(LABELS))
    return {"task": task, "pretrain_mlm": write_encoder(root / "encoder", [text for text, _ in rows])}


@pytest.fixture(scope="session")
def chinese_inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """Twenty classes with Chinese names, texts without spaces that are longer than the encoder has positions."""
    root = tmp_path_factory.mktemp("chinese")
    labels = [f"类别{index}" for index in range(20)]

    def rows(part: str, count: int) -> Rows:
        return [
            (f"{part}第{number}篇" + f"这是关于{chr(0x4E00 + 37 * index)}的文字，" * 20, labels[index])
            for number in range(count)
            for index in range(20)
        ]

    splits = {"train": rows("训练", 3), "validation": rows("验证", 1), "test": rows("测试", 1)}
    task = write_task(root / "task", splits, sorted(labels))
    encoder = write_encoder(root / "encoder", [text for text, _ in splits["train"]], max_positions=40)
    return {"task": task, "pretrain_mlm": encoder}


@pytest.fixture
def make_context(tmp_path: Path) -> Callable[..., StepContext]:
    """Contexts with a new output folder; the same `work` unless another is named."""
    count = iter(range(100))

    def make(work: str = "work", sink: ListSink | None = None) -> StepContext:
        output = tmp_path / f"output{next(count)}"
        output.mkdir()
        (tmp_path / work).mkdir(exist_ok=True)
        tracker = StepTracker(step="finetune", sink=sink) if sink else StepTracker(step="finetune")
        return StepContext(step="finetune", key="c" * 32, output=output, work=tmp_path / work, raw={}, tracker=tracker)

    return make
