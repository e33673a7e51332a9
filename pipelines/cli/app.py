"""The commands, and how arguments become a config."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from pipelines.cli.output import emit_json


class Commands(TyperGroup):
    """`lineage diff A B` is a command of its own beside `lineage TARGET`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that `args` begin with, and the arguments that are left."""
        words = [argument for argument in args[1:] if not argument.startswith("-")]
        if args[0] == "lineage" and words[:1] == ["diff"]:
            args = ["lineage diff", *args[1:]]
            args.remove("diff")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="From raw text to a judged, registered language model.",
)
Arguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[PIPELINE] [KEY=VALUE]...",
        help="llm (the default), smoke or nightly; then config values, such as pretrain_mlm.steps=500 or model=gpu",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON document; logs go to standard error")]
Until = Annotated[str | None, typer.Option(metavar="STEP", help="only this step and what it needs")]
Address = Annotated[str, typer.Option(metavar="URL", help="the cluster's dashboard, such as http://127.0.0.1:8265")]
Installed = Literal["systemd", "cron"]
Printed = Literal["systemd", "cron", "kubernetes"]


def split(arguments: list[str] | None, pipeline: str = "llm") -> tuple[str, list[str]]:
    """(pipeline, overrides): the first argument is a pipeline if it has no `=`."""
    given = list(arguments or [])
    if given and "=" not in given[0]:
        return given[0], given[1:]
    return pipeline, given


@app.command()
def run(arguments: Arguments = None, until: Until = None, as_json: AsJson = False) -> None:
    """Makes what is not made yet, and prints the result."""
    from pipelines.cli.run import run_command

    run_command(*split(arguments), until=until, as_json=as_json)


@app.command()
def plan(arguments: Arguments = None, until: Until = None, as_json: AsJson = False) -> None:
    """Says what `run` would do: for each step reused, run or blocked, and why."""
    from pipelines.cli.run import plan_command

    plan_command(*split(arguments), until=until, as_json=as_json)


@app.command()
def why(
    step: Annotated[str, typer.Argument(help="a step of the pipeline, such as finetune")],
    arguments: Arguments = None,
    as_json: AsJson = False,
) -> None:
    """Says why a step is reused, runs or is blocked: every value, file and function that changed."""
    from pipelines.cli.why import why_command

    why_command(step, *split(arguments), as_json=as_json)


@app.command()
def accept(
    step: Annotated[str, typer.Argument(help="a step whose code changed without changing its meaning")],
    arguments: Arguments = None,
    reason: Annotated[str, typer.Option(help="why the result is the same; goes on record")] = "",
    as_json: AsJson = False,
) -> None:
    """Takes the old result of a step for that of its new code, and puts it on record."""
    from pipelines.cli.why import accept_command

    accept_command(step, *split(arguments), reason=reason, as_json=as_json)


@app.command()
def submit(
    address: Address,
    arguments: Arguments = None,
    until: Until = None,
    detach: Annotated[bool, typer.Option("--detach", help="do not follow the run to its end")] = False,
    as_json: AsJson = False,
) -> None:
    """Runs a pipeline on a Ray cluster, or joins the run that goes on there."""
    from pipelines.cli.submit import submit_command

    submit_command(*split(arguments), address=address, until=until, detach=detach, as_json=as_json)


@app.command()
def stop(
    submission: Annotated[str, typer.Argument(metavar="ID", help="a submission, or how its id begins")],
    address: Address,
    as_json: AsJson = False,
) -> None:
    """Ends a submission on a Ray cluster in order; what is finished stays."""
    from pipelines.cli.submit import stop_command

    stop_command(submission, address=address, as_json=as_json)


@app.command()
def status(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]... | [ID]", help="config values, such as storage.root=FOLDER; or a submission"
        ),
    ] = None,
    address: Annotated[str | None, typer.Option(metavar="URL", help="a cluster's dashboard: its submissions")] = None,
    as_json: AsJson = False,
) -> None:
    """Lists the runs of this root, or the submissions of a Ray cluster, the newest first."""
    if address is not None:
        from pipelines.cli.submit import submissions_command

        submissions_command(arguments or [], address=address, as_json=as_json)
    from pipelines.cli.status import status_command

    status_command(*split(arguments), as_json=as_json)


@app.command()
def lineage(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="a registered model or prompt (NAME, NAME@ALIAS or NAME/VERSION), step, key, run, raw file, data set "
            "as MLflow names it, or folder of an artifact",
        ),
    ],
    arguments: Arguments = None,
    as_json: AsJson = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="write the graph as one page")] = None,
) -> None:
    """Shows what a model, prompt, run or data set was made of, up to the raw files, and what was made of it."""
    from pipelines.cli.lineage import lineage_command

    lineage_command(target, *split(arguments), as_json=as_json, html=html)


@app.command("lineage diff")
def lineage_diff(
    a: Annotated[
        str,
        typer.Argument(
            metavar="A",
            help="a registered model (NAME: its newest, NAME@ALIAS or NAME/VERSION), key (or its first 8 characters), "
            "run (its models), step (its newest), or folder of an artifact",
        ),
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="another")],
    arguments: Arguments = None,
    as_json: AsJson = False,
) -> None:
    """Says what differs between two models: data, config, code, libraries, result, cost."""
    from pipelines.cli.lineage_diff import lineage_diff_command

    lineage_diff_command(a, b, *split(arguments), as_json=as_json)


@app.command()
def doctor(
    arguments: Arguments = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="compare every file of every artifact and checkpoint with its manifest")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Checks what a run needs of this machine."""
    from pipelines.cli.doctor import doctor_command

    doctor_command(*split(arguments), verify=verify, as_json=as_json)


