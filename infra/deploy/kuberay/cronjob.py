"""A Kubernetes CronJob that submits a pipeline to a standing RayCluster: cronjob.yaml, filled in.

The token of the cluster stays in its Secret, of which the CronJob has the name alone. KubeRay makes that Secret for a
RayCluster with `authOptions.mode: token`, named like the cluster, with the key `auth_token`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import yaml

from infra.deploy.schedule import CronExpression, File
from infra.errors import UserError

TEMPLATE = Path(__file__).resolve().with_name("cronjob.yaml")


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """The cluster; what is None is as in the template."""

    address: str | None = None
    """URL of the RayCluster's dashboard."""
    image: str | None = None
    namespace: str | None = None
    """Without it, that of kubectl's context."""
    token_secret: str | None = None
    """Name of the Secret whose `auth_token` is the token of the RayCluster."""
    timezone: str | None = None
    """IANA name."""

    def zone(self) -> ZoneInfo:
        """The time zone.

        Raises:
            UserError: there is none of that name.
        """
        name = _template()["spec"]["timeZone"] if self.timezone is None else self.timezone
        try:
            return ZoneInfo(name)
        except (KeyError, ValueError, OSError) as error:  # not there, not a name, a folder
            raise UserError(f"--timezone: there is no {name!r}; write an IANA name such as Asia/Shanghai") from error


def file(name: str, at: CronExpression, pipeline: str, overrides: tuple[str, ...], target: Target) -> File:
    """The manifest.

    Args:
        name: of the CronJob.
        at: when.
        pipeline: its name.
        overrides: `key=value`; paths are those of the cluster.
        target: the cluster.

    Raises:
        UserError: a time that Kubernetes cannot tell.
    """
    content = _template()
    metadata, spec = content["metadata"], content["spec"]
    pod = spec["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    *_, address = container["args"]
    metadata["name"] = name
    if target.namespace:
        metadata["namespace"] = target.namespace
    spec["schedule"] = at.kubernetes()
    spec["timeZone"] = target.zone().key
    container["image"] = target.image or container["image"]
    words = ["submit", pipeline, *overrides, "--address", target.address or address]
    container["args"] = [word.replace("$", "$$") for word in words]  # $(NAME) would be put in
    token = next(variable for variable in container["env"] if variable["name"] == "RAY_AUTH_TOKEN")
    reference = token["valueFrom"]["secretKeyRef"]
    reference["name"] = target.token_secret or reference["name"]
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=float("inf"))
    return File(name=f"{name}.yaml", content=f"# Made by `fromzero schedule`; kubectl apply -f {name}.yaml\n{text}")


def _template() -> Mapping[str, Any]:
    content: Mapping[str, Any] = yaml.safe_load(TEMPLATE.read_text("utf-8"))
    return content
