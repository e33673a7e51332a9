"""A user's own texts and labels, in Chinese, and with many classes and long documents, through the whole pipeline."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from pathlib import Path

import pytest

from tests.pipelines.conftest import PROJECT, Cli

pytestmark = pytest.mark.slow
TINY = [
    "pretrain_mlm.steps=6",
    "pretrain_clm.steps=6",
    "tune_decoder.steps=6",
    "pretrain_mlm.validation_every_steps=6",
    "pretrain_clm.validation_every_steps=6",
    "tune_examples=100",
    "finetune.seeds=1",
    "finetune.num_rungs=1",
    "finetune.num_trials=1",
    "finetune.label_budgets=[all]",
    "finetune.max_tokens_per_fit=4000",
    "prompt.max_validation_rows=20",
    "prompt.max_test_rows=60",
    "prompt.permuted_control=false",
    "corpus.sample_fraction=1",
    "task.sample_fraction=1",
    "cluster.num_workers=1",
]


def test_chinese_labels_and_columns_run_whole(cli: Cli, tmp_path: Path) -> None:
    poems = PROJECT / "tests" / "data" / "poems" / "poems.jsonl.gz"
    lines = gzip.decompress(poems.read_bytes()).decode("utf-8").splitlines(keepends=True)
    rows = [json.loads(line) for line in lines]
    (tmp_path / "语料").mkdir()
    (tmp_path / "语料" / "诗 词.txt").write_text("".join(row["文本"] + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "train.jsonl").write_text("".join(lines[::2]), encoding="utf-8")
    (tmp_path / "test.jsonl").write_text("".join(lines[1::4]), encoding="utf-8")
    done = cli(
        "run",
        "smoke",
        "--json",
        "corpus.sources=[{path: 语料/*.txt}]",
        "task.train=train.jsonl",
        "task.test=test.jsonl",
        "task.text_column=文本",
        "task.label_column=类别",
        "prompt.instruction=判断体裁。",
        "prompt.template=文本：{{text}}\n体裁：{{label}}",
        "prompt.verbalizer=null",
        *TINY,
    )
    assert done.code == 0, done.err
    steps = {step["name"]: step["metrics"] for step in done.json["steps"]}
    assert steps["task"]["num_labels"] == 3 and steps["task"]["num_test"] > 200
    assert 0 <= steps["finetune"]["test_accuracy"] <= 1
    said = cli("predict", "花间一壶酒，独酌无相亲。", "--model", "fromzero-smoke-classifier", "--json")
    assert said.code == 0 and said.json["predictions"][0]["label"] in ("唐诗", "宋词", "元曲")


def test_twenty_classes_long_documents_and_11_000_rows_run_whole(cli: Cli, tmp_path: Path) -> None:
    """Documents of 12 to 20 glosses of one lexicographer file: real text, some hundred tokens each."""
    by_label: dict[str, list[str]] = defaultdict(list)
    with gzip.open(PROJECT / "conf" / "data" / "wordnet" / "glosses.jsonl.gz", "rt", encoding="utf-8") as stream:
        for row in map(json.loads, stream):
            by_label[row["label"]].append(row["text"])
    largest = sorted(by_label, key=lambda label: -len(by_label[label]))[:20]
    with (tmp_path / "long.jsonl").open("w", encoding="utf-8") as output:
        for number in range(11_000):
            label = largest[number % 20]
            glosses = by_label[label]
            start, length = number * 7, 12 + number % 9
            text = ". ".join(glosses[(start + i) % len(glosses)] for i in range(length)) + f" ({number})"
            output.write(json.dumps({"body": text, "kind": label}) + "\n")
    done = cli(
        "run",
        "smoke",
        "--json",
        "corpus.sources=[{path: long.jsonl, text_column: body}]",
        "task.train=long.jsonl",
        "task.text_column=body",
        "task.label_column=kind",
        *TINY,
    )
    assert done.code == 0, done.err
    steps = {step["name"]: step["metrics"] for step in done.json["steps"]}
    assert steps["task"]["num_labels"] == 20 and steps["task"]["num_documents_kept"] == 11_000
    assert steps["token_shards"]["num_cut_documents"] > 0
