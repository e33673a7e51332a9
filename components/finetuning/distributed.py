"""The sweep on Ray Tune: one Tuner runs every unit of every sweep, and its search algorithm holds the barriers.

The units that may run next come from the pure functions in `sweep.py`; Tune gives them processes. One Tuner for all
rungs and final fits, with re-used actors, pays the 5 to 10 s of imports once a process and not once a rung. Tune's own
checkpoints and restore are not used (they unpickle): finished units lie in `job.units`, and a later attempt starts
with those. On a cluster that folder must be on storage that every node sees, or in a root on an object store.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.search import Searcher

from components.finetuning.sweep import Sweep, Unit, ready_units, superseded, workload
from components.finetuning.trial import Job, run_unit
from components.finetuning.units import UnitResult, drop_state, finished, read_result
from infra.cluster.environment import variables
from infra.errors import FromzeroError, InfrastructureError
from infra.tracking.client import StepTracker
from infra.tracking.records import TrialRecord

logger = logging.getLogger(__name__)

REPORT_SECONDS = 1.0
TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no CSV, JSON and TensorBoard copies of what result.json has
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
}


class UnitTrainable(tune.Trainable):  # type: ignore[misc]
    """Runs one unit; a call of `step` trains for about a second, so that progress is seen while it runs."""

    def setup(self, config: dict[str, Any]) -> None:
        """Starts the unit named in `config`."""
        import torch

        job: Job = config["job"]
        torch.set_num_threads(job.config.cluster.threads_per_worker)
        self._work = run_unit(job, config["unit"])

    def step(self) -> dict[str, Any]:
        """Trains on, at most for a second; says how many examples that was."""
        start, examples = time.monotonic(), 0
        for done in self._work:
            examples += done
            if time.monotonic() - start > REPORT_SECONDS:
                return {"examples": examples, tune.result.DONE: False}
        return {"examples": examples, tune.result.DONE: True}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Takes the next unit in the same process."""
        self.setup(new_config)
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any] | None:
        """Nothing: the unit saves itself."""
        return {}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Nothing: a unit goes on from what an earlier unit saved."""


class UnitSearcher(Searcher):  # type: ignore[misc]
    """Hands out units as they become ready, and none while a barrier holds.

    Args:
        job: what all units share.
        sweeps: the sweeps.
        results: units finished by an earlier attempt, by name.
        tracker: gets trials and progress.
    """

    def __init__(
        self, job: Job, sweeps: Sequence[Sweep], results: Mapping[str, UnitResult], tracker: StepTracker
    ) -> None:
        super().__init__(metric="examples", mode="max")
        self.job = job
        self.sweeps = tuple(sweeps)
        self.results = dict(results)
        self.running: dict[str, Unit] = {}
        self.tracker = tracker
        self.workload = workload(sweeps)
        self.examples_done = float(sum(result.num_texts_own for result in results.values()))

    @property
    def metrics(self) -> dict[str, float]:
        """The metric that selects, of every finished unit."""
        return selection_metrics(self.job, self.results)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The longest unit that is ready; None while all that is left waits for a rung to end."""
        metrics = self.metrics
        busy = {unit.name for unit in self.running.values()}
        ready = [unit for sweep in self.sweeps for unit in ready_units(sweep, metrics) if unit.name not in busy]
        if ready:
            unit = max(ready, key=lambda unit: unit.until_step * unit.hyperparameters.batch_size)
            self.running[trial_id] = unit
            return {"job": self.job, "unit": unit}
        return None if busy else Searcher.FINISHED

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Counts progress."""
        self.examples_done += result.get("examples", 0)
        self.tracker.progress(min(self.examples_done, self.workload), self.workload, "examples")

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Takes up what the unit found; drops states that nothing goes on from."""
        unit = self.running.pop(trial_id)
        if error:
            return
        self.results[unit.name] = self._read(unit)
        sweep = next(sweep for sweep in self.sweeps if (sweep.init, sweep.budget) == (unit.init, unit.budget))
        self.tracker.log_trial(trial_record(sweep, unit, self.results))
        for name in superseded(sweep, self.metrics):
            drop_state(self.job.units / name, self.job.mirror)

    def _read(self, unit: Unit) -> UnitResult:
        """What a unit found, on whichever machine."""
        self.job.mirror.pull(self.job.units / unit.name)
        return read_result(self.job.units / unit.name)

    def save(self, checkpoint_path: str) -> None:
        """Writes nothing: finished units are the state."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Never used."""
        raise FromzeroError("a sweep goes on from its finished units, not from a checkpoint of Tune")


