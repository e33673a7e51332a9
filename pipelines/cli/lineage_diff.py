"""`lineage diff`: in what two models differ; only what differs is printed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any, NoReturn

from rich.console import Console
from rich.table import Table
from rich.text import Text

from infra.errors import UserError
from infra.journal.difference import Difference, Row, difference
from pipelines.cli.output import emit_json, guarded, stdout_console
from pipelines.cli.targets import Found, Targets
from pipelines.compose import load_config

MOST_LINES = 40
"""Of a section of the text; the JSON document has all."""
Line = tuple[str, ...]
STATUSES = {
    "same": "the same",
    "differs": "other",
    "only_a": "only in A",
    "only_b": "only in B",
    "unknown": "other, and what differs is not known, for an artifact is gone",
}


def lineage_diff_command(a: str, b: str, pipeline: str, overrides: list[str], *, as_json: bool) -> NoReturn:
    """Prints in what the models `a` and `b` differ."""

    def work() -> int:
        targets = Targets.of(load_config(pipeline, overrides))
        sides = [(target, targets.find(target)) for target in (a, b)]
        for target, side in sides:
            if not side.made_by:
                raise UserError(f"{target} is a raw file, which no step made; compare models, steps, keys or runs")
        (_, one), (_, other) = sides
        found = difference(one.made_by, one.past, other.made_by, other.past)
        if as_json:
            first, second = (_document(target, side) for target, side in sides)
            emit_json({"a": first, "b": second, "is_same": found.is_empty, **asdict(found), "errors": []})
        else:
            _print_sides(sides, stdout_console())
            _print_difference(found, stdout_console())
        return 0

    rows: dict[str, list[Row]] = {name: [] for name in ("steps", *SECTIONS)}
    guarded(work, as_json=as_json, frame={"a": {"target": a}, "b": {"target": b}, "is_same": None, **rows})


def _document(target: str, side: Found) -> dict[str, Any]:
    names = ("step", "key", "made_by_run", "finished_at")
    made_by = [{name: one[name] for name in names} for one in side.made_by]
    return {"target": target, "root": side.store.uri, "made_by": made_by}


def _print_sides(sides: Sequence[tuple[str, Found]], console: Console) -> None:
    lines = []
    for letter, (target, side) in zip("AB", sides, strict=True):
        made_by = ", ".join(f"{one['step']} {one['key'][:12]}" for one in side.made_by)
        runs = ", ".join(dict.fromkeys(one["made_by_run"] for one in side.made_by))
        lines.append((letter, target, made_by, f"run {runs}"))
    _print(console, lines)


def _print_difference(found: Difference, console: Console) -> None:
    if found.is_empty:
        console.print("the same: both were made by the same artifacts")
        return
    sections = {"steps": _steps(found), **{name: lines(getattr(found, name)) for name, lines in SECTIONS.items()}}
    for name, lines in sections.items():
        if lines:
            console.print(Text(f"\n{name}", style="bold"))
            _print(console, [("", *line) for line in lines[:MOST_LINES]])
            if len(lines) > MOST_LINES:
                console.print(f"  and {len(lines) - MOST_LINES} more; --json has all")
    same = [name for name, lines in sections.items() if not lines]
    if same:
        is_whole = all(row["status"] in ("same", "differs") for row in found.steps)
        console.print(f"\nthe same{'' if is_whole else ', in the steps that both have'}: {', '.join(same)}")


def _print(console: Console, lines: Sequence[Line]) -> None:
    """Columns; a narrow terminal folds them."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for _ in range(max(map(len, lines))):
        table.add_column(overflow="fold")
    for line in lines:
        table.add_row(*line)
    console.print(table)


def _steps(found: Difference) -> list[Line]:
    names = {status: [row["step"] for row in found.steps if row["status"] == status] for status in STATUSES}
    return [(STATUSES[status], ", ".join(steps)) for status, steps in names.items() if steps]


def _data(rows: Iterable[Row]) -> list[Line]:
    lines: list[Line] = []
    for row in rows:
        sides = [side for side in (row["a"], row["b"]) if side]
        counted = [_number(side["num_rows"]) for side in sides if side.get("num_rows") is not None]
        num_rows = f"{' -> '.join(counted)} rows" if len(counted) == len(sides) else ""
        digests = " -> ".join(side["sha256"][:8] for side in sides)
        lines.append((f"{row['step']}.{row['source']}", row["change"], row["file"], num_rows, digests))
    return lines


def _config(rows: Iterable[Row]) -> list[Line]:
    return [(row["key"], f"{row['a']} -> {row['b']}") for row in rows]


def _code(rows: Iterable[Row]) -> list[Line]:
    return [
        (row["path"], row["change"], ", ".join(row["functions"]), f"in {', '.join(row['steps'])}")
        if "path" in row
        else (f"{row['step']}.{row['name']}", "changed", f"{row['a']} -> {row['b']}")
        for row in rows
    ]


def _libraries(rows: Iterable[Row]) -> list[Line]:
    return [(row["library"], f"{row['a']} -> {row['b']}", f"in {', '.join(row['steps'])}") for row in rows]


def _numbers(rows: Sequence[Row]) -> list[Line]:
    """A line a number; the ends of its interval stand in it."""
    by_name = {(row["step"], row["name"]): row for row in rows}
    lines: list[Line] = []
    for row in rows:
        step, name, change = row["step"], row["name"], row["difference"]
        stem = name.removesuffix("_low").removesuffix("_high")
        if stem != name and (step, stem) in by_name:
            continue
        ends = [by_name[step, end] for end in (f"{name}_low", f"{name}_high") if (step, end) in by_name]
        sides = []
        for side in ("a", "b"):
            interval = f" ({' to '.join(_number(end[side]) for end in ends)})" if len(ends) == 2 else ""
            sides.append(_number(row[side]) + interval)
        lines.append((step or "all steps", name, " -> ".join(sides), "" if change is None else _number(change, "+")))
    return lines


def _number(value: Any, sign: str = "") -> str:
    if isinstance(value, float):
        return f"{value:{sign}.4g}"
    return f"{value:{sign},}" if isinstance(value, int) else str(value)


SECTIONS: dict[str, Callable[[Any], list[Line]]] = {
    "data": _data,
    "config": _config,
    "code": _code,
    "libraries": _libraries,
    "result": _numbers,
    "cost": _numbers,
}
