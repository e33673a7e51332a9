"""The data report of a corpus says what the artifact says, and shows texts as text."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq

from components.corpus.config import CorpusConfig
from components.corpus.decontamination import build_index
from components.corpus.documents import Rules, read_facts, write_unit
from components.corpus.duplicates import Clusters, cluster
from components.corpus.merge import CorpusMerger, MadeUnit
from components.corpus.normalise import text_id
from components.corpus.report import CorpusFacts, write_report
from components.corpus.units import units_of
from infra.storage.raw import RawFile
from infra.storage.units import UnitStore
from tests.pages import Page

EVIL = '<script>alert(1)</script><img src=x onerror="alert(2)">"\'&amp;</td></table></main>\x01'
NEAR = "a stitch in time saves nine but only if the thread is long enough"
LONG = "the quick brown fox jumps over the lazy dog and then it runs back to the river bank again"


def pairs(told: list[tuple[int, int, float]]) -> Clusters:
    lower, higher, similarity = (np.array(column) for column in zip(*told, strict=True)) if told else ([], [], [])
    return cluster(np.array(lower, dtype=np.int64), np.array(higher, dtype=np.int64), np.array(similarity, dtype=float))


def report(
    output: Path,
    config: CorpusConfig,
    raw: list[RawFile],
    evaluation: list[str],
    equal: list[tuple[int, int, float]],
    near: list[tuple[int, int, float]],
) -> tuple[Page, dict[str, int]]:
    """The report of a corpus of one file a source; duplicates are given as pairs of the documents that units keep."""
    output.mkdir()
    sets = {"task.test": {text_id(text): text for text in evaluation}}
    store = UnitStore(folder=output.parent / f"{output.name}_units")
    index = build_index(sets, config.decontamination)
    units: list[MadeUnit] = []
    for position, file in enumerate(raw):
        (unit,) = units_of(file)
        key = f"{position:032x}"
        path = store.put(key, partial(write_unit, unit, Rules.of(config, config.sources[position]), index))
        units.append(MadeUnit(key=key, path=path, source=position, file=file, rows_before=0, facts=read_facts(path)))
    merger = CorpusMerger(output, config, units, pairs(equal), pairs(near))
    counts = merger.write()
    facts = CorpusFacts(
        config=config, units=units, merger=merger, equal=pairs(equal), near=pairs(near), evaluation_texts=sets
    )
    write_report(output / "data_report.html", facts)
    return Page(output / "data_report.html"), counts


def example(tmp_path: Path, files: SimpleNamespace, name: str) -> tuple[Page, dict[str, int]]:
    lines = ["equal", "equal", "equal", f"{NEAR} one", f"{NEAR} <two>", EVIL, "", *(f"詩 {i}" for i in range(40))]
    rows = [{"text": "in test"}, {"text": 4}, {"text": f"said: {LONG}"}, *({"text": f"b {i}"} for i in range(30))]
    raw = [
        files.write(tmp_path / "a <i>.txt", "\n".join(lines).encode()),
        files.write(tmp_path / "b.jsonl", files.jsonl(rows) + EVIL.encode() + b"\n"),
    ]
    config = CorpusConfig(
        sources=[{"path": "a", "license": "<b>CC0</b>", "weight": 1.5}, {"path": "b", "name": "wiki"}],
        near_duplicates={},
        validation_fraction=0.3,
    )
    evaluation = ["in test", f"{LONG} ok"]
    equal, near = [(0, 1, 1.0), (0, 2, 1.0)], [(3, 4, 0.9)]
    return report(tmp_path / name, config, raw, evaluation, equal, near)


def test_the_numbers_are_those_of_the_artifact(tmp_path: Path, files: SimpleNamespace) -> None:
    page, counts = example(tmp_path, files, "out")
    dropped = Counter(pq.read_table(tmp_path / "out" / "dropped.parquet").column("reason").to_pylist())
    expected = {"duplicate": 2, "near_duplicate": 1, "in_evaluation_set": 1, "overlaps_evaluation": 1}
    assert dropped == {**expected, "text_not_a_string": 1, "not_json": 1, "empty_text": 1}
    kept = [row for path in sorted((tmp_path / "out").glob("*-0*.parquet")) for row in pq.read_table(path).to_pylist()]
    flow = page.numbers("Rows in, kept and dropped")
    assert flow["all"]["rows in"] == str(counts["num_documents_in"]) == "81"
    assert flow["all"]["kept"] == str(len(kept)) == "73" and flow["all"]["dropped"] == str(dropped.total()) == "8"
    assert {row["in = out"] for row in flow.values()} == {"yes"}
    for source in ("source0", "wiki"):
        assert flow[source]["kept"] == str(sum(row["source"] == source for row in kept))
    for reason, count in dropped.items():
        assert flow["all"][reason.replace("_", " ")] == str(count)
        assert page.numbers("Rows dropped by reason")[reason.replace("_", " ")]["rows"] == str(count)
    lengths = page.numbers("Lengths of documents")
    sizes = [row["num_bytes"] for row in kept]
    assert lengths["kept"]["documents"] == "73" and lengths["kept"]["most"] == str(max(sizes)) == str(len(EVIL) - 1)
    assert lengths["kept"]["least"] == str(min(sizes)) and lengths["kept"]["median"] == str(int(np.median(sizes)))
    assert lengths["dropped: equal text"]["documents"] == "2" and lengths["dropped: nearly equal"]["most"] == str(
        len(f"{NEAR} <two>")
    )
    assert page.numbers("Sources")["source0"]["weight"] == "1.5"
    assert page.figures["rows dropped"] == "8" and page.figures["in evaluation sets"] == "2"
    assert page.numbers("Overlap with evaluation sets")["task.test"] == {
        "evaluation set": "task.test",
        "texts": "2",
        "documents that overlap": "1",
    }
    assert page.numbers("The largest cluster")["3"]["text"] == "equal"
    shown = [row[3] for row in page.tables["20 documents kept, at random"][0][1:]]
    assert len(set(shown)) == 20 and set(shown) <= {row["text"] for row in kept}
    samples = page.tables["20 rows dropped, at random"][0][1:]
    assert Counter(row[0].replace(" ", "_") for row in samples) == dropped
    assert ["text not a string", "wiki", "b.jsonl", "2"] in [row[:4] for row in samples]


def test_a_text_cannot_break_out_of_the_page(tmp_path: Path, files: SimpleNamespace) -> None:
    page, _ = example(tmp_path, files, "out")
    page.assert_harmless()
    assert EVIL[:-1] + "\u2401" in page.text, "a rejected row, as it stands in its file"
    assert "<two>" in page.text and "<b>CC0</b>" in page.text and "a <i>.txt" in page.text
    policy = [attributes for name, attributes in page.elements if name == "meta" and "http-equiv" in attributes]
    assert [attributes["content"] for attributes in policy] == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_the_same_corpus_gives_the_same_page(tmp_path: Path, files: SimpleNamespace) -> None:
    example(tmp_path, files, "one")
    example(tmp_path, files, "two")
    one, two = ((tmp_path / name / "data_report.html").read_bytes() for name in ("one", "two"))
    assert one == two


def test_nothing_dropped_and_nothing_looked_for_is_said(tmp_path: Path, files: SimpleNamespace) -> None:
    raw = [files.write(tmp_path / "a.txt", b"one\ntwo\nthree"), files.write(tmp_path / "b.txt", b"")]
    told = {"cleaning": {"repair_unicode": False}, "decontamination": None}
    page, _ = report(tmp_path / "out", CorpusConfig(sources=[{"path": "a"}, {"path": "b"}], **told), raw, [], [], [])
    flow = page.numbers("Rows in, kept and dropped")
    assert [flow[name]["kept"] for name in ("source0", "source1", "all")] == ["3", "0", "3"]
    for key in ("near_duplicates is null", "decontamination is null", "identify_language is false", "No cleaner"):
        assert key in page.text
    page.assert_harmless()
