"""Tokenizers of others keep their ids, get what they lack after the last one, and load everywhere."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from components.tokenization.words import read_sentinels, read_word_table
from tokenizers import Tokenizer

from components.tokenization.config import TokenizerConfig, problems
from components.tokenization.encoder import load_tokenizer
from components.tokenization.existing import adopt, planned_vocab_size
from components.tokenization.special import read_special_ids, save_for_transformers
from infra.errors import DamagedArtifactError, DataError

Make = Callable[[str], Path]
ADDED = {
    "bert": (),
    "gpt2": ("<pad>", "<mask>"),
    "llama": ("<pad>", "<mask>"),
    "t5": ("<s>", "<mask>"),
}


def saved(make_style: Make, style: str, tmp_path: Path) -> tuple[Any, Path, dict[str, int]]:
    source = make_style(style)
    before = Tokenizer.from_file(str(source / "tokenizer.json")).get_vocab()
    adopted = adopt(source)
    folder = tmp_path / "saved"
    save_for_transformers(adopted.tokenizer, str(folder), adopted.special)
    return adopted, folder, before


@pytest.mark.parametrize("style", ADDED)
def test_ids_stay_and_what_is_missing_comes_after_the_last(style: str, make_style: Make, tmp_path: Path) -> None:
    adopted, folder, before = saved(make_style, style, tmp_path)
    assert sorted(adopted.added) == sorted(ADDED[style])
    after = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    assert {token: after[token] for token in before} == before
    assert [after[token] for token in adopted.added] == list(range(len(before), len(after)))
    config = TokenizerConfig(kind="existing", path=str(tmp_path / style))
    assert planned_vocab_size(config) == len(after)


@pytest.mark.parametrize("style", ADDED)
def test_auto_tokenizer_reads_what_the_workers_read(style: str, make_style: Make, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    _, folder, before = saved(make_style, style, tmp_path)
    theirs, ours = AutoTokenizer.from_pretrained(str(folder)), load_tokenizer(str(folder / "tokenizer.json"))
    ids = read_special_ids(folder)
    assert (ids.pad, ids.bos, ids.eos, ids.mask) == (
        theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id, theirs.mask_token_id,
    )  # fmt: skip
    assert theirs.cls_token_id == ids.bos and theirs.sep_token_id == ids.eos and theirs.unk_token_id == ids.unk
    assert len({ids.pad, ids.mask, ids.bos}) == 3 and len({ids.pad, ids.mask, ids.eos}) == 3
    assert len(theirs) == ours.get_vocab_size() == max(ours.get_vocab().values()) + 1
    text = "the cat sees the dog"
    plain = Tokenizer.from_file(str(tmp_path / style / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    assert ours.encode(text).ids == theirs(text)["input_ids"] == [ids.bos, *plain, ids.eos]
    assert ours.encode(text, text).ids == [ids.bos, *plain, ids.eos, *plain, ids.eos]
    assert theirs.decode(theirs(text)["input_ids"], skip_special_tokens=True) == text
    assert max(plain) < len(before)


def test_special_tokens_written_in_a_text_are_characters(make_style: Make, tmp_path: Path) -> None:
    _, folder, _ = saved(make_style, "gpt2", tmp_path)
    tokenizer, ids = load_tokenizer(str(folder / "tokenizer.json")), read_special_ids(folder)
    found = tokenizer.encode("the <|endoftext|> <pad> <mask>", add_special_tokens=False).ids
    assert not {ids.pad, ids.bos, ids.mask} & set(found)
    assert tokenizer.decode(found, skip_special_tokens=False) == "the <|endoftext|> <pad> <mask>"


def test_bos_and_eos_are_one_token_in_gpt2_and_padding_is_not(make_style: Make, tmp_path: Path) -> None:
    adopted, folder, before = saved(make_style, "gpt2", tmp_path)
    ids = read_special_ids(folder)
    assert ids.bos == ids.eos == ids.unk == before["<|endoftext|>"]
    assert adopted.special.pad == "<pad>"


def test_a_name_that_text_has_already_is_not_taken_for_a_new_token(make_style: Make, tmp_path: Path) -> None:
    source = make_style("gpt2")
    told = json.loads((source / "tokenizer.json").read_text())
    last = max(told["model"]["vocab"].values())
    (piece,) = [piece for piece, id_ in told["model"]["vocab"].items() if id_ == last]
    told["model"]["vocab"]["<pad>"] = told["model"]["vocab"].pop(piece)
    told["model"]["merges"].pop()
    (source / "tokenizer.json").write_text(json.dumps(told))
    adopted = adopt(source)
    assert adopted.special.pad == "<<pad>>" and "<<pad>>" in adopted.added


def test_a_model_without_a_token_for_unknown_characters_gets_one(make_style: Make) -> None:
    source = make_style("t5")
    told = json.loads((source / "tokenizer.json").read_text())
    told["model"]["unk_id"] = None
    for entry in told["added_tokens"]:
        entry["special"] = True
    (source / "tokenizer.json").write_text(json.dumps(told))
    with pytest.raises(DataError, match="has no token for unknown characters, and tokens were added after its last"):
        adopt(source)
    told["added_tokens"] = told["added_tokens"][:3]
    (source / "tokenizer.json").write_text(json.dumps(told))
    adopted = adopt(source)
    number = len(told["model"]["vocab"])
    assert adopted.added[0] == adopted.special.unk and adopted.tokenizer.token_to_id(adopted.special.unk) == number
    assert number in adopted.tokenizer.encode("the ☃").ids


@pytest.mark.parametrize(
    ("style", "word_starts"),
    [
        ("bert", ["the", "cat", "sees"]),
        ("gpt2", ["the", "cat", "sees"]),
        ("llama", ["the", "cat", "sees"]),
        ("t5", ["the", "cat", "sees"]),
    ],
)
def test_words_can_be_told(style: str, word_starts: list[str], make_style: Make, tmp_path: Path) -> None:
    _, folder, _ = saved(make_style, style, tmp_path)
    tokenizer, table = load_tokenizer(str(folder / "tokenizer.json")), read_word_table(folder)
    text = "the cat sees"
    encoding = tokenizer.encode(text, add_special_tokens=False)
    ids = np.asarray(encoding.ids)
    begins = table.word_starts(ids, np.ones(len(ids), dtype=bool), np.arange(len(ids)) == 0)
    places = [encoding.offsets[place][0] for place in np.flatnonzero(begins)] + [len(text)]
    assert [text[a:b].strip() for a, b in itertools.pairwise(places)] == word_starts
    assert len(table.starts_word_V) == tokenizer.get_vocab_size()


def test_the_unknown_token_of_bert_begins_a_word(make_style: Make, tmp_path: Path) -> None:
    _, folder, _ = saved(make_style, "bert", tmp_path)
    assert read_word_table(folder).starts_word_V[read_special_ids(folder).unk]


def test_sentinels_of_t5_are_its_own(make_style: Make, tmp_path: Path) -> None:
    _, folder, before = saved(make_style, "t5", tmp_path)
    found = read_sentinels(folder, 100)
    assert found == tuple(before[f"<extra_id_{i}>"] for i in range(100))
    assert found[0] == found[1] + 1  # they count down
    assert read_sentinels(make_style("gpt2"), 100) == ()
    with pytest.raises(DataError, match=r"has 100 of the tokens <extra_id_0> to <extra_id_119>"):
        read_sentinels(folder, 120)


def test_what_is_no_tokenizer_is_told_in_one_line(make_style: Make, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no tokenizer\.json: write one with AutoTokenizer"):
        adopt(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {"vocab": ')
    with pytest.raises(DataError, match=r"not a tokenizer\.json"):
        adopt(tmp_path)
    source = make_style("gpt2")
    told = json.loads((source / "tokenizer.json").read_text())
    told["added_tokens"][0]["id"] += 7
    (source / "tokenizer.json").write_text(json.dumps(told))
    with pytest.raises(DataError, match=r"do not have the ids 0 to 300"):
        adopt(source)
    with pytest.raises(DamagedArtifactError, match="names no pad, bos, eos, mask token"):
        source = make_style("llama")
        (source / "tokenizer_config.json").write_text("{}")
        read_special_ids(source)


def test_kind_and_path_belong_together() -> None:
    assert not list(problems(TokenizerConfig()))
    assert not list(problems(TokenizerConfig(kind="existing", path="x")))
    (one,) = problems(TokenizerConfig(kind="existing"))
    assert "give its folder as tokenizer.path" in one
    (two,) = problems(TokenizerConfig(path="x"))
    assert "set tokenizer.kind=existing, or leave out path" in two
