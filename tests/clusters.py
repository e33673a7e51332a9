"""A real Ray cluster for the tests: a head and two more raylets on this machine, with addresses of their own, token
authentication and a dashboard. Everything is started and stopped by process id."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.servers import free_port

START_SECONDS = 120
STOP_SECONDS = 30
OBJECT_STORE_BYTES = 100_000_000
UNSET = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN_PATH", "FROMZERO_HOME", "PYTHONPATH")
"""Variables of whoever runs the tests that would lead elsewhere; the cluster gets our sources only if they are sent."""


@dataclass
class Cluster:
    """A head without CPUs of its own, and two nodes of one."""

    folder: Path
    url: str
    """Of the dashboard."""
    address: str
    """Of the head, for drivers."""
    environment: Mapping[str, str]
    """For whoever uses it; the token is in it."""
    nodes: list[psutil.Process] = field(default_factory=list)
    """`ray start --block` of the head, then of each node."""

    def start_node(self, number: int) -> None:
        """One more raylet, as on a machine of its own."""
        options = ["--address", self.address, "--node-ip-address", f"127.0.0.{number}"]
        self._start(f"node{number}", "--num-cpus", "1", *options)

    def start_head(self) -> None:
        """The head, with the dashboard."""
        host, port = self.url.removeprefix("http://").split(":")
        options = ["--head", "--num-cpus", "0"]
        options += ["--port", self.address.rpartition(":")[2], "--ray-client-server-port", str(free_port())]
        options += ["--include-dashboard", "true", "--dashboard-host", host, "--dashboard-port", port]
        self._start("head", *options)

    def _start(self, name: str, *options: str) -> None:
        """`ray start`, until it says that it runs; two at once do not start on one machine (2.60)."""
        command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats", *options]
        command += ["--object-store-memory", str(OBJECT_STORE_BYTES), "--dashboard-agent-listen-port", str(free_port())]
        command += ["--min-worker-port", "0", "--max-worker-port", "0"]  # any; the range would hold other tests' ports
        # Of its own, as on machines of their own: a node unpacks a job's sources over what lies there (2.60).
        command += ["--temp-dir", str(self.folder / name)]
        path = self.folder / f"{name}.log"
        with path.open("w") as log:
            self.nodes.append(psutil.Popen(command, cwd=self.folder, env=self.environment, stdout=log, stderr=log))
        deadline = time.monotonic() + START_SECONDS
        while "Ray runtime started" not in (said := path.read_text(errors="replace")):
            assert self.nodes[-1].is_running() and time.monotonic() < deadline, said
            time.sleep(0.05)

    def processes(self, title: str) -> list[psutil.Process]:
        """Those of this cluster whose command line has `title`."""
        found = []
        for node in self.nodes:
            with contextlib.suppress(psutil.Error):
                found += [one for one in node.children(recursive=True) if title in _title(one)]
        return found

    def stop(self) -> None:
        """Kills it whole: in order it takes more than half a minute where actors live."""
        family = [one for node in self.nodes for one in [node, *_children(node)]]
        for one in family:
            with contextlib.suppress(psutil.Error):
                one.kill()
        _, alive = psutil.wait_procs(family, timeout=STOP_SECONDS)
        assert not alive, alive


@contextlib.contextmanager
def ray_cluster_of_three(variables: Mapping[str, str], nodes: Sequence[int] = (2, 3)) -> Iterator[Cluster]:
    """A head and two nodes (or those of `nodes`), for as long as the block lasts, with `variables` on each; no process
    is left."""
    with tempfile.TemporaryDirectory(prefix="fz", ignore_cleanup_errors=True) as name:  # short: sockets lie in it
        environment = {variable: value for variable, value in os.environ.items() if variable not in UNSET}
        environment |= {**variables, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        url = f"http://127.0.0.1:{free_port()}"
        cluster = Cluster(Path(name), url, f"{_own_address()}:{free_port()}", environment)
        try:
            cluster.start_head()
            for number in nodes:
                cluster.start_node(number)
            yield cluster
        finally:
            left = cluster.stop()
        assert not left, left


def _own_address() -> str:
    """What the head calls itself: Ray takes the machine's own address in the place of 127.0.0.1 (2.60)."""
    import ray

    return str(ray.util.get_node_ip_address())


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.Error:
        return []


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def start(cluster: Cluster, *arguments: str, project: Path, **variables: str) -> subprocess.Popen[str]:
    """Starts Python with `arguments` as a user of the cluster, with the sources of `project`."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=cluster.folder,
        env={**cluster.environment, "PYTHONPATH": str(project), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_heed_interrupts,
    )


def _heed_interrupts() -> None:
    """Also where the tests run in the background of a shell, which has what it starts there ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Forwarder:
    """A port that leads to another one, until it is cut."""

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self._target = target
        self._listener: socket.socket | None = None
        self._open: list[socket.socket] = []

    def lead(self) -> None:
        """Takes connections from now on."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut(self) -> None:
        """Breaks every connection, and takes none."""
        assert self._listener is not None
        for one in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._open.clear()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                self._open += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=_pump, args=(source, sink), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
