"""Encoding of many texts at once, in which each distinct piece of text goes through the tokenizers library once.

The library looks at every word anew: 38 s of a core for 100 MB. Here the UTF-8 of a whole batch is cut, in numpy, at
places where our pre-tokenizer cuts whatever stands around (between a letter and a space, around a Chinese character),
Arrow finds the distinct pieces, and a table gives the tokens of those seen before: 4 s for 100 MB of English once warm,
12 from cold, with the same ids, which a test compares with the library's over hostile text. It holds for byte-level BPE
trained here, whose tokens have one character a byte, and texts that do not end in white space, as cleaned ones; any
other tokenizer goes through the library as it is.

Shapes: N bytes, P pieces, D distinct pieces, T texts.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from components.tokenization.pretokenize import WORDS_WITH_SPACES

IntArray = npt.NDArray[np.int64]
IdArray = npt.NDArray[np.uint32]
ByteArray = npt.NDArray[np.uint8]

MAX_KNOWN_PIECES = 1 << 20
"""Pieces in the table, some 150 bytes each; then it begins anew."""
PIECES_PER_TEXT = 256
SEPARATOR = "中"
"""A word of its own wherever it stands: between pieces that go through the library in one text."""
_OTHER, _LETTER, _DIGIT, _SYMBOL, _APOSTROPHE, _SPACE = range(6)


def _class_of(character: str) -> int:
    if not character.isascii() or not (character.isprintable() or character.isspace()):
        return _OTHER
    if character.isspace():
        return _SPACE
    if character.isalnum():
        return _LETTER if character.isalpha() else _DIGIT
    return _APOSTROPHE if character == "'" else _SYMBOL


_CLASS = bytes(_class_of(chr(code)) for code in range(256))
"""What each byte is; only ASCII is told apart."""
_CUT = bytearray(256)
"""Pairs of classes (one << 3 | other) between which there always is a cut: not in `'s`, between symbols, or after a
space, which belongs to what follows."""
for _one, _others in {
    _LETTER: (_DIGIT, _SYMBOL, _APOSTROPHE, _SPACE),
    _DIGIT: (_LETTER, _SYMBOL, _APOSTROPHE, _SPACE),
    _SYMBOL: (_LETTER, _DIGIT, _SPACE),
    _APOSTROPHE: (_DIGIT, _SPACE),
}.items():
    for _second in _others:
        _CUT[_one << 3 | _second] = 1
_HAN_LEAD = bytes(0xE5 <= code <= 0xE9 for code in range(256))
"""First bytes of U+5000 to U+9FFF, all of them Han."""
_IS_PLAIN = np.array([_OTHER < value < _SPACE for value in _CLASS])


def cuts(data: ByteArray, starts: IntArray) -> IntArray:
    """Where pieces begin in `data`, in order.

    Args:
        data: UTF-8 of the texts, one after another; [N].
        starts: where texts begin; pieces begin there too.
    """
    raw = data.tobytes()
    class_N = np.frombuffer(raw.translate(_CLASS), np.uint8)
    flag_N = np.zeros(len(data) + 1, np.uint8)
    pairs = (class_N[:-1] << 3 | class_N[1:]).tobytes()
    flag_N[1 : len(data)] = np.frombuffer(pairs.translate(bytes(_CUT)), np.uint8)
    han = np.flatnonzero(np.frombuffer(raw.translate(_HAN_LEAD), np.bool_))
    if len(han):
        flag_N[han + 3] = 1  # whatever follows
        # Before it too, where what stands there is no space: ASCII, or Chinese punctuation (but for U+3000).
        before, second, third = data[han - 1], data[han - 2], data[han - 3]
        sure = _IS_PLAIN[before] | (third == 0xEF) | ((third == 0xE3) & (second == 0x80) & (before != 0x80))
        flag_N[han[sure & (han >= 3)]] = 1
    flag_N[starts[starts < len(data)]] = 1
    return np.flatnonzero(flag_N[: len(data)].view(np.bool_))


class PieceEncoder:
    """Encodes with a tokenizer of `training._byte_bpe`, and remembers the pieces that it has met.

    Args:
        tokenizer: of tokenizers.
    """

    def __init__(self, tokenizer: Any, max_known: int = MAX_KNOWN_PIECES) -> None:
        self._tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab()
        self._num_bytes_V = np.zeros(max(vocabulary.values()) + 1, np.int64)
        for token, id_ in vocabulary.items():
            self._num_bytes_V[id_] = len(token)  # a character a byte; special tokens never occur in text
        self._max_known = max_known
        self._forget()

    def _forget(self) -> None:
        self._known: dict[bytes, int] = {}
        self._flat = np.zeros(1 << 16, np.uint32)
        self._used = 0
        self._first = np.zeros(1 << 16, np.int64)
        self._length = np.zeros(1 << 16, np.int64)

    def _learn(self, pieces: list[bytes]) -> None:
        """Puts new pieces through the library, many in one text; tokens are told apart by their bytes."""
        separator = SEPARATOR.encode()
        groups = [pieces[start : start + PIECES_PER_TEXT] for start in range(0, len(pieces), PIECES_PER_TEXT)]
        texts = [(separator + separator.join(group)).decode() for group in groups]
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        number = len(self._known)
        for group, encoding in zip(groups, encodings, strict=True):
            ids = np.array(encoding.ids, np.uint32)
            end_of_token = np.cumsum(self._num_bytes_V[ids])
            sizes = np.fromiter(map(len, group), np.int64, len(group))
            end_P = np.cumsum(sizes + len(separator))
            last = np.searchsorted(end_of_token, end_P) + 1
            first = np.searchsorted(end_of_token, end_P - sizes) + 1
            self._flat = _grown(self._flat, self._used + len(ids))
            self._first, self._length = (_grown(one, number + len(group)) for one in (self._first, self._length))
            self._flat[self._used : self._used + len(ids)] = ids
            self._first[number : number + len(group)] = first + self._used
            self._length[number : number + len(group)] = last - first
            self._used += len(ids)
            self._known.update(zip(group, range(number, number + len(group)), strict=True))
            number += len(group)

    def encode(self, texts: pa.LargeStringArray) -> tuple[IdArray, IntArray]:
        """The ids of all texts, one text after another, and the number of tokens of each, [T]; no special tokens.

        Args:
            texts: without nulls; of less than 2 GiB in all.
        """
        if len(self._known) > self._max_known:
            self._forget()
        offsets = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]
        if not len(texts) or offsets[0] == offsets[-1]:
            return np.zeros(0, np.uint32), np.zeros(len(texts), np.int64)
        data = np.frombuffer(texts.buffers()[2], np.uint8)[offsets[0] : offsets[-1]]
        bounds = offsets - offsets[0]
        starts = cuts(data, bounds[:-1])
        piece_offsets = pa.py_buffer(np.append(starts, len(data)).astype(np.int32))
        pieces = pa.BinaryArray.from_buffers(pa.binary(), len(starts), [None, piece_offsets, pa.py_buffer(data)])
        coded = pieces.dictionary_encode()
        distinct = coded.dictionary.to_pylist()
        new = [piece for piece in distinct if piece not in self._known]
        if new:
            self._learn(new)
        number_D = np.fromiter(map(self._known.__getitem__, distinct), np.int64, len(distinct))
        piece_P = number_D[coded.indices.to_numpy()]
        length_P = self._length[piece_P]
        end_P = np.cumsum(length_P)
        places = np.repeat(self._first[piece_P] - (end_P - length_P), length_P)
        places += np.arange(len(places))
        ends = np.append(0, end_P)[np.searchsorted(starts, bounds)]
        return self._flat[places], np.diff(ends)


class LibraryEncoder:
    """Encodes with any tokenizer, through the library."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, texts: pa.LargeStringArray) -> tuple[IdArray, IntArray]:
        """As `PieceEncoder.encode`."""
        encodings = self._tokenizer.encode_batch_fast(texts.to_pylist(), add_special_tokens=False)
        ids = [np.array(encoding.ids, np.uint32) for encoding in encodings]
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        return np.concatenate([np.zeros(0, np.uint32), *ids]), lengths