def run_sweeps(job: Job, sweeps: Sequence[Sweep], work: Path, tracker: StepTracker) -> dict[str, UnitResult]:
    """Runs every unit of `sweeps` that is not finished yet; all results by name.

    Args:
        job: what all units share; `job.units` holds finished units.
        sweeps: the sweeps.
        work: a folder for what Tune itself writes; emptied.
        tracker: gets trials and progress.

    Raises:
        FromzeroError: what a unit raised.
        InfrastructureError: a process of the sweep died.
    """
    job.units.mkdir(parents=True, exist_ok=True)
    results = _resume(job, sweeps)
    searcher = UnitSearcher(job, sweeps, results, tracker)
    if not any(ready_units(sweep, searcher.metrics) for sweep in sweeps):
        return results
    shutil.rmtree(work, ignore_errors=True)
    cluster = job.config.cluster
    resources: dict[str, float] = {"cpu": cluster.threads_per_worker}
    if cluster.num_gpus_per_worker:
        resources["gpu"] = cluster.num_gpus_per_worker
    limit = max(1, int(ray.cluster_resources().get("CPU", 1) // cluster.threads_per_worker))
    _keep_secrets()
    with variables(TUNE_ENVIRONMENT):
        grid = tune.Tuner(
            tune.with_resources(UnitTrainable, resources),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                num_samples=sum(sweep.num_units for sweep in sweeps) + 1,
                max_concurrent_trials=job.config.trials_concurrency or limit,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(work.resolve()),
                verbose=0,
                failure_config=tune.FailureConfig(fail_fast=True),
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            ),
        ).fit()
    _raise_first(grid.errors)
    results = _resume(job, sweeps)
    left = [unit.name for sweep in sweeps for unit in ready_units(sweep, selection_metrics(job, results))]
    if left:
        raise InfrastructureError(f"the sweep ended before {', '.join(left)} had run; run again to go on from there")
    return results


def trial_record(sweep: Sweep, unit: Unit, results: Mapping[str, UnitResult]) -> TrialRecord:
    """A trial of the sweep or a final fit as MLflow shows it: one run, however many rungs it went through."""
    result = results[unit.name]
    stopped = unit.rung is not None and unit.rung + 1 < sweep.num_rungs
    return TrialRecord(
        trial_id=f"{sweep.name}_trial{unit.trial}" if unit.rung is not None else unit.name,
        parameters={
            **unit.hyperparameters.as_dict(),
            "init": unit.init,
            "label_budget": str(unit.budget),
            "seed_index": unit.seed_index,
            "trial": unit.trial,
            "kind": "trial" if unit.rung is not None else "final",
        },
        history=result.history,
        status="failed" if result.diverged else "stopped" if stopped else "finished",
    )


def selection_metrics(job: Job, results: Mapping[str, UnitResult]) -> dict[str, float]:
    """The validation metric that selects, of every unit in `results`."""
    name = f"validation_{job.config.selection_metric}"
    return {unit: result.metrics[name] for unit, result in results.items()}


def _resume(job: Job, sweeps: Sequence[Sweep]) -> dict[str, UnitResult]:
    """Finished units that verify, found by asking again and again what would be ready."""
    results: dict[str, UnitResult] = {}
    for sweep in sweeps:
        while True:
            ready = ready_units(sweep, selection_metrics(job, results))
            found = {unit.name: finished(job.units / unit.name, unit, job.mirror) for unit in ready}
            known = {name: result for name, result in found.items() if result is not None}
            if not known:
                break
            results |= known
    return results


def _keep_secrets() -> None:
    """Ray Tune (2.60) puts AWS credentials into the runtime_env of its trials, which Ray logs; they have them from the
    environment of their machine."""
    from ray.tune.execution import class_cache

    for name in [name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")]:
        class_cache.ENV_VARS_TO_PROPAGATE.discard(name)


def _raise_first(errors: Sequence[BaseException]) -> None:
    """Raises the first trial's own error, if there is one."""
    for error in errors:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, FromzeroError):
                raise cause
            cause = getattr(cause, "cause", None) or cause.__cause__
    if errors:
        died = isinstance(errors[0], ray.exceptions.RayActorError)
        if died:
            raise InfrastructureError(f"a process of the sweep died: {errors[0]}") from errors[0]
        raise errors[0]
