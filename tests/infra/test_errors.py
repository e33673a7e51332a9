"""Every error survives pickling, for Ray pickles it, and knows its exit code."""

from __future__ import annotations

import pickle

import pytest

from infra import errors


def subclasses(cls: type[errors.FromzeroError]) -> list[type[errors.FromzeroError]]:
    return [cls] + [found for child in cls.__subclasses__() for found in subclasses(child)]


@pytest.mark.parametrize("cls", subclasses(errors.FromzeroError))
def test_errors_survive_pickling(cls: type[errors.FromzeroError]) -> None:
    copy = pickle.loads(pickle.dumps(cls("what, where, what to do")))
    assert (type(copy), str(copy), copy.fault) == (cls, "what, where, what to do", cls.fault)


def test_a_config_error_keeps_its_problems_apart() -> None:
    copy = pickle.loads(pickle.dumps(errors.ConfigError("a", "b")))
    assert copy.problems == ("a", "b") and str(copy) == "a\nb"
