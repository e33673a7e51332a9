"""Errors that say whose fault it is, and so which exit code the command line gives.

Each subclass is also the matching builtin, takes one message, and survives pickling, because Ray pickles what a
worker raises. A message says what, where, what is allowed, and what to do.
"""

from __future__ import annotations

from enum import Enum


class Fault(Enum):
    """Whose fault an error is; the value is the exit code."""

    BUG = 1
    USER = 2
    INFRASTRUCTURE = 3


class FromzeroError(Exception):
    """Base of every error that this project raises on purpose."""

    fault: Fault = Fault.BUG


class UserError(FromzeroError, ValueError):
    """The user's mistake: a config value, a path, data that cannot be used. Exit 2."""

    fault = Fault.USER


class ConfigError(UserError):
    """One or more wrong config values. `problems` has one line each."""

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(self.problems)


class DataError(UserError):
    """Input data that cannot be used as a whole; single bad rows are rejects, not errors."""


class InfrastructureError(FromzeroError, RuntimeError):
    """The machine's, the network's or the cluster's fault; worth a retry. Exit 3."""

    fault = Fault.INFRASTRUCTURE


class StorageError(InfrastructureError, OSError):
    """Storage that cannot be read or written."""


class DiskFullError(StorageError):
    """No space left under ROOT."""


class DamagedArtifactError(StorageError):
    """A finished artifact or checkpoint whose files do not match its manifest."""


class LockedError(InfrastructureError):
    """Somebody else holds what this command needs; the message names the holder."""


class ResourceError(InfrastructureError):
    """A resource wish that this cluster can never grant."""


class ClusterLostError(InfrastructureError):
    """Ray died under a run."""


class TrainingError(FromzeroError, ArithmeticError):
    """A training that cannot go on: its loss is not a finite number."""

    fault = Fault.USER
