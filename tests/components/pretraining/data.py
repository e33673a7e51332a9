"""A small tokenizer and token shards from real text, made in a second."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np

from components.tokenization.packing import Ragged
from components.tokenization.shards import ShardIndex, SourceCounts, SplitIndex, record_batch, write_index, write_shard
from components.tokenization.words import read_word_table, sentence_lengths

GLOSSES = Path(__file__).parents[3] / "conf" / "data" / "wordnet" / "glosses.jsonl.gz"
SOURCES = ("even", "odd")
"""By the number of the document."""
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]


def texts(number: int) -> list[str]:
    """The first glosses."""
    found: list[str] = []
    with gzip.open(GLOSSES, "rt", encoding="utf-8") as stream:
        for line in stream:
            found.append(json.loads(line)["text"])
            if len(found) == number:
                break
    return found


def make_tokenizer(folder: Path, documents: list[str], vocab_size: int) -> object:
    """A byte-level BPE tokenizer in `folder`, as the tokenizer step leaves it."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(documents, vocab_size=vocab_size, special_tokens=SPECIAL, show_progress=False)
    pad, unk, bos, eos, mask = SPECIAL
    PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        pad_token=pad,
        unk_token=unk,
        bos_token=bos,
        eos_token=eos,
        mask_token=mask,
        cls_token=bos,
        sep_token=eos,
    ).save_pretrained(folder)
    return bpe


def paragraphs(glosses: list[str]) -> list[str]:
    """Documents of 1 to 7 sentences, a gloss each."""
    found, first = [], 0
    while first < len(glosses):
        count = 1 + len(found) % 7
        found.append(" ".join(f"{gloss[:1].upper()}{gloss[1:]}." for gloss in glosses[first : first + count]))
        first += count
    return found


def make_shards(
    root: Path,
    *,
    num_documents: int = 1500,
    sequence_length: int = 32,
    vocab_size: int = 512,
    marked: bool = False,
    sentences: bool = False,
) -> None:
    """`tokenizer/` and `token_shards/` in `root`.

    Args:
        root: gets both.
        num_documents: glosses.
        sequence_length: tokens; longer documents are cut.
        vocab_size: of the tokenizer.
        marked: the last two tokens of each document are targets.
        sentences: documents have several glosses, as sentences.
    """
    documents = paragraphs(texts(num_documents)) if sentences else texts(num_documents)
    num_documents = len(documents)
    tokenizer = make_tokenizer(root / "tokenizer", documents, vocab_size)
    folder = root / "token_shards"
    folder.mkdir(parents=True)
    held_out = num_documents // 10
    splits = {}
    counts = np.zeros(vocab_size, dtype=np.int64)
    for split, part in (("train", documents[held_out:]), ("validation", documents[:held_out])):
        rows, lengths, sources, targets = [], [], [], []
        row, row_lengths, row_sources, row_targets = [], [], [], []
        num_tokens = 0
        counts_S3 = np.zeros((2, 3), dtype=np.int64)
        for number, text in enumerate(part):
            ids = [2, *tokenizer.encode(text).ids, 3][:sequence_length]
            source = number % 2
            counts_S3[source] += [1, len(ids) - 2, len(tokenizer.decode(ids[1:-1]).encode())]
            num_tokens += len(ids)
            if len(row) + len(ids) > sequence_length:
                padding = sequence_length - len(row)
                rows.append(row + [0] * padding)
                targets.append(row_targets + [False] * padding)
                lengths.append(row_lengths)
                sources.append(row_sources)
                row, row_lengths, row_sources, row_targets = [], [], [], []
            row = row + ids
            row_targets = row_targets + [False] * (len(ids) - 2) + [True, True]
            row_lengths = [*row_lengths, len(ids)]
            row_sources = [*row_sources, source]
        padding = sequence_length - len(row)
        rows.append(row + [0] * padding)
        targets.append(row_targets + [False] * padding)
        lengths.append(row_lengths)
        sources.append(row_sources)
        tokens = np.asarray(rows)
        marks = np.asarray(targets) if marked else None
        if split == "train":
            counts += np.bincount(tokens[tokens > 0], minlength=vocab_size)
        path = folder / f"{split}-00000.arrow"
        documents_of_rows = Ragged.of(lengths)
        batch = record_batch(
            tokens,
            documents_of_rows,
            vocab_size,
            marks,
            document_sources=Ragged.of(sources),
            num_sources=2,
            sentence_lengths=sentence_lengths(tokens, documents_of_rows, read_word_table(root / "tokenizer")),
        )
        file = write_shard(path, batch)
        splits[split] = SplitIndex(
            files=(file,),
            num_sequences=len(rows),
            num_documents=len(part),
            num_tokens=num_tokens,
            by_source=tuple(
                SourceCounts(num_documents=documents, num_text_tokens=text, num_text_bytes=num_bytes)
                for documents, text, num_bytes in counts_S3.tolist()
            ),
            num_target_tokens=int(marks.sum()) if marks is not None else None,
        )
    np.save(folder / "unigram_counts.npy", counts)
    write_index(
        folder,
        ShardIndex(
            sequence_length=sequence_length,
            vocab_size=vocab_size,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=3,
            mask_token_id=4,
            sources=SOURCES,
            has_sentences=True,
            splits=splits,
        ),
    )
