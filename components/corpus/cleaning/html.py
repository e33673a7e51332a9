"""Left-overs of HTML in text that was taken from pages: tags, comments, scripts, entities. Not an HTML parser.

Only what cannot well be anything else goes: tags of known names whose attributes have values, so that "a < b", "<3",
"if a <b and c> d" and "Vec<T>" stay; entities of known names that end with a semicolon, so that "?a=1&copy=2" stays.
Escaped tags ("&lt;b&gt;", of pages escaped twice) go too: do not use it on writing about HTML, nor on source code. Text
that is whole pages is better extracted before by a program made for it.
"""

from __future__ import annotations

import html
import re
from html.entities import html5

SUSPECT = r"<[A-Za-z/!?]|&[#A-Za-z]"
"""RE2 pattern of what could be HTML."""

_LINES = (
    "address|article|aside|blockquote|body|br|center|dd|details|dir|div|dl|dt|fieldset|figcaption|figure|footer"
    "|form|frameset|h1|h2|h3|h4|h5|h6|head|header|hr|html|legend|li|link|main|menu|meta|nav|ol|option|p|pre"
    "|script|section|select|style|summary|table|tbody|tfoot|thead|title|tr|ul|video"
)
_CELLS = "td|th"
_WITHIN_LINES = (
    "abbr|acronym|audio|b|base|bdi|bdo|big|button|canvas|caption|cite|code|col|colgroup|data|del|dfn|em|embed"
    "|font|frame|i|iframe|img|input|ins|kbd|label|map|mark|noscript|object|param|picture|q|rp|rt|ruby|s|samp"
    "|small|source|span|strike|strong|sub|sup|svg|template|textarea|time|track|tt|u|var|wbr"
)
_ATTRIBUTE = (
    r"\s++(?:[A-Za-z_:@][\w:.-]*+\s*+=\s*+(?:\"[^\"<>]*+\"|'[^'<>]*+'|[^\s\"'<>=`]++)"
    r"|(?:async|checked|controls|defer|disabled|hidden|itemscope|noshade|nowrap|readonly|required|selected)(?![\w=]))"
)


def _tags(names: str) -> re.Pattern[str]:
    return re.compile(rf"</?(?:{names})(?:{_ATTRIBUTE})*+\s*+/?>", re.IGNORECASE)


_ANCHOR = re.compile(rf"<a(?:{_ATTRIBUTE})++\s*+/?>|</a\s*+>", re.IGNORECASE)  # a bare <a> is a type parameter
_REPLACEMENTS = ((_tags(_LINES), "\n"), (_tags(_CELLS), " "), (_tags(_WITHIN_LINES), ""), (_ANCHOR, ""))
_BLOCKS = tuple(
    (re.compile(opening, re.IGNORECASE), re.compile(closing, re.IGNORECASE))
    for opening, closing in (
        (r"<!--", r"-->"),
        (rf"<script(?:{_ATTRIBUTE})*+\s*+>", r"</script\s*+>"),
        (rf"<style(?:{_ATTRIBUTE})*+\s*+>", r"</style\s*+>"),
    )
)
_DECLARATION = re.compile(r"<!doctype\s[^<>]*+>|<\?xml\s[^<>]*+\?>|<!\[CDATA\[|\]\]>", re.IGNORECASE)
_ENTITY = re.compile(r"&(?:amp;)*+(#[0-9]{1,7}+;|#[xX][0-9a-fA-F]{1,6}+;|[A-Za-z][A-Za-z0-9]{1,31}+;)?+")


def without_html(text: str) -> str:
    """`text` without tags, comments and scripts, its entities as the characters they stand for."""
    if "<" in text:
        for opening, closing in _BLOCKS:
            text = _without_blocks(text, opening, closing)
        text = _DECLARATION.sub("", text)
        for pattern, replacement in _REPLACEMENTS:
            text = pattern.sub(replacement, text)
    return _ENTITY.sub(_character, text) if "&" in text else text


def _without_blocks(text: str, opening: re.Pattern[str], closing: re.Pattern[str]) -> str:
    """Cuts from each opening to the next closing; linear also where a million are opened and none closed."""
    parts = []
    position = 0
    while (start := opening.search(text, position)) and (end := closing.search(text, start.end())):
        parts.append(text[position : start.start()])
        position = end.end()
    return "".join((*parts, text[position:])) if parts else text


def _character(match: re.Match[str]) -> str:
    name = match[1]
    if name is None:
        return "&"
    return html.unescape("&" + name) if name.startswith("#") or name in html5 else "&" + name
