"""Filters that a corpus config may name, one small class a file; the default corpus enables none.

A filter is a frozen config with one pure method, `keeps(text)`. Its `name` is the reason under which dropped rows are
counted. They run in the order of the config, on cleaned text, and the first that refuses a text gives the reason.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from components.corpus.filters.characters import MaxCharacters, MinCharacters
from components.corpus.filters.letters import MinLetterFraction
from components.corpus.filters.lines import MaxDuplicateLineFraction
from components.corpus.filters.repetition import MaxRepeatedGramFraction

FilterConfig = Annotated[
    MinCharacters | MaxCharacters | MinLetterFraction | MaxDuplicateLineFraction | MaxRepeatedGramFraction,
    Field(discriminator="name"),
]

__all__ = [
    "FilterConfig",
    "MaxCharacters",
    "MaxDuplicateLineFraction",
    "MaxRepeatedGramFraction",
    "MinCharacters",
    "MinLetterFraction",
]
