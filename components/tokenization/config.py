"""Configs of the steps `tokenizer` and `token_shards`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from infra.journal.config import FrozenConfig, execution_field

TokenizerKind = Literal["byte_bpe", "wordpiece", "unigram"]


class TokenizerConfig(FrozenConfig):
    """A tokenizer to train on the corpus' training split."""

    kind: TokenizerKind = Field("byte_bpe", description="byte_bpe (lossless, no unknown tokens), wordpiece or unigram")
    vocab_size: int = Field(
        8192, ge=300, le=1 << 20, description="tokens, the 5 special ones counted; little text gives fewer"
    )
    min_frequency: int = Field(2, ge=1, description="how often a piece must occur to become a token")
    max_training_documents: int | None = Field(
        None, ge=1, description="train on this many documents, chosen by text hash; without it, on all"
    )
    frozen: bool = execution_field(
        False, description="keep the tokenizer that is there when the text grows; false trains one on the text of today"
    )


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
