"""In what two models differ: real manifests of toy steps, each difference where it began and nowhere else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra.journal.difference import Ancestry, Difference, difference
from infra.journal.reasons import Find
from infra.storage import manifest
from infra.storage.store import Store
from tests.infra.toy_models import make

Compare = Callable[[str, str], Difference]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("one\ntwo\n\nfour\n")
    (tmp_path / "data" / "b.txt").write_text("five\n")
    return Store.open(str(tmp_path / "root"))


def past(store: Store) -> Find:
    return lambda step, key: next((one for one in store.manifests(step) if one["key"] == key), None)


def compare(store: Store, one: str, other: str, step: str = "classify") -> Difference:
    a, b = (manifest.read(store.artifact_folder(step, key)) for key in (one, other))
    return difference([a], past(store), [b], past(store))


def statuses(found: Difference) -> dict[str, str]:
    return {row["step"]: row["status"] for row in found.steps}


def test_a_model_does_not_differ_from_itself(store: Store, tmp_path: Path) -> None:
    key = make(store, "r1", tmp_path / "data")["classify"]
    found = compare(store, key, key)
    assert found.is_empty and statuses(found) == {"corpus": "same", "pretrain": "same", "classify": "same"}
    assert not (found.data or found.config or found.code or found.libraries or found.result or found.cost)


def test_a_changed_value_is_told_in_the_step_where_it_stands(store: Store, tmp_path: Path) -> None:
    one = make(store, "r1", tmp_path / "data", 0.1)["classify"]
    other = make(store, "r2", tmp_path / "data", 0.25)["classify"]
    found = compare(store, one, other)
    assert statuses(found) == {"corpus": "same", "pretrain": "differs", "classify": "differs"}
    assert found.config == ({"step": "pretrain", "key": "pretrain.learning_rate", "a": 0.1, "b": 0.25},)
    assert not (found.data or found.code or found.libraries)
    rows = {row["name"]: row for row in found.result}
    assert {row["step"] for row in found.result} == {"pretrain"}
    assert rows["test_accuracy"]["difference"] == pytest.approx(-0.15)
    assert (rows["chosen"]["a"], rows["chosen"]["b"], rows["chosen"]["difference"]) == ("lr 0.1", "lr 0.25", None)
    assert "train_flops" not in rows


def test_files_that_came_went_and_changed_are_told_with_their_rows(store: Store, tmp_path: Path) -> None:
    one = make(store, "r1", tmp_path / "data")["classify"]
    (tmp_path / "data" / "a.txt").write_text("one\n")
    (tmp_path / "data" / "b.txt").unlink()
    (tmp_path / "data" / "新.txt").write_text("x\ny\n")
    found = compare(store, one, make(store, "r2", tmp_path / "data")["classify"])
    rows = {row["file"]: row for row in found.data}
    assert {name: row["change"] for name, row in rows.items()} == {
        "a.txt": "changed",
        "b.txt": "removed",
        "新.txt": "added",
    }
    assert (rows["a.txt"]["a"]["num_rows"], rows["a.txt"]["b"]["num_rows"]) == (4, 1)
    assert (rows["b.txt"]["a"]["num_rows"], rows["b.txt"]["b"]) == (1, None)
    assert {(row["step"], row["source"]) for row in found.data} == {("corpus", "wiki")}
    documents = next(row for row in found.result if row["name"] == "num_documents_in")
    assert (documents["a"], documents["b"], documents["difference"]) == (5, 3, -2)
    assert not found.config and {row["status"] for row in found.steps} == {"differs"}


def test_a_file_that_only_moved_is_no_difference(store: Store, tmp_path: Path) -> None:
    one = make(store, "r1", tmp_path / "data")["classify"]
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    assert make(store, "r2", tmp_path / "elsewhere")["classify"] == one


def test_a_step_of_one_side_alone_is_named_and_so_is_the_input_that_is_another(store: Store, tmp_path: Path) -> None:
    one = make(store, "r1", tmp_path / "data")["classify"]
    other = make(store, "r2", tmp_path / "data", pretrained=False)["classify"]
    found = compare(store, one, other)
    assert statuses(found) == {"corpus": "same", "pretrain": "only_a", "classify": "differs"}
    assert statuses(compare(store, other, one))["pretrain"] == "only_b"
    assert found.code == (
        {"step": "classify", "name": "inputs", "a": {"pretrain": "pretrain"}, "b": {"corpus": "corpus"}},
    )


def test_a_step_whose_manifest_is_gone_is_unknown_and_not_the_same(store: Store, tmp_path: Path) -> None:
    one = make(store, "r1", tmp_path / "data", 0.1)
    other = make(store, "r2", tmp_path / "data", 0.25)
    store.set_aside("pretrain", one["pretrain"])
    found = compare(store, one["classify"], other["classify"])
    assert statuses(found)["pretrain"] == "unknown" and not found.is_empty and not found.config


def changed(one: dict[str, Any], key: str, **identity: Any) -> dict[str, Any]:
    other = copy.deepcopy(one)
    return {**other, "key": key * 32, "identity": {**other["identity"], **identity}}


def test_code_and_libraries_are_told_once_with_the_steps_that_they_reach(store: Store, tmp_path: Path) -> None:
    keys = make(store, "r1", tmp_path / "data")
    old = {name: manifest.read(store.artifact_folder(name, key)) for name, key in keys.items()}
    module = "tests.infra.toy_models"
    new = {}
    for name, one in old.items():
        code = {**one["identity"]["code"], module: "0" * 32, "tests.gone": "1"}
        libraries = {**one["identity"]["libraries"], "torch": "9.9"}
        new[name] = changed(one, "ab"[name == "classify"], code=code, libraries=libraries, version=2)
        new[name]["definitions"][module] = {**one["definitions"][module], "train": "0", "added": "1"}
        new[name]["inputs"] = {role: {**entry, "key": "a" * 32} for role, entry in one["inputs"].items()}
    here = {(one["step"], one["key"]): one for one in (*old.values(), *new.values())}
    found = difference([old["classify"]], lambda *name: here.get(name), [new["classify"]], lambda *name: here.get(name))
    steps = ["corpus", "pretrain", "classify"]
    path = "tests/infra/toy_models.py"
    assert found.code[:2] == (
        {"path": "tests/gone.py", "change": "added", "functions": [], "steps": steps},
        {"path": path, "change": "changed", "functions": ["added", "train"], "steps": steps},
    )
    assert found.code[2] == {"step": "corpus", "name": "version", "a": 1, "b": 2} and len(found.code) == 5
    assert found.libraries == (
        {"library": "torch", "a": old["corpus"]["identity"]["libraries"]["torch"], "b": "9.9", "steps": steps},
    )


def test_cost_is_told_by_step_and_summed_over_all(store: Store, tmp_path: Path) -> None:
    one = make(store, "r1", tmp_path / "data", 0.1)
    other = make(store, "r2", tmp_path / "data", 0.25)
    a, b = (manifest.read(store.artifact_folder("classify", keys["classify"])) for keys in (one, other))

    def costly(step: str, key: str | None) -> Any:
        found = manifest.read(store.artifact_folder(step, str(key)))
        extra = {"seconds": 100.0 if step == "corpus" else 20.0} if key != one["pretrain"] else {"seconds": 5.0}
        flops = 3e6 if key == other["pretrain"] else 1e6
        return {**found, "measured": extra, "metrics": {**found["metrics"], "train_flops": flops}}

    a, b = ({**side, "measured": {"seconds": 1.0}} for side in (a, b))
    rows = {(row["step"], row["name"]): row for row in difference([a], costly, [b], costly).cost}
    assert rows["pretrain", "seconds"]["difference"] == 15.0 and rows["pretrain", "train_flops"]["difference"] == 2e6
    assert (rows[None, "seconds"]["a"], rows[None, "seconds"]["b"]) == (106.0, 121.0)
    assert rows[None, "train_flops"]["difference"] == 2e6 and len(rows) == 4


def test_of_two_runs_with_one_step_in_common_that_alone_is_compared(store: Store, tmp_path: Path) -> None:
    one = make(store, "r1", tmp_path / "data")
    models = [manifest.read(store.artifact_folder(name, one[name])) for name in ("pretrain", "classify")]
    found = difference(models, past(store), models[:1], past(store))
    assert [row["step"] for row in found.steps] == ["corpus", "pretrain"] and found.is_empty


def test_an_ancestry_has_each_step_after_its_inputs(store: Store, tmp_path: Path) -> None:
    keys = make(store, "r1", tmp_path / "data")
    found = Ancestry.of([manifest.read(store.artifact_folder("judge", keys["judge"]))], past(store))
    assert list(found.keys) == list(found.manifests) == ["corpus", "pretrain", "classify", "judge"]
    assert dict(found.keys) == keys
