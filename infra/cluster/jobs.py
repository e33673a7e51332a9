"""The jobs of a Ray cluster, through the Jobs API of its dashboard: submit once, join, follow, stop.

A submission is known by its id, and an id is taken once: Ray keeps it for as long as the cluster lives. So the first
attempt at a run takes the run's own id, and a later one, after that has ended, the id with `-2`, `-3`, ... Of several
submitters at once Ray accepts one; the others join it.

The token of a cluster with authentication is read from the environment by Ray itself (RAY_AUTH_MODE=token with
RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token) and goes into the header of each request, nowhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from infra.errors import ClusterLostError, InfrastructureError, UserError

REQUEST_SECONDS = 60.0
"""How long one answer may take; an upload of sources goes through the head's memory."""
LOST_SECONDS = 60.0
"""How long the dashboard may be away while a job is followed or waited for."""
POLL_SECONDS = 1.0
QUIET_SECONDS = 10.0
"""After so long without a line the dashboard is asked whether it is still there."""
MAX_ROUNDS = 20
PIPELINE, RUN, ROOT = "fromzero.pipeline", "fromzero.run", "fromzero.root"
"""Names in the metadata of a job."""
STOPPED_CODE = 130
"""Exit code of a run that was stopped, as of one that was interrupted."""
ENDED = ("STOPPED", "SUCCEEDED", "FAILED")
_CONFIG_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""How Ray hands a job's driver its metadata (2.60)."""
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """One job that was submitted by `fromzero submit`."""

    id: str
    pipeline: str
    run: str
    """The id of the run that it is an attempt at."""
    root: str | None
    """`storage.root`, where the submitter gave it."""
    status: str
    """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    started_at: float | None
    """Unix seconds."""
    ended_at: float | None
    exit_code: int | None
    """Of the driver, if it ended by itself."""
    message: str

    @property
    def has_ended(self) -> bool:
        """Whether nothing of it runs any more."""
        return self.status in ENDED

    @property
    def number(self) -> int:
        """Which attempt at its run it is, from 1."""
        return int(self.id.removeprefix(self.run).removeprefix("-") or 1)

    @property
    def code(self) -> int:
        """The exit code that stands for its end: that of the run, and 3 for one that was killed or never began."""
        if self.status == "SUCCEEDED":
            return 0
        if self.status == "STOPPED":
            return STOPPED_CODE
        return self.exit_code if self.exit_code in (1, 2, 3, STOPPED_CODE) else 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What to run as a job."""

    pipeline: str
    run: str
    """The submission id of its first attempt."""
    root: str | None
    entrypoint: str
    """A shell command."""
    variables: Mapping[str, str]
    """Of the environment of the driver and its workers; anybody who reaches the dashboard can read them."""


