"""Whether all ranks work on the same: one line that names those that do not.

At the start they compare what they are and have. In each step they compare the number of micro batches and the ids of
the global batch, in the all-reduce that sums the counts anyway: the sum over ranks of a table in which each rank fills
its own row is what all of them told, 16 bytes a rank.

Shapes: G sequences of a global batch, W ranks.
"""

from __future__ import annotations

import hashlib
import platform
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from importlib.metadata import version
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch.distributed as dist

from components.pretraining.config import PretrainConfig
from components.tokenization.shards import TokenShards
from infra.errors import ConfigError, InfrastructureError

Value = TypeVar("Value")
IntArray = npt.NDArray[np.int64]
LIBRARIES = ("torch", "transformers", "deepspeed", "numpy")
STEP_FIELDS = ("number of micro batches", "digest of the sample ids")
REMEDIES = {
    "shards": "storage.root must be one folder that all nodes share",
    "version": "install the same versions on all nodes",
    "other": "all workers must run the same code and config on the same kind of device",
}


def from_rank_0(value: Value) -> Value:
    """What rank 0 has, for all: a file that one rank sees another may not see yet. All ranks call it."""
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def fingerprint(config: PretrainConfig, shards: TokenShards, num_micro_batches: int, device: str) -> dict[str, str]:
    """What has to be the same on all ranks, by the name that a message calls it."""
    settings = config.model_dump_json(exclude={"cluster"})
    return {
        "number of sequences in the token shards": str(len(shards)),
        "digest of the token shards": _digest(shards.index.model_dump_json().encode()),
        "digest of the config": _digest(settings.encode()),
        "number of micro batches": str(num_micro_batches),
        "kind of device": device,
        "precision": config.precision,
        "version of python": ".".join(platform.python_version_tuple()[:2]),
        **{f"version of {name}": version(name) for name in LIBRARIES},
    }


def check_same(fingerprints: Sequence[Mapping[str, str]]) -> None:
    """Compares the fingerprints of the ranks, in order.

    Raises:
        ConfigError: their token shards or library versions differ; one line for each difference.
        InfrastructureError: anything else differs.
    """
    lines, kinds = [], set()
    for name in fingerprints[0]:
        line = disagreement(name, [one.get(name, "nothing") for one in fingerprints])
        if line is not None:
            kind = "shards" if "shards" in name else "version" if "version" in name else "other"
            lines.append(f"{line}: {REMEDIES[kind]}")
            kinds.add(kind)
    if kinds & {"shards", "version"}:
        raise ConfigError(*lines)
    if lines:
        raise InfrastructureError("\n".join(lines))


def disagreement(name: str, values_W: Sequence[Hashable]) -> str | None:
    """One line that says which ranks have which value, the commonest first; None where all have the same."""
    ranks: dict[Hashable, list[int]] = defaultdict(list)
    for rank, value in enumerate(values_W):
        ranks[value].append(rank)
    if len(ranks) == 1:
        return None
    told = sorted(ranks.items(), key=lambda item: (-len(item[1]), item[1]))
    parts = [f"{value} on rank{'s' * (len(who) > 1)} {', '.join(map(str, who))}" for value, who in told]
    return f"the ranks disagree on the {name}: {'; '.join(parts)}"


def check_step(table: Sequence[Sequence[float]], step: int) -> None:
    """Compares the rows [W, 2] that the ranks gave for one step.

    Raises:
        InfrastructureError: they differ.
    """
    for name, values_W in zip(STEP_FIELDS, zip(*table, strict=True), strict=True):
        line = disagreement(name, [int(value) for value in values_W])
        if line is not None:
            raise InfrastructureError(f"step {step}: {line}: the workers must run the same code on the same shards")


def sample_digest(step: int, indices_G: IntArray, epochs_G: IntArray) -> int:
    """48 bits over the sample ids of a global batch: exact in a float64."""
    digest = hashlib.blake2b(step.to_bytes(8, "little"), digest_size=6)
    digest.update(np.ascontiguousarray(indices_G).data)
    digest.update(np.ascontiguousarray(epochs_G).data)
    return int.from_bytes(digest.digest(), "little")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def shown_samples(indices_G: IntArray, epochs_G: IntArray, most: int = 32) -> str:
    """The sequences of a batch for a log line: numbers by epoch, at most `most` of them."""
    parts = []
    for epoch in np.unique(epochs_G).tolist():
        numbers = indices_G[epochs_G == epoch].tolist()
        cut = f", and {len(numbers) - most} more" if len(numbers) > most else ""
        parts.append(f"sequences {', '.join(map(str, numbers[:most]))}{cut} of epoch {epoch}")
    return "; ".join(parts)


def sample_ids(indices_G: IntArray, epochs_G: IntArray) -> dict[str, Any]:
    """The same whole, for the history."""
    return {"sequences": indices_G.tolist(), "epochs": epochs_G.tolist()}
