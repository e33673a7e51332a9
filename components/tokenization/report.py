"""What a tokenizer does with text that it was not trained on, and which of its tokens do nothing.

    bytes per token      UTF-8 bytes of text by tokens: how much text a sequence holds
    fertility            tokens by word (Rust et al. 2021, arXiv:2012.15613, section 4.2), and by character
    unknown rate         share of tokens that are the token for unknown characters
    single characters    share of the text's bytes in tokens of one character, and in tokens of a part of one

by language and by source, on 2 MiB of the validation split; use of the vocabulary, on 4 MiB of the training split. A
word is a run of letters and digits, and a Chinese character is one; scripts without spaces other than Han are cut at
what is no letter, so that "fertility" there says little: look at bytes per token. About 5 s on two cores.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from components.tokenization.encoder import load_tokenizer
from components.tokenization.pieces import BYTE_TOKEN, PieceBytes, piece_ids, special_pieces, unknown_id
from components.tokenization.scripts import script_of
from components.tokenization.training_texts import TrainingTexts

IntArray = npt.NDArray[np.int64]
HELD_OUT_BYTES = 2 << 20
USE_BYTES = 4 << 20
MAX_LISTED = 50
WITHOUT_LANGUAGE = "not identified"
_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
WORD = re.compile(rf"[{_HAN}]|[^\W_{_HAN}]+")


class TokenTable:
    """What each token stands for. Shapes: V tokens.

    Args:
        folder: of the tokenizer.
    """

    def __init__(self, folder: Path) -> None:
        told = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        ids, special = piece_ids(told), special_pieces(told)
        self.unknown = unknown_id(told)
        self.bytes_of = PieceBytes(told)
        self.pieces = [piece for piece, _ in sorted(ids.items(), key=lambda item: item[1])]
        self.is_special = [piece in special for piece in self.pieces]
        self.data = [
            b"" if is_special else self.bytes_of(piece)
            for piece, is_special in zip(self.pieces, self.is_special, strict=True)
        ]
        self.texts = [_whole(data) for data in self.data]
        """None for tokens that are no whole characters."""
        self.num_bytes_V = np.array([len(data) for data in self.data], dtype=np.int64)
        self.is_single_V = np.array([text is not None and len(text.strip()) == 1 for text in self.texts])
        self.is_partial_V = np.array([text is None for text in self.texts])

    def __len__(self) -> int:
        return len(self.pieces)


def make_report(folder: Path, corpus: Path, added: tuple[str, ...] = ()) -> dict[str, Any]:
    """The report: plain values, the same for the same tokenizer and corpus.

    Args:
        folder: of the tokenizer.
        corpus: with the splits `train` and `validation`.
        added: special tokens that an existing tokenizer lacked.
    """
    tokenizer, table = load_tokenizer(str(folder / "tokenizer.json")), TokenTable(folder)
    held_out = TrainingTexts(corpus, None, HELD_OUT_BYTES, split="validation")
    return {
        "vocab_size": len(table),
        "added_tokens": list(added),
        "held_out": _held_out(tokenizer, table, held_out),
        "vocabulary": {
            "scripts": scripts(table),
            "longest": longest(table),
            **use(tokenizer, table, TrainingTexts(corpus, None, USE_BYTES)),
            "unreachable": _listed(unreachable(tokenizer, table), table),
            "duplicates": duplicates(table),
        },
    }


def report_metrics(report: dict[str, Any]) -> dict[str, float | int]:
    """What of the report MLflow shows as metrics: the numbers of all held-out text, and those of each language."""
    vocabulary, held_out = report["vocabulary"], report["held_out"]
    metrics: dict[str, float | int] = {
        "num_never_used_tokens": vocabulary["never_used"]["count"],
        "num_unreachable_tokens": vocabulary["unreachable"]["count"],
        "num_tokens_for_90_percent": vocabulary["num_tokens_for_90_percent"],
        "num_tokens_for_99_percent": vocabulary["num_tokens_for_99_percent"],
    }
    names = ("bytes_per_token", "tokens_per_word", "tokens_per_character", "unknown_rate")
    metrics |= {f"held_out_{name}": held_out["all"][name] for name in names if held_out["all"][name] is not None}
    for language, found in held_out["by_language"].items():
        if language != WITHOUT_LANGUAGE:
            metrics |= {f"held_out_{name}/{language}": found[name] for name in names if found[name] is not None}
    return metrics


def _held_out(tokenizer: Any, table: TokenTable, texts: TrainingTexts) -> dict[str, Any]:
    """The rates of all held-out text, and by language and source."""
    counts_V: dict[tuple[str, str], IntArray] = defaultdict(lambda: np.zeros(len(table), dtype=np.int64))
    sizes: dict[tuple[str, str], IntArray] = defaultdict(lambda: np.zeros(4, dtype=np.int64))
    for batch in texts.batches(("language", "source")):
        encodings = tokenizer.encode_batch_fast(batch["text"], add_special_tokens=False)
        for text, language, source, encoding in zip(
            batch["text"], batch["language"], batch["source"], encodings, strict=True
        ):
            group = (language or WITHOUT_LANGUAGE, source)
            np.add.at(counts_V[group], encoding.ids, 1)
            sizes[group] += (1, len(text.encode()), len(text), sum(1 for _ in WORD.finditer(text)))

    def rates(wanted: Any) -> dict[str, Any]:
        groups = [group for group in sizes if wanted(group)]
        return text_rates(
            table,
            sum((counts_V[group] for group in groups), np.zeros(len(table), dtype=np.int64)),
            sum((sizes[group] for group in groups), np.zeros(4, dtype=np.int64)),
        )

    return {
        "all": rates(lambda _: True),
        "by_language": {
            name: rates(lambda group, name=name: group[0] == name) for name in sorted({group[0] for group in sizes})
        },
        "by_source": {
            name: rates(lambda group, name=name: group[1] == name) for name in sorted({group[1] for group in sizes})
        },
    }


def text_rates(table: TokenTable, counts_V: IntArray, sizes: IntArray) -> dict[str, Any]:
    """The rates of some text; None where there is none.

    Args:
        table: of the tokenizer.
        counts_V: how often each token is in it.
        sizes: its documents, bytes, characters and words.
    """
    num_documents, num_bytes, num_characters, num_words = sizes.tolist()
    num_tokens = int(counts_V.sum())
    bytes_V = counts_V * table.num_bytes_V
    unknown = 0 if table.unknown is None else int(counts_V[table.unknown])

    def rate(part: float, whole: float) -> float | None:
        return round(part / whole, 6) if whole else None

    return {
        "num_documents": num_documents,
        "num_bytes": num_bytes,
        "num_tokens": num_tokens,
        "bytes_per_token": rate(num_bytes, num_tokens),
        "tokens_per_word": rate(num_tokens, num_words),
        "tokens_per_character": rate(num_tokens, num_characters),
        "unknown_rate": rate(unknown, num_tokens),
        "single_character_bytes": rate(int(bytes_V[table.is_single_V].sum()), int(bytes_V.sum())),
        "part_of_character_bytes": rate(int(bytes_V[table.is_partial_V].sum()), int(bytes_V.sum())),
    }


def scripts(table: TokenTable) -> dict[str, dict[str, float | int]]:
    """How many tokens are of each script, and their share of the vocabulary."""
    counts: dict[str, int] = defaultdict(int)
    for text, is_special in zip(table.texts, table.is_special, strict=True):
        counts["special" if is_special else "part of a character" if text is None else script_of(text)] += 1
    return {name: {"count": counts[name], "share": round(counts[name] / len(table), 6)} for name in sorted(counts)}


def longest(table: TokenTable) -> list[dict[str, Any]]:
    """The tokens of most characters, those of a lower id first among equals."""
    known = [(id_, text) for id_, text in enumerate(table.texts) if text]
    known.sort(key=lambda item: (-len(item[1]), item[0]))
    return [{"id": id_, "token": text, "characters": len(text)} for id_, text in known[:MAX_LISTED]]


def use(tokenizer: Any, table: TokenTable, texts: TrainingTexts) -> dict[str, Any]:
    """Which tokens text is made of: how many make up 90 and 99 % of it, and which are not in it."""
    counts_V = np.zeros(len(table), dtype=np.int64)
    for batch in texts:
        encodings = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
        ids = np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), np.int64)
        counts_V += np.bincount(ids, minlength=len(table))
    ranked = np.cumsum(np.sort(counts_V)[::-1])
    total = int(counts_V.sum())
    never = [id_ for id_ in np.flatnonzero(counts_V == 0).tolist() if not table.is_special[id_]]
    return {
        "num_sample_tokens": total,
        "num_tokens_for_90_percent": int(np.searchsorted(ranked, 0.90 * total)) + 1 if total else 0,
        "num_tokens_for_99_percent": int(np.searchsorted(ranked, 0.99 * total)) + 1 if total else 0,
        "never_used": _listed(never, table),
    }


def unreachable(tokenizer: Any, table: TokenTable) -> list[int]:
    """Ids of the tokens that no text is encoded to.

    The model must make the piece of its own characters, and neither normaliser nor pre-tokenizer may change or cut its
    text. Parts of characters, special tokens and bytes of a fallback are taken as reachable.
    """
    found = []
    for id_, (piece, text) in enumerate(zip(table.pieces, table.texts, strict=True)):
        if not text or BYTE_TOKEN.fullmatch(piece):
            continue
        is_inner = table.bytes_of.kind == "wordpiece" and bool(table.bytes_of.prefix)
        is_inner &= piece.startswith(table.bytes_of.prefix) and piece != table.bytes_of.prefix
        if not is_inner and [token.id for token in tokenizer.model.tokenize(piece)] != [id_]:
            found.append(id_)
            continue
        shown = text[0] + text if is_inner else text
        normal = tokenizer.normalizer.normalize_str(shown) if tokenizer.normalizer else shown
        words = tokenizer.pre_tokenizer.pre_tokenize_str(normal) if tokenizer.pre_tokenizer else [(normal, (0, 1))]
        wanted = text if table.bytes_of.kind == "wordpiece" else piece
        if not any(wanted in word for word, _ in words):
            found.append(id_)
    return found


def duplicates(table: TokenTable) -> dict[str, Any]:
    """Tokens that are the same text but for the spaces around it, or `##` before it: `the` and ` the`."""
    groups: dict[str, list[int]] = defaultdict(list)
    for id_, text in enumerate(table.texts):
        if text and text.strip():
            groups[text.strip()].append(id_)
    several = [ids for ids in groups.values() if len(ids) > 1]
    return {
        "count": sum(len(ids) - 1 for ids in several),
        "groups": [[table.pieces[id_] for id_ in ids] for ids in several[:MAX_LISTED]],
    }


def _listed(ids: list[int], table: TokenTable) -> dict[str, Any]:
    return {
        "count": len(ids),
        "tokens": [{"id": id_, "token": table.pieces[id_]} for id_ in ids[:MAX_LISTED]],
    }


def _whole(data: bytes) -> str | None:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None
