"""Finished units of a sweep on disk: from these a killed sweep goes on.

A unit is one folder: `result.json`, and where needed weights and optimizer moments (safetensors) and test predictions
(npy). It is written under another name, synced and renamed; `result.json` holds the digests of the other files. A
folder that does not verify counts as not done. The state of a 6M-parameter model with its moments takes 72 MB,
so that of trials that do not go on is dropped as soon as a rung is over.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from components.finetuning.data import IntArray
from components.finetuning.sweep import Unit
from infra.errors import DamagedArtifactError
from infra.storage.files import fsync
from infra.storage.mirror import Mirror
from infra.storage.raw import digest_file

if TYPE_CHECKING:
    import torch

RESULT, STATE, PREDICTIONS = "result.json", "state.safetensors", "predictions.npy"
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitResult:
    """What a unit found; counts are those of the whole fit up to here, the units it went on from included."""

    step: int
    num_tokens: int
    num_texts: int
    num_texts_own: int
    """Texts this unit trained on itself, without those of the units it went on from."""
    train_flops: float
    metrics: Mapping[str, float]
    history: tuple[tuple[int, Mapping[str, float]], ...]
    diverged: bool
    seconds: float
    """Wall time of this unit alone."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Digest of each other file of the folder."""


def save_unit(
    folder: Path,
    unit: Unit,
    result: UnitResult,
    *,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    predicted_N: IntArray | None = None,
    mirror: Mirror = Mirror(Path("/")),
) -> None:
    """Writes the unit's folder under `folder`, whole or not at all, and puts it where other machines find it."""
    from safetensors.torch import save_file

    temporary = folder / f".{unit.name}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    if unit.save != "nothing" and not result.diverged:
        firsts, tensors = _first_names(model), {}
        for name, tensor in model.state_dict().items():
            if firsts[name] == name:
                tensors[f"model.{name}"] = tensor.contiguous()
        if unit.save == "all":
            tensors |= _moments(optimizer)
        save_file(tensors, temporary / STATE)
    if predicted_N is not None:
        np.save(temporary / PREDICTIONS, predicted_N)
    files = {path.name: digest_file(path) for path in sorted(temporary.iterdir())}
    about = asdict(result) | {"files": files, "unit": asdict(unit)}
    (temporary / RESULT).write_text(json.dumps(about))
    for path in (*temporary.iterdir(), temporary):
        fsync(path)
    shutil.rmtree(folder / unit.name, ignore_errors=True)
    temporary.rename(folder / unit.name)
    fsync(folder)
    mirror.push(folder / unit.name, last=RESULT)


def read_result(folder: Path) -> UnitResult:
    """The result in a unit's folder.

    Raises:
        DamagedArtifactError: there is none, or a file is not what was written.
    """
    return _verified(folder)[1]


def finished(folder: Path, unit: Unit, mirror: Mirror = Mirror(Path("/"))) -> UnitResult | None:
    """The result in `folder` if `unit` was finished there before, on whichever machine, with the same settings, and
    verifies."""
    found = _whole(folder)
    if found is None and mirror.objects:
        shutil.rmtree(folder, ignore_errors=True)
        mirror.pull(folder)
        found = _whole(folder)
    if found is None:
        return None
    about, result = found
    return result if about["unit"] == json.loads(json.dumps(asdict(unit))) else None


def load_state(folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None) -> UnitResult:
    """Puts the saved weights into `model`, and the moments into `optimizer` where they were saved.

    Raises:
        DamagedArtifactError: the state is missing or not what was written.
    """
    import torch
    from safetensors.torch import load_file

    result = read_result(folder)
    if STATE not in result.files:
        raise DamagedArtifactError(f"{folder}: has no saved state to go on from; remove the folder and run again")
    tensors = load_file(folder / STATE)
    model.load_state_dict({name: tensors[f"model.{first}"] for name, first in _first_names(model).items()})
    if optimizer is not None and any(name.startswith("exp_avg.") for name in tensors):
        for index, parameter in enumerate(_parameters(optimizer)):
            state = {name: tensors[f"{name}.{index}"].to(parameter.device) for name in MOMENTS}
            optimizer.state[parameter] = state | {"step": torch.tensor(float(result.step))}
    return result


def _first_names(model: torch.nn.Module) -> dict[str, str]:
    """For each name of the state the first name of the same tensor: T5 and BART share one embedding under three."""
    firsts: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    return {name: firsts.setdefault(id(tensor), name) for name, tensor in state.items()}


def load_predictions(folder: Path) -> IntArray:
    """Predicted classes of the test rows.

    Raises:
        DamagedArtifactError: they are missing or not what was written.
    """
    if PREDICTIONS not in read_result(folder).files:
        raise DamagedArtifactError(f"{folder}: has no test predictions; remove the folder and run again")
    predicted_N: IntArray = np.load(folder / PREDICTIONS, allow_pickle=False)
    return predicted_N


def drop_state(folder: Path, mirror: Mirror = Mirror(Path("/"))) -> None:
    """Removes saved weights; the result stays and still verifies."""
    about, result = _verified(folder)
    if STATE in result.files:
        about["files"] = {name: digest for name, digest in result.files.items() if name != STATE}
        temporary = folder / f".{RESULT}"
        temporary.write_text(json.dumps(about))
        fsync(temporary)
        temporary.replace(folder / RESULT)
        mirror.push(folder, only=[RESULT])
        (folder / STATE).unlink()
        mirror.drop(folder / STATE)


def _whole(folder: Path) -> tuple[dict[str, Any], UnitResult] | None:
    """What `folder` holds, if it verifies."""
    with contextlib.suppress(DamagedArtifactError):
        return _verified(folder)
    return None


def _verified(folder: Path) -> tuple[dict[str, Any], UnitResult]:
    try:
        about = json.loads((folder / RESULT).read_text())
        values = {name: about[name] for name in UnitResult.__dataclass_fields__}
        values["history"] = tuple((step, metrics) for step, metrics in values["history"])
        result = UnitResult(**values)
        for name, digest in result.files.items():
            if digest_file(folder / name) != digest:
                raise DamagedArtifactError(f"{folder / name}: not what was written; remove the folder and run again")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedArtifactError(
            f"{folder}: not a finished unit ({error}); remove the folder and run again"
        ) from error
    return about, result


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    import torch

    found = {}
    for index, parameter in enumerate(_parameters(optimizer)):
        state = optimizer.state.get(parameter, {})
        for name in MOMENTS:  # a weight without a gradient so far has no moments: zeros are what it would start with
            found[f"{name}.{index}"] = state.get(name, torch.zeros_like(parameter)).detach().contiguous()
    return found
