"""What a command gives back: one JSON document or text on standard output, and an exit code."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import typer
from rich.console import Console

from infra.errors import ConfigError, FromzeroError

PIPE_COLUMNS = 400
"""Width of what goes to a file or another program, which may look for whole lines."""

logger = logging.getLogger(__name__)


def emit_json(document: Mapping[str, Any]) -> None:
    """Prints the one JSON document of a command."""
    stdout = sys.__stdout__ or sys.stdout  # past the redirection of `guarded`
    stdout.write(json.dumps(_finite(document), ensure_ascii=False, indent=1) + "\n")
    stdout.flush()


def stdout_console() -> Console:
    """Text on standard output: nothing in it is markup, and only a terminal folds lines."""
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPE_COLUMNS
    return console


def say(line: str) -> None:
    """A line for the reader, on standard error."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def guarded(command: Callable[[], int], *, as_json: bool, frame: Mapping[str, Any] | None = None) -> NoReturn:
    """Runs `command` and exits with its code, or with that of the error it raises.

    Args:
        command: does the work and prints the result.
        as_json: errors too are a JSON document on standard output.
        frame: the other keys of that document.
    """
    try:
        # Ray and MLflow print warnings and addresses to standard output, which is for the document alone.
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
            code = command()
    except FromzeroError as error:
        problems = list(error.problems) if isinstance(error, ConfigError) else str(error).splitlines()
        _fail(problems, as_json, frame)
        code = error.fault.value
    except KeyboardInterrupt:
        _fail(["interrupted; finished steps are kept, run again to go on"], as_json, frame)
        code = 130
    except BrokenPipeError:
        code = 141
    except Exception as error:  # process boundary: our bug, told with all that helps to mend it
        say(traceback.format_exc())
        _fail([f"bug: {type(error).__name__}: {error}"], as_json, frame)
        code = 1
    raise typer.Exit(code)


def _fail(problems: list[str], as_json: bool, frame: Mapping[str, Any] | None) -> None:
    for problem in problems:
        say(f"error: {problem}")
    if as_json:
        emit_json({**(frame or {}), "errors": problems})


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(name): _finite(item) for name, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
