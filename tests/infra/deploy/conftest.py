"""A schedule whose words are as awkward as a shell and a unit file can make them."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.deploy.schedule import Schedule, parse

AWKWARD = (
    "task.label_column=类别",
    "task.train=a b=c.jsonl",
    "corpus.sources=[{path: texts/*.jsonl, text_column: text}]",
    "prompt.template=评论：{{text}}\n类别：{{label}}",
    "prompt.instruction=50% of %h and %%, $HOME $$ ${HOME} $(HOME) `id`",
    "prompt.verbalizer={a: 'it''s', b: \"q\"}",
    "prompt.name=back\\slash \\\\ two \\% end\\",
    "x=;",
    "y=",
    "z=~/*.txt?[a-z]! #no comment & | > < ( ) \t tab",
)


@pytest.fixture
def schedule(tmp_path: Path) -> Schedule:
    """Of the words of `AWKWARD`, in a folder of an awkward name."""
    folder = tmp_path / "夜 100% it's $HOME"
    folder.mkdir()
    return Schedule(
        name="fromzero-nightly",
        at=parse("0 2 * * *"),
        pipeline="nightly",
        overrides=AWKWARD,
        program=("/usr/bin/env", "A=a b"),
        folder=folder,
        root=folder / "root",
    )
