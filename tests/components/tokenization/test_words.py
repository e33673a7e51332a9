"""Words and sentences, told from tokenizers of each kind that were trained on real text."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.tokenization.pieces import byte_alphabet
from components.tokenization.special import save_for_transformers
from components.tokenization.training import train
from components.tokenization.words import find_word_table, read_word_table
from infra.errors import DataError

ROOT = Path(__file__).parents[3]
KINDS = ["byte_bpe", "wordpiece", "unigram"]


def lines(path: Path, number: int, column: str = "text") -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return [json.loads(line)[column] for _, line in zip(range(number), stream, strict=False)]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path]]:
    english = lines(ROOT / "conf/data/wordnet/glosses.jsonl.gz", 2000)
    chinese = lines(ROOT / "tests/data/poems/poems.jsonl.gz", 300, "文本")
    rare = ["Is it?! It is! No one...", "春眠不覺曉，處處！處處？"] * 50  # signs that the two hardly have
    found = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp(kind)
        tokenizer = train(kind, lambda: iter([english, chinese, rare]), 1500, 2)  # type: ignore[arg-type]
        save_for_transformers(tokenizer, str(folder))
        found[kind] = (tokenizer, folder)
    return found


def cut(tokenizer: Any, folder: Path, text: str, what: str) -> list[str]:
    """The text in words or sentences, without spaces."""
    table = read_word_table(folder)
    encoding = tokenizer.encode(text, add_special_tokens=False)
    ids = np.asarray(encoding.ids)
    begins = np.arange(len(ids)) == 0
    if what == "word_starts":
        starts = np.flatnonzero(table.word_starts(ids, np.ones(len(ids), dtype=bool), begins))
    else:
        starts = np.flatnonzero(table.sentence_starts(ids, begins))
    places = [encoding.offsets[start][0] for start in starts] + [len(text)]
    assert places[0] == 0
    found = [text[a:b].strip() for a, b in itertools.pairwise(places)]
    return [part for part in found if part]  # Unigram has a token for a space alone


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_those_that_a_reader_sees(tokenizers: dict[str, tuple[Any, Path]], kind: str) -> None:
    found = cut(*tokenizers[kind], "the wrongful seizure of property, by force", "word_starts")
    assert found == ["the", "wrongful", "seizure", "of", "property", ",", "by", "force"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_chinese_character_is_a_word(tokenizers: dict[str, tuple[Any, Path]], kind: str) -> None:
    assert cut(*tokenizers[kind], "春眠不覺曉，處處", "word_starts") == list("春眠不覺曉，處處")


def test_bytes_inside_a_character_begin_no_word(tokenizers: dict[str, tuple[Any, Path]]) -> None:
    tokenizer, folder = tokenizers["byte_bpe"]
    rare = "龘"
    assert len(tokenizer.encode(rare, add_special_tokens=False).ids) > 1
    assert cut(tokenizer, folder, f"{rare}春{rare}", "word_starts") == [rare, "春", rare]


@pytest.mark.parametrize("kind", KINDS)
def test_sentences_end_at_full_stops_of_both_scripts(tokenizers: dict[str, tuple[Any, Path]], kind: str) -> None:
    text = "It is there. Is it?! No one... 春眠不覺曉。處處！ the end"
    assert cut(*tokenizers[kind], text, "sentence_starts") == [
        "It is there.",
        "Is it?!",
        "No one...",
        "春眠不覺曉。",
        "處處！",
        "the end",
    ]


def test_a_point_inside_a_number_ends_no_sentence(tokenizers: dict[str, tuple[Any, Path]]) -> None:
    """Where spaces are kept; WordPiece cannot know."""
    assert cut(*tokenizers["byte_bpe"], "about 3.14 of it", "sentence_starts") == ["about 3.14 of it"]


def test_special_tokens_begin_and_end_nothing(tokenizers: dict[str, tuple[Any, Path]]) -> None:
    """But <unk>, which stands for text in WordPiece and Unigram."""
    for _, folder in tokenizers.values():
        table = read_word_table(folder)
        assert table.starts_word_V[:5].tolist() in ([False] * 5, [False, True, False, False, False])
        assert not table.ends_sentence_V[:5].any()


def test_the_byte_alphabet_is_that_of_tokenizers() -> None:
    from tokenizers import pre_tokenizers

    alphabet = byte_alphabet()
    assert set(alphabet) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(alphabet.values()) == list(range(256))
    assert [(shown, alphabet[shown]) for shown in "AĠĊ"] == [("A", 65), ("Ġ", 32), ("Ċ", 10)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", "not a tokenizer.json"),
        ('{"model": {"type": "BPE", "vocab": {"a": 0}}}', "not for BPE: set masking_unit=token"),
        ('{"model": {"type": "WordLevel", "vocab": {"a": 0}}}', "not for WordLevel"),
    ],
)
def test_a_tokenizer_whose_words_nobody_can_tell_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read_word_table(tmp_path)


def test_shards_of_such_a_tokenizer_have_no_table(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "WordLevel", "vocab": {"a": 0}}}')
    assert find_word_table(tmp_path) is None
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"not a tokenizer\.json"):
        find_word_table(tmp_path)
