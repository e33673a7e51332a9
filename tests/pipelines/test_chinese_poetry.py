"""The Chinese example: its files are what their README says, and the pipeline runs on them whole."""

from __future__ import annotations

import gzip
import json
import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from components.corpus.normalise import clean, text_id
from tests.pipelines.conftest import PROJECT, Done, run_cli

FOLDER = PROJECT / "conf" / "data" / "chinese_poetry"
MAX_BYTES = 2_000_000
NO_VERSE = re.compile(r"[0-9A-Za-z<>&\[\]{}()（）〔〕〖〗□○●…|/=\s]")


def rows_of(name: str) -> list[dict[str, str]]:
    """Read strictly: bytes that are not UTF-8 raise."""
    lines = gzip.decompress((FOLDER / name).read_bytes()).decode("utf-8", errors="strict").splitlines()
    return [json.loads(line) for line in lines]


def counts_in_readme() -> dict[str, int]:
    """What the tables of the README say: first column, without its backticks, to the number in the second."""
    lines = (FOLDER / "README.md").read_text("utf-8").splitlines()
    found = (re.match(r"\| `?([^|`]+?)`? \| ([\d,]+) \|", line) for line in lines)
    return {match[1]: int(match[2].replace(",", "")) for match in found if match}


@pytest.fixture(scope="module")
def poems() -> dict[str, list[dict[str, str]]]:
    return {name: rows_of(name) for name in ("poems.jsonl.gz", "tang_poets.jsonl.gz")}


def test_the_folder_is_below_two_megabytes() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) < MAX_BYTES


def test_the_gzip_headers_hold_neither_time_nor_name() -> None:
    for path in FOLDER.glob("*.gz"):
        header = path.read_bytes()[:10]
        assert header[3] == 0 and header[4:8] == b"\0\0\0\0", path.name


def test_texts_are_nfc_whole_verse_and_unchanged_by_cleaning(poems: dict[str, list[dict[str, str]]]) -> None:
    for row in (row for rows in poems.values() for row in rows):
        assert set(row) == {"id", "text", "title", "author", "dynasty"}
        text = row["text"]
        assert unicodedata.is_normalized("NFC", text) and not NO_VERSE.search(text), row
        assert 20 <= len(text) <= 120 and clean(text) == text, row


def test_no_id_and_no_text_is_there_twice(poems: dict[str, list[dict[str, str]]]) -> None:
    rows = [row for rows in poems.values() for row in rows]
    assert len({row["id"] for row in rows}) == len(rows) == len({text_id(row["text"]) for row in rows})


def test_the_readme_counts_what_is_there(poems: dict[str, list[dict[str, str]]]) -> None:
    said = counts_in_readme()
    assert {name: said[name] for name in poems} == {name: len(rows) for name, rows in poems.items()}
    labels = Counter(row["author"] for row in poems["tang_poets.jsonl.gz"])
    assert len(labels) == 10 and {label: said[label] for label in labels} == labels


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """`fromzero run smoke corpus=chinese_poetry`, once, on a Ray of its own."""
    folder = tmp_path_factory.mktemp("chinese_poetry")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_ADDRESS", "127.0.0.1:9")
        done = run_cli("run", "smoke", "corpus=chinese_poetry", "--json", f"storage.root={folder / 'root'}", cwd=folder)
    assert done.code == 0, done.err + done.out
    return folder / "root", done


def artifact(run: tuple[Path, Done], name: str) -> Path:
    root, done = run
    step: Any = next(step for step in done.json["steps"] if step["name"] == name)
    return root / "artifacts" / name / str(step["key"])


@pytest.mark.slow
def test_the_run_holds_no_evaluation_poem_in_its_pretraining_text(run: tuple[Path, Done]) -> None:
    task = artifact(run, "task")
    splits = {
        name: set(pq.read_table(task / f"{name}.parquet").column("text").to_pylist())
        for name in ("train", "validation", "test")
    }
    assert all(splits.values()) and len(set.union(*splits.values())) == sum(map(len, splits.values()))
    corpus = [
        set(pq.read_table(path).column("text").to_pylist()) for path in artifact(run, "corpus").glob("*-*.parquet")
    ]
    texts = set.union(*corpus)
    assert sum(map(len, corpus)) == len(texts) and not texts & (splits["validation"] | splits["test"])
    dropped = pq.read_table(artifact(run, "corpus") / "dropped.parquet").column("reason").to_pylist()
    assert "in_evaluation_set" in dropped  # the labelled poems are a source of the corpus


@pytest.mark.slow
def test_chinese_comes_through_to_predictions_prompts_and_samples(run: tuple[Path, Done]) -> None:
    labels = {row["author"] for row in rows_of("tang_poets.jsonl.gz")}
    predictions = pq.read_table(artifact(run, "finetune") / "predictions.parquet").to_pydict()
    assert set(predictions["label"]) | set(predictions["predicted"]) <= labels
    originals = {row["text"] for name in ("poems.jsonl.gz", "tang_poets.jsonl.gz") for row in rows_of(name)}
    texts = pq.read_table(next(artifact(run, "corpus").glob("train-*.parquet"))).column("text").to_pylist()
    assert texts and set(texts) <= originals
    table = json.loads((artifact(run, "pretrain_mlm") / "samples.json").read_text("utf-8"))
    true_texts = [row[table["columns"].index("true_text")] for row in table["data"]]
    cores = [re.sub(r"<[^>]*>|\ufffd", "", text) for text in true_texts]
    assert cores and all(len(core) >= 5 and any(core in original for original in originals) for core in cores), cores


@pytest.mark.slow
def test_a_poem_is_classified_as_one_of_the_ten(run: tuple[Path, Done], tmp_path: Path) -> None:
    options = ("--model", "fromzero-smoke-classifier", f"storage.root={run[0]}", "--json")
    said = run_cli("predict", "牀前看月光，疑是地上霜。舉頭望山月，低頭思故鄉。", *options, cwd=tmp_path)
    labels = {row["author"] for row in rows_of("tang_poets.jsonl.gz")}
    assert said.code == 0 and said.json["predictions"][0]["label"] in labels, said.err
