"""Repairs and masks of texts, and how many texts each changed. Whatever is enabled, cleaning twice changes nothing.

What is looked at closely is found first by one pattern over the whole Arrow array, so that a cleaner costs little where
it finds nothing; it runs over the suspects alone. Repairs come before `normalise.clean`, which would remove the control
characters that show what went wrong, the others after it; a text that something changed goes through all of it again.
On one core `normalise.clean` alone takes 19 to 28 MB/s of short texts; each repair or mask that finds nothing 150 MB/s
and more, except the repair of Cyrillic and Greek (5 MB/s) and `c4_lines` (5 MB/s).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from components.corpus.cleaning import html, masks
from components.corpus.normalise import clean
from infra.journal.config import FrozenConfig

_MAX_ROUNDS = 32
"""A text that still changes then is one made to be cleaned forever; it is taken as it stands."""


class CleaningConfig(FrozenConfig):
    """What is done to a text besides Unicode NFC and whitespace."""

    repair_unicode: bool = Field(True, description="decode anew what was decoded wrongly; clean text stays as it is")
    strip_html: bool = Field(False, description="take out tags, comments, scripts; decode entities")
    mask_emails: bool = Field(False, description="replace e-mail addresses by email@example.com")
    mask_phones: bool = Field(False, description="replace phone numbers by 555-0100")
    mask_ips: bool = Field(False, description="replace public IP addresses by 192.0.2.1 or 2001:db8::1")
    c4_lines: bool = Field(False, description="keep only C4's lines: prose with terminal punctuation; for web pages")


@dataclass(frozen=True, kw_only=True, slots=True)
class CleaningCounts:
    """How many texts each cleaner changed; add them up over batches."""

    repair_unicode: int = 0
    strip_html: int = 0
    mask_emails: int = 0
    mask_phones: int = 0
    mask_ips: int = 0
    c4_lines: int = 0

    def __add__(self, other: CleaningCounts) -> CleaningCounts:
        return CleaningCounts(**{name: count + other.as_dict()[name] for name, count in self.as_dict().items()})

    def as_dict(self) -> dict[str, int]:
        """The counts by the name of the cleaner, which is its key in the config."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, slots=True)
class _Cleaner:
    name: str
    suspect: str | None
    """RE2 pattern without which a text stays as it is; without a pattern all texts are looked at."""
    apply: Callable[[list[str]], list[str]]


def clean_texts(
    texts: Sequence[str], config: CleaningConfig, *, collapse_whitespace: bool = True
) -> tuple[list[str], CleaningCounts]:
    """Each text repaired, through `normalise.clean`, stripped and masked.

    Args:
        texts: raw texts without lone surrogates (see `normalise.is_unicode`), (N,).
        config: which cleaners run.
        collapse_whitespace: see `normalise.clean`.

    Returns:
        The texts, (N,), possibly empty, each the same when cleaned again; and how many each cleaner changed.
    """
    cleaned = list(texts)
    changed_by: dict[str, set[int]] = {field.name: set() for field in fields(CleaningCounts)}
    before, after = _cleaners(config)
    places: Iterable[int] = range(len(cleaned))
    for _ in range(_MAX_ROUNDS):
        again = _run(before, cleaned, places, changed_by)
        for place in places:
            text = clean(cleaned[place], collapse_whitespace=collapse_whitespace)
            if before and text != cleaned[place] and not text.isascii():
                again.add(place)  # what is left may look like damage now
            cleaned[place] = text
        changed = _run(after, cleaned, places, changed_by)
        for place in changed:
            cleaned[place] = clean(cleaned[place], collapse_whitespace=collapse_whitespace)
        places = sorted(again | changed)
        if not places:
            break
    return cleaned, CleaningCounts(**{name: len(changed) for name, changed in changed_by.items()})


def _run(
    cleaners: list[_Cleaner], texts: list[str], places: Iterable[int], changed_by: dict[str, set[int]]
) -> set[int]:
    """Runs `cleaners` one after the other over the texts at `places`; where one changed something."""
    changed: set[int] = set()
    for cleaner in cleaners:
        suspects = list(places)
        if cleaner.suspect is not None:
            array = pa.array([texts[place] for place in suspects], pa.large_string())
            found = pc.indices_nonzero(pc.match_substring_regex(array, cleaner.suspect)).to_pylist()
            suspects = [suspects[position] for position in found]
        for place, text in zip(suspects, cleaner.apply([texts[place] for place in suspects]), strict=True):
            if text != texts[place]:
                texts[place] = text
                changed_by[cleaner.name].add(place)
                changed.add(place)
    return changed


def _cleaners(config: CleaningConfig) -> tuple[list[_Cleaner], list[_Cleaner]]:
    """The enabled cleaners that run before and after `normalise.clean`. What they need is imported only then."""
    before, after = [], []
    if config.repair_unicode:
        from components.corpus.cleaning import unicode

        before.append(_Cleaner("repair_unicode", unicode.SUSPECT, _each(unicode.repaired)))
    if config.strip_html:
        after.append(_Cleaner("strip_html", html.SUSPECT, _each(html.without_html)))
    if config.mask_emails:
        after.append(_Cleaner("mask_emails", masks.SUSPECT_EMAIL, _each(masks.without_emails)))
    if config.mask_phones:
        after.append(_Cleaner("mask_phones", masks.SUSPECT_PHONE, _each(masks.without_phones)))
    if config.mask_ips:
        after.append(_Cleaner("mask_ips", masks.SUSPECT_IP, _each(masks.without_ips)))
    if config.c4_lines:
        from components.corpus.cleaning.c4_lines import with_c4_lines

        after.append(_Cleaner("c4_lines", None, with_c4_lines))
    return before, after


def _each(function: Callable[[str], str]) -> Callable[[list[str]], list[str]]:
    return lambda texts: [function(text) for text in texts]
