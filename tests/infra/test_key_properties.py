"""Keys, for any value: different values give different keys, equal ones equal keys, in every process; how to run a
step is in none."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import types
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from infra.errors import FromzeroError
from infra.journal.config import is_execution
from infra.journal.key import KEY_LENGTH, digest, encode
from infra.journal.plan import order
from pipelines.compose import load_config
from pipelines.config import PipelineConfig
from pipelines.llm import build
from tests.infra.toy_steps import ToyConfig

PROJECT = Path(__file__).resolve().parents[2]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
)


def key(value: Any) -> str:
    return digest({"value": encode(value, "toy")})


def typed(value: Any) -> Any:
    """What a value is, apart from every other: 1, 1.0 and True are three."""
    if isinstance(value, dict):
        return ("mapping", frozenset((name, typed(item)) for name, item in value.items()))
    if isinstance(value, list | tuple):
        return ("list", tuple(typed(item) for item in value))
    return (type(value).__name__, value)


@given(VALUES, VALUES)
@settings(max_examples=400, deadline=None)
def test_keys_are_equal_exactly_where_values_are(one: Any, other: Any) -> None:
    assert (key(one) == key(other)) is (typed(one) == typed(other))


@given(VALUES, st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_one_changed_leaf_changes_the_key(value: Any, chance: random.Random) -> None:
    changed = mutated(value, chance)
    assert key(changed) != key(value)


def mutated(value: Any, chance: random.Random) -> Any:
    """`value` with one leaf changed a little: another type, another number, one character more."""
    if isinstance(value, dict) and value:
        name = chance.choice(sorted(value))
        return {**value, name: mutated(value[name], chance)}
    if isinstance(value, list) and value:
        place = chance.randrange(len(value))
        return [*value[:place], mutated(value[place], chance), *value[place + 1 :]]
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int):
        return chance.choice([value + 1, str(value)])
    if isinstance(value, float):
        return chance.choice([value / 2 + 1 if value != 2 else 5.0, str(value)])
    if isinstance(value, str):
        return value + " "
    return chance.choice([0, "", False, "null"])


@given(st.dictionaries(st.text(max_size=6), SCALARS, min_size=2, max_size=6), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_order_of_a_mapping_does_not_count(value: dict[str, Any], chance: random.Random) -> None:
    names = list(value)
    chance.shuffle(names)
    assert key({name: value[name] for name in names}) == key(value)


def test_a_key_has_128_bits() -> None:
    assert KEY_LENGTH * 4 == 128 and len(key(1)) == KEY_LENGTH


def test_zero_has_one_key() -> None:
    assert key(-0.0) == key(0.0) != key(0)


class Colour(Enum):
    """An enum, and another with the same values."""

    RED = "red"


class Paint(Enum):
    RED = "red"


def test_class_names_count() -> None:
    assert len({key(Colour.RED), key(Paint.RED), key("red")}) == 3
    assert key(ToyConfig()) != key(ToyConfig().model_dump())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [1, {2}]}, r"toy\.a\[1\]: a set cannot be part of a key; use a number, string, list"),
        ({"a": b"x"}, r"toy\.a: a bytes cannot"),
        ({"a": {1: 2}}, r"toy\.a: the key 1 is not a string"),
        ({"a": object()}, r"toy\.a: a object cannot"),
        ([0.0, float("nan")], r"toy\[1\]: nan cannot be part of a key"),
        (float("inf"), "toy: inf cannot"),
        (Path("x"), "toy: a PosixPath cannot"),
        (1j, "toy: a complex cannot"),
        (lambda: 0, "toy: a function cannot"),
    ],
)
def test_what_has_no_stable_form_is_refused_with_its_place_and_the_remedy(value: Any, message: str) -> None:
    with pytest.raises(FromzeroError, match=message):
        key(value)


def samples() -> list[str]:
    """Keys of many values, made from a seed."""
    chance = random.Random(5)

    def value(depth: int) -> Any:
        kind = chance.randrange(7 if depth else 5)
        if kind == 5:
            return [value(depth - 1) for _ in range(3)]
        if kind == 6:
            return {f"字{chance.random()}": value(depth - 1) for _ in range(3)}
        return [None, True, chance.getrandbits(70), chance.gauss(0, 1e9), f"é{chance.random()}"][kind]

    return [key(value(3)) for _ in range(200)]


def test_keys_are_the_same_in_every_process_and_for_every_hash_seed() -> None:
    code = "import json; from tests.infra.test_key_properties import samples; print(json.dumps(samples()))"
    found = [
        json.loads(
            subprocess.run(
                [sys.executable, "-c", code],
                cwd=PROJECT,
                env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(PROJECT)},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for seed in ("0", "1", "31337")
    ]
    assert found[0] == found[1] == found[2] == samples()


def execution_fields(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """Dotted keys of all execution fields that are numbers, switches or names, also those inside one."""
    for name, field in model.model_fields.items():
        place = f"{path}.{name}" if path else name
        members = get_args(field.annotation) if _is_union(field.annotation) else (field.annotation,)
        nested = [one for one in members if isinstance(one, type) and issubclass(one, BaseModel)]
        if nested:
            yield from (p for p in execution_fields(nested[0], place))
        elif is_execution(model, name):
            yield place


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def keys(config: PipelineConfig) -> dict[str, str]:
    """A key for each step over all that its own is made of but the code, which no config changes."""
    found: dict[str, str] = {}
    for step in order([build(config)]):
        inputs = {name: found[parent.name] for name, parent in step.inputs.items()}
        files = {source: sorted(file.digest for file in raw) for source, raw in step.raw.items()}
        content = {"config": encode(step.config, step.name), "inputs": inputs, "raw": files, "function": step.function}
        found[step.name] = digest(content)
    return found


NOT_TRIED = ("path", "train", "validation", "test", "init_from", "address", "format")
"""Fields that name files or hosts: their content counts, or a test of its own looks at them."""


def changed(config: PipelineConfig, place: str) -> PipelineConfig | None:
    """`config` with another valid value at `place`; None where none of a few is valid."""
    content = config.model_dump()
    *above, name = place.split(".")
    inner = content
    for part in above:
        inner = inner[part]
    old = inner[name]
    for value in (not old, *((old * 2, old + 1, old / 2) if isinstance(old, int | float) else ()), "other", 3, 0):
        if value == old or type(value) is bool is not isinstance(old, bool):
            continue
        inner[name] = value
        try:
            found = PipelineConfig.model_validate(content)
        except ValidationError:
            continue
        if not list(found.problems()):
            return found
    return None


def test_no_execution_field_is_in_any_key() -> None:
    config = load_config("llm", [])
    expected, tried = keys(config), 0
    for place in execution_fields(PipelineConfig):
        if place.rpartition(".")[2] in NOT_TRIED:
            continue
        other = changed(config, place)
        if other is not None:
            tried += 1
            assert keys(other) == expected, place
    assert tried >= 20
