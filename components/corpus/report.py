"""The data report of a corpus: what came in, what was kept, and why the rest was not; a page to open in a browser.

The numbers are those of the artifact. All documents are counted, while they are written (`statistics.py`), and looked
at are at most 20 documents kept, 20 rows dropped, 20 clusters and 10 overlaps, so that the page has 54 kB for 118,000
documents, and takes 0.15 s. Same corpus, same bytes. Not a search: look into the Parquet files beside it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.corpus import page
from components.corpus.config import CorpusConfig
from components.corpus.duplicates import Clusters, of_largest, sizes
from components.corpus.page import Cell, Html, joined, percent, tag
from components.corpus.rows import Reason
from components.corpus.statistics import EXACT, KEPT, NEAR, NUM_SAMPLES, LengthHistogram, rank_of

if TYPE_CHECKING:
    from components.corpus.merge import CorpusMerger, MadeUnit

REPORT_NAME = "data_report.html"
WITHOUT_LANGUAGE = "not identified"
_MAX_SHOWN = 10
_MAX_SOURCES = 50
_SIZES = ((2, 2), (3, 3), (4, 4), (5, 10), (11, 100), (101, 1000), (1001, None))
_SIMILARITY_BINS = 10
_MAX_LANGUAGES = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusFacts:
    """What the report is about."""

    config: CorpusConfig
    units: Sequence[MadeUnit]
    merger: CorpusMerger
    """After `write`."""
    equal: Clusters
    near: Clusters
    evaluation_texts: Mapping[str, Mapping[str, str]]
    """Text by id of each evaluation set, by its name."""


def write_report(path: Path, facts: CorpusFacts) -> None:
    """Writes the page.

    Args:
        path: the file, in the folder of the corpus, whose dropped.parquet is read.
        facts: what there is to say.
    """
    merger = facts.merger
    rows_in, kept = sum(unit.facts.num_rows for unit in facts.units), merger.num_kept.total()
    dropped = pq.read_table(path.parent / "dropped.parquet")
    counts = merger.rejects.counts
    figures: dict[str, Cell] = {
        "rows in": rows_in,
        "documents kept": kept,
        "rows dropped": counts.total(),
        "bytes of text kept": merger.num_bytes_kept.total(),
        "of equal text": counts[Reason.DUPLICATE],
        "nearly equal": counts[Reason.NEAR_DUPLICATE] if facts.config.near_duplicates else "–",
        "in evaluation sets": counts[Reason.IN_EVALUATION_SET] + counts[Reason.OVERLAPS_EVALUATION],
    }
    sections = [
        ("Sources", _sources(facts)),
        ("Rows in, kept and dropped", _flow(facts, rows_in, kept)),
        ("Lengths of documents", _lengths(facts)),
        ("Duplicates", _duplicates(facts)),
        ("Overlap with evaluation sets", _decontamination(facts, dropped)),
        ("What cleaning changed", _cleaning(facts)),
        ("Languages", _languages(facts)),
        (f"{NUM_SAMPLES} documents kept, at random", _kept_samples(facts)),
        (f"{NUM_SAMPLES} rows dropped, at random", _dropped_samples(dropped)),
    ]
    about = "What became of the raw text: counts are of all rows, examples are cut after 200 characters."
    path.write_text(page.page("Data report: corpus", about, figures, sections), encoding="utf-8")


def _sources(facts: CorpusFacts) -> Html:
    rows: list[list[Cell]] = []
    for position, (name, source) in enumerate(zip(facts.config.source_names(), facts.config.sources, strict=True)):
        num_kept, num_bytes = facts.merger.num_kept[position], facts.merger.num_bytes_kept[position]
        num_files = len({unit.file.digest for unit in facts.units if unit.source == position})
        share = percent(num_bytes, facts.merger.num_bytes_kept.total())
        rows.append([name, source.license or "not stated", source.weight, num_files, num_kept, num_bytes, share])
    return page.table(["source", "licence", "weight", "files", "documents", "bytes", "share of bytes"], rows)


def _flow(facts: CorpusFacts, rows_in: int, kept: int) -> Html:
    """By source and reason, and whether the numbers add up."""
    merger = facts.merger
    counts = merger.rejects.counts
    reasons = [reason for reason, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if counts[reason]]
    rows: list[list[Cell]] = []
    for position, name in enumerate(facts.config.source_names()):
        rows_of = sum(unit.facts.num_rows for unit in facts.units if unit.source == position)
        lost = merger.dropped[position]
        rows.append(_balance(name, rows_of, merger.num_kept[position], lost, reasons))
    has_total = len(rows) > 1
    if has_total:
        rows = rows[:_MAX_SOURCES]
        rows.append(_balance("all", rows_in, kept, counts, reasons))
    columns = ["source", "rows in", "kept", "dropped", *(reason.replace("_", " ") for reason in reasons), "in = out"]
    bars = [
        (reason.replace("_", " "), counts[reason], f"{percent(counts[reason], rows_in)} of rows") for reason in reasons
    ]
    return joined(
        page.table(columns, rows, has_total=has_total),
        tag("h3", "Rows dropped by reason"),
        page.bars(["reason", "rows", "share"], bars, color=1),
    )


def _balance(name: str, rows_in: int, kept: int, lost: Mapping[str, int], reasons: Sequence[str]) -> list[Cell]:
    dropped = sum(lost.values())
    fits = rows_in == kept + dropped
    verdict = tag("span", "yes" if fits else f"no: {rows_in - kept - dropped:+,}", class_="ok" if fits else "bad")
    return [name, rows_in, kept, dropped, *(lost.get(reason, 0) for reason in reasons), verdict]


def _lengths(facts: CorpusFacts) -> Html:
    statistics, names = facts.merger.statistics, facts.config.source_names()
    series = {
        "kept": statistics.of_fate(KEPT),
        "dropped: equal text": statistics.of_fate(EXACT),
        "dropped: nearly equal": statistics.of_fate(NEAR),
    }
    told = [
        tag(
            "p",
            "UTF-8 bytes of cleaned text. Rows dropped for other reasons than duplication are not measured.",
            class_="soft",
        )
    ]
    told.append(page.lengths_plot(series, "bytes"))
    if len(names) > 1:
        told.append(tag("h3", "Kept, by source (the four largest)"))
        by_source = {name: statistics.of_fate(KEPT, name) for name in names}
        largest = sorted(by_source.items(), key=lambda item: -item[1].total)[:4]
        told.append(page.lengths_plot(dict[str, LengthHistogram](largest), "bytes"))
    return joined(*told)


def _duplicates(facts: CorpusFacts) -> Html:
    told: list[Html] = [tag("h3", "Equal texts"), _sizes_of(facts.equal)]
    told += _clusters(facts, facts.equal)
    told.append(tag("h3", "Nearly equal texts"))
    near = facts.config.near_duplicates
    if near is None:
        told.append(tag("p", "Not looked for (corpus.near_duplicates is null).", class_="soft"))
        return joined(*told)
    said = f"Jaccard similarity of {near.ngram_words}-grams of words of {near.similarity} or more, by MinHash."
    told += [tag("p", said, class_="soft"), _sizes_of(facts.near)]
    if len(facts.near.similarity_D):
        edges = np.linspace(near.similarity, 1, _SIMILARITY_BINS + 1)
        counts = np.histogram(np.clip(facts.near.similarity_D, near.similarity, 1), edges)[0]
        rows = [
            (f"{low:.3f} to {high:.3f}", count, "")
            for low, high, count in zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True)
        ]
        told += [tag("h3", "Highest similarity of each document dropped"), page.bars(["similarity", "documents"], rows)]
    return joined(*told, *_clusters(facts, facts.near))


def _sizes_of(clusters: Clusters) -> Html:
    _, size_C = sizes(clusters)
    said = f"{len(clusters.document_D):,} documents dropped, of {len(size_C):,} clusters that keep one document each."
    rows = []
    for low, high in _SIZES:
        count = int(((size_C >= low) & (size_C <= (high or np.iinfo(np.int64).max))).sum())
        if count:
            name = f"{low:,} or more" if high is None else f"{low}" if low == high else f"{low:,} to {high:,}"
            rows.append((name, count, ""))
    return joined(tag("p", said), page.bars(["documents in a cluster", "clusters"], rows) if rows else None)


def _clusters(facts: CorpusFacts, clusters: Clusters) -> list[Html]:
    """The largest clusters: the text that stays, and the first of those that go, with what differs marked."""
    places = of_largest(clusters, _MAX_SHOWN)
    members: dict[int, list[int]] = defaultdict(list)
    for place in places.tolist():
        members[int(clusters.kept_D[place])].append(place)
    if not members:
        return []
    told = [tag("h3", f"The largest {len(members)} clusters" if len(members) > 1 else "The largest cluster")]
    rows: list[list[Cell]] = []
    for kept, size in zip(*(side[:_MAX_SHOWN].tolist() for side in sizes(clusters)), strict=True):
        id_, source, text = facts.merger.looked_at[kept]
        if clusters is facts.equal:
            rows.append([size, source, page.text(text)])
            continue
        shown = [tag("div", tag("div", f"kept, of {size:,}: {source}, {id_[:8]}", class_="soft"), page.text(text))]
        for place in members[kept]:
            other_id, other_source, other = facts.merger.looked_at[int(clusters.document_D[place])]
            said = f"dropped, {clusters.similarity_D[place]:.3f}: {other_source}, {other_id[:8]}"
            shown.append(tag("div", tag("div", said, class_="soft"), page.differences(text, other)))
        told.append(tag("div", *shown, class_="cluster"))
    if rows:
        told.append(page.table(["copies", "source", "text"], rows))
    return told


def _decontamination(facts: CorpusFacts, dropped: Any) -> Html:
    config, counts = facts.config.decontamination, facts.merger.rejects.counts
    said = "Dropped: documents equal to an evaluation text"
    said += (
        f", documents that share {config.ngram_words} words in a row with one, and documents that hold all of a "
        f"shorter one of {config.min_words} words or more."
        if config
        else ". Overlaps were not looked for (corpus.decontamination is null)."
    )
    reasons = [str(reason) for reason in (Reason.IN_EVALUATION_SET, Reason.OVERLAPS_EVALUATION)]
    overlapping = [
        row
        for row in dropped.filter(pc.equal(dropped.column("reason"), reasons[1])).to_pylist()
        if row["detail"] is not None
    ]
    matched = Counter(row["detail"].rpartition(" ")[0] for row in overlapping)
    rows: list[list[Cell]] = [[name, len(texts), matched[name]] for name, texts in facts.evaluation_texts.items()]
    told = [
        tag("p", said),
        page.table(["evaluation set", "texts", "documents that overlap"], rows),
        tag("h3", "Documents dropped"),
        page.table(["reason", "documents"], [[reason.replace("_", " "), counts[reason]] for reason in reasons]),
    ]
    overlapping.sort(key=lambda row: rank_of(row["source"], row["file"], row["row"]))
    examples: list[list[Cell]] = []
    for row in overlapping[:_MAX_SHOWN]:
        name, _, id_ = row["detail"].rpartition(" ")
        text = facts.evaluation_texts.get(name, {}).get(id_, "")
        place = f"{row['source']}, {row['file']}, row {row['row']:,}"
        examples.append(
            [
                joined(page.text(row["excerpt"]), tag("div", place, class_="soft")),
                joined(page.text(text[:200]), tag("div", f"{name} {id_}", class_="soft")),
            ]
        )
    if examples:
        told += [tag("h3", "Examples"), page.table(["document dropped", "evaluation text"], examples)]
    return joined(*told)


def _cleaning(facts: CorpusFacts) -> Html:
    changed: dict[str, Counter[str]] = defaultdict(Counter)
    for unit in facts.units:
        changed[facts.config.source_names()[unit.source]].update(unit.facts.cleaned)
    cleaners = [name for name, value in facts.config.cleaning.model_dump().items() if value]
    if not cleaners:
        return tag("p", "No cleaner is enabled beside Unicode NFC and whitespace.", class_="soft")
    names = facts.config.source_names()[:_MAX_SOURCES]
    rows: list[list[Cell]] = [
        [cleaner.replace("_", " "), *(changed[name][cleaner] for name in names)] for cleaner in cleaners
    ]
    return joined(tag("p", "Texts that each cleaner changed.", class_="soft"), page.table(["cleaner", *names], rows))


def _languages(facts: CorpusFacts) -> Html:
    counts: Counter[str] = Counter()
    for (_, language), count in facts.merger.statistics.languages.items():
        counts[language] += count
    if not set(counts) - {""}:
        return tag("p", "Not identified (corpus.identify_language is false).", class_="soft")
    total = counts.total()
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rows = [(language or WITHOUT_LANGUAGE, count, percent(count, total)) for language, count in ordered]
    rest = sum(count for _, count in ordered[_MAX_LANGUAGES:])
    if rest:
        rows[_MAX_LANGUAGES:] = [(f"{len(ordered) - _MAX_LANGUAGES} others", rest, percent(rest, total))]
    return joined(
        tag("p", f"Documents kept, by language: {len(ordered)}.", class_="soft"),
        page.bars(["language", "documents", "share"], rows, color=2),
    )


def _kept_samples(facts: CorpusFacts) -> Html:
    rows: list[list[Cell]] = [
        [sample.source, sample.language or "–", sample.num_bytes, page.text(sample.text), tag("code", sample.id[:8])]
        for sample in facts.merger.statistics.samples
    ]
    return page.table(["source", "language", "bytes", "text", "id"], rows)


def _dropped_samples(dropped: Any) -> Html:
    """Rows of each reason in turn, so that a rare one is seen too."""
    places: dict[str, list[tuple[int, int]]] = defaultdict(list)
    columns = [dropped.column(name).to_pylist() for name in ("reason", "source", "file", "row")]
    for place, (reason, *where) in enumerate(zip(*columns, strict=True)):
        places[reason].append((rank_of(*where), place))
    in_turn = sorted(
        (turn, reason, place)
        for reason, ranked in places.items()
        for turn, (_, place) in enumerate(sorted(ranked)[:NUM_SAMPLES])
    )
    chosen = sorted((reason, place) for _, reason, place in in_turn[:NUM_SAMPLES])
    rows: list[list[Cell]] = []
    for row in dropped.take(np.array([place for _, place in chosen], dtype=np.int64)).to_pylist():
        rows.append(
            [row["reason"].replace("_", " "), row["source"], row["file"], row["row"], page.text(row["excerpt"])]
        )
    return joined(
        tag("p", "Of each reason in turn, of the first 10,000 rows that it dropped.", class_="soft"),
        page.table(["reason", "source", "file", "row", "text"], rows),
    )
