"""The pipeline `nightly` on a folder that grows: what it reads, what it plans, and that the real steps fit together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from components.tokenization.shards import TokenShards
from infra.journal.execution import Execution, Listener
from infra.journal.plan import PlannedStep, make_plan
from infra.journal.step import Step
from infra.storage.store import Store
from infra.tracking.client import NullSink
from pipelines.compose import load_config
from pipelines.llm import build
from tests.pipelines.conftest import Cli

CLUSTER = {"CPU": 2.0, "GPU": 0.0}
SETTINGS = ["task.train=task.jsonl", "tokenizer.vocab_size=400", "pretrain_mlm.sequence_length=64"]


def shards(*overrides: str) -> Step:
    """The step token_shards of `nightly` in the working directory."""
    return build(load_config("nightly", [*SETTINGS, *overrides])).inputs["pretrain_mlm"].inputs["token_shards"]


def run(store: Store, *overrides: str) -> dict[str, PlannedStep]:
    """Runs the real steps up to the token shards; returns the plan."""
    plan = make_plan([shards(*overrides)], store, CLUSTER)
    facts = {"made_by_run": "r", "tags": {}}
    outcome = Execution(plan, store, NullSink(), CLUSTER, facts, Listener()).run()
    assert not outcome.failures
    return {one.step.name: one for one in plan}


def splits(store: Store, plan: Mapping[str, PlannedStep]) -> dict[str, str]:
    """The split of every document of the corpus."""
    folder = store.artifact_folder("corpus", plan["corpus"].key)
    return {
        text: path.name.partition("-")[0]
        for path in folder.glob("*-*.parquet")
        for text in pq.read_table(path).column("text").to_pylist()
    }


@pytest.mark.slow
def test_new_text_goes_through_the_tokenizer_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_cluster: Mapping[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    task = "".join(json.dumps({"text": f"row {n}", "label": "ab"[n % 2]}) + "\n" for n in range(60))
    Path("task.jsonl").write_text(task)
    Path("texts").mkdir()
    Path("texts/monday.txt").write_text("".join(f"on monday the {n} of us went home\n" for n in range(300)))
    store = Store.open("root")
    first = run(store)
    assert {one.status for one in first.values()} == {"run"}

    Path("texts/周二.jsonl").write_text("".join(json.dumps({"text": f"星期二，第{n}篇"}) + "\n" for n in range(200)))
    second = run(store)
    statuses = {name: one.status for name, one in second.items()}
    assert statuses == {"task": "reused", "corpus": "run", "tokenizer": "reused", "token_shards": "run"}
    assert second["tokenizer"].key == first["tokenizer"].key
    assert second["token_shards"].reasons == ("file 周二.jsonl of source0 is new",)

    made = {name: store.manifest(name, second[name].key) for name in ("corpus", "token_shards")}
    counts = {
        name: (one["measured"]["num_units_made"], one["measured"]["num_units"]) for name, one in made.items() if one
    }
    assert counts == {"corpus": (1, 2), "token_shards": (2, 4)}  # of the new file, in two splits

    before, after = splits(store, first), splits(store, second)
    assert len(before) == 300 and len(after) == 500 and {"train", "validation"} == set(before.values())
    assert before.items() <= after.items()  # every document keeps its split

    tokenizer = Tokenizer.from_file(
        str(store.artifact_folder("tokenizer", first["tokenizer"].key) / "tokenizer" / "tokenizer.json")
    )
    found: dict[str, set[str]] = {}
    for split in ("train", "validation"):
        packed = TokenShards(store.artifact_folder("token_shards", second["token_shards"].key), split)
        everything = np.arange(len(packed))
        rows = zip(packed.tokens(everything), packed.segments(everything), strict=True)
        found[split] = {
            tokenizer.decode(tokens[segments == segment].tolist())
            for tokens, segments in rows
            for segment in set(segments[segments > 0].tolist())
        }
    assert found == {split: {text for text, where in after.items() if where == split} for split in found}

    third = run(store, "tokenizer.frozen=false")
    assert third["tokenizer"].status == "run" and third["tokenizer"].key != first["tokenizer"].key
    Path("texts/wednesday.txt").write_text("and then it was wednesday\n")
    plan = {one.step.name: one for one in make_plan([shards()], store, CLUSTER)}
    assert plan["tokenizer"].key == third["tokenizer"].key and plan["tokenizer"].status == "reused"


def test_files_that_are_not_finished_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("task.jsonl").write_text("{}\n")
    read = ("a.txt", "deep/b.jsonl.gz", "deep/c.parquet")
    for name in (*read, ".a.txt.Xy12", ".d.txt", ".~tmp~/e.txt", "f.txt.part", "g.pdf"):
        path = Path("texts", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (files,) = shards().inputs["corpus"].raw.values()
    assert {Path(file.path).relative_to(tmp_path / "texts").as_posix() for file in files} == set(read)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (False, "corpus.sources[0].path: texts matches no file (looked from "),
        (True, "corpus.sources[0].path: texts holds no file with a known ending (.txt, "),
    ],
)
def test_a_folder_that_is_not_there_or_empty_is_one_clear_line(
    cli: Cli, tmp_path: Path, make: bool, message: str
) -> None:
    if make:
        (tmp_path / "texts").mkdir()
    done = cli("run", "nightly")
    assert done.code == 2 and done.err.startswith(f"error: {message}") and done.err.count("\n") == 1, done.err
