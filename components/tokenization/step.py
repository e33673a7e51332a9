"""The steps `tokenizer` and `token_shards`."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from components.tokenization.config import TokenizerConfig, TokenShardsConfig
from infra.errors import DataError, FromzeroError
from infra.journal.step import Artifact, StepContext, StepOutput
from infra.storage.raw import digest_file
from infra.tracking.records import FileRecord

if TYPE_CHECKING:
    import pyarrow as pa

    from components.tokenization.encoding import EncodeTask, Encoding
    from infra.storage.units import UnitStore

REPORT_NAME = "tokenizer_report.json"


def train_tokenizer(config: TokenizerConfig, inputs: Mapping[str, Artifact], context: StepContext) -> StepOutput:
    """Trains a tokenizer on the training split, or takes over the one in `config.path`, and reports on it.

    Args:
        config: kind and size.
        inputs: `corpus`.
        context: where to write; of an existing tokenizer, `raw["existing"]` are its files.

    Returns:
        The folder tokenizer/, which `AutoTokenizer.from_pretrained` loads, and tokenizer_report.json.

    Raises:
        DataError: the folder holds no tokenizer that can be used, or has changed since the run was planned.
    """
    from components.tokenization.existing import adopt
    from components.tokenization.report import make_report, report_metrics
    from components.tokenization.special import SpecialTokens, save_for_transformers
    from components.tokenization.training import train
    from components.tokenization.training_texts import TrainingTexts

    started = time.monotonic()
    texts = TrainingTexts(inputs["corpus"].path, config.max_training_documents, config.max_training_bytes)

    def batches() -> Iterable[list[str]]:
        done, reported = 0, 0.0
        for batch in texts:
            done += len(batch)
            yield batch
            if time.monotonic() - reported >= 1:
                reported = time.monotonic()
                context.tracker.progress(done, texts.num_documents, "documents")

    added: tuple[str, ...] = ()
    special = SpecialTokens()
    with _parallel_tokenizers():
        if config.kind == "existing":
            adopted = adopt(_existing_folder(context))
            tokenizer, special, added = adopted.tokenizer, adopted.special, adopted.added
        else:
            tokenizer = train(config.kind, batches, config.vocab_size, config.min_frequency, han_words=config.han_words)
        trained_at = time.monotonic()
        save_for_transformers(tokenizer, str(context.output / "tokenizer"), special)
        report = make_report(context.output / "tokenizer", inputs["corpus"].path, added)
    (context.output / REPORT_NAME).write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    context.tracker.progress(texts.num_documents, texts.num_documents, "documents")
    training = (
        {}
        if config.kind == "existing"
        else {"num_training_documents": texts.num_documents, "num_training_bytes": texts.num_bytes}
    )
    return StepOutput(
        metrics={
            "vocab_size": tokenizer.get_vocab_size(),
            "num_added_tokens": len(added),
            **training,
            **report_metrics(report),
        },
        measured={"seconds": time.monotonic() - started, "report_seconds": time.monotonic() - trained_at},
        records=(FileRecord(path="tokenizer"), FileRecord(path=REPORT_NAME)),
    )


def _existing_folder(context: StepContext) -> Path:
    """The folder of an existing tokenizer, whose files are those that the key was made of.

    Raises:
        DataError: one is not.
    """
    files = context.raw["existing"]
    for file in files:
        if digest_file(Path(file.path)) != file.digest:
            raise DataError(f"{file.path}: has changed since the run was planned; run again")
    return Path(files[0].path).parent


@contextmanager
def _parallel_tokenizers() -> Iterator[None]:
    """Lets tokenizers use its threads here, though the environment forbids it for workers, which share the cores."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def make_token_shards(config: TokenShardsConfig, inputs: Mapping[str, Artifact], context: StepContext) -> StepOutput:
    """Tokenizes both splits and packs them into sequences.

    Args:
        config: length and file size.
        inputs: `corpus` and `tokenizer`.
        context: where to write.

    Returns:
        The files of `shards.py`, unigram_counts.npy (int64 [vocab_size], training split, special tokens counted) and
        data_report.html.
    """
    import numpy as np

    from components.corpus import evaluation_sets
    from components.tokenization.encoder import load_tokenizer
    from components.tokenization.encoding import SUFFIX, UNITS, Encoding, encode_tasks, source_weights
    from components.tokenization.shard_writer import SplitWriter
    from components.tokenization.shards import ShardIndex, write_index
    from components.tokenization.shards_report import DATA_REPORT_NAME, write_report
    from components.tokenization.special import read_special_ids
    from components.tokenization.words import find_word_table
    from infra.storage.units import UnitStore

    started = time.monotonic()
    corpus, folder = inputs["corpus"].path, inputs["tokenizer"].path / "tokenizer"
    tokenizer_path = str(folder / "tokenizer.json")
    vocab_size = load_tokenizer(tokenizer_path).get_vocab_size()
    special = read_special_ids(folder)
    encoding = Encoding(tokenizer_path=tokenizer_path, special=special, vocab_size=vocab_size)
    tasks = [task for split in ("train", "validation") for task in encode_tasks(corpus, split, encoding)]
    weights = source_weights(corpus)
    sources, words = tuple(weights), find_word_table(folder)
    writers = {
        name: SplitWriter(context.output, name, config, vocab_size, sources, special.pad, words)
        for name in ("train", "validation")
    }
    store = UnitStore(folder=context.units / UNITS, mirror=context.mirror, suffix=SUFFIX)
    num_made = 0
    reported = 0.0
    for done, (task, tables, is_new) in enumerate(_tokenized(tasks, encoding, store, weights)):
        for table in tables:
            writers[task.split].add_table(table)
        num_made += is_new
        if time.monotonic() - reported >= 1:
            reported = time.monotonic()
            context.tracker.progress(done, len(tasks), "units")
    splits = {name: writer.close() for name, writer in writers.items()}
    write_index(
        context.output,
        ShardIndex(
            sequence_length=config.sequence_length,
            vocab_size=vocab_size,
            pad_token_id=special.pad,
            bos_token_id=special.bos,
            eos_token_id=special.eos,
            mask_token_id=special.mask,
            sources=sources,
            has_sentences=words is not None,
            splits=splits,
        ),
    )
    evaluation_sets.carry(corpus, context.output)
    np.save(context.output / "unigram_counts.npy", writers["train"].unigram_counts)
    write_report(context.output / DATA_REPORT_NAME, config, writers, weights, inputs["tokenizer"].path)
    context.tracker.progress(len(tasks), len(tasks), "units")
    train, validation = splits["train"], splits["validation"]
    num_places = train.num_sequences * config.sequence_length
    seconds = time.monotonic() - started
    return StepOutput(
        metrics={
            "num_tokens": train.num_tokens,
            "num_sequences": train.num_sequences,
            "num_packed_documents": train.num_documents,
            "num_cut_documents": writers["train"].num_cut_documents,
            "num_cut_tokens": writers["train"].num_cut_tokens,
            "num_avoidably_cut_documents": writers["train"].num_avoidably_cut_documents,
            "num_padding_tokens": num_places - train.num_tokens,
            "padding_fraction": (num_places - train.num_tokens) / max(1, num_places),
            "bytes_per_token": train.num_text_bytes / max(1, train.num_text_tokens),
            "vocab_size": vocab_size,
            "num_validation_tokens": validation.num_tokens,
            "num_validation_sequences": validation.num_sequences,
            "num_validation_cut_documents": writers["validation"].num_cut_documents,
        },
        measured={
            "seconds": seconds,
            "tokens_per_second": (train.num_tokens + validation.num_tokens) / seconds,
            "num_units": len(tasks),
            "num_units_made": num_made,
        },
        records=(FileRecord(path=DATA_REPORT_NAME), FileRecord(path="shards.json")),
        units={UNITS: tuple(task.key for task in tasks)},
    )


def _tokenized(
    tasks: Sequence[EncodeTask], encoding: Encoding, store: UnitStore, weights: dict[str, float]
) -> Iterator[tuple[EncodeTask, Iterator[pa.Table], bool]]:
    """The documents of each task, in order, and whether they had to be tokenized."""
    from components.tokenization.distributed import make_token_units
    from components.tokenization.encoding import documents

    found = store.sound(store.find([task.key for task in tasks]))
    lacking = [task for task in tasks if task.key in found and documents(task, found[task.key], weights) is None]
    for task in lacking:  # a document that was a duplicate has come back
        store.drop(found.pop(task.key))
    missing = [task for task in tasks if task.key not in found]
    waiting = {task.key for task in missing}
    made = make_token_units(missing, encoding, store) if missing else iter(())
    for task in tasks:
        path = next(made) if task.key in waiting else found[task.key]
        store.mirror.pull(path)
        tables = documents(task, path, weights)
        if tables is None:
            raise FromzeroError(f"{path} lacks a document that it was made for; this is a bug: please report it")
        yield task, tables, task.key in waiting
    for _ in made:  # to its end, which is when Ray Data says goodbye
        pass
