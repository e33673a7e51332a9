"""Digests of raw files are remembered while the file is the same, and only then."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from infra.storage.digests import DigestCache


def digests(cache: Path, *files: Path) -> tuple[list[str], int]:
    """Digests of `files`, and how many of them were read."""
    with DigestCache.opened(cache) as known:
        return [known.sha256(file) for file in files], known.num_read


def settled(path: Path, content: bytes) -> Path:
    """A file that was written a while ago, as far as the cache can see."""
    path.write_bytes(content)
    return path


@pytest.fixture(autouse=True)
def _later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the cache is ahead, so that what a test writes counts as settled."""
    now = time.time
    monkeypatch.setattr("infra.storage.digests.time.time", lambda: now() + 60)


def test_a_second_look_reads_nothing(tmp_path: Path) -> None:
    file = settled(tmp_path / "a", b"one")
    expected = [hashlib.sha256(b"one").hexdigest()]
    assert digests(tmp_path / "c.json", file) == (expected, 1)
    assert digests(tmp_path / "c.json", file) == (expected, 0)


def test_another_content_of_the_same_size_and_modification_time_is_seen(tmp_path: Path) -> None:
    file = settled(tmp_path / "a", b"one")
    before = file.stat()
    digests(tmp_path / "c.json", file)
    file.write_bytes(b"two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert digests(tmp_path / "c.json", file) == ([hashlib.sha256(b"two").hexdigest()], 1)


def test_a_file_that_was_put_in_the_place_of_another_is_seen(tmp_path: Path) -> None:
    file = settled(tmp_path / "a", b"one")
    digests(tmp_path / "c.json", file)
    settled(tmp_path / "b", b"two").replace(file)
    assert digests(tmp_path / "c.json", file)[0] == [hashlib.sha256(b"two").hexdigest()]


def test_a_file_changed_a_moment_ago_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    file = settled(tmp_path / "a", b"one")
    assert digests(tmp_path / "c.json", file)[1] == digests(tmp_path / "c.json", file)[1] == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff"])
def test_a_damaged_cache_is_begun_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c.json").write_bytes(content)
    file = settled(tmp_path / "a", b"one")
    assert digests(tmp_path / "c.json", file)[1] == 1
    assert digests(tmp_path / "c.json", file)[1] == 0


def test_what_was_read_before_a_mistake_was_found_is_remembered(tmp_path: Path) -> None:
    file = settled(tmp_path / "a", b"one")
    with pytest.raises(ValueError, match="wrong"), DigestCache.opened(tmp_path / "c.json") as known:
        known.sha256(file)
        raise ValueError("wrong")
    assert digests(tmp_path / "c.json", file)[1] == 0


def test_a_modification_time_in_the_future_is_no_change(tmp_path: Path) -> None:
    file = settled(tmp_path / "a", b"one")
    os.utime(file, (time.time() + 1e6, time.time() + 1e6))
    assert [digests(tmp_path / "c.json", file)[1] for _ in range(2)] == [1, 0]
