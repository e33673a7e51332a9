"""Configs of the steps `tokenizer` and `token_shards`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from infra.journal.config import FrozenConfig, execution_field

TrainedKind = Literal["byte_bpe", "wordpiece", "unigram"]
TokenizerKind = TrainedKind | Literal["existing"]


class TokenizerConfig(FrozenConfig):
    """A tokenizer to train on the corpus' training split, or one that is there."""

    kind: TokenizerKind = Field(
        "byte_bpe",
        description="byte_bpe (lossless, no unknown tokens), wordpiece or unigram, trained; existing: that of path",
    )
    path: str | None = execution_field(
        None, description="folder of a Hugging Face tokenizer (tokenizer.json), for kind=existing; counts by content"
    )
    vocab_size: int = Field(
        8192, ge=300, le=1 << 20, description="tokens, the 5 special ones counted; little text gives fewer"
    )
    min_frequency: int = Field(2, ge=1, description="how often a piece must occur to become a token")
    han_words: bool = Field(
        False, description="learn words of several Chinese characters (byte_bpe, unigram): pays from 32,000 tokens on"
    )
    max_training_documents: int | None = Field(
        None, ge=1, description="train on this many documents at most, chosen by text hash"
    )
    max_training_bytes: int | None = Field(
        1 << 29, ge=1 << 16, description="train on this much text at most, in bytes of UTF-8, chosen by text hash"
    )
    frozen: bool = execution_field(
        False, description="keep the tokenizer that is there when the text grows; false trains one on the text of today"
    )


def problems(config: TokenizerConfig) -> Iterator[str]:
    """What is wrong with values that each are allowed, a line each."""
    if config.kind == "existing" and config.path is None:
        yield "tokenizer.kind=existing: give its folder as tokenizer.path, or a kind to train (byte_bpe)"
    if config.kind != "existing" and config.path is not None:
        yield (
            f"tokenizer.path={config.path}: kind={config.kind} trains a tokenizer and takes none: set "
            "tokenizer.kind=existing, or leave out path"
        )
    if config.kind == "wordpiece" and config.han_words:
        yield "tokenizer.han_words=true: in WordPiece each Chinese character is a word; set kind=byte_bpe or unigram"


class TokenShardsConfig(FrozenConfig):
    """How documents become fixed-length sequences."""

    sequence_length: int = Field(128, ge=8, le=1 << 17, description="tokens of a sequence, padding counted")
    packing: Literal["best_fit", "concatenate"] = Field(
        "best_fit",
        description="best_fit cuts only documents longer than a sequence, and pads a little; concatenate puts them one "
        "after another and cuts where a sequence ends",
    )
    max_sequences_per_file: int = Field(1 << 16, ge=1, description="sequences of one Arrow file")
    pack_window_documents: int = Field(
        1 << 20, ge=1, description="documents packed together, at most: more pads less and takes more memory"
    )
    pack_window_tokens: int = Field(
        1 << 24, ge=1, description="tokens packed together: the document that reaches it is the last of its window"
    )