class Jobs:
    """The jobs of one cluster.

    Args:
        address: URL of the dashboard, such as http://127.0.0.1:8265; it goes before RAY_ADDRESS.

    Raises:
        UserError: no such URL, or the token is missing or wrong.
        InfrastructureError: nobody answers there.
    """

    def __init__(self, address: str) -> None:
        if not re.fullmatch(r"https?://[^\s/@]+(/\S*)?", address):
            raise UserError(
                f"--address: {address!r} is not allowed: the URL of the cluster's dashboard, without a password, "
                "such as http://127.0.0.1:8265"
            )
        self.address = address.rstrip("/")
        os.environ["RAY_API_SERVER_ADDRESS"] = self.address  # else RAY_ADDRESS goes before the argument (2.60)
        import ray
        from ray.job_submission import JobSubmissionClient

        for name in ("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk", "ray._private"):
            logging.getLogger(name).setLevel(logging.ERROR)  # each upload and each closed connection has a line

        class Client(JobSubmissionClient):  # type: ignore[misc]
            """Ray's, which waits for ever for an answer (2.60)."""

            def _do_request(self, method: str, endpoint: str, **more: Any) -> Any:
                return super()._do_request(method, endpoint, timeout=REQUEST_SECONDS, **more)

        with self._told():
            self._client = Client(self.address)
        self._ray = (ray.__version__, self._client._server_ray_version)

    def submissions(self) -> list[Submission]:
        """Those of `fromzero submit`, the newest first."""
        with self._told():
            jobs = self._client.list_jobs()
        found = [one for job in jobs if (one := _submission(job)) is not None]
        return sorted(found, key=lambda one: one.started_at or 0.0, reverse=True)

    def get(self, wanted: str) -> Submission:
        """The submission with the id `wanted`, or the one whose id begins so.

        Raises:
            UserError: there is none, or more than one; names those that there are.
        """
        every = self.submissions()
        found = [one for one in every if one.id == wanted] or [one for one in every if one.id.startswith(wanted)]
        if len(found) == 1:
            return found[0]
        there = ", ".join(one.id for one in found or every) or "none"
        what = f"{len(found)} submissions begin with {wanted}" if found else f"there is no submission {wanted}"
        raise UserError(f"{what} at {self.address}; there are: {there}")

    def submit(self, request: Request, sources: Path | None) -> tuple[Submission, bool]:
        """(the submission that works on `request`, whether it is new).

        Args:
            request: what to run.
            sources: a folder that every node of the cluster is to have as the working directory.

        Raises:
            UserError: the cluster has another version of Ray.
            InfrastructureError: the cluster does not take it.
        """
        ours, theirs = self._ray
        if ours != theirs:
            raise UserError(
                f"{self.address} runs Ray {theirs}, this is Ray {ours}: a driver joins its own version alone"
            )
        for _ in range(MAX_ROUNDS):
            attempts = [one for one in self.submissions() if one.run == request.run]
            going_on = next((one for one in attempts if not one.has_ended), None)
            if going_on is not None:
                return going_on, False
            number = max((one.number for one in attempts), default=0) + 1
            name = request.run if number == 1 else f"{request.run}-{number}"
            if self._submit(name, request, sources):
                return self.get(name), True
        raise InfrastructureError(f"{self.address}: {MAX_ROUNDS} submissions of {request.run} ended before one began")

    def _submit(self, name: str, request: Request, sources: Path | None) -> bool:
        """Whether the job was taken; not if another submitter was faster."""
        runtime_env: dict[str, Any] = {"env_vars": dict(request.variables)}
        if sources is not None:
            runtime_env["working_dir"] = str(sources)
        metadata = {PIPELINE: request.pipeline, RUN: request.run}
        if request.root is not None:
            metadata[ROOT] = request.root
        with self._told():
            try:
                self._client.submit_job(
                    entrypoint=request.entrypoint, submission_id=name, runtime_env=runtime_env, metadata=metadata
                )
            except RuntimeError as error:
                if "already exists" in str(error):
                    return False
                raise
        return True

    def follow(self, name: str, show: Callable[[str], None]) -> Submission:
        """Shows what the job prints, from its first line to its last; returns it at its end.

        Raises:
            ClusterLostError: the dashboard was away for too long.
        """
        shown = 0

        def fresh(skip: int, text: str) -> int:
            """Shows `text` from `skip` characters on, which were shown before; returns how many are left to skip."""
            nonlocal shown
            if skip < len(text):
                show(text[skip:])
                shown += len(text) - skip
            return max(0, skip - len(text))

        while True:
            whole = self._tailed(name, shown, fresh)
            one = self._patiently(lambda: self.get(name))
            if not whole:  # it broke off, or a proxy lets no such connection through
                with contextlib.suppress(InfrastructureError), self._told():
                    fresh(shown, self._client.get_job_logs(name))
            if one.has_ended:
                return one
            time.sleep(POLL_SECONDS)

    def _tailed(self, name: str, skip: int, fresh: Callable[[int, str], int]) -> bool:
        """Shows what the job prints after `skip` characters; whether to the end of it."""
        try:
            asyncio.run(self._tail(name, skip, fresh))
        except BrokenPipeError:  # nobody reads us any more
            raise
        except _away():
            return False
        return True

    async def _tail(self, name: str, skip: int, fresh: Callable[[int, str], int]) -> None:
        """One connection, which begins with the first line again; returns when it ends, by itself or by a fault."""
        tail = self._client.tail_job_logs(name)
        waiting: asyncio.Future[str | None] | None = None
        try:
            while True:
                waiting = waiting or asyncio.ensure_future(anext(tail, None))
                if not (await asyncio.wait({waiting}, timeout=QUIET_SECONDS))[0]:
                    await asyncio.to_thread(self._client.get_job_info, name)
                    continue
                text, waiting = waiting.result(), None
                if text is None:
                    return
                skip = fresh(skip, text)
        finally:
            if waiting is not None:
                waiting.cancel()

    def stop(self, name: str, patience_seconds: float) -> Submission:
        """Asks the job to end as SIGTERM does, and waits for its end.

        Raises:
            InfrastructureError: it did not end in time.
        """
        with self._told():
            self._client.stop_job(name)
        deadline = time.monotonic() + patience_seconds
        while not (one := self._patiently(lambda: self.get(name))).has_ended:
            if time.monotonic() > deadline:
                raise InfrastructureError(f"{name} has not ended {patience_seconds:g} s after it was told to stop")
            time.sleep(POLL_SECONDS)
        return one

    def _patiently(self, ask: Callable[[], T]) -> T:
        """The answer to `ask`, asked again while the dashboard is away.

        Raises:
            ClusterLostError: it was away for too long.
        """
        since = time.monotonic()
        while True:
            try:
                return ask()
            except InfrastructureError as error:
                if time.monotonic() - since > LOST_SECONDS:
                    raise ClusterLostError(
                        f"{self.address} has not answered for {LOST_SECONDS:g} s ({error}); the job goes on if its "
                        "cluster does: submit again to follow it"
                    ) from error
                time.sleep(POLL_SECONDS)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Makes one clear line of what Ray's client raises."""
        from ray.exceptions import AuthenticationError

        faults: tuple[type[Exception], ...] = (*_away(), ValueError)
        try:
            yield
        except AuthenticationError as error:
            raise UserError(
                f"{self.address}: {'the token is missing' if 'required' in error.message else 'the token is wrong'}; "
                "set RAY_AUTH_MODE=token and the cluster's token in RAY_AUTH_TOKEN, or its file in RAY_AUTH_TOKEN_PATH"
            ) from error
        except ConnectionError as error:
            raise InfrastructureError(
                f"{self.address} does not answer; is it the URL of the cluster's dashboard, and reachable from here?"
            ) from error
        except faults as error:
            raise InfrastructureError(f"{self.address}: {' '.join(str(error).split())[:500]}") from error


def own_submission() -> str | None:
    """The submission id of the job whose driver this process is; None where it is none."""
    with contextlib.suppress(ValueError, AttributeError):
        name = json.loads(os.environ.get(_CONFIG_VARIABLE, "{}")).get("metadata", {}).get("job_submission_id")
        return str(name) if name else None
    return None


def _away() -> tuple[type[Exception], ...]:
    """What is raised where a dashboard does not answer, or breaks off."""
    import aiohttp

    return (OSError, RuntimeError, aiohttp.ClientError)


def _submission(job: Any) -> Submission | None:
    metadata = job.metadata or {}
    if not job.submission_id or RUN not in metadata:
        return None
    return Submission(
        id=job.submission_id,
        pipeline=metadata.get(PIPELINE, "?"),
        run=metadata[RUN],
        root=metadata.get(ROOT),
        status=str(job.status),
        started_at=job.start_time / 1000 if job.start_time else None,
        ended_at=job.end_time / 1000 if job.end_time else None,
        exit_code=job.driver_exit_code,
        message=job.message or "",
    )