def _grown(values: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    """`values`, with room for `size`."""
    while size > len(values):
        values = np.concatenate([values, np.zeros_like(values)])
    return values


@lru_cache(maxsize=1)
def load_tokenizer(path: str) -> Any:
    """The tokenizer in `path` (tokenizer.json), for text in which `</s>` is five characters and not the end."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(path)
    tokenizer.encode_special_tokens = True
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


@lru_cache(maxsize=1)
def load_encoder(path: str) -> PieceEncoder | LibraryEncoder:
    """The encoder of the tokenizer in `path`, kept while the process lives."""
    tokenizer = load_tokenizer(path)
    told = json.loads(tokenizer.to_str())
    return PieceEncoder(tokenizer) if _is_ours(told) else LibraryEncoder(tokenizer)


def _is_ours(told: dict[str, Any]) -> bool:
    """Whether a tokenizer.json cuts words where `cuts` relies on it, and has tokens of one character a byte."""
    steps = (told.get("pre_tokenizer") or {}).get("pretokenizers") or []
    return (
        told["model"]["type"] == "BPE"
        and all(token["special"] for token in told.get("added_tokens") or [])  # another is found across pieces
        and told.get("normalizer") is None
        and len(steps) == 2
        and steps[0]
        == {"type": "Split", "pattern": {"Regex": WORDS_WITH_SPACES}, "behavior": "Isolated", "invert": False}
        and steps[1]["type"] == "ByteLevel"
        and not steps[1]["add_prefix_space"]
        and not steps[1]["use_regex"]
    )
