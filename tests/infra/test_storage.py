"""Artifacts appear whole or not at all, and what does not match its manifest is not one."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from infra.errors import DamagedArtifactError, DiskFullError, StorageError, UserError
from infra.storage import manifest
from infra.storage.files import storage_error, write_atomic
from infra.storage.raw import resolve
from infra.storage.store import Store

KEY = "0123456789abcdef" * 2
NUMBERS = ("metrics", "measured")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "root"))


def make(store: Store, text: str = "hello") -> Path:
    folder = store.begin("toy", KEY)
    (folder / "sub").mkdir()
    (folder / "sub" / "a.txt").write_text(text)
    facts = {"step": "toy", "key": KEY, "made_by_run": "r", "finished_at": 1, "records": []}
    store.commit(folder, "toy", KEY, {**facts, **{name: {} for name in ("identity", "inputs", "raw", *NUMBERS)}})
    return store.artifact_folder("toy", KEY)


def test_a_committed_artifact_verifies(store: Store) -> None:
    make(store)
    found = store.find("toy", KEY)
    assert found is not None and list(found["files"]) == ["sub/a.txt"]


def test_an_attempt_without_commit_is_no_artifact_and_the_next_attempt_removes_it(store: Store) -> None:
    first = store.begin("toy", KEY)
    (first / "half").write_text("x")
    assert store.find("toy", KEY) is None
    store.begin("toy", KEY)
    assert not first.exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "sub" / "a.txt").write_text("jello"), r"a\.txt differs from its manifest"),
        (lambda f: (f / "sub" / "a.txt").write_text("longer text"), r"a\.txt is missing or has another size"),
        (lambda f: (f / "sub" / "a.txt").unlink(), r"a\.txt is missing"),
        (lambda f: (f / "manifest.json").write_text("{"), r"manifest\.json is missing or damaged"),
        (lambda f: (f / "manifest.json").unlink(), r"manifest\.json is missing or damaged"),
    ],
)
def test_damage_is_named(store: Store, damage: object, message: str) -> None:
    folder = make(store)
    damage(folder)  # type: ignore[operator]
    with pytest.raises(DamagedArtifactError, match=message):
        store.find("toy", KEY)


def test_a_damaged_artifact_is_replaced_by_a_new_one(store: Store) -> None:
    (make(store) / "sub" / "a.txt").write_text("jello")
    make(store, "again")
    assert store.find("toy", KEY) is not None


def test_what_is_being_deleted_lies_nowhere_where_a_whole_one_is_looked_for(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, seen = make(store), []
    monkeypatch.setattr(shutil, "rmtree", lambda path: seen.append((path.parent.name, folder.exists())))
    store.remove(folder)
    assert seen == [("temporary", False)] and store.find("toy", KEY) is None


def test_what_cannot_be_deleted_is_named(store: Store) -> None:
    with pytest.raises(StorageError, match=r"artifacts/toy/gone: No such file"):
        store.remove(store.root / "artifacts" / "toy" / "gone")


def test_with_a_signing_key_an_unsigned_or_changed_manifest_is_refused(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(store)
    monkeypatch.setenv("FROMZERO_SIGNING_KEY", "secret")
    with pytest.raises(DamagedArtifactError, match="not signed"):
        manifest.read(folder)
    signed = make(store)
    manifest.verify(signed)
    path = signed / "manifest.json"
    content = json.loads(path.read_text())
    monkeypatch.setenv("FROMZERO_SIGNING_KEY", "another")
    forged = manifest.sealed({name: value for name, value in content.items() if name not in manifest.SEALS})
    monkeypatch.setenv("FROMZERO_SIGNING_KEY", "secret")
    path.write_text(json.dumps({**forged, "finished_at": 1}))
    with pytest.raises(DamagedArtifactError, match="not signed"):
        manifest.read(signed)


@pytest.mark.parametrize("change", [{"finished_at": 2}, {"files": {}}, {"content_sha256": None}])
def test_a_manifest_that_changed_is_damaged(store: Store, change: dict[str, Any]) -> None:
    """A number of a result is as much a part of the artifact as a weight."""
    path = make(store) / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DamagedArtifactError, match="SHA-256 of its content"):
        manifest.read(path.parent)


@pytest.mark.parametrize("name", ["../x", "a/b", "", "A", ".."])
def test_names_that_become_paths_are_checked(store: Store, name: str) -> None:
    with pytest.raises(UserError, match="not a valid name"):
        store.artifact_folder(name, KEY)


def test_a_root_that_is_a_file_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"storage\.root: .*file is not a folder"):
        Store.open(str(tmp_path / "file"))


@pytest.mark.parametrize(
    ("code", "kind"), [(errno.ENOSPC, DiskFullError), (errno.EROFS, UserError), (errno.EACCES, UserError)]
)
def test_the_operating_systems_errors_find_whose_fault_they_are(code: int, kind: type) -> None:
    assert isinstance(storage_error(OSError(code, "x"), Path("/a")), kind)


def test_an_atomic_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomic(path, b"old")
    with pytest.raises(TypeError):
        write_atomic(path, None)  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"


def test_raw_files_are_ordered_by_content_not_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("2")
    (tmp_path / "b.txt").write_text("1")
    before = [file.digest for file in resolve(str(tmp_path / "*.txt"), None, "x")]
    (tmp_path / "a.txt").rename(tmp_path / "z.txt")
    assert [file.digest for file in resolve(str(tmp_path / "*.txt"), None, "x")] == before


def test_a_name_with_glob_characters_is_a_file_first(tmp_path: Path) -> None:
    (tmp_path / "a[1] 中文.jsonl").write_text("{}")
    assert len(resolve(str(tmp_path / "a[1] 中文.jsonl"), None, "x")) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [("none/*.txt", "x: .*matches no file"), ("a.xyz", "x: cannot tell the format")],
)
def test_paths_that_cannot_be_read_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.xyz").write_text("x")
    with pytest.raises(UserError, match=message):
        resolve(name, None, "x")


def test_an_artifact_that_was_put_in_the_place_of_another_is_not_taken(store: Store) -> None:
    """Its files agree with its manifest, signed or not."""
    shutil.copytree(make(store), store.artifact_folder("other", KEY))
    for place, key in (("other", KEY), ("toy", "f" * 32)):
        if not store.artifact_folder(place, key).exists():
            shutil.copytree(store.artifact_folder("toy", KEY), store.artifact_folder(place, key))
        with pytest.raises(DamagedArtifactError, match=f"is that of toy/{KEY}"):
            store.find(place, key)
        assert store.manifest(place, key) is None


@pytest.mark.parametrize(
    "content", [b"[]", b"{}", b'{"format_version": 1}', b'{"format_version": 1, "files": []}', b"[" * 100_000, b"\xff"]
)
def test_an_odd_manifest_is_damage_and_nothing_else(store: Store, content: bytes) -> None:
    (make(store) / "manifest.json").write_bytes(content)
    with pytest.raises(DamagedArtifactError):
        store.find("toy", KEY)
    assert list(store.manifests("toy")) == []


def test_a_link_that_leads_nowhere_is_put_out_of_the_way(store: Store) -> None:
    folder = store.artifact_folder("toy", KEY)
    folder.parent.mkdir(parents=True)
    folder.symlink_to("nowhere")
    make(store)
    assert store.find("toy", KEY) is not None


def test_a_root_that_mlflow_cannot_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"storage.root: .* holds % \?"):
        Store.open(str(tmp_path / "100%?"))
