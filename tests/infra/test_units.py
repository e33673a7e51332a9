"""Units kept by content: whole or not there, damage noticed, and seen from every machine."""

from __future__ import annotations

import logging
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.errors import DamagedArtifactError, StorageError
from infra.storage.store import Store
from infra.storage.units import UnitStore, key_of

KEY, OTHER = "a" * 32, "ab" * 16


def writing(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


@pytest.fixture
def store(tmp_path: Path) -> UnitStore:
    return UnitStore(folder=tmp_path / "units" / "corpus")


def test_what_was_put_is_found_and_opened(store: UnitStore) -> None:
    assert store.find([KEY]) == {} and list(store.paths()) == []
    path = store.put(KEY, writing(b"one"))
    other = store.put(OTHER, writing(b"two"))
    assert store.find([KEY, OTHER, "c" * 32]) == {KEY: path, OTHER: other} and store.find([OTHER]) == {OTHER: other}
    assert store.open(path).read_bytes() == b"one" and key_of(path) == KEY
    assert list(store.paths()) == sorted([path, other])
    assert path.parent == store.folder / KEY[:2] and path.suffix == ".parquet"
    assert pickle.loads(pickle.dumps(store)).find([KEY]) == {KEY: path}


def test_units_of_two_kinds_and_two_suffixes_are_apart(store: UnitStore) -> None:
    tokens = UnitStore(folder=store.folder.parent / "tokens", suffix=".arrow")
    path = store.put(KEY, writing(b"one"))
    assert tokens.find([KEY]) == {}
    own = tokens.put(KEY, writing(b"tokens"))
    assert store.find([KEY]) == {KEY: path} and tokens.find([KEY]) == {KEY: own}
    beside = UnitStore(folder=store.folder, suffix=".arrow")
    beside.put(KEY, writing(b"tokens"))
    assert store.find([KEY]) == {KEY: path} and store.open(path)


@pytest.mark.parametrize("damage", [lambda p: p.write_bytes(b"onf"), lambda p: p.write_bytes(b""), Path.unlink])
def test_a_damaged_unit_is_removed_and_made_again(
    store: UnitStore, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    path = store.put(KEY, writing(b"one"))
    sound = store.put(OTHER, writing(b"two"))
    damage(path)
    with pytest.raises(DamagedArtifactError, match=r"is damaged and was removed: run again"):
        store.open(path)
    assert store.find([KEY, OTHER]) == {OTHER: sound}
    damaged = store.put(KEY, writing(b"one"))
    damage(damaged)
    with caplog.at_level(logging.WARNING):
        assert store.sound({KEY: damaged, OTHER: sound}) == {OTHER: sound}
    assert str(damaged) in caplog.text and not damaged.exists()
    assert store.open(store.put(KEY, writing(b"one"))) == path


def test_what_was_not_written_whole_is_no_unit(store: UnitStore) -> None:
    """Neither one whose writer failed, nor what a process left that was killed while it wrote."""

    def half(path: Path) -> None:
        path.write_bytes(b"ha")
        raise ValueError("broken")

    def full(path: Path) -> None:
        path.write_bytes(b"ha")
        raise OSError(28, "No space left on device")

    with pytest.raises(ValueError, match="broken"):
        store.put(KEY, half)
    with pytest.raises(StorageError, match="space"):
        store.put(KEY, full)
    assert list(store.folder.rglob("*.*")) == []
    left = []

    def killed(path: Path) -> None:
        path.write_bytes(b"ha")
        left.append(path)
        os.link(path, path.with_name(path.name + "x"))  # what a kill leaves
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.put(KEY, killed)
    assert len(list(store.folder.rglob(".*"))) == 1 and store.find([KEY]) == {}
    assert all(key_of(path) == "" for path in store.paths())  # which `gc` takes


@pytest.mark.parametrize("name", ["x.parquet", f"{KEY}.parquet", f"{KEY}-12.parquet", f".{KEY}.12345678", "-.parquet"])
def test_other_files_are_no_units(store: UnitStore, name: str) -> None:
    (store.folder / "aa").mkdir(parents=True)
    (store.folder / "aa" / name).write_bytes(b"")
    assert store.find([KEY]) == {} and key_of(store.folder / "aa" / name) == ""


def test_of_two_attempts_at_one_key_one_stays(store: UnitStore) -> None:
    one, other = store.put(KEY, writing(b"one")), store.put(KEY, writing(b"other"))
    (path,) = store.folder.rglob(f"{KEY}*")
    assert store.find([KEY]) == {KEY: path} and path in (one, other) and store.open(path)
    assert store.put(KEY, writing(b"other")) == path == store.put(KEY, writing(b"one"))


@pytest.mark.parametrize("attempt", range(5))
def test_attempts_that_end_at_once_do_not_remove_each_other(store: UnitStore, attempt: int) -> None:
    together = threading.Barrier(8)

    def make(number: int) -> None:
        def write(path: Path) -> None:
            path.write_bytes(b"%d" % number)
            together.wait(30)

        store.put(KEY, write)

    threads = [threading.Thread(target=make, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    found = store.find([KEY])
    assert store.open(found[KEY]) and len(list(store.folder.rglob("*.parquet"))) == 1


def units_of(machine: Store) -> UnitStore:
    return UnitStore(folder=machine.root / "units" / "corpus", mirror=machine.mirror)


def test_units_made_on_another_machine_are_found_and_fetched(machines: tuple[Store, Store]) -> None:
    one, other = (units_of(machine) for machine in machines)
    made = one.put(KEY, writing(b"one"))
    (path,) = other.find([KEY, OTHER]).values()
    assert path == other.folder / made.relative_to(one.folder) and not path.exists()
    assert list(other.paths()) == [path]
    assert other.open(path).read_bytes() == b"one"
    made.unlink()
    assert one.open(made).read_bytes() == b"one"  # the copy of this machine is gone, not the unit
    assert one.find([KEY]) == {KEY: made}


def test_two_machines_that_make_one_unit_leave_one(machines: tuple[Store, Store]) -> None:
    one, other = (units_of(machine) for machine in machines)
    for first, second in ((b"one", b"two"), (b"two", b"one")):
        one.put(KEY, writing(first))
        other.put(KEY, writing(second))
        paths = [next(iter(store.find([KEY]).values())) for store in (one, other)]
        assert paths[0].name == paths[1].name
        assert one.open(paths[0]).read_bytes() == other.open(paths[1]).read_bytes()


def test_damage_on_the_object_store_is_noticed_where_it_is_fetched(machines: tuple[Store, Store]) -> None:
    one, other = (units_of(machine) for machine in machines)
    made = one.put(KEY, writing(b"one"))
    objects = machines[0].objects
    assert objects
    name = made.relative_to(machines[0].root).as_posix()
    objects.write(name, b"onf")
    (path,) = other.find([KEY]).values()
    with pytest.raises(DamagedArtifactError, match=r"was removed"):
        other.open(path)
    assert other.find([KEY]) == {} and name not in objects.sizes("")
    other.put(KEY, writing(b"one"))
    assert other.open(path).read_bytes() == b"one" and name in objects.sizes("")
