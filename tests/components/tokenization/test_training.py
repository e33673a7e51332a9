"""Each kind of tokenizer is the same at each training, loads by itself, and knows Chinese."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.tokenization.special import SPECIAL_TOKENS, save_for_transformers
from components.tokenization.training import train
from components.tokenization.unigram import build_lattice, expected_counts, train_unigram

KINDS = ("byte_bpe", "wordpiece", "unigram")
ENGLISH = [
    "the",
    "a",
    "cat",
    "dog",
    "sees",
    "likes",
    "walking",
    "walked",
    "talking",
    "under",
    "café",
    "1984",
    "(it's),",
]
CHINESE = "中华人民共和国的首都是北京，这里有很多人学习自然语言处理。"


def corpus(count: int = 400) -> list[str]:
    draw = random.Random(5)
    english = [" ".join(draw.choices(ENGLISH, k=8)) + "." for _ in range(count)]
    chinese = ["".join(draw.choices(CHINESE, k=60)) for _ in range(count)]
    return english + chinese


def trained(kind: Any, vocab_size: int = 600, texts: list[str] | None = None) -> Any:
    data = texts or corpus()

    def batches() -> Iterable[list[str]]:
        return [data[:300], data[300:]]

    return train(kind, batches, vocab_size, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_training_again_gives_the_same_file(kind: str, tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_for_transformers(trained(kind), str(tmp_path / name))
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_auto_tokenizer_loads_it_with_special_tokens_and_templates(kind: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    save_for_transformers(trained(kind), str(tmp_path))
    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path))
    assert tokenizer.convert_ids_to_tokens(range(5)) == list(SPECIAL_TOKENS)
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.mask_token_id) == (0, 1, 4)
    assert tokenizer.bos_token_id == tokenizer.cls_token_id == 2 and tokenizer.eos_token_id == 3
    ids = tokenizer("the cat")["input_ids"]
    assert (ids[0], ids[-1]) == (2, 3) and 1 not in ids
    pair = tokenizer("the cat", "a dog")
    assert pair["input_ids"].count(3) == 2 and pair["input_ids"].count(2) == 1 and "token_type_ids" not in pair
    assert len(tokenizer) <= 600


@pytest.mark.parametrize("kind", KINDS)
def test_chinese_runs_become_many_known_tokens(kind: str) -> None:
    tokens = trained(kind).encode(CHINESE[:28], add_special_tokens=False)
    assert 1 not in tokens.ids
    assert 20 <= len(tokens.ids) <= 40


@pytest.mark.parametrize("kind", ["byte_bpe", "unigram"])
def test_han_words_are_learned_where_that_is_wanted(kind: Any) -> None:
    draw = random.Random(3)
    texts = ["".join(draw.choices(["北京大学", "自然语言", "处理", "学习", "我们", "在"], k=6)) for _ in range(200)]
    apart, together = (train(kind, lambda: [texts], 400, 2, han_words=wanted) for wanted in (False, True))
    text = "北京大学自然语言处理"
    assert len(apart.encode(text, add_special_tokens=False).ids) >= 10
    assert len(together.encode(text, add_special_tokens=False).ids) <= 5


@pytest.mark.parametrize("kind", KINDS)
def test_words_seen_often_are_one_token(kind: str) -> None:
    assert len(trained(kind).encode("the walking", add_special_tokens=False).ids) == 2


@pytest.mark.parametrize(
    "text", [" two  spaces \n\n\ttab", "ünknown 漢字 😀 \u0000", "it's </s> 12345", "。" * 50, "a" * 100]
)
def test_byte_bpe_gives_any_text_back(text: str) -> None:
    tokenizer = trained("byte_bpe")
    tokenizer.encode_special_tokens = True
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert not set(ids) & set(range(5))


def test_unigram_gives_text_with_single_spaces_back() -> None:
    tokenizer = trained("unigram")
    assert tokenizer.decode(tokenizer.encode("the cat walked under 中华.").ids) == "the cat walked under 中华."


@pytest.mark.parametrize("kind", KINDS)
def test_a_tiny_corpus_gives_a_smaller_vocabulary(kind: str) -> None:
    tokenizer = trained(kind, 8192, ["ab ab ab", "中 中"])
    assert 7 <= tokenizer.get_vocab_size() < 400


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_more_characters_than_the_vocabulary_holds_do_not_overflow_it(kind: str) -> None:
    texts = ["".join(chr(0x4E00 + i) for i in range(n)) for n in range(1, 800, 2)]
    tokenizer = trained(kind, 400, texts)
    assert tokenizer.get_vocab_size() <= 400
    assert 1 not in tokenizer.encode(chr(0x4E00), add_special_tokens=False).ids


def test_expected_counts_equal_an_enumeration() -> None:
    pieces = {"a": 0, "b": 1, "ab": 2, "ba": 3, "aba": 4}
    probability_V = np.array([0.3, 0.25, 0.2, 0.15, 0.1])
    word = "abab"
    totals: dict[tuple[str, ...], float] = {}

    def extend(start: int, so_far: tuple[str, ...], weight: float) -> None:
        if start == len(word):
            totals[so_far] = weight
        for piece, index in pieces.items():
            if word.startswith(piece, start):
                extend(start + len(piece), (*so_far, piece), weight * probability_V[index])

    extend(0, (), 1.0)
    wanted = np.zeros(5)
    for segmentation, weight in totals.items():
        for piece in segmentation:
            wanted[pieces[piece]] += 7 * weight / sum(totals.values())
    found = expected_counts(build_lattice([word], pieces), np.array([7.0]), probability_V)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_unigram_keeps_the_pieces_that_make_words_likely() -> None:
    words = {"▁walking": 50, "▁talking": 50, "▁walked": 50, "▁rare": 2, "▁re": 1}
    alphabet = sorted(set("".join(words)))
    scored = train_unigram(words, alphabet, len(alphabet) + 3, 2)
    assert {"▁walking", "▁talking", "▁walked", *alphabet} == {piece for piece, _ in scored}
    assert [score for _, score in scored] == sorted((score for _, score in scored), reverse=True)
    assert sum(np.exp(score) for _, score in scored) == pytest.approx(1, abs=1e-6)
