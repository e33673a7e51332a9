"""The object store, against a real S3 server on this machine."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from infra.errors import DamagedArtifactError, StorageError, UserError
from infra.storage import manifest
from infra.storage.objects import ObjectStore


@pytest.fixture
def objects(s3_uri: str) -> ObjectStore:
    return ObjectStore.open(s3_uri)


def test_what_goes_up_comes_down_with_its_digest(objects: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "up" / "型").mkdir(parents=True)
    (tmp_path / "up" / "型" / "a b.bin").write_bytes(bytes(range(256)) * 4096)
    (tmp_path / "up" / "empty").write_bytes(b"")
    (tmp_path / "up" / "rows.gz").write_bytes(b"as it is")
    files = manifest.list_files(tmp_path / "up")
    objects.upload(tmp_path / "up", list(files), "artifacts/one")
    assert objects.sizes("artifacts/one") == {name: entry["num_bytes"] for name, entry in files.items()}
    pickle.loads(pickle.dumps(objects)).download("artifacts/one", files, tmp_path / "down")
    assert manifest.list_files(tmp_path / "down") == files
    assert objects.sizes("artifacts") == {f"one/{name}": entry["num_bytes"] for name, entry in files.items()}


def test_damage_and_absence_are_named(objects: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"right")
    files = {"a": manifest.entry(tmp_path / "a")}
    with pytest.raises(DamagedArtifactError, match="one/a is missing"):
        objects.download("one", files, tmp_path / "down")
    objects.write("one/a", b"wrong")
    with pytest.raises(DamagedArtifactError, match=r"one/a differs from its manifest"):
        objects.download("one", files, tmp_path / "down")


def test_what_is_not_there_is_none_and_deleting_it_is_no_error(objects: ObjectStore) -> None:
    assert objects.read("nothing") is None and objects.sizes("nothing") == {}
    objects.delete("nothing")
    objects.delete_folder("nothing")
    objects.write("some/thing", b"x")
    objects.write("some/where/else", b"y")
    objects.write("something", b"z")
    objects.delete_folder("some")
    assert objects.sizes("") == {"something": 1}
    objects.delete("something")
    assert objects.read("something") is None


def test_wrong_places_are_told_in_one_line(objects: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="bucket of s3://no-such-bucket/x does not exist"):
        ObjectStore.open("s3://no-such-bucket/x").write("a", b"b")
    for uri in ("s3://", "ftp://host/x", "s3://key:secret@bucket/x", "s3://bucket/x?access_key=y"):
        with pytest.raises(UserError, match=r"storage\.root"):
            ObjectStore.open(uri)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError):
        ObjectStore.open(objects.uri)
