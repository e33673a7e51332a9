"""What the READMEs tell their readers to type is taken by the command line and the Makefile as it is written."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from tests.pipelines.conftest import PROJECT, Cli

READMES = ("README.md", "README.zh.md")
NOBODY = "http://127.0.0.1:9"
REFUSED = (
    "unknown key",
    "No such",
    "not key=value",
    "is not allowed",
    "no pipeline",
    "Got unexpected",
    "Missing argument",
)


def examples(readme: str) -> list[list[str]]:
    """The commands of the indented blocks, in order, as a shell splits them."""
    text = (PROJECT / readme).read_text("utf-8")
    found = []
    for block in re.findall(r"(?:^(?: {4}.*)?\n)+", text, flags=re.MULTILINE):
        lines = [line.removeprefix("    ") for line in block.splitlines()]
        for command in re.split(r"^\$ ", "\n".join(lines), flags=re.MULTILINE)[1:]:
            found.append(shlex.split(command.strip().split("\n{")[0].replace("\\\n", " ")))
    return found


def inline(readme: str) -> list[list[str]]:
    """Commands between backticks, without those that hold a placeholder."""
    text = (PROJECT / readme).read_text("utf-8")
    found = [shlex.split(" ".join(command.split())) for command in re.findall(r"`(fromzero [^`]*)`", text)]
    return [words for words in found if not any(re.search(r"[\[|]|[A-Z]{3}", word) for word in words)]


@pytest.mark.parametrize("readme", READMES)
def test_the_worked_example_is_taken_as_it_is_written(readme: str, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.jsonl").write_text('{"text": "一"}\n', "utf-8")
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "a.jsonl.zst").write_bytes(b"planning does not look into it")
    first, *commands = examples(readme)
    assert first[:2] == ["head", "-1"]
    row = {"text": "这家餐厅的服务很好。", "类别": "好评"}
    assert json.dumps(row, ensure_ascii=False) in (PROJECT / readme).read_text("utf-8")
    (tmp_path / first[2]).write_text(json.dumps(row, ensure_ascii=False) + "\n", "utf-8")
    codes = {"run": 0, "predict": 2, "lineage": 2}  # nothing is made yet: there is no such model
    codes |= {"plan": 0, "submit": 3, "status": 3, "stop": 3, "schedule": 0}  # no cluster is there
    names = []
    for program, name, *arguments in commands:
        assert program == "fromzero"
        names.append(name)
        words = [NOBODY if word == "http://ray-head:8265" else word for word in arguments]
        done = cli({"run": "plan"}.get(name, name), *words)
        assert done.code == codes[name], done.err
        assert not any(word in done.err for word in REFUSED), done.err
        assert (NOBODY in done.err) == (codes[name] == 3), done.err
    assert list(dict.fromkeys(names)) == list(codes) and names.count("run") == 2


@pytest.mark.parametrize("readme", READMES)
def test_commands_in_the_text_are_taken(readme: str, cli: Cli) -> None:
    commands = inline(readme)
    assert ["fromzero", "run", "model=gpu", "pretrain=gpu", "cluster=gpu"] in commands
    for _, name, *arguments in commands:
        if name == "ui":  # see test_ui
            continue
        done = cli({"run": "plan"}.get(name, name), *arguments)
        assert done.code in (0, 3), done.err  # 3: no GPU here
        assert not any(word in done.err for word in REFUSED), done.err


@pytest.mark.parametrize("readme", READMES)
def test_the_table_of_commands_is_that_of_the_command_line(readme: str, cli: Cli) -> None:
    text = (PROJECT / readme).read_text("utf-8")
    told = set(re.findall(r"^\| `fromzero (\w+)", text, flags=re.MULTILINE))
    there = set(re.findall(r"^[│|]\s+([a-z]+)\s{2,}", cli("--help").out, flags=re.MULTILINE))
    assert told == there


@pytest.mark.parametrize("readme", READMES)
def test_targets_of_make_exist(readme: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", (PROJECT / "Makefile").read_text("utf-8"), flags=re.MULTILINE))
    told = set(re.findall(r"(?:^ {4}|`)make ([a-z]+)", (PROJECT / readme).read_text("utf-8"), flags=re.MULTILINE))
    assert {"run", "test", "smoke", "install"} <= told <= targets


@pytest.mark.parametrize("readme", READMES)
def test_links_lead_to_files(readme: str) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", (PROJECT / readme).read_text("utf-8"))
    assert links and all((PROJECT / link).exists() for link in links)
