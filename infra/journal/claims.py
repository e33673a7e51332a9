"""Locks on step keys on a cluster: what `lock.claimed` is on one machine, for drivers on any of its nodes.

One detached actor for the whole cluster, which holds no resources, knows who makes what. A holder is a Ray job: Ray
knows when a driver is gone or its node is, and with it goes what it held. Who holds what is written to the head's
store, so an actor that dies with its node starts again elsewhere and knows it still.

The locks on files are held too, because they also keep off runs outside this cluster, where the root's file system
carries flock. Two clusters on one object store are not protected from each other; what saves the work there is that
an artifact becomes visible whole, under a key that says what it is.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from infra.cluster.jobs import own_submission
from infra.errors import InfrastructureError, LockedError
from infra.journal.process import ProcessIdentity

NAME, NAMESPACE = "fromzero-claims-1", "fromzero"
"""The number is that of what the actor understands: it outlives the run, and the version, that started it."""
ANSWER_SECONDS = 120.0
"""How long a claim may take: the actor may have to start, on a busy machine, or again, when its node has died."""
RELEASE_SECONDS = 10.0


class ClaimsActor:
    """Who makes what. Calls come one after the other."""

    def claim(self, wanted: Sequence[str], holder: Mapping[str, str]) -> tuple[str, dict[str, str]] | None:
        """Claims all of `wanted` for `holder`, or none.

        Args:
            wanted: names of what is to be made.
            holder: `run`, `job` (Ray's id of the driver's job) and words about it.

        Returns:
            None, or the first of them that another run holds, and its holder.
        """
        held = self._living()
        for name in wanted:
            if name in held and held[name]["run"] != holder["run"]:
                return name, held[name]
        self._save(held | {name: dict(holder) for name in wanted})
        return None

    def release(self, run: str) -> None:
        """Lets go of all that `run` holds."""
        self._save({name: holder for name, holder in self._living().items() if holder["run"] != run})

    def _living(self) -> dict[str, dict[str, str]]:
        """What is held by jobs that are not over."""
        from ray._private.worker import global_worker
        from ray.experimental.internal_kv import _internal_kv_get

        held: dict[str, dict[str, str]] = json.loads(_internal_kv_get(NAME, namespace=NAMESPACE) or b"{}")
        jobs = global_worker.gcs_client.get_all_job_info()
        living = {job.hex() for job, info in jobs.items() if not info.is_dead}
        return {name: holder for name, holder in held.items() if holder["job"] in living}

    def _save(self, held: Mapping[str, Mapping[str, str]]) -> None:
        from ray.experimental.internal_kv import _internal_kv_put

        _internal_kv_put(NAME, json.dumps(held).encode(), overwrite=True, namespace=NAMESPACE)


@contextlib.contextmanager
def claimed_on_cluster(root: str, steps: Iterable[tuple[str, str]], run: str) -> Iterator[None]:
    """Claims every (step, key) for this process on the cluster that it has joined, or none.

    Args:
        root: its path or URI.
        steps: what is to be made.
        run: our own id of the run.

    Raises:
        LockedError: another run makes one of them; names the step and the run's process.
        InfrastructureError: the cluster does not answer.
    """
    import ray

    names = {f"{root}/{step}/{key}": f"{step} {key[:12]}" for step, key in sorted(steps)}
    holder = {
        "run": run,
        "job": ray.get_runtime_context().get_job_id(),
        "told": f"{ProcessIdentity.current()} (run {run}{_submission()})",
    }
    actor: Any = (
        ray.remote(ClaimsActor)
        .options(
            name=NAME,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=-1,
        )
        .remote()
    )
    try:
        refused = ray.get(actor.claim.remote(list(names), holder), timeout=ANSWER_SECONDS)
    except ray.exceptions.RayError as error:
        raise InfrastructureError(f"the locks of the cluster do not answer: {type(error).__name__}: {error}") from error
    if refused:
        name, other = refused
        raise LockedError(f"{names[name]} is being made by {other['told']}; wait for it, or stop it, then run again")
    try:
        yield
    finally:
        with contextlib.suppress(Exception):  # they are let go with the job all the same
            ray.get(actor.release.remote(run), timeout=RELEASE_SECONDS)


def _submission() -> str:
    name = own_submission()
    return f", submission {name}" if name else ""
