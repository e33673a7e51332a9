"""A frozen step stays while its data grow, is retrained explicitly, and never stands for other data."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infra.errors import UserError
from infra.journal.acceptance import accept, acceptance_key, candidate
from infra.journal.plan import PlannedStep, make_plan
from infra.journal.step import Step
from infra.storage.raw import RawFile
from infra.storage.store import Store
from infra.tracking.lineage import Lineage
from tests.infra.toy_steps import ToyConfig, step

CLUSTER = {"CPU": 2.0, "GPU": 0.0}
Files = Mapping[str, str]
"""Content by path."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path))


def steps(files: Files, *, frozen: bool = True, value: int = 1) -> Step:
    """corpus -> tokenizer, and shards of both."""
    raw = tuple(
        RawFile(path=path, digest=content * 8, num_bytes=1, format="text", compression=None)
        for path, content in files.items()
    )
    corpus = replace(step("corpus"), raw={"source0": raw})
    tokenizer = replace(step("tokenizer", ToyConfig(value=value), corpus=corpus), frozen=frozen)
    return step("shards", corpus=corpus, tokenizer=tokenizer)


def planned(store: Store, files: Files, **options: Any) -> dict[str, PlannedStep]:
    return {one.step.name: one for one in make_plan([steps(files, **options)], store, CLUSTER)}


def made(store: Store, files: Files, **options: Any) -> dict[str, PlannedStep]:
    """Plans, and makes by hand what the plan says is to run."""
    plan = planned(store, files, **options)
    for name, one in plan.items():
        if one.manifest is not None:
            continue
        folder = store.begin(name, one.key)
        (folder / "total.txt").write_text(one.key)
        content = {
            "step": name,
            "key": one.key,
            "identity": one.identity,
            "definitions": one.definitions,
            "config": one.step.config.model_dump(mode="json"),
            "inputs": {role: {"step": s.name, "key": plan[s.name].key} for role, s in one.step.inputs.items()},
            "raw": {
                source: [{"path": file.path, "sha256": file.digest, "num_bytes": 1} for file in found]
                for source, found in one.step.raw.items()
            },
            "metrics": {},
            "measured": {},
            "records": [],
            "made_by_run": "run",
            "tags": {},
            "finished_at": time.time(),
        }
        store.commit(folder, name, one.key, content)
    return plan


A, B = {"/d/a.txt": "aaaaaaaa"}, {"/d/b.txt": "bbbbbbbb"}


def test_new_data_leave_the_frozen_step_as_it_is_and_run_what_follows_from_them(store: Store) -> None:
    first = made(store, A)
    plan = planned(store, {**A, **B})
    assert {name: one.status for name, one in plan.items()} == {
        "corpus": "run",
        "tokenizer": "reused",
        "shards": "run",
    }
    assert plan["tokenizer"].key == first["tokenizer"].key
    assert plan["tokenizer"].reasons == (
        f"frozen: trained on {time.strftime('%Y-%m-%d')} from corpus {first['corpus'].key[:8]}; "
        "retrain it with tokenizer.frozen=false",
    )
    assert plan["corpus"].reasons == plan["shards"].reasons == ("file b.txt of source0 is new",)
    assert plan["shards"].identity["inputs"] == {"corpus": plan["corpus"].key, "tokenizer": first["tokenizer"].key}
    made(store, {**A, **B})
    again = planned(store, {**A, **B})
    assert {one.status for one in again.values()} == {"reused"}


def test_a_step_that_is_not_frozen_runs(store: Store) -> None:
    made(store, A)
    assert planned(store, {**A, **B}, frozen=False)["tokenizer"].status == "run"


def test_after_an_explicit_retraining_the_newest_is_taken(store: Store) -> None:
    made(store, A)
    grown = {**A, **B}
    retrained = made(store, grown, frozen=False)["tokenizer"].key
    later = planned(store, {**grown, "/d/c.txt": "cccccccc"})
    assert (later["tokenizer"].status, later["tokenizer"].key) == ("reused", retrained)


def test_a_changed_config_makes_it_anew_and_says_why(store: Store) -> None:
    made(store, A)
    plan = planned(store, {**A, **B}, value=2)
    assert plan["tokenizer"].status == "run" and plan["tokenizer"].reasons[0] == "tokenizer.value changed 1 -> 2"


@pytest.mark.parametrize(
    ("files", "status"),
    [
        ({"/d/new/z.txt": "aaaaaaaa"}, "reused"),  # the folder was moved
        ({"/d/a.txt": "ffffffff"}, "reused"),  # one file that is appended to
        ({"/other/z.txt": "ffffffff"}, "run"),  # the data of the default, then the user's own
    ],
)
def test_it_stands_for_data_that_have_grown_and_for_no_others(store: Store, files: Files, status: str) -> None:
    made(store, A)
    assert planned(store, files)["tokenizer"].status == status


def test_a_damaged_one_is_told_and_the_one_before_it_is_taken(store: Store) -> None:
    first = made(store, A)["tokenizer"].key
    second = made(store, {**A, **B}, frozen=False)["tokenizer"].key
    (store.artifact_folder("tokenizer", second) / "total.txt").write_text("x")
    now = planned(store, {**A, **B, "/d/c.txt": "cccccccc"})["tokenizer"]
    assert (now.status, now.key) == ("reused", first) and "its artifact is damaged" in now.reasons[0]


def test_the_old_corpus_stays_its_ancestor_in_the_lineage(store: Store) -> None:
    """In the manifest, in the graph of the root, and in that of the run, whose own steps it is none of."""
    old = made(store, A)
    new = made(store, {**A, **B})
    manifest = store.manifest("tokenizer", new["tokenizer"].key)
    assert manifest and manifest["inputs"] == {"corpus": {"step": "corpus", "key": old["corpus"].key}}
    run = [store.manifest(name, one.key) or {} for name, one in new.items()]
    graph = Lineage.of(store.with_ancestors(run), store.root)
    above = {node.id for node in graph.around(f"shards/{new['shards'].key}").nodes}
    assert {f"corpus/{old['corpus'].key}", f"corpus/{new['corpus'].key}"} <= above
    edges = set(graph.edges)
    assert (f"corpus/{old['corpus'].key}", f"tokenizer/{new['tokenizer'].key}") in edges
    assert (f"corpus/{new['corpus'].key}", f"tokenizer/{new['tokenizer'].key}") not in edges


def test_an_acceptance_of_a_frozen_step_outlives_the_next_data(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = made(store, A)["tokenizer"].key
    monkeypatch.setattr("infra.journal.key.code_digests", lambda module: {"components.a": "1"})
    now = planned(store, {**A, **B})["tokenizer"]
    assert now.status == "run"
    manifest = candidate(store, now.step, now.identity)
    accept(store, "tokenizer", acceptance_key(now.step, now.identity), manifest, [], "a rename")
    for files in ({**A, **B}, {**A, **B, "/d/c.txt": "cccccccc"}):
        later = planned(store, files)["tokenizer"]
        assert (later.status, later.key) == ("reused", first)
    other = planned(store, {"/other/z.txt": "ffffffff"})["tokenizer"]
    assert other.status == "run"
    with pytest.raises(UserError, match="tokenizer: not its code alone changed, but also its data"):
        candidate(store, other.step, other.identity)
