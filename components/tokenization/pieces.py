"""What the tokens of a tokenizer.json stand for, told from its JSON alone.

Four kinds of piece are known: those of byte-level BPE, whose characters stand for bytes; of WordPiece, where `##`
begins one inside a word; of Unigram, where `▁` stands for a space; and of BPE whose pieces do so too (`marked`: Llama),
with `<0x0A>` for a byte without a piece of its own.
"""

from __future__ import annotations

import json
import re
from typing import Any

BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
"""A byte of a character that has no piece of its own (SentencePiece's byte fallback)."""
MARK = "▁"


def piece_ids(told: Any) -> dict[str, int]:
    """The id of every token of a tokenizer.json, added ones too."""
    vocabulary = told["model"]["vocab"]
    if isinstance(vocabulary, list):
        found = {str(piece): id_ for id_, (piece, _) in enumerate(vocabulary)}
    else:
        found = {str(piece): int(id_) for piece, id_ in vocabulary.items()}
    return found | {str(entry["content"]): int(entry["id"]) for entry in told.get("added_tokens") or []}


def special_pieces(told: Any) -> set[str]:
    """The tokens of a tokenizer.json that stand for no text."""
    return {str(entry["content"]) for entry in told.get("added_tokens") or [] if entry.get("special")}


def kind_of(told: Any) -> str | None:
    """`byte_bpe`, `wordpiece`, `unigram` or `marked`; None for others."""
    model = told["model"]["type"]
    if model == "BPE":
        if "ByteLevel" in json.dumps(told.get("decoder")):
            return "byte_bpe"
        return "marked" if any(piece.startswith(MARK) for piece in told["model"]["vocab"]) else None
    return {"WordPiece": "wordpiece", "Unigram": "unigram"}.get(model)


def unknown_id(told: Any) -> int | None:
    """The id of the token for unknown characters; None where the model has none."""
    model = told["model"]
    is_list = isinstance(model["vocab"], list)
    found: int | None = model.get("unk_id") if is_list else model["vocab"].get(model.get("unk_token"))
    return found


class PieceBytes:
    """The UTF-8 bytes that a piece of text stands for; of those of byte-level BPE, perhaps no whole characters.

    Args:
        told: a tokenizer.json.
    """

    def __init__(self, told: Any) -> None:
        self.kind = kind_of(told)
        self.prefix: str = told["model"].get("continuing_subword_prefix") or ""
        self._falls_back = bool(told["model"].get("byte_fallback"))
        self._alphabet = byte_alphabet()

    def __call__(self, piece: str) -> bytes:
        """The bytes of `piece`, which is no special token; a leading space counts where the piece has one."""
        if self._falls_back and (byte := BYTE_TOKEN.fullmatch(piece)):
            return bytes([int(byte[1], 16)])
        if self.kind == "byte_bpe":
            return bytes(self._alphabet[character] for character in piece if character in self._alphabet)
        if self.kind == "wordpiece":
            return piece.removeprefix(self.prefix).encode()
        return piece.replace(MARK, " ").encode()


def byte_alphabet() -> dict[str, int]:
    """The byte that each character of a byte-level token stands for (Radford et al. 2019, encoder.py)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
