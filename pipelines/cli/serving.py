"""`predict`, `ui` and `sync`."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from typing import NoReturn

from rich.table import Table

from infra.cluster.environment import apply, run_environment
from infra.errors import InfrastructureError, UserError
from infra.journal import runs
from infra.journal.lock import working
from infra.storage.store import Store
from infra.tracking.locations import destination
from pipelines.cli.output import emit_json, guarded, say, stdout_console
from pipelines.compose import load_config
from pipelines.config import PipelineConfig
from pipelines.session import deliver, latest_and_past
from pipelines.signals import terminable


def predict_command(arguments: list[str], model: str | None, *, as_json: bool) -> NoReturn:
    """Classifies texts, or the lines of standard input, with the champion.

    An argument that begins with a key of the config and `=` is a setting; such a text can come by standard input.
    """

    def work() -> int:
        key = re.compile(rf"({'|'.join(PipelineConfig.model_fields)})(\.[a-z_]+)*=")
        settings = [argument for argument in arguments if key.match(argument)]
        texts = [argument for argument in arguments if argument not in settings]
        config = load_config("llm", settings)
        given = texts if texts else [line.rstrip("\r\n") for line in _standard_input() if line.strip()]
        if not given:
            raise UserError("nothing to classify: give texts as arguments, or a text a line on standard input")
        store = Store.open(config.storage.root, config.storage.local)
        apply(run_environment())
        from components.corpus.normalise import clean
        from components.finetuning.predict import Classifier
        from infra.tracking.champion import find_champion

        target = destination(config.tracking, store.root)
        champion = find_champion(target, model or config.finetune.registered_model, root=store.root)
        empty = [str(number) for number, text in enumerate(given, start=1) if not clean(text)]
        if empty:
            raise UserError(f"nothing to classify in text {', '.join(empty)}: it is empty")
        predictions = Classifier.load(champion.folder).predict(given)
        if as_json:
            emit_json(
                {
                    "model": champion.name,
                    "version": champion.version,
                    "key": champion.key,
                    "errors": [],
                    "predictions": [
                        {"text": text, "label": p.label, "probability": round(p.probability, 6)}
                        for text, p in zip(given, predictions, strict=True)
                    ],
                }
            )
            return 0
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("label", "probability", "text"):
            table.add_column(name, overflow="fold")
        for text, prediction in zip(given, predictions, strict=True):
            table.add_row(prediction.label, f"{prediction.probability:.1%}", text)
        stdout_console().print(table)
        return 0

    guarded(work, as_json=as_json, frame={"model": model, "predictions": []})


def _standard_input() -> list[str]:
    if sys.stdin.isatty():
        say("a text a line; end with Ctrl-D")
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is not UTF-8 (byte {error.start}); convert it first") from error


def ui_command(pipeline: str, overrides: list[str], *, port: int, as_json: bool) -> NoReturn:
    """Runs MLflow's server on the loopback address until it is interrupted."""

    def work() -> int:
        config = load_config(pipeline, overrides)
        store = Store.open(config.storage.root, config.storage.local)
        target = destination(config.tracking, store.root)
        if target.uri.startswith("http"):
            emit_json({"url": target.uri, "errors": []}) if as_json else print(f"MLflow is at {target.uri}")
            return 0
        _check_port(port)
        apply(run_environment())
        target.open()  # makes or upgrades the database alone, before the server's processes meet it
        url = f"http://127.0.0.1:{port}"
        emit_json({"url": url, "errors": []}) if as_json else print(f"MLflow UI: {url}   (Ctrl-C ends it)", flush=True)
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--workers",
            "1",
            "--backend-store-uri",
            target.uri,
            "--default-artifact-root",
            str(target.artifact_location),
        ]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with terminable():
            server = subprocess.Popen(command, env=environment, stdout=sys.stderr)
            try:
                return server.wait()
            except KeyboardInterrupt:
                return 0
            finally:
                server.terminate()
                server.wait(timeout=20)

    guarded(work, as_json=as_json, frame={"url": None})


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(f"port {port} is taken on this machine; choose another with --port") from error


def sync_command(pipeline: str, overrides: list[str], *, as_json: bool) -> NoReturn:
    """Delivers every spool of this root, and every finished step that MLflow does not have."""

    def work() -> int:
        config = load_config(pipeline, overrides)
        store = Store.open(config.storage.root, config.storage.local)
        with working(store.root):
            runs.close_dead(store)
            names = [spool.path.stem for spool in runs.leftover_spools(store)]
            current, past = latest_and_past(store)
            delivery = deliver(store, destination(config.tracking, store.root), past, current, moves_aliases=False)
        for line in delivery.kept_aside:
            say(line)
        if not delivery.complete:
            raise InfrastructureError(str(delivery.error))
        if as_json:
            steps = len(past) + len(current)
            emit_json({"delivered": names, "num_steps": steps, "kept_aside": delivery.kept_aside, "errors": []})
        else:
            print(f"delivered: {', '.join(names)}" if names else "nothing waits")
            print(f"{len(past) + len(current)} finished steps are in MLflow")
        return 0

    guarded(work, as_json=as_json, frame={"delivered": []})
