"""The corpus step on Ray Data."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from components.corpus.config import CorpusConfig, TaskConfig
from components.corpus.step import make_corpus, make_task
from infra.errors import DataError
from infra.journal.step import Artifact, StepContext

pytestmark = pytest.mark.ray
Make = Callable[..., StepContext]


def task_artifact(tmp_path: Path, files: SimpleNamespace, make_context: Make) -> Artifact:
    data = [{"text": f"labelled {i}", "label": str(i % 2)} for i in range(100)]
    context = make_context("task", train=(files.write(tmp_path / "task.jsonl", files.jsonl(data)),))
    output = make_task(TaskConfig(train="x"), {}, context)
    return Artifact(step="task", key="0" * 32, path=context.output, metrics=output.metrics)


def test_the_corpus_is_the_same_twice_and_leaves_out_evaluation_texts(
    tmp_path: Path, files: SimpleNamespace, make_context: Make, ray_cluster: Mapping[str, float]
) -> None:
    inputs = {"task": task_artifact(tmp_path, files, make_context)}
    lines = [f"labelled {i}" for i in range(100)] + [f"文本 {i % 700}" for i in range(1000)]
    raw = {
        "source0": (files.write(tmp_path / "a.txt.zst", files.compress[".zst"]("\n".join(lines).encode())),),
        "wiki": tuple(
            files.write(tmp_path / f"b{i}.parquet", files.parquet([{"text": f"doc {i} {j}"} for j in range(50)]))
            for i in range(3)
        ),
    }
    config = CorpusConfig(sources=[{"path": "a", "license": "CC0"}, {"path": "b", "name": "wiki"}])
    contexts = [make_context(name, **raw) for name in ("one", "two")]
    one, two = [make_corpus(config, inputs, context) for context in contexts]
    assert one.metrics == two.metrics
    for path in contexts[0].output.iterdir():
        assert path.read_bytes() == (contexts[1].output / path.name).read_bytes(), path.name
    evaluation = inputs["task"].metrics["num_validation"] + inputs["task"].metrics["num_test"]
    assert one.metrics["dropped_in_evaluation_set"] == evaluation > 0
    assert one.metrics["dropped_duplicate"] == 300
    assert one.metrics["num_documents_in"] == 1250 == one.metrics["num_documents_kept"] + 300 + evaluation
    paths = sorted(contexts[0].output.glob("*-*.parquet"))
    kept = {text for path in paths for text in pq.read_table(path).column("text").to_pylist()}
    held_out = pq.read_table(inputs["task"].path / "test.parquet").column("text").to_pylist()
    assert not kept & set(held_out)
    sources = json.loads((contexts[0].output / "sources.json").read_text())
    assert [(s["name"], s["license"], s["num_rows_in"], s["num_rows_kept"]) for s in sources] == [
        ("source0", "CC0", 1100, 800 - evaluation),
        ("wiki", None, 150, 150),
    ]


def test_the_rows_of_each_file_of_a_corpus_are_counted_rejects_included(
    tmp_path: Path, files: SimpleNamespace, make_context: Make, ray_cluster: Mapping[str, float]
) -> None:
    """In the order of `context.raw`; a file that two sources name counts in each."""
    inputs = {"task": task_artifact(tmp_path, files, make_context)}
    uneven = files.uneven(tmp_path / "raw")
    empty, text = files.write(tmp_path / "e.txt", b""), files.write(tmp_path / "t.txt.gz", gzip.compress(b"a\n\nb\nc"))
    raw = {
        "source0": tuple(file for file, _ in reversed(uneven.values())),
        "source1": (text, empty, uneven["b.csv"][0]),
    }
    config = CorpusConfig(sources=[{"path": "a"}, {"path": "b"}])
    output = make_corpus(config, inputs, make_context("corpus", **raw))
    assert output.num_rows == {"source0": [count for _, count in reversed(uneven.values())], "source1": [4, 0, 54]}
    assert output.metrics["num_documents_in"] == sum(map(sum, output.num_rows.values()))


def test_every_bad_file_of_a_corpus_is_named(
    tmp_path: Path, files: SimpleNamespace, make_context: Make, ray_cluster: Mapping[str, float]
) -> None:
    inputs = {"task": task_artifact(tmp_path, files, make_context)}
    bad = (
        files.write(tmp_path / "bad.txt", b"fine\n" + b"\xff\n" * 10),
        files.write(tmp_path / "cut.txt.gz", files.compress[".gz"](bytes(range(100)) * 50)[:-20]),
    )
    with pytest.raises(DataError) as caught:
        make_corpus(CorpusConfig(sources=[{"path": "a"}]), inputs, make_context("corpus", source0=bad))
    assert "bad.txt: not UTF-8 at byte 5" in str(caught.value)
    assert "cut.txt.gz: the gzip data end too early" in str(caught.value)
