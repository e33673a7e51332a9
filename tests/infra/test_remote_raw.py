"""Raw files on an object store: found as on a disk, known by content, read once for that, fetched once a machine."""

from __future__ import annotations

import gzip
import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.corpus.readers import read_rows
from components.corpus.rows import Columns
from components.corpus.units import Unit, units_of
from infra.errors import DataError, StorageError, UserError
from infra.storage import raw
from infra.storage.digests import DigestCache
from infra.storage.objects import ObjectStore
from infra.storage.raw import RawFile

Resolve = Callable[..., tuple[tuple[RawFile, ...], int]]
TEXTS = {
    "texts/a.jsonl": b'{"text": "one"}\n',
    "texts/b.jsonl.gz": gzip.compress(b'{"text": "two"}\n'),
    "texts/deep/er/c.txt": b"three\n",
    "texts/notes.bin": b"no text",
    "texts/.partial/d.txt": b"not whole\n",
    "texts2/e.txt": b"elsewhere\n",
}


def texts_of(file: RawFile) -> list[str]:
    return [row.text for row in read_rows(Unit(file=file), Columns())]


@pytest.fixture
def bucket(s3_uri: str) -> ObjectStore:
    objects = ObjectStore.open(s3_uri)
    for name, data in TEXTS.items():
        objects.write(name, data)
    return objects


@pytest.fixture
def resolve(bucket: ObjectStore, tmp_path: Path) -> Resolve:
    """What a pattern below the bucket's prefix names, and how many objects were read."""

    def call(pattern: str) -> tuple[tuple[RawFile, ...], int]:
        with DigestCache.opened(tmp_path / "root" / "cache" / "digests.json") as digests:
            return raw.resolve(f"{bucket.uri}/{pattern}", None, "corpus.sources[0].path", digests), digests.num_read

    return call


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("texts/a.jsonl", ["a.jsonl"]),
        ("texts", ["a.jsonl", "b.jsonl.gz", "c.txt"]),
        ("texts/", ["a.jsonl", "b.jsonl.gz", "c.txt"]),
        ("texts/*.jsonl*", ["a.jsonl", "b.jsonl.gz"]),
        ("texts/**/*.txt", ["c.txt"]),
        ("**/[ce].txt", ["c.txt", "e.txt"]),
        ("text*/*.txt", ["e.txt"]),
    ],
)
def test_it_names_what_a_path_would_name(resolve: Resolve, bucket: ObjectStore, pattern: str, names: list[str]) -> None:
    files, _ = resolve(pattern)
    assert sorted(Path(file.path).name for file in files) == names
    assert [file.digest for file in files] == sorted(file.digest for file in files)
    for file in files:
        content = TEXTS[file.path.removeprefix(f"{bucket.uri}/")]
        assert (file.digest, file.num_bytes) == (hashlib.sha256(content).hexdigest(), len(content))


@pytest.mark.parametrize("pattern", ["texts/none.txt", "texts/*.csv", "nothing", "texts/deep/er/*/*"])
def test_a_pattern_that_names_nothing_is_the_users_mistake(resolve: Resolve, pattern: str) -> None:
    with pytest.raises(UserError, match=r"corpus.sources\[0\].path: s3://.* matches no object"):
        resolve(pattern)


def test_wrong_places_are_refused_and_an_away_store_is_nobodys_mistake(
    bucket: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for uri, told in (
        ("s4://bucket/x", "task.train: s4://bucket is not s3://BUCKET"),
        ("s3://no-such-bucket/x", "task.train: the bucket of s3://no-such-bucket does not exist"),
    ):
        with pytest.raises(UserError, match=told):
            raw.resolve(uri, None, "task.train")
    with pytest.raises(UserError) as refused:
        raw.resolve("s3://key:secret@bucket/x", None, "task.train")
    assert "secret" not in str(refused.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError):
        raw.resolve(f"{bucket.uri}/texts", None, "task.train")


def test_a_second_plan_reads_only_what_changed(resolve: Resolve, bucket: ObjectStore) -> None:
    first, num_read = resolve("texts")
    assert num_read == 3
    assert resolve("texts") == (first, 0)
    bucket.write("texts/a.jsonl", b'{"text": "ONE"}\n')  # as many bytes, and perhaps within the same second
    changed, num_read = resolve("texts")
    assert num_read == 1 and {file.digest for file in changed} != {file.digest for file in first}


def test_rows_are_read_from_one_copy_a_machine_and_a_changed_object_is_refused(
    resolve: Resolve, bucket: ObjectStore, tmp_path: Path
) -> None:
    (one,), (packed,) = resolve("texts/a.jsonl")[0], resolve("texts/b.jsonl.gz")[0]
    copies = tmp_path / "root" / "cache" / "raw"
    assert not copies.exists()  # a plan keeps nothing
    assert texts_of(one) == ["one"]
    assert texts_of(packed) == ["two"]
    assert {path.name for path in copies.iterdir()} == {one.digest, packed.digest}
    bucket.delete("texts/b.jsonl.gz")
    assert texts_of(packed) == ["two"]  # it is here
    (copies / one.digest).write_bytes(b"damaged")
    assert texts_of(one) == ["one"]  # and fetched again where it is not sound
    (copies / one.digest).unlink()
    bucket.write("texts/a.jsonl", b'{"text": "ONE"}\n')
    with pytest.raises(DataError, match=r"s3://.*/a.jsonl: has changed since the run was planned"):
        texts_of(one)
    assert {path.name for path in copies.iterdir()} == {packed.digest}


def test_a_copy_is_compared_with_its_digest_once(resolve: Resolve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once for each unit of a large file."""
    (one,) = resolve("texts/a.jsonl")[0]
    assert texts_of(one) == ["one"]
    monkeypatch.setattr("infra.storage.remote.sha256", lambda path: pytest.fail("read for its digest"))
    assert texts_of(one) == ["one"]


def test_the_footer_of_a_table_is_read_where_it_lies(resolve: Resolve, bucket: ObjectStore, tmp_path: Path) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": [f"text {i}" for i in range(100)]}), sink, row_group_size=10)
    bucket.write("tables/a.parquet", sink.getvalue())
    (file,) = resolve("tables/a.parquet")[0]
    units = units_of(file, unit_bytes=100)
    assert len(units) == 10 and not (tmp_path / "root" / "cache" / "raw").exists()
    assert [row.text for unit in units for row in read_rows(unit, Columns())] == [f"text {i}" for i in range(100)]


def test_a_folder_that_datasets_saved_gives_its_data(resolve: Resolve, bucket: ObjectStore) -> None:
    sink = io.BytesIO()
    table = pa.table({"text": ["x"]})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    bucket.write("saved/train/data-00000-of-00001.arrow", sink.getvalue())
    bucket.write("saved/train/cache-1.arrow", b"what somebody computed")
    bucket.write("saved/train/state.json", b'{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
    bucket.write("saved/train/dataset_info.json", b"{}")
    bucket.write("saved/dataset_dict.json", b'{"splits": ["train"]}')
    for pattern in ("saved", "saved/train"):
        (file,) = resolve(pattern)[0]
        assert texts_of(file) == ["x"]
