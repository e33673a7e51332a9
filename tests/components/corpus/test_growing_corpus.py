"""A corpus that grows: only new files are examined, and what comes out is what all files from nothing would give."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

from components.corpus import distributed
from components.corpus import units as units_module
from components.corpus.config import CorpusConfig, TaskConfig
from components.corpus.merge import CorpusMerger
from components.corpus.step import make_corpus, make_task
from infra.errors import DataError
from infra.journal.step import Artifact, StepContext, StepOutput
from infra.storage.raw import RawFile
from tests.components.corpus import real_texts

pytestmark = pytest.mark.ray
CONFIG = CorpusConfig.model_validate({"sources": [{"path": "a"}], "near_duplicates": {}, "validation_fraction": 0.1})


class Corpus:
    """Makes corpora from files, over one evaluation set."""

    def __init__(self, tmp_path: Path, files: SimpleNamespace, make_context: Callable[..., StepContext]) -> None:
        self._tmp, self._files, self._make_context, self._number = tmp_path, files, make_context, 0
        labelled = [
            {"text": text, "label": str(n % 2)} for n, text in enumerate(dict.fromkeys(real_texts.poems()[:60]))
        ]
        context = make_context("task", train=(self.file("task.jsonl", files.jsonl(labelled)),))
        output = make_task(TaskConfig(train="x"), {}, context)
        self.inputs = {"task": Artifact(step="task", key="0" * 32, path=context.output, metrics=output.metrics)}
        self.held_out = pq.read_table(context.output / "test.parquet").to_pylist()

    def file(self, name: str, data: bytes) -> RawFile:
        return self._files.write(self._tmp / name, data)  # type: ignore[no-any-return]

    def lines(self, name: str, lines: list[str]) -> RawFile:
        return self.file(name, "\n".join(lines).encode())

    def make(self, *raw: RawFile, afresh: bool = False) -> tuple[Path, StepOutput]:
        """Files are told in the order of their digests, as the planner does."""
        self._number += 1
        own = tuple(sorted(raw, key=lambda file: file.digest))
        context = self._make_context(f"corpus{self._number}", source0=own)
        if afresh:
            context = replace(context, units=self._tmp / f"units{self._number}")
        return context.output, make_corpus(CONFIG, self.inputs, context)


@pytest.fixture
def corpus(
    tmp_path: Path,
    files: SimpleNamespace,
    make_context: Callable[..., StepContext],
    ray_cluster: Mapping[str, float],
) -> Corpus:
    return Corpus(tmp_path, files, make_context)


def rows(output: Path, pattern: str) -> list[dict[str, Any]]:
    return [row for path in sorted(output.glob(pattern)) for row in pq.read_table(path).to_pylist()]


def count(output: StepOutput, name: str) -> int:
    return int(output.metrics.get(name) or 0)


def splits(output: Path) -> dict[str, str]:
    return {row["id"]: split for split in ("train", "validation") for row in rows(output, f"{split}-*")}


def contents(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.iterdir()}


def three_files(corpus: Corpus) -> list[RawFile]:
    """In the order of the corpus first, last, and between them one with new documents, equal ones, and careless copies
    of those in the others."""
    rng = random.Random(1)
    texts = real_texts.documents(600, 300)
    rng.shuffle(texts)
    long = [text for text in texts[:600] if len(text) > (200 if " " in text else 40)]
    copies = [real_texts.edited(text, 1, rng) for text in long]
    made = [corpus.lines("a.txt", texts[:300]), corpus.lines("b.txt", texts[300:600])]
    first, last = sorted(made, key=lambda file: file.digest)
    for salt in range(1000):
        new = corpus.lines("c.txt", [*texts[600:], *copies, *texts[200:400], f"salt {salt}"])
        if first.digest < new.digest < last.digest:
            return [first, last, new]
    raise AssertionError


def test_one_file_more_is_all_that_is_examined(corpus: Corpus) -> None:
    a, b, c = three_files(corpus)
    before, first = corpus.make(a, b)
    after, second = corpus.make(a, b, c)
    assert first.measured["num_units_made"] == first.measured["num_units"] == 2
    assert second.measured["num_units_made"] == 1 and second.measured["num_units"] == 3
    assert count(second, "dropped_duplicate") > 150
    assert count(second, "dropped_near_duplicate") >= 10 + count(first, "dropped_near_duplicate")
    # Splits do not move, and what comes from the files of before stays but for what a new one shadows.
    old, new = splits(before), splits(after)
    assert {id_: new[id_] for id_ in old.keys() & new.keys()} == {id_: old[id_] for id_ in old.keys() & new.keys()}
    shadowed = old.keys() - new.keys()
    replaced = {row["id"]: row["kept_id"] for row in rows(after, "duplicates.parquet")}
    assert shadowed <= replaced.keys() and set(replaced.values()) <= new.keys()
    # The same as from nothing, byte for byte.
    afresh, third = corpus.make(a, b, c, afresh=True)
    assert third.measured["num_units_made"] == 3 and third.metrics == second.metrics
    assert contents(afresh) == contents(after)


def test_a_file_that_goes_brings_back_what_it_shadowed(corpus: Corpus) -> None:
    a, b, c = three_files(corpus)
    before, first = corpus.make(a, b)
    corpus.make(a, b, c)
    again, third = corpus.make(a, b)
    assert third.measured["num_units_made"] == 0 and third.metrics == first.metrics
    assert contents(again) == contents(before)
    everything, _ = corpus.make(a, b, c)
    without, fourth = corpus.make(b, c)
    back = splits(without).keys() - splits(everything).keys()
    assert fourth.measured["num_units_made"] == 0
    assert back == {row["id"] for row in rows(everything, "duplicates.parquet") if row["id"] in back} != set()


def test_what_was_finished_before_a_stop_is_kept(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, c = three_files(corpus)

    def stopped(self: CorpusMerger) -> dict[str, int]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(CorpusMerger, "write", stopped)
        with pytest.raises(KeyboardInterrupt):
            corpus.make(a, b)
    assert corpus.make(a, b)[1].measured["num_units_made"] == 0
    bad = corpus.file("d.txt", b"fine\n" + b"\xff\n" * 10)
    with pytest.raises(DataError, match=r"d\.txt: not UTF-8"):
        corpus.make(a, b, c, bad)
    assert corpus.make(a, b, c)[1].measured["num_units_made"] == 0  # the good file beside the bad one was finished


def test_a_damaged_unit_is_made_again(corpus: Corpus, tmp_path: Path) -> None:
    a, b, _ = three_files(corpus)
    before, _ = corpus.make(a, b)
    unit = sorted((tmp_path / "units" / "corpus").rglob("*.parquet"))[0]
    unit.write_bytes(unit.read_bytes()[:-1])
    after, output = corpus.make(a, b)
    assert output.measured["num_units_made"] == 1 and contents(after) == contents(before)


def test_survivors_do_not_depend_on_units_or_on_how_pairs_are_found(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """End to end: counts reconcile, clusters can be looked at, what overlaps is listed with its evaluation text."""
    raw = three_files(corpus)
    leaked = [f"{text['text']} 又一行" for text in corpus.held_out]
    raw.append(corpus.lines("d.txt", [*leaked, *(row["text"] for row in corpus.held_out[:3]), "", "one more"]))
    results = []
    original = units_module.units_of
    for unit_bytes, shuffled in ((1 << 25, False), (9_000, False), (30_000, True)):
        monkeypatch.setattr(units_module, "units_of", lambda f, d, size=unit_bytes: original(f, d, size))
        if shuffled:
            monkeypatch.setattr(distributed, "SHUFFLE_FROM_ROWS", 0)
            monkeypatch.setattr(distributed, "COMPARE_BYTES", 20_000)
        output, made = corpus.make(*raw, afresh=True)
        dropped = sorted(
            (row["source"], row["file"], row["row"], row["reason"], row["detail"]) for row in rows(output, "dropped*")
        )
        clusters = sorted(rows(output, "duplicates.parquet"), key=lambda row: (row["kept_id"], row["id"], row["text"]))
        results.append((made.metrics, made.num_rows, splits(output), clusters, dropped))
    assert results[0] == results[1] == results[2]
    _, num_rows, kept, clusters, dropped = results[0]
    names = (name for name in made.metrics if name.startswith("dropped_"))
    counts = {name.removeprefix("dropped_"): count(made, name) for name in names}
    assert count(made, "num_documents_in") == len(kept) + sum(counts.values()) == sum(num_rows["source0"])
    assert len(dropped) == sum(counts.values()) and len(kept) == count(made, "num_documents_kept")
    assert len(clusters) == counts["duplicate"] + counts["near_duplicate"]
    near = {row["id"]: row["kept_id"] for row in clusters if row["id"] != row["kept_id"]}
    assert len(near) == counts["near_duplicate"] > 20 and not near.keys() & kept.keys()
    assert set(near.values()) <= kept.keys() and all(0.8 <= row["similarity"] <= 1 for row in clusters)
    assert len(set(near.values())) == count(made, "num_near_duplicate_clusters")
    listed = {row[4] for row in dropped if row[3] == "overlaps_evaluation"}
    assert {f"task.test {row['id']}" for row in corpus.held_out} <= listed and counts["in_evaluation_set"] >= 3
