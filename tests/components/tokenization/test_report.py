"""The report's numbers on a tokenizer and texts small enough to count by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from components.corpus.normalise import text_id
from components.tokenization.encoder import load_tokenizer
from components.tokenization.pretokenize import WORDS
from components.tokenization.report import TokenTable, make_report, report_metrics, unreachable
from components.tokenization.special import SPECIAL_TOKENS, add_template, save_for_transformers
from components.tokenization.training import train

PIECES = ["the", "##re", "cat", "c", "##at", "中", "国", "7", ".", "ab cd", "##the", "nowhere"]
TRAIN = ["the cat", "there 中", "the ."]
VALIDATION = [("the cat there.", "en", "a"), ("中国 7", "zh", "b"), ("X", "en", "b")]


def write_corpus(folder: Path) -> Path:
    folder.mkdir()
    for split, rows in (("train", [(text, "", "a") for text in TRAIN]), ("validation", VALIDATION)):
        texts = [text for text, _, _ in rows]
        columns = {"id": [text_id(text) for text in texts], "text": texts, "source": [source for _, _, source in rows]}
        sizes = [len(text.encode()) for text in texts]
        table = pa.table({**columns, "num_bytes": sizes, "language": [language for _, language, _ in rows]})
        pq.write_table(table, folder / f"{split}-00000.parquet")
    return folder


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    vocabulary = [*SPECIAL_TOKENS, *PIECES]
    model = models.WordPiece({token: id_ for id_, token in enumerate(vocabulary)}, unk_token="<unk>")
    made = Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.Split(Regex(WORDS), "removed", invert=True)
    made.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    made.add_special_tokens(list(SPECIAL_TOKENS))
    add_template(made)
    save_for_transformers(made, str(tmp_path / "tokenizer"))
    return tmp_path / "tokenizer"


@pytest.fixture
def report(tokenizer: Path, tmp_path: Path) -> dict[str, Any]:
    return make_report(tokenizer, write_corpus(tmp_path / "corpus"), ("<x>",))


def test_held_out_rates_are_those_counted_by_hand(report: dict[str, Any]) -> None:
    # the cat the ##re . | 中 国 7 | <unk>
    found = report["held_out"]["all"]
    assert (found["num_documents"], found["num_bytes"], found["num_tokens"]) == (3, 14 + 8 + 1, 5 + 3 + 1)
    assert found["bytes_per_token"] == pytest.approx(23 / 9, abs=1e-6)
    assert found["tokens_per_word"] == pytest.approx(9 / (3 + 3 + 1), abs=1e-6)
    assert found["tokens_per_character"] == pytest.approx(9 / (14 + 4 + 1), abs=1e-6)
    assert found["unknown_rate"] == pytest.approx(1 / 9, abs=1e-6)
    # bytes in tokens: the 3, cat 3, the 3, re 2, . 1, 中 3, 国 3, 7 1 = 19; of single characters: . 中 国 7 = 8
    assert found["single_character_bytes"] == pytest.approx(8 / 19, abs=1e-6)
    assert found["part_of_character_bytes"] == 0


def test_rates_are_told_by_language_and_by_source(report: dict[str, Any]) -> None:
    languages, sources = report["held_out"]["by_language"], report["held_out"]["by_source"]
    assert {name: found["num_tokens"] for name, found in languages.items()} == {"en": 6, "zh": 3}
    assert languages["zh"]["tokens_per_word"] == 1 and languages["zh"]["bytes_per_token"] == pytest.approx(
        8 / 3, abs=1e-6
    )
    assert {name: found["num_tokens"] for name, found in sources.items()} == {"a": 5, "b": 4}
    assert sources["b"]["unknown_rate"] == 0.25


def test_use_and_uselessness_of_tokens(report: dict[str, Any]) -> None:
    # training: the cat | the ##re 中 | the .   ->   the 3, cat 1, ##re 1, 中 1, . 1
    vocabulary = report["vocabulary"]
    assert vocabulary["num_sample_tokens"] == 7
    assert vocabulary["num_tokens_for_90_percent"] == vocabulary["num_tokens_for_99_percent"] == 5
    assert [entry["token"] for entry in vocabulary["never_used"]["tokens"]] == [
        "c", "##at", "国", "7", "ab cd", "##the", "nowhere",
    ]  # fmt: skip
    assert [entry["token"] for entry in vocabulary["unreachable"]["tokens"]] == ["ab cd"]
    assert vocabulary["duplicates"] == {"count": 1, "groups": [["the", "##the"]]}
    assert [entry["token"] for entry in vocabulary["longest"][:3]] == ["nowhere", "ab cd", "the"]
    counts = {name: entry["count"] for name, entry in vocabulary["scripts"].items()}
    assert counts == {"Han": 2, "Latin": 8, "digits": 1, "special": 5, "symbols": 1}
    assert report["vocab_size"] == 17 and report["added_tokens"] == ["<x>"]


def test_metrics_are_numbers_of_the_report(report: dict[str, Any]) -> None:
    metrics = report_metrics(report)
    assert metrics["num_never_used_tokens"] == 7 and metrics["num_unreachable_tokens"] == 1
    assert metrics["held_out_tokens_per_word/zh"] == 1
    assert all(isinstance(value, int | float) for value in metrics.values())
    json.dumps(report)


def test_a_corpus_without_validation_texts_or_languages_is_coped_with(tokenizer: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "other")
    for path in corpus.iterdir():
        table = pq.read_table(path).drop_columns("language")
        pq.write_table(table.slice(0, 0 if "validation" in path.name else None), path)
    found = make_report(tokenizer, corpus)
    assert found["held_out"]["all"]["bytes_per_token"] is None and found["held_out"]["by_language"] == {}
    assert not any(name.startswith("held_out") for name in report_metrics(found))


@pytest.mark.parametrize("kind", ["byte_bpe", "wordpiece", "unigram"])
def test_hardly_a_token_trained_here_is_unreachable(kind: Any, tmp_path: Path) -> None:
    texts = ["the cat sees 1984 dogs, it's (walking)", "中华人民共和国的首都是北京。", "naïve café  \n under"] * 30
    save_for_transformers(train(kind, lambda: [texts], 500, 2), str(tmp_path))
    table = TokenTable(tmp_path)
    found = [table.pieces[id_] for id_ in unreachable(load_tokenizer(str(tmp_path / "tokenizer.json")), table)]
    assert found == []


def test_a_piece_that_no_merge_makes_is_unreachable(tmp_path: Path) -> None:
    save_for_transformers(train("byte_bpe", lambda: [["abab abab"] * 9], 300, 2), str(tmp_path))
    path = tmp_path / "tokenizer.json"
    told = json.loads(path.read_text())
    told["model"]["merges"] = told["model"]["merges"][:1]
    path.write_text(json.dumps(told))
    table = TokenTable(tmp_path)
    found = unreachable(Tokenizer.from_file(str(path)), table)
    assert {table.pieces[id_] for id_ in found} == set(table.pieces[5 + 256 + 1 :])
