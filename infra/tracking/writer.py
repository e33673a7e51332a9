"""The only code that calls MLflow to write. Every message carries our own id and is looked up before it is created,
so a message that is delivered twice changes nothing.

Messages (`kind`, and `id` = our own id of the run it belongs to):

    run        parent_id, name, start_time, tags, parameters      a run, if there is none with this id
    metrics    points: [[key, value, step, milliseconds], ...]    those at a step where the run has none of this key
    tags       tags
    datasets   datasets: [{name, digest, context, source,         inputs of the run; num_rows may be missing
                           num_rows}, ...]
    file       path, folder                                       a small artifact
    text       text, name                                         the same from a string
    table      text, name                                         the same of a table, which MLflow's page shows as one
    lineage    lineage, about                                     `lineage.json` and `lineage.html` of the run
    model      record, path, key, lineage                         a LoggedModel; registered if the record says so
    prompt     record, key                                        a version of a registered prompt
    repair     key, messages, keeps_aliases                       these, if no finished run has this key; else what
                                                                  its models lack: themselves, their aliases
    kill       end_time                                           ends it and what is below it, where still running
    end        status, end_time
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from infra.errors import FromzeroError, StorageError
from infra.storage.manifest import check_artifact
from infra.tracking.flavor import link_model_folder
from infra.tracking.lineage import Lineage
from infra.tracking.page import render
from infra.tracking.records import ModelRecord, PromptRecord

logger = logging.getLogger(__name__)
ID_TAG = "fromzero.id"
KEY_TAG = "fromzero.key"
URI_TAG = "fromzero.artifact_uri"
IS_PROMPT_TAG = "mlflow.prompt.is_prompt"
PROMPT_EXPERIMENTS_TAG = "_mlflow_experiment_ids"
"""By which MLflow's page of an experiment finds its prompts."""
TABLES_TAG = "mlflow.loggedArtifacts"
"""By which MLflow's page, and `load_table`, find the tables of a run."""
UI_URL = "http://127.0.0.1:5000"
"""Where `fromzero ui` serves a local store."""
MAX_BATCH = 1000
MAX_VALUE_LENGTH = 5000


