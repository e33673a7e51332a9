"""The CronJob is one that Kubernetes takes, holds no secret, and lets its pod do little."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from infra.deploy.kuberay.cronjob import TEMPLATE, Target, file
from infra.deploy.schedule import Schedule, parse
from infra.errors import UserError

PROJECT = Path(__file__).resolve().parents[3]
VERSIONS = ("1.31", "1.37")
"""The oldest with what the template uses as stable, and the newest known."""


def manifest(schedule: Schedule, **target: str) -> Any:
    written = file(schedule.name, schedule.at, schedule.pipeline, schedule.overrides, Target(**target))
    assert written.name == "fromzero-nightly.yaml"
    return yaml.safe_load(written.content)


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_takes_it(schedule: Schedule, version: str) -> None:
    whole = manifest(schedule, namespace="ml", image="r/f:1", address="https://ray", token_secret="t", timezone="UTC")
    for content in (yaml.safe_load(TEMPLATE.read_text()), manifest(schedule), whole):
        kubernetes_validate.validate(content, version, strict=True)
    whole["spec"]["jobTemplate"]["spec"]["backofLimit"] = 2
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(whole, version, strict=True)


def test_every_word_arrives_as_it_was(schedule: Schedule) -> None:
    content = manifest(schedule, address="http://ray-head-svc:8265")
    (container,) = content["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    words = [word.replace("$$", "$") for word in container["args"]]  # as the kubelet does
    address = ["--address", "http://ray-head-svc:8265"]
    assert words == ["submit", "nightly", *schedule.overrides, *address] and container["command"] == ["fromzero"]


def test_what_is_given_is_filled_in(schedule: Schedule) -> None:
    content = manifest(schedule, namespace="ml", image="r/f:1", token_secret="t", timezone="Asia/Shanghai")
    spec = content["spec"]
    (container,) = spec["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert (content["metadata"]["namespace"], container["image"]) == ("ml", "r/f:1")
    assert (spec["schedule"], spec["timeZone"]) == ("0 2 * * *", "Asia/Shanghai")
    assert container["env"][1:] == [
        {"name": "RAY_AUTH_MODE", "value": "token"},
        {"name": "RAY_AUTH_TOKEN", "valueFrom": {"secretKeyRef": {"name": "t", "key": "auth_token"}}},
    ]


def test_its_pod_can_do_little_and_no_two_run(schedule: Schedule) -> None:
    spec = manifest(schedule)["spec"]
    job = spec["jobTemplate"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert spec["concurrencyPolicy"] == "Forbid" and pod["restartPolicy"] == "Never"
    assert pod["automountServiceAccountToken"] is False and pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert set(container["resources"]) == {"requests", "limits"}
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [1, 2, 130]


def test_the_image_of_the_template_is_of_this_version() -> None:
    version = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]
    assert f"image: fromzero:{version}\n" in TEMPLATE.read_text()


@pytest.mark.parametrize("name", ["Mars/Olympus", "../etc", "Asia", ""])
def test_a_time_zone_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="--timezone: there is no "):
        Target(timezone=name).zone()


def test_days_that_kubernetes_reads_otherwise_are_refused(schedule: Schedule) -> None:
    with pytest.raises(UserError, match="set one of them to"):
        file("n", parse("0 2 */2 * 1"), "nightly", (), Target())
