"""A pool of Ray actors that score units of prompts; each imports torch and loads a model once.

Plain actors and not a Ray Data actor pool: validation rows must be judged before the test rows' prompts are known, and
a second dataset would start a second pool (8 s of imports here). Units are fixed blocks of rows, whatever the number
of workers, and results come back in the units' order: the same scores on 1 or 64 workers. A finished unit is a file in
`folder`, so a killed step repeats only what was not finished.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import ray

from components.prompting.worker import PromptWorker, ScoredUnit, ScoringUnit
from infra.cluster.config import ClusterConfig
from infra.errors import FromzeroError, InfrastructureError, ResourceError
from infra.storage.mirror import Mirror

logger = logging.getLogger(__name__)

START_TIMEOUT_SECONDS = 300.0
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(32 * 1024 * 1024),
    "MALLOC_TRIM_THRESHOLD_": str(1024 * 1024 * 1024),
    "MALLOC_TOP_PAD_": str(64 * 1024 * 1024),
}
"""glibc keeps freed activations instead of giving them back after every layer: 370 page faults a prompt become 0.4, and
4-shot scoring takes 3.2 ms of CPU instead of 4.7 (5M Llama, 1 thread). Other allocators ignore it."""


class ScoringPool:
    """Actors that take units one after another; a context manager, for its actors must go.

    Args:
        cluster: how many workers and threads.
        batch_size: prompts in one forward pass.
        folder: where finished units lie.
        mirror: of the root that all folders lie in.
    """

    def __init__(
        self, cluster: ClusterConfig, batch_size: int, folder: Path, mirror: Mirror = Mirror(Path("/"))
    ) -> None:
        self._cluster = cluster
        self._batch_size = batch_size
        self._folder = folder
        self._mirror = mirror
        self._actors: list[Any] = []
        self._up: list[Any] = []

    def __enter__(self) -> ScoringPool:
        self._mirror.pull(self._folder)  # units that another machine finished
        self._folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for actor in self._actors:
            ray.kill(actor)
        self._actors, self._up = [], []

    def score(self, units: Sequence[ScoringUnit], progress: Callable[[int], None]) -> list[ScoredUnit]:
        """Scores of `units`, in their order.

        Args:
            units: what to score; units of one model together, so that it is loaded once.
            progress: told the rows of each finished unit.

        Raises:
            ResourceError: the cluster has no room for a worker.
            InfrastructureError: a worker died more often than it may.
        """
        done: dict[int, ScoredUnit] = {}
        for index, unit in enumerate(units):
            if self._path(unit).exists():
                done[index] = ScoredUnit.load(self._path(unit))
                progress(len(unit.texts))
        waiting = [index for index in range(len(units)) if index not in done]
        waiting.reverse()
        if waiting and not self._actors:
            self._start(len(waiting))
        # an actor gets a unit only when it is up: one that finds no free CPU must not hold a unit for ever
        idle = [actor for actor in self._actors if actor in self._up]
        running: dict[Any, tuple[int | None, Any]] = {
            actor.ready.remote(): (None, actor) for actor in self._actors if actor not in self._up
        }
        while len(done) < len(units):
            while idle and waiting:
                actor, index = idle.pop(), waiting.pop()
                running[actor.score.remote(units[index])] = (index, actor)
            finished, _ = ray.wait(list(running), num_returns=1, timeout=None if self._up else START_TIMEOUT_SECONDS)
            if not finished:
                raise ResourceError(
                    f"prompt: no worker of {self._cluster.threads_per_worker} CPUs started in "
                    f"{START_TIMEOUT_SECONDS:g} s; free are {ray.available_resources()}"
                )
            for reference in finished:
                number, actor = running.pop(reference)
                result = _get(reference)
                idle.append(actor)
                self._up.append(actor)
                if number is not None:
                    done[number] = result
                    result.save(self._path(units[number]))
                    self._mirror.push(self._path(units[number]))
                    progress(len(units[number].texts))
        return [done[index] for index in range(len(units))]

    def _path(self, unit: ScoringUnit) -> Path:
        return self._folder / f"{unit.name}.npz"

    def _start(self, num_units: int) -> None:
        total_cpus = float(ray.cluster_resources().get("CPU", 0))
        threads = self._cluster.threads_per_worker
        gpus = self._cluster.num_gpus_per_worker
        wanted = min(self._cluster.max_workers, num_units)
        size = min(wanted, int(total_cpus // threads))
        if size < 1:
            raise ResourceError(
                f"prompt: a worker needs {threads} CPUs and the cluster has {total_cpus:g}; "
                "lower cluster.threads_per_worker"
            )
        if size < wanted:
            logger.info("%d prompt workers instead of %d: the cluster has %g CPUs", size, wanted, total_cpus)
        remote = ray.remote(
            num_cpus=threads, num_gpus=gpus, max_restarts=2, max_task_retries=2, runtime_env={"env_vars": KEEP_MEMORY}
        )(PromptWorker)
        self._actors = [remote.remote(threads, self._batch_size, gpus > 0, self._mirror) for _ in range(size)]


def _get(reference: Any) -> Any:
    """The result of a task; our own errors as they were raised, Ray's as infrastructure's."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, FromzeroError):
            raise error.cause from None
        raise
    except ray.exceptions.RayActorError as error:
        raise InfrastructureError(f"prompt: a worker died and did not come back: {error}") from error
