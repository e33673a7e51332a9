"""Which tokens begin a word and which end a sentence, told from tokenizer.json alone.

Text is in ids by the time that it is packed, so these two tables are all that is known of words and sentences:

    byte-level BPE  a token begins a word if it begins with a space (`Ġ`) or other white space,
    WordPiece       if it does not begin with `##`,
    Unigram         if it begins with `▁`, and so for BPE whose pieces do (Llama),

and in all of them if its first character is a symbol, or of a script without spaces: a Chinese character is a word. A
token that begins inside a character begins no word; one that is the beginning of a character is judged by its first
byte; <unk> begins one.

A sentence ends after `. ! ? … 。 ！ ？` (quotes and brackets may follow in the same token) if a word or nothing
follows. What is lost: "3.14" is two sentences under WordPiece, which drops spaces; "e.g. this" is two everywhere. The
token shards keep the lengths of sentences, in which <s> belongs to the sentence after it and </s> to the one before.

Shapes: V vocabulary, N tokens.
"""

from __future__ import annotations

import json
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from components.corpus.scripts import SPACELESS_RANGES, is_in
from components.tokenization.packing import Ragged
from components.tokenization.pieces import PieceBytes, kind_of, piece_ids, special_pieces, unknown_id
from infra.errors import DataError

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
ENDS = frozenset(".!?…。！？")
CLOSERS = "\"'”’»)]}」』）】》 \n"
SENTENCE_TOKENS = 1 << 18
"""Tokens whose sentences are found at once."""
SYMBOL_OR_HAN_LEADS = frozenset([0xE2, *range(0xE3, 0xEA), 0xEF, 0xF0])
"""First bytes of UTF-8 for punctuation (E2), Han and Kana (E3 to E9), wide forms (EF), emoji and rare Han (F0)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WordTable:
    """What begins a word and what ends a sentence."""

    starts_word_V: BoolArray
    ends_sentence_V: BoolArray

    def word_starts(self, tokens_N: IntArray, text_N: BoolArray, begins_N: BoolArray) -> BoolArray:
        """Which tokens of text begin a word.

        Args:
            tokens_N: in order.
            text_N: which of them are text.
            begins_N: which of them are the first of a document.
        """
        after_text_N = np.zeros_like(text_N)
        after_text_N[1:] = text_N[:-1]
        found: BoolArray = text_N & (self.starts_word_V[tokens_N] | ~after_text_N | begins_N)
        return found

    def sentence_starts(self, tokens_N: npt.NDArray[Any], begins_N: BoolArray) -> BoolArray:
        """Which tokens begin a sentence: the first of a document, and a word after a sentence's end.

        Of several ends in a row (`?!`) the last one counts. Special tokens begin and end none.

        Args:
            tokens_N: in order; of any integer type.
            begins_N: which of them are the first of a document.
        """
        ends_N = self.ends_sentence_V[tokens_N]
        found_N = begins_N.copy()
        after_end = np.flatnonzero(ends_N[:-1] & ~ends_N[1:]) + 1
        found_N[after_end] |= self.starts_word_V[tokens_N[after_end]]
        return found_N


def sentence_lengths(tokens_NL: npt.NDArray[Any], document_lengths: Ragged, words: WordTable) -> Ragged:
    """Tokens of each sentence of packed sequences.

    Args:
        tokens_NL: the documents one after another, then padding.
        document_lengths: of each sequence.
        words: of their tokenizer.
    """
    num_sequences, width = tokens_NL.shape
    step = max(1, SENTENCE_TOKENS // width)
    values, counts = [np.zeros(0, dtype=np.int64)], [np.zeros(1, dtype=np.int64)]
    for first in range(0, num_sequences, step):
        last = min(num_sequences, first + step)
        documents = document_lengths.rows(first, last)
        before_D = np.concatenate([[0], np.cumsum(documents.values)])
        filled_N = np.diff(before_D[documents.offsets])
        row_D = np.repeat(np.arange(last - first), np.diff(documents.offsets))
        start_D = before_D[:-1] + (np.arange(last - first) * width - before_D[documents.offsets[:-1]])[row_D]
        # Padding is a sentence too, so that it ends the one before it; it is not handed on.
        padding_N = (np.arange(last - first) * width + filled_N)[filled_N < width]
        begins = np.zeros((last - first) * width, dtype=bool)
        begins[start_D] = True
        begins[padding_N] = True
        starts = np.flatnonzero(words.sentence_starts(tokens_NL[first:last].reshape(-1), begins))
        lengths = np.diff(starts, append=len(begins))
        is_text = starts % width < filled_N[starts // width]
        values.append(lengths[is_text])
        counts.append(np.bincount(starts[is_text] // width, minlength=last - first))
    return Ragged(values=np.concatenate(values), offsets=np.cumsum(np.concatenate(counts)))


def find_word_table(tokenizer: Path) -> WordTable | None:
    """The table of the tokenizer in a folder; None if nobody can tell its words.

    Raises:
        DataError: it cannot be read.
    """
    path = tokenizer / "tokenizer.json"
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return _table(told)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a tokenizer.json: {error}") from error


def read_word_table(tokenizer: Path) -> WordTable:
    """The table of the tokenizer in a folder.

    Args:
        tokenizer: has tokenizer.json.

    Raises:
        DataError: it cannot be read, or is of a kind whose words nobody told.
    """
    table = find_word_table(tokenizer)
    if table is None:
        path = tokenizer / "tokenizer.json"
        kind = json.loads(path.read_text(encoding="utf-8"))["model"]["type"]
        raise DataError(
            f"{path}: words can be told for byte-level BPE, WordPiece, Unigram and BPE with ▁, not for {kind}: "
            "set masking_unit=token, or train the tokenizer here"
        )
    return table


def _table(told: Any) -> WordTable | None:
    pieces, kind, bytes_of = piece_ids(told), kind_of(told), PieceBytes(told)
    if kind is None:
        return None
    size = max(pieces.values()) + 1
    starts_V, ends_V = np.zeros(size, dtype=bool), np.zeros(size, dtype=bool)
    special, unknown = special_pieces(told), unknown_id(told)
    for piece, id_ in pieces.items():
        if piece in special:
            starts_V[id_] = id_ == unknown
            continue
        data = bytes_of(piece)
        text = data.decode("utf-8", errors="ignore")
        starts_V[id_] = not piece.startswith(bytes_of.prefix) if kind == "wordpiece" else _begins_word(data)
        stripped = text.rstrip(CLOSERS)
        ends_V[id_] = bool(stripped) and stripped[-1] in ENDS
    return WordTable(starts_word_V=starts_V, ends_sentence_V=ends_V)


def read_sentinels(tokenizer: Path, number: int) -> tuple[int, ...]:
    """Ids of `<extra_id_0>` and on of the tokenizer in a folder; none where it has none of them, or `number` is 0.

    Raises:
        DataError: it has some, and not `number`.
    """
    path = tokenizer / "tokenizer.json"
    if number == 0 or not path.is_file():
        return ()
    told = json.loads(path.read_text(encoding="utf-8"))
    ids = piece_ids(told)
    found = tuple(ids[name] for name in (f"<extra_id_{place}>" for place in range(number)) if name in ids)
    if found and len(found) != number:
        raise DataError(
            f"{path}: has {len(found)} of the tokens <extra_id_0> to <extra_id_{number - 1}>, and span corruption "
            "takes all or none of them: use another tokenizer, or objective=denoising"
        )
    return found


def _begins_word(data: bytes) -> bool:
    """Whether a token of these bytes of UTF-8 begins a word."""
    if not data or 0x80 <= data[0] < 0xC0:  # inside a character
        return False
    length = 1 if data[0] < 0x80 else 2 if data[0] < 0xE0 else 3 if data[0] < 0xF0 else 4
    try:
        character = data[:length].decode("utf-8")
    except UnicodeDecodeError:  # the beginning of a character
        return data[0] in SYMBOL_OR_HAN_LEADS
    category = unicodedata.category(character)[0]
    if category not in "LMN":
        return True
    return category != "M" and is_in(character, SPACELESS_RANGES)