class Writer:
    """Applies messages to one MLflow server or database."""

    def __init__(self, uri: str, experiment: str, artifact_location: str | None) -> None:
        import mlflow
        from mlflow import MlflowClient

        # MLflow's own retries repeat a creation whose answer was lost, and so make a second one. Ours look first.
        os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        self.uri = uri
        self.client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        self.experiment_id = self._experiment(experiment, artifact_location)
        self.run_ids: dict[str, str] = {}
        """MLflow run id by our own id, as far as met."""
        self._points: dict[str, set[tuple[str, int]]] = {}
        """Name and step of all points of a run, by MLflow's id, as far as looked up."""

        self._killed: dict[str, int] = {}
        """When runs were found dead; the tracker of one may outlive its driver, and tell more after that."""

    def forget(self) -> None:
        """Drops what is known of the points of runs: another process has written since."""
        self._points.clear()

    def apply(self, message: Mapping[str, Any]) -> None:
        """Delivers one message.

        Raises:
            MlflowException: MLflow did not take it.
        """
        getattr(self, f"_{message['kind']}")(message)

    def find_run(self, own_id: str) -> str | None:
        """MLflow's id of the run that carries our id."""
        if own_id not in self.run_ids:
            found = self.client.search_runs([self.experiment_id], f"tags.`{ID_TAG}` = '{own_id}'", max_results=1)
            if not found:
                return None
            self.run_ids[own_id] = found[0].info.run_id
        return self.run_ids[own_id]

    def find_step(self, key: str) -> str | None:
        """MLflow's id of a finished run of the step with this key."""
        query = f"tags.`{KEY_TAG}` = '{key}' and attributes.status = 'FINISHED'"
        found = self.client.search_runs([self.experiment_id], query, max_results=1)
        return str(found[0].info.run_id) if found else None

    def _run_id(self, message: Mapping[str, Any]) -> str:
        run_id = self.find_run(message["id"])
        if run_id is None:  # its own message comes later, or was lost; the rest is worth having all the same
            started = min((time_ms for *_, time_ms in message.get("points", ())), default=message.get("start_time"))
            run_id = self._create_run(message["id"], started, {}, message["id"])
        return run_id

    def _experiment(self, name: str, artifact_location: str | None) -> str:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                kind = {"mlflow.experimentKind": "custom_model_development"}  # its pages open on runs, not on traces
                return str(self.client.create_experiment(name, artifact_location=artifact_location, tags=kind))
            except MlflowException:  # another process made it at the same moment
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _run(self, message: Mapping[str, Any]) -> None:
        own_id = message["id"]
        tags, started = dict(message["tags"]), message.get("start_time")
        if message.get("parent_id"):
            tags["mlflow.parentRunId"] = self._run_id({"id": message["parent_id"], "start_time": started})
        run_id = self.find_run(own_id)
        if run_id is None:
            self._create_run(own_id, started, tags, message["name"])
        else:  # made by an earlier delivery, or by a message that came before this one; MLflow keeps that start time
            self.client.update_run(run_id, name=message["name"])
            self._tags({"id": own_id, "tags": tags})
        self._parameters(message)

    def _create_run(self, own_id: str, start_time_ms: int | None, tags: Mapping[str, str], name: str) -> str:
        run = self.client.create_run(
            self.experiment_id, start_time=start_time_ms, tags={**tags, ID_TAG: own_id}, run_name=name
        )
        self.run_ids[own_id] = str(run.info.run_id)
        self._points[self.run_ids[own_id]] = set()
        if (end_time := self._killed.get(own_id.partition("/")[0])) is not None:
            self.client.set_terminated(self.run_ids[own_id], "KILLED", end_time)
        return self.run_ids[own_id]

    def _parameters(self, message: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        items = [Param(name, str(value)[:MAX_VALUE_LENGTH]) for name, value in message["parameters"].items()]
        for start in range(0, len(items), 100):
            self.client.log_batch(self._run_id(message), params=items[start : start + 100])

    def _metrics(self, message: Mapping[str, Any]) -> None:
        """A resumed training sends some points again, and so does whoever repairs a run, with another time of day."""
        from mlflow.entities import Metric

        run_id = self._run_id(message)
        known = self._known_points(run_id)
        new = {(key, step): Metric(key, value, at, step) for key, value, step, at in reversed(message["points"])}
        points = [metric for point, metric in reversed(new.items()) if point not in known]
        for start in range(0, len(points), MAX_BATCH):
            batch = points[start : start + MAX_BATCH]
            self.client.log_batch(run_id, metrics=batch)
            known |= {(metric.key, metric.step) for metric in batch}

    def _remade(self, message: Mapping[str, Any]) -> None:
        """Steps made again after a rollback: MLflow forgets no point, so the new one stands after the undone one."""
        from mlflow.entities import Metric

        run_id = self._run_id(message)
        new = [
            Metric(key, value, at, step)
            for key, value, step, at in message["points"]
            if value not in self._values(run_id, key, step)
        ]
        if new:
            self.client.log_batch(run_id, metrics=new)
        self._known_points(run_id).update((metric.key, metric.step) for metric in new)

    def _values(self, run_id: str, name: str, step: int) -> list[float]:
        """Those of one metric at one step."""
        return [point.value for point in self.client.get_metric_history(run_id, name) if point.step == step]

    def _known_points(self, run_id: str) -> set[tuple[str, int]]:
        """Name and step of every point that the run has."""
        if run_id not in self._points:
            names = self.client.get_run(run_id).data.metrics
            self._points[run_id] = {
                (name, point.step) for name in names for point in self.client.get_metric_history(run_id, name)
            }
        return self._points[run_id]

    def _tags(self, message: Mapping[str, Any]) -> None:
        from mlflow.entities import RunTag

        tags = [RunTag(name, str(value)[:MAX_VALUE_LENGTH]) for name, value in message["tags"].items()]
        self.client.log_batch(self._run_id(message), tags=tags)

    def _datasets(self, message: Mapping[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = []
        for told in message["datasets"]:
            tags, profile = [InputTag("mlflow.data.context", told["context"])], None
            if told.get("num_rows") is not None:  # the profile is what MLflow shows, and that of the first run stays
                tags.append(InputTag("num_rows", str(told["num_rows"])))
                profile = json.dumps({"num_rows": told["num_rows"]})
            source = json.dumps({"uri": told["source"]})
            dataset = Dataset(told["name"], told["digest"], source_type="local", source=source, profile=profile)
            inputs.append(DatasetInput(dataset, tags=tags))
        self.client.log_inputs(self._run_id(message), datasets=inputs)

    def _file(self, message: Mapping[str, Any]) -> None:
        path, folder = Path(message["path"]), message["folder"] or None
        if path.is_dir():
            self.client.log_artifacts(self._run_id(message), str(path), folder)
        elif path.exists():
            self.client.log_artifact(self._run_id(message), str(path), folder)
        else:
            logger.warning("%s is gone before it was delivered to MLflow", path)

    def _text(self, message: Mapping[str, Any]) -> None:
        self.client.log_text(self._run_id(message), message["text"], message["name"])

    def _table(self, message: Mapping[str, Any]) -> None:
        """What `log_table` of MLflow 3.17 leaves, which reads the table back to append to it: this one comes whole."""
        self._text(message)
        run = self.client.get_run(self._run_id(message))
        told, entry = json.loads(run.data.tags.get(TABLES_TAG, "[]")), {"path": message["name"], "type": "table"}
        if entry not in told:
            self._tags({"id": message["id"], "tags": {TABLES_TAG: json.dumps([*told, entry])}})

    def _lineage(self, message: Mapping[str, Any]) -> None:
        lineage = self.linked(Lineage.from_dict(message["lineage"]))
        run_id = self._run_id(message)
        self.client.log_text(run_id, json.dumps(lineage.to_dict(), ensure_ascii=False, indent=1), "lineage.json")
        self.client.log_text(run_id, render(lineage, about=message["about"]), "lineage.html")

    def linked(self, lineage: Lineage) -> Lineage:
        """The lineage with the MLflow page of every step that has a run, on the models and prompts that it made too."""
        server = self.uri if self.uri.startswith("http") else UI_URL
        runs = {node.id: self.find_step(str(node.facts["key"])) for node in lineage.nodes if node.kind == "step"}
        kinds = {node.id: node.kind for node in lineage.nodes}
        runs |= {to: runs.get(step) for step, to in lineage.edges if kinds[to] in ("model", "prompt")}
        page = f"{server}/#/experiments/{self.experiment_id}/runs/"
        return lineage.with_facts({node: {"mlflow_url": page + run} for node, run in runs.items() if run})

    def _model(self, message: Mapping[str, Any], *, register: bool = True, keeps_alias: bool = False) -> None:
        record = ModelRecord.model_validate(message["record"])
        run_id, own_id = self._run_id(message), f"{message['key']}/{record.path}"
        tags = {
            ID_TAG: own_id,
            KEY_TAG: message["key"],
            URI_TAG: message.get("uri", message["path"]),
            "task": record.task,
        }
        model_id, is_ready = self._find_model(own_id)
        if not is_ready:
            if model_id is None:
                model = self.client.create_logged_model(
                    self.experiment_id, record.name, run_id, tags, dict(record.parameters), record.task
                )
                model_id = str(model.model_id)
            if record.registered_name:
                self._upload(model_id, record, Path(message["path"]), message["key"])
            self._link_output(run_id, model_id)
            self._model_metrics(run_id, model_id, record, message["time"])
            self.client.finalize_logged_model(model_id, "READY")
        if record.registered_name and register:
            self._register(record, str(model_id), run_id, tags, keeps_alias)

    def _find_model(self, own_id: str) -> tuple[str | None, bool]:
        """The LoggedModel with our id, and whether its delivery came to its end."""
        query = f"tags.`{ID_TAG}` = '{own_id}'"  # 3.17 takes a status in the query, and finds nothing by it
        found = self.client.search_logged_models([self.experiment_id], query)
        ready = [str(model.model_id) for model in found if model.status.value == "READY"]
        begun = [str(model.model_id) for model in found]
        return (ready[0], True) if ready else (begun[0] if begun else None, False)

    def _upload(self, model_id: str, record: ModelRecord, path: Path, key: str) -> None:
        files = check_artifact(path, key)
        if files is None or not path.is_dir():
            raise StorageError(f"{path} is gone before it was delivered to MLflow")
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "model"
            link_model_folder(path, files, target, record.task)
            self.client.log_model_artifacts(model_id, str(target))

    def _link_output(self, run_id: str, model_id: str) -> None:
        from mlflow.entities import LoggedModelOutput

        outputs = self.client.get_run(run_id).outputs
        if not any(output.model_id == model_id for output in (outputs.model_outputs if outputs else ())):
            self.client.log_outputs(run_id, [LoggedModelOutput(model_id, 0)])  # a second time it is an error

    def _model_metrics(self, run_id: str, model_id: str, record: ModelRecord, time_ms: int) -> None:
        for key, value in record.metrics.items():
            self.client.log_metric(run_id, f"model_{key}", value, timestamp=time_ms, step=0, model_id=model_id)

    def _register(
        self, record: ModelRecord, model_id: str, run_id: str, tags: Mapping[str, str], keeps_alias: bool
    ) -> None:
        name = str(record.registered_name)
        self._ensure(self.client.create_registered_model, name)
        versions = self.client.search_model_versions(f"name = '{name}' and tags.`{ID_TAG}` = '{tags[ID_TAG]}'")
        version = versions[0] if versions else None
        if version is None:
            version = self.client.create_model_version(
                name, f"models:/{model_id}", run_id, tags=dict(tags), model_id=model_id
            )
        if record.alias and not (keeps_alias and record.alias in self.client.get_registered_model(name).aliases):
            self.client.set_registered_model_alias(name, record.alias, version.version)

    def _prompt(self, message: Mapping[str, Any]) -> None:
        record = PromptRecord.model_validate(message["record"])
        own_id = f"{message['key']}/{record.name}"
        # Not `register_prompt`: after a lost answer it deletes the prompt that it has just made (MLflow 3.17).
        self._ensure(self.client.create_prompt, record.name, tags={PROMPT_EXPERIMENTS_TAG: f",{self.experiment_id},"})
        query = f"name = '{record.name}' and tags.`{IS_PROMPT_TAG}` = 'true' and tags.`{ID_TAG}` = '{own_id}'"
        versions = self.client.search_model_versions(query)
        if versions:
            version = versions[0].version
        else:
            tags = {**record.tags, ID_TAG: own_id, KEY_TAG: message["key"]}
            version = self.client.create_prompt_version(record.name, record.template, tags=tags).version
        self.client.link_prompt_version_to_run(self._run_id(message), f"prompts:/{record.name}/{version}")

    def _ensure(self, create: Callable[..., Any], name: str, **options: Any) -> None:
        """Creates what has this name, if there is nothing yet."""
        from mlflow.exceptions import MlflowException

        try:
            create(name, **options)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _repair(self, message: Mapping[str, Any]) -> None:
        run_id, keeps = self.find_step(message["key"]), bool(message.get("keeps_aliases"))
        if run_id is None:
            for inner in message["messages"]:
                self._model(inner, keeps_alias=keeps) if inner["kind"] == "model" else self.apply(inner)
            self._close_unknown(message["id"].partition("/")[0], message["messages"][-1]["end_time"])
            return
        self.run_ids[message["id"]] = run_id
        for inner in message["messages"]:
            if inner["kind"] == "model":  # a version that somebody deleted does not come back without an alias
                self._model(inner, register=bool(inner["record"]["alias"]), keeps_alias=keeps)

    def _close_unknown(self, own_id: str, end_time_ms: int) -> None:
        """Closes the pipeline run of a step if nothing is known of it here but that it made the step: it is over."""
        run_id = self._run_id({"id": own_id})
        run = self.client.get_run(run_id)
        if run.info.status == "RUNNING" and run.info.run_name == own_id:
            self.client.set_terminated(run_id, "FINISHED", end_time_ms)

    def _kill(self, message: Mapping[str, Any]) -> None:
        self._killed[message["id"]] = message["end_time"]
        query = f"tags.`{ID_TAG}` LIKE '{message['id']}%' and attributes.status = 'RUNNING'"
        while found := self.client.search_runs([self.experiment_id], query, max_results=100):
            for run in found:
                self.client.set_terminated(run.info.run_id, "KILLED", message["end_time"])

    def _end(self, message: Mapping[str, Any]) -> None:
        self.client.set_terminated(self._run_id(message), message["status"], message["end_time"])


def is_permanent(error: Exception) -> bool:
    """Whether MLflow will refuse the same message for ever, so that waiting is no use."""
    from pydantic import ValidationError

    code = getattr(error, "error_code", None)
    if code == "BAD_REQUEST":  # MLflow's word for all that a database says, "connection already closed" included
        return "IntegrityError" in str(error) or "DataError" in str(error)
    ours = FromzeroError | ValidationError | AttributeError | TypeError | KeyError
    return code in ("INVALID_PARAMETER_VALUE", "INVALID_STATE") or isinstance(error, ours)
