"""What a folder or a glob names: each file once, whatever lies there."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from components.corpus.readers import read_rows
from components.corpus.rows import Columns
from components.corpus.units import Unit
from infra.errors import UserError
from infra.storage.raw import resolve
from infra.storage.walk import files_at, matches, shown


def names(folder: Path, pattern: str = "") -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in files_at(folder / pattern))


def write(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)


@pytest.mark.parametrize("pattern", ["", "**/*.txt", "**"])
def test_links_that_lead_to_each_other_end_and_each_file_comes_once(tmp_path: Path, pattern: str) -> None:
    folder = tmp_path / "texts"
    write(folder / "a.txt", folder / "deep" / "b.txt", tmp_path / "elsewhere" / "c.txt")
    (folder / "loop").symlink_to(folder)
    (folder / "deep" / "up").symlink_to("..")
    (folder / "deep" / "again").symlink_to(folder / "deep")
    (folder / "self.txt").symlink_to("self.txt")
    (folder / "gone.txt").symlink_to("nowhere.txt")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    assert names(folder, pattern) == ["a.txt", "deep/b.txt", "linked/c.txt"]


def test_hidden_files_and_odd_names(tmp_path: Path) -> None:
    odd = ["with space.txt", "line\nend.txt", "🌹 中文.txt", "quote'\".txt", "[x].txt", "**.txt"]
    write(*(tmp_path / name for name in odd), tmp_path / ".part.txt", tmp_path / ".tmp" / "d.txt")
    assert names(tmp_path) == names(tmp_path, "*.txt") == names(tmp_path, "**/*.txt") == sorted(odd)
    for name in odd:
        assert files_at(tmp_path / name) == [tmp_path / name]
    assert {Path(file.path).name for file in resolve(str(tmp_path), None, "x")} == set(odd)
    assert shown("a\nb\t🌹\udcff") == r"a\nb\t🌹\udcff"


def test_two_stars_stand_for_any_folders(tmp_path: Path) -> None:
    write(*(tmp_path / name for name in ("a/x.txt", "a/b/x.txt", "a/b/c/y.txt", "d/x.txt")))
    assert names(tmp_path, "a/**/x.txt") == ["a/b/x.txt", "a/x.txt"]
    assert names(tmp_path, "a/**") == ["a/b/c/y.txt", "a/b/x.txt", "a/x.txt"]
    assert names(tmp_path, "*/**/b/*.txt") == ["a/b/x.txt"]
    assert names(tmp_path, "none/**") == []
    assert not matches([".hidden", "x.txt"], ["**", "*.txt"])


def save_to_disk(folder: Path, texts: list[list[str]], stale: str = "") -> None:
    """As `datasets` 4 does: shards in the stream format, and what it knows of them."""
    folder.mkdir(parents=True)
    shards = [f"data-{i:05d}-of-{len(texts):05d}.arrow" for i in range(len(texts))]
    for shard, rows in [*zip(shards, texts, strict=True), *([("data-00009-of-00010.arrow", [stale])] if stale else [])]:
        table = pa.table({"text": rows})
        with pa.ipc.new_stream(folder / shard, table.schema) as writer:
            writer.write_table(table)
    (folder / "dataset_info.json").write_text(json.dumps({"features": {"text": {"dtype": "string", "_type": "Value"}}}))
    state = {"_data_files": [{"filename": shard} for shard in shards], "_fingerprint": "0", "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))


def texts_of(pattern: Path) -> list[str]:
    files = resolve(str(pattern), None, "x")
    return sorted(row.text for file in files for row in read_rows(Unit(file=file), Columns()))


def test_a_folder_that_datasets_saved_gives_its_data_and_nothing_else(tmp_path: Path) -> None:
    save_to_disk(tmp_path / "one", [["a", "b"], ["c"]], stale="of an older save")
    assert texts_of(tmp_path / "one") == ["a", "b", "c"]
    for split, texts in (("train", [["d"]]), ("test", [["e"]]), ("old", [["not a split any more"]])):
        save_to_disk(tmp_path / "more" / split, texts)
    (tmp_path / "more" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert texts_of(tmp_path / "more") == ["d", "e"]
    assert texts_of(tmp_path / "more" / "test") == ["e"]
    (tmp_path / "more" / "notes.txt").write_text("beside\n")
    assert texts_of(tmp_path / "more") == ["d", "e"]
    assert texts_of(tmp_path) == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize("state", ["[", "[]", '{"_data_files": 3}', '{"_data_files": [{}, 3]}', '{"splits": {}}'])
def test_what_only_looks_like_such_a_folder_breaks_nothing(state: str, tmp_path: Path) -> None:
    write(tmp_path / "a.txt")
    (tmp_path / "state.json").write_text(state)
    try:
        resolve(str(tmp_path), None, "x")
    except UserError as error:
        assert "holds no file with a known ending" in str(error)
