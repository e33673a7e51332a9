"""Overlaps with evaluation texts are found anywhere in a document, and nothing else is."""

from __future__ import annotations

import random

import pytest

from components.corpus import ngrams as hashing
from components.corpus.cleaning import clean_texts
from components.corpus.config import CorpusConfig
from components.corpus.decontamination import (
    DecontaminationConfig,
    EvaluationIndex,
    build_index,
    overlaps,
    set_digest,
)
from components.corpus.documents import UNIT_SCHEMA, Rules, examine
from components.corpus.ngrams import words
from components.corpus.normalise import text_id
from components.corpus.rows import RowBatch
from tests.components.corpus import plain_words, real_texts

ENGLISH = "when the sun had gone down behind the hills we walked home along a quiet river bank and sang"
CHINESE = "春江潮水連海平海上明月共潮生灩灩隨波千萬里何處春江無月明"
SHORT = "a small boat with two oars and sail"  # eight words
TINY = "a river in the north of Germany"  # seven


def index_of(*texts: str, config: DecontaminationConfig | None = None) -> EvaluationIndex:
    return build_index({"set": {text_id(text): text for text in texts}}, config or DecontaminationConfig())


def found(index: EvaluationIndex, *documents: str) -> list[int]:
    return [int(place) for place in overlaps(index, words(documents))]


@pytest.mark.parametrize(("text", "space"), [(ENGLISH, " "), (CHINESE, "")])
@pytest.mark.parametrize("where", ["begin", "middle", "end"])
@pytest.mark.parametrize("length", [12, 13, 14])
def test_thirteen_words_in_a_row_are_found_wherever_they_stand(text: str, space: str, where: str, length: int) -> None:
    units = text.split(" ") if space else list(text)
    around = ["lorem", "ipsum", "dolor"] * 5 if space else list("天地玄黃宇宙洪荒")
    for start in range(len(units) - length + 1):
        shared = units[start : start + length]
        document = space.join((around if where != "begin" else []) + shared + (around[::-1] if where != "end" else []))
        assert found(index_of(TINY, text), document) == [1 if length >= 13 else -1]


def test_a_shorter_evaluation_text_is_found_as_a_whole_from_eight_words_on() -> None:
    for num_words in range(8, 13):
        text = " ".join(ENGLISH.split()[:num_words])
        index = index_of(text)
        assert found(index, f"he said {text} again", text, f"he said {text[:-1]}", f"x{text}") == [0, 0, -1, -1]
    index = index_of(TINY, SHORT)
    assert found(index, f"it is {TINY} indeed", TINY, SHORT, " ".join(SHORT.split()[1:])) == [-1, -1, 1, -1]
    assert text_id(TINY) in {digest.hex() for digest in index.digests}  # found as an equal document


def test_case_and_punctuation_do_not_count() -> None:
    index = index_of("Where is THE café, asked Ms. O’Neil; near Straße nine?")
    assert found(index, "where is the CAFÉ asked ms o neil -- near STRASSE nine") == [0]
    assert found(index_of("春江潮水，連海平；海上明月"), "題：春江潮水連海平。海上明月") == [0]


def test_words_of_two_documents_make_no_overlap() -> None:
    parts = ENGLISH.split()
    assert found(index_of(ENGLISH), " ".join(parts[:10]), " ".join(parts[10:]), "", ENGLISH) == [-1, -1, -1, 0]


def test_lengths_are_those_of_the_config() -> None:
    config = DecontaminationConfig(ngram_words=5, min_words=9)  # of five words from five on
    index = index_of("one two three four", "a b c d e f", config=config)
    assert found(index, "x a b c d e y", "x b c d e f", "a b c d", "one two three four") == [1, 1, -1, -1]
    one_word = index_of("gato", config=DecontaminationConfig(min_words=1))
    assert found(one_word, "el Gato!", "gatos") == [0, -1]


def test_without_rules_or_long_texts_nothing_is_looked_for() -> None:
    for index in (build_index({"set": {text_id(ENGLISH): ENGLISH}}, None), index_of(TINY), index_of(), index_of("!")):
        assert index.grams is None and found(index, ENGLISH, "") == [-1, -1] and found(index) == []


