"""The data report of token shards: what a model will be trained on, and what the tokenizer makes of text; one page.

Counts are those of the artifact, of all documents, made while they were packed. The tokenizer's numbers are those of
its own report, on samples of text (report.py). Of the sequences three are shown. Same shards, same bytes; 0.1 s.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from components.corpus import page
from components.corpus.page import Cell, Html, joined, percent, tag
from components.corpus.report import REPORT_NAME as DATA_REPORT_NAME
from components.corpus.statistics import rank_of
from components.tokenization.config import TokenShardsConfig
from components.tokenization.encoder import load_tokenizer
from components.tokenization.shard_writer import SplitWriter
from components.tokenization.shards import ShardIndex, TokenShards

__all__ = ["DATA_REPORT_NAME", "write_report"]
_NUM_SEQUENCES = 3
_NUM_FREQUENT = 25
_MAX_LANGUAGES = 20
_MAX_SHOWN_TOKENS = 512


def write_report(
    path: Path,
    config: TokenShardsConfig,
    writers: Mapping[str, SplitWriter],
    weights: Mapping[str, float],
    tokenizer: Path,
) -> None:
    """Writes the page.

    Args:
        path: the file, in the folder of the shards, whose index is there.
        config: of the shards.
        writers: of each split, closed.
        weights: of the sources.
        tokenizer: its artifact, with tokenizer/; without tokenizer_report.json, nothing is said of the vocabulary.
    """
    shards = TokenShards(path.parent, "train")
    told = tokenizer / "tokenizer_report.json"
    report = json.loads(told.read_text("utf-8")) if told.exists() else None
    library = load_tokenizer(str(tokenizer / "tokenizer" / "tokenizer.json"))
    train, num_places = shards.split, shards.split.num_sequences * config.sequence_length
    figures: dict[str, Cell] = {
        "training tokens": train.num_tokens,
        "sequences an epoch": train.num_sequences,
        "tokens a sequence": config.sequence_length,
        "padding": percent(num_places - train.num_tokens, num_places),
        "bytes a token": page.number(train.num_text_bytes / max(1, train.num_text_tokens)),
        "tokens in the vocabulary": shards.index.vocab_size,
        "validation tokens": shards.index.splits["validation"].num_tokens,
    }
    sections = [
        ("What an epoch is", _epoch(shards.index, config, writers)),
        ("Tokens by source", _sources(shards.index, weights)),
        ("Lengths of documents", page.lengths_plot({n: w.document_lengths for n, w in writers.items()}, "tokens")),
        (
            "Documents in a sequence",
            page.lengths_plot({n: w.sequence_documents for n, w in writers.items()}, "documents", "sequences"),
        ),
        *(_of_tokenizer(report) if report else ()),
        ("The most frequent tokens", _frequent(writers["train"], library)),
        ("Sequences, at random", _sequences(shards, library)),
    ]
    about = "What a model is trained on. Counts are of all documents, weights of sources included."
    path.write_text(page.page("Data report: token shards", about, figures, sections), encoding="utf-8")


def _epoch(index: ShardIndex, config: TokenShardsConfig, writers: Mapping[str, SplitWriter]) -> Html:
    rows: list[list[Cell]] = []
    for name, split in index.splits.items():
        places = split.num_sequences * index.sequence_length
        padding = places - split.num_tokens
        special = split.num_tokens - split.num_text_tokens
        counts: list[Cell] = [name, split.num_documents, split.num_sequences, places, split.num_text_tokens, special]
        rows.append([*counts, padding, percent(padding, places)])
    columns = ["split", "documents", "sequences", "places", "text tokens", "special tokens", "padding", "share"]
    cuts: list[list[Cell]] = []
    for name, writer in writers.items():
        documents, tokens = writer.num_cut_documents, writer.num_cut_tokens
        shares = percent(documents, index.splits[name].num_documents), percent(tokens, index.splits[name].num_tokens)
        cuts.append([name, documents, shares[0], tokens, shares[1], writer.num_avoidably_cut_documents])
    cut_columns = ["split", "documents cut", "share", "tokens of these", "share", "cut though they would fit"]
    said = (
        f"Packed by {config.packing.replace('_', ' ')} into sequences of {index.sequence_length:,}. "
        "Places are text tokens, special tokens and padding."
    )
    return joined(tag("p", said), page.table(columns, rows), tag("h3", "Cuts"), page.table(cut_columns, cuts))


def _sources(index: ShardIndex, weights: Mapping[str, float]) -> Html:
    told: list[Html] = []
    for name, split in index.splits.items():
        rows: list[list[Cell]] = []
        for source, of in zip(index.sources, split.by_source, strict=True):
            tokens, num_bytes = of.num_text_tokens, of.num_text_bytes
            share, ratio = percent(tokens, split.num_text_tokens), num_bytes / tokens if tokens else None
            rows.append([source, weights.get(source, 1.0), of.num_documents, tokens, share, num_bytes, ratio])
        columns = ["source", "weight", "documents", "text tokens", "share", "bytes of text", "bytes a token"]
        told += [tag("h3", name), page.table(columns, rows)]
    return joined(*told)


def _of_tokenizer(report: Mapping[str, Any]) -> list[tuple[str, Html]]:
    return [
        ("What the tokenizer does with text that it has not seen", _held_out(report["held_out"])),
        ("Vocabulary", _vocabulary(report)),
    ]


def _held_out(held_out: Mapping[str, Any]) -> Html:
    def row(name: str, of: Mapping[str, Any]) -> list[Cell]:
        rates: list[Cell] = [of[rate] for rate in ("bytes_per_token", "tokens_per_word", "tokens_per_character")]
        shares: list[Cell] = [
            "–" if of[rate] is None else percent(of[rate], 1)
            for rate in ("unknown_rate", "single_character_bytes", "part_of_character_bytes")
        ]
        return [name, of["num_documents"], of["num_bytes"], of["num_tokens"], *rates, *shares]

    columns = ["", "documents", "bytes", "tokens", "bytes a token", "tokens a word", "tokens a character"]
    columns += ["unknown", "in single characters", "in parts of one"]
    told = [tag("p", "Up to 2 MiB of the validation split. A Chinese character is a word.", class_="soft")]
    told.append(page.table(columns, [row("all", held_out["all"])]))
    for title, key in (("By language, most text first", "by_language"), ("By source", "by_source")):
        ordered = sorted(held_out[key].items(), key=lambda item: (-item[1]["num_bytes"], item[0]))[:_MAX_LANGUAGES]
        rows = [row(name, of) for name, of in ordered]
        told += [tag("h3", title), page.table(columns, rows)]
    return joined(*told)


def _vocabulary(report: Mapping[str, Any]) -> Html:
    vocabulary = report["vocabulary"]
    scripts = sorted(vocabulary["scripts"].items(), key=lambda item: (-item[1]["count"], item[0]))
    never, unreachable = vocabulary["never_used"], vocabulary["unreachable"]
    rows: list[list[Cell]] = [
        ["all", report["vocab_size"]],
        [f"make up 90 % of {vocabulary['num_sample_tokens']:,} sampled", vocabulary["num_tokens_for_90_percent"]],
        [f"make up 99 % of {vocabulary['num_sample_tokens']:,} sampled", vocabulary["num_tokens_for_99_percent"]],
        ["not in that sample", never["count"]],
        ["no text is encoded to", unreachable["count"]],
        ["the same text but for spaces", vocabulary["duplicates"]["count"]],
    ]
    longest = [f"{one['token']} {one['characters']}" for one in vocabulary["longest"]]
    return joined(
        page.table(["tokens", "number"], rows),
        tag("h3", "By script"),
        page.bars(
            ["script", "tokens", "share"],
            [(n, of["count"], percent(of["count"], report["vocab_size"])) for n, of in scripts],
        ),
        tag("h3", "The longest tokens, with their characters"),
        page.tokens(longest),
        tag("h3", "Tokens not in the sample (the first of them)"),
        page.tokens([one["token"] for one in never["tokens"]]),
        tag("h3", "Tokens that no text is encoded to (the first of them)"),
        page.tokens([one["token"] for one in unreachable["tokens"]]),
    )


def _frequent(writer: SplitWriter, library: Any) -> Html:
    counts_V = writer.unigram_counts
    order = np.argsort(-counts_V, kind="stable")[:_NUM_FREQUENT]
    total = int(counts_V.sum())
    rows = [
        (tag("span", _token(library, id_), class_="token"), int(counts_V[id_]), percent(int(counts_V[id_]), total))
        for id_ in order.tolist()
        if counts_V[id_]
    ]
    return page.bars(["token", "times", "share"], rows)


def _token(library: Any, id_: int) -> str:
    text: str = library.decode([id_], skip_special_tokens=False)
    return library.id_to_token(id_) if "\ufffd" in text or not text.strip() else text


def _sequences(shards: TokenShards, library: Any) -> Html:
    """Some sequences of the training split, a box for each document in them."""
    if not len(shards):
        return page.tokens([])
    chosen = sorted({rank_of("sequence", number) % len(shards) for number in range(_NUM_SEQUENCES)})
    told: list[Html] = []
    for number in chosen:
        ids = shards.tokens(np.array([number]))[0].tolist()
        lengths = shards.document_lengths(number)
        boxes: list[Html] = []
        at = 0
        for length, source in zip(lengths, shards.document_sources(number), strict=True):
            shown = library.decode(ids[at : at + min(length, _MAX_SHOWN_TOKENS)], skip_special_tokens=False)
            more = f", the first {_MAX_SHOWN_TOKENS} shown" if length > _MAX_SHOWN_TOKENS else ""
            said = f"{length:,} tokens of {shards.index.sources[source]}{more}"
            boxes.append(tag("div", tag("div", said, class_="soft"), page.text(shown)))
            at += length
        padding = shards.index.sequence_length - at
        told += [
            tag("h3", f"Sequence {number:,}: {len(lengths)} documents, {padding} places of padding"),
            tag("div", *boxes, class_="cluster"),
        ]
    return joined(*told)
