"""The encoder of pieces gives the ids of the library, over hostile text and however often it forgets."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from components.corpus.normalise import clean
from components.tokenization.encoder import LibraryEncoder, PieceEncoder, load_encoder, load_tokenizer
from components.tokenization.special import save_for_transformers
from components.tokenization.training import train

ATOMS = [
    *"the of cat walked walking's don't can't we'll I'd 'tis ' '' 's 'sd ''s 123 4567 1 12a a12 3.14 1,000".split(),  # noqa: SIM905
    *'x-y -- --- ... ( ) [x] <s> </s> <mask> @ # #### http://a.b/c?d=e&f=g A_B __init__ !!!?? "q"'.split(),  # noqa: SIM905
    *"中 文 春眠不觉晓 ， 。 ！ 「 」 〇 𠀀 㐀 豈 々 ー カ ひら 한국 é ñ ß Ω ж ไทย हिन्दी ا 👍 ½ ² ٣".split(),  # noqa: SIM905
    *("\u3000", "e\u0301", "👨\u200d👩", "\u00a0", "\u2028", "\u200b"),
    *("x" * 40, "=" * 70, "9" * 10, "ab" * 40, "é" * 50, "中" * 40),
]
JOINTS = ("", "", " ", " ", "  ", "\n", "\n\n", " \n", "\t", "   ")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [" ".join(ATOMS), "the cat walked, the cats don't walk.", "春眠不觉晓，处处闻啼鸟。"]
    folder = tmp_path_factory.mktemp("tokenizer")
    save_for_transformers(train("byte_bpe", lambda: [texts] * 5, 600, 2), str(folder))
    return folder


def hostile(number: int) -> list[str]:
    source = random.Random(7)
    texts = []
    for _ in range(number):
        parts = [source.choice(ATOMS) + source.choice(JOINTS) for _ in range(source.randrange(1, 14))]
        texts.append(clean("".join(parts), collapse_whitespace=source.random() < 0.5))
    return [text for text in texts if text]


@pytest.mark.parametrize("max_known", [1 << 20, 50])
def test_ids_are_those_of_the_library(folder: Path, max_known: int) -> None:
    tokenizer = load_tokenizer(str(folder / "tokenizer.json"))
    encoder = PieceEncoder(tokenizer, max_known)
    texts = hostile(20_000)
    expected = [one.ids for one in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    for start in range(0, len(texts), 1000):
        part = pa.array(["skipped", *texts[start : start + 1000]], pa.large_string()).slice(1)
        ids, lengths = encoder.encode(part)
        found = np.split(ids, np.cumsum(lengths)[:-1])
        for text, one, other in zip(texts[start:], found, expected[start:], strict=False):
            assert one.tolist() == other, repr(text)


def test_texts_without_tokens_have_none(folder: Path) -> None:
    encoder = PieceEncoder(load_tokenizer(str(folder / "tokenizer.json")))
    for texts in ([], [""], ["", "a b", ""]):
        ids, lengths = encoder.encode(pa.array(texts, pa.large_string()))
        assert len(lengths) == len(texts) and lengths.sum() == len(ids) and (lengths[:1] == 0).all()


@pytest.mark.parametrize(("kind", "expected"), [("byte_bpe", PieceEncoder), ("wordpiece", LibraryEncoder)])
def test_what_cuts_words_otherwise_goes_through_the_library(tmp_path: Path, kind: Any, expected: type) -> None:
    save_for_transformers(train(kind, lambda: [ATOMS] * 5, 600, 2), str(tmp_path))
    encoder = load_encoder(str(tmp_path / "tokenizer.json"))
    assert type(encoder) is expected
    texts = hostile(200)
    ids, lengths = encoder.encode(pa.array(texts, pa.large_string()))
    tokenizer = load_tokenizer(str(tmp_path / "tokenizer.json"))
    assert [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])] == [
        one.ids for one in tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    ]


def test_tokens_that_a_user_added_are_found_where_the_library_finds_them(tmp_path: Path) -> None:
    """They reach over pieces, and have characters that are several bytes."""
    tokenizer = train("byte_bpe", lambda: [["the quick brown fox", "春眠不觉晓"] * 9], 400, 2)
    tokenizer.add_tokens(["café", "深度学习"])
    save_for_transformers(tokenizer, str(tmp_path))
    path = str(tmp_path / "tokenizer.json")
    texts = ["un café the quick fox", "深度学习 the fox"]
    ids, lengths = load_encoder(path).encode(pa.array(texts, pa.large_string()))
    wanted = [load_tokenizer(path).encode(text, add_special_tokens=False).ids for text in texts]
    assert ids.tolist() == [id_ for ids in wanted for id_ in ids] and lengths.tolist() == list(map(len, wanted))
