"""Filters that a corpus config may name, one small class a file; the default corpus enables none.

A filter is a frozen config with one pure method: `keeps(batch)` says of each text of a `TextBatch` whether it stays,
(N,). Its `name` is the reason under which dropped rows are counted. They run in the order of the config, on cleaned
text, and the first that refuses a text gives the reason. Defaults are the thresholds of the papers, which had English
web pages before them; each module says what that means for scripts without spaces, and what not to use it for.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from components.corpus.filters.batch import TextBatch
from components.corpus.filters.c4 import C4
from components.corpus.filters.characters import MaxCharacters, MinCharacters
from components.corpus.filters.fineweb import FineWeb
from components.corpus.filters.gopher_quality import GopherQuality
from components.corpus.filters.gopher_repetition import GopherRepetition
from components.corpus.filters.languages import Language
from components.corpus.filters.letters import MinLetterFraction
from components.corpus.filters.lines import MaxDuplicateLineFraction
from components.corpus.filters.repetition import MaxRepeatedGramFraction

FilterConfig = Annotated[
    MinCharacters
    | MaxCharacters
    | MinLetterFraction
    | MaxDuplicateLineFraction
    | MaxRepeatedGramFraction
    | GopherQuality
    | GopherRepetition
    | C4
    | FineWeb
    | Language,
    Field(discriminator="name"),
]

__all__ = [
    "C4",
    "FilterConfig",
    "FineWeb",
    "GopherQuality",
    "GopherRepetition",
    "Language",
    "MaxCharacters",
    "MaxDuplicateLineFraction",
    "MaxRepeatedGramFraction",
    "MinCharacters",
    "MinLetterFraction",
    "TextBatch",
]