def test_the_fingerprint_tells_texts_and_rules_and_not_their_order() -> None:
    one, other = ({text_id(text): text for text in texts} for texts in ((ENGLISH, SHORT), (SHORT, ENGLISH)))
    config = DecontaminationConfig()
    prints = [
        build_index(sets, rules).fingerprint
        for sets, rules in (
            ({"a": one}, config),
            ({"a": other}, config),
            ({"b": one}, config),
            ({"a": {text_id(SHORT): SHORT}}, config),
            ({"a": one}, DecontaminationConfig(min_words=7)),
            ({"a": one}, None),
        )
    ]
    assert prints[0] == prints[1] and len(set(prints)) == 5
    assert set_digest(list(one)) == set_digest(list(other))


@pytest.mark.parametrize("window", [hashing.WINDOW, 50])
def test_what_is_removed_is_what_sets_of_tuples_remove(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over real text with planted overlaps of 8 to 16 words; each hit names a text that does overlap."""
    monkeypatch.setattr(hashing, "WINDOW", window)
    rng = random.Random(5)
    texts = list(dict.fromkeys([*rng.sample(real_texts.glosses(), 1500), *rng.sample(real_texts.poems(), 500)]))
    evaluation, documents = texts[::2], texts[1::2]
    for place in range(0, len(documents), 2):
        source = rng.choice(evaluation)
        space = " " if " " in source else ""
        units = source.split(" ") if space else list(source)
        length = rng.randint(6, 18)
        start = rng.randint(0, max(0, len(units) - length))
        own = documents[place]
        cut = rng.randint(0, len(own))
        documents[place] = f"{own[:cut]} {space.join(units[start : start + length])} {own[cut:]}"
    looked_for: dict[tuple[str, ...], set[int]] = {}
    for place, text in enumerate(evaluation):
        own_words = plain_words.words(text)
        if len(own_words) >= 8:
            for gram in plain_words.ngrams(text, min(13, len(own_words))):
                looked_for.setdefault(gram, set()).add(place)
    lengths = {len(gram) for gram in looked_for}
    assert lengths == set(range(8, 14))
    expected: list[set[int]] = []
    for document in documents:
        all_grams = (gram for length in lengths for gram in plain_words.ngrams(document, length, short=False))
        expected.append(set().union(*(looked_for.get(gram, set()) for gram in all_grams)))
    result = found(index_of(*evaluation), *documents)
    assert [place >= 0 for place in result] == [bool(owners) for owners in expected]
    assert all(place in owners for place, owners in zip(result, expected, strict=True) if place >= 0)
    assert 150 < sum(place >= 0 for place in result) < len(documents) - 150


def test_a_text_is_found_as_the_cleaners_of_the_corpus_leave_it() -> None:
    """The same rows may be evaluation set and source: what is cleaned there would else come through."""
    texts = [
        "Mail bob@acme.org now",
        "The <b>quick</b> brown <b>fox</b> jumps <b>over</b> the <b>lazy</b> dog and <b>runs</b> off at <b>night</b>",
        TINY,
    ]
    config = CorpusConfig.model_validate({"sources": [{"path": "x"}], "cleaning": {"mask_emails": 1, "strip_html": 1}})
    sets = {"set": {text_id(text): text for text in texts}}
    index = build_index(sets, config.decontamination, lambda them: clean_texts(them, config.cleaning)[0])
    rules = Rules.of(config, config.sources[0])
    around = f"before it: {texts[1]} and after"
    table, _ = examine(RowBatch.of_texts(1, [*texts, around, "another text"]), rules, index, UNIT_SCHEMA)
    assert table.column("reason").to_pylist() == [*["in_evaluation_set"] * 3, "overlaps_evaluation", None]
    assert table.column("detail").to_pylist()[3] == f"set {text_id(texts[1])}"
    same = build_index({"set": {text_id(TINY): TINY}}, config.decontamination)
    assert same.fingerprint == build_index({"set": {text_id(TINY): TINY}}, config.decontamination, list).fingerprint