@app.command()
def gc(
    arguments: Arguments = None,
    keep_runs: Annotated[
        int, typer.Option(min=0, metavar="N", help="the last N runs stay, whatever became of them")
    ] = 10,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only list what would be removed")] = False,
    as_json: AsJson = False,
) -> None:
    """Removes, from storage and MLflow alike, what no registered model or prompt and none of the last runs needs."""
    from pipelines.cli.gc import gc_command

    gc_command(*split(arguments), keep_runs=keep_runs, dry_run=dry_run, as_json=as_json)


@app.command()
def predict(
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TEXT]... [KEY=VALUE]...",
            help="texts, without any a text a line of standard input; and config values such as storage.root=FOLDER",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="registered model; without it, that of finetune.registered_model")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Classifies texts with the champion."""
    from pipelines.cli.serving import predict_command

    predict_command(texts or [], model, as_json=as_json)


@app.command()
def ui(
    arguments: Arguments = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="port on the loopback address")] = 5000,
    as_json: AsJson = False,
) -> None:
    """Opens the MLflow UI on this root's runs, on the loopback address."""
    from pipelines.cli.serving import ui_command

    ui_command(*split(arguments), port=port, as_json=as_json)


@app.command()
def schedule(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PIPELINE] [KEY=VALUE]...", help="nightly (the default), llm or smoke; then config values"
        ),
    ] = None,
    at: Annotated[str | None, typer.Option(metavar="CRON", help="when: '0 2 * * *' is every night at two")] = None,
    show: Annotated[Printed | None, typer.Option("--print", help="print what runs it")] = None,
    install: Annotated[Installed | None, typer.Option(help="put it into this user's systemd or crontab")] = None,
    remove: Annotated[Installed | None, typer.Option(help="take it out again")] = None,
    name: Annotated[str | None, typer.Option(help="of this schedule; without it, fromzero-PIPELINE")] = None,
    address: Annotated[str | None, typer.Option(metavar="URL", help="kubernetes: the RayCluster's dashboard")] = None,
    image: Annotated[str | None, typer.Option(help="kubernetes: what the submitting pod runs")] = None,
    namespace: Annotated[str | None, typer.Option(help="kubernetes: of the CronJob")] = None,
    token_secret: Annotated[str | None, typer.Option(help="kubernetes: Secret with its auth_token")] = None,
    timezone: Annotated[str | None, typer.Option(help="kubernetes: IANA name; without it, Etc/UTC")] = None,
    as_json: AsJson = False,
) -> None:
    """Runs a pipeline every night: prints or installs a systemd timer, a crontab line or a Kubernetes CronJob."""
    from infra.deploy.kuberay.cronjob import Target
    from pipelines.cli.schedule import schedule_command

    pipeline, overrides = split(arguments, "nightly")
    target = Target(address=address, image=image, namespace=namespace, token_secret=token_secret, timezone=timezone)
    actions = {"print": show, "install": install, "remove": remove}
    schedule_command(pipeline, overrides, at=at, name=name, actions=actions, target=target, as_json=as_json)


@app.command()
def sync(arguments: Arguments = None, as_json: AsJson = False) -> None:
    """Delivers to MLflow what it did not take when it was away."""
    from pipelines.cli.serving import sync_command

    sync_command(*split(arguments), as_json=as_json)


def main() -> None:
    """Entry point of `fromzero`. A wrong option exits with 2; with `--json`, as a JSON document too."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file name that is no UTF-8 is told all the same
        sys.stdout.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    command: Any = typer.main.get_command(app)
    try:
        sys.exit(command.main(standalone_mode=False))
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        message = error.format_message() or "see fromzero --help"
        sys.stderr.write(f"error: {message}\n")
        if "--json" in sys.argv:
            emit_json({"errors": [message]})
        sys.exit(2)
