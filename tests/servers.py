"""Real servers for the tests: PostgreSQL, MLflow on top of it, and a proxy that loses answers on purpose."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

START_SECONDS = 150
POSTGRESQL_USER = "postgres"
"""Whom Debian's package makes; `initdb` refuses root."""


def free_port() -> int:
    """A port of the loopback address that nobody holds."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """A PostgreSQL of its own; yields the URI of its database. Skips the test where it cannot be."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[4]))
    if not found:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    user = POSTGRESQL_USER if os.getuid() == 0 else None
    folder, port = Path(tempfile.mkdtemp(prefix="fromzero-postgresql-")), free_port()
    try:
        if user:
            try:
                shutil.chown(folder, user, user)
            except LookupError:
                pytest.skip(f"PostgreSQL refuses root, and there is no user {user}")
        who = {"user": user, "group": user, "extra_groups": ()} if user else {}
        make = [found[-1], "-D", folder / "data", "-U", "fromzero", "-A", "trust", "-E", "UTF8", "--no-sync"]
        with (folder / "log").open("w") as log:
            subprocess.run([*make, "--locale=C.UTF-8"], cwd=folder, stdout=log, stderr=log, check=True, **who)
            options = ["-D", folder / "data", "-h", "127.0.0.1", "-p", str(port), "-k", folder, "-F"]
            server = subprocess.Popen(
                [found[-1].with_name("postgres"), *options], cwd=folder, stdout=log, stderr=log, **who
            )
        try:
            _until(lambda: _answers(port), server, folder / "log")
            yield f"postgresql+psycopg2://fromzero@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGINT)  # ends its connections, and then itself
            server.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class MlflowServer:
    """`mlflow server` on a port of its own."""

    def __init__(self, database: str, folder: Path) -> None:
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._database = database
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it; returns when it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", self._database]
        command += ["--artifacts-destination", str(self._folder / "artifacts")]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self._folder / "log").open("a") as log:
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=self._folder)
        _until(self._is_healthy, self._process, self._folder / "log")

    def kill(self) -> None:
        """SIGKILL, to it and what it started."""
        if self._process is None:
            return
        process = psutil.Process(self._process.pid)
        for one in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        self._process.wait(30)
        self._process = None

    def _is_healthy(self) -> bool:
        try:
            return bool(urllib.request.urlopen(f"{self.uri}/health", timeout=5).status == 200)
        except OSError:
            return False


def _answers(port: int) -> bool:
    import psycopg2

    try:
        psycopg2.connect(host="127.0.0.1", port=port, user="fromzero", dbname="postgres").close()
    except psycopg2.OperationalError:
        return False
    return True


def _until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text(errors="replace")
        time.sleep(0.2)


class Proxy:
    """Hands requests to a server, and drops the answers that `lose` picks: the server has done the work, and the
    client sees a closed connection.

    Args:
        target: port of the server.
        lose: of (method and path, digest of the request's body) whether the answer gets lost.
        port: its own; without it a free one.
    """

    def __init__(self, target: int, lose: Callable[[str, str], bool], port: int | None = None) -> None:
        self.lost: list[str] = []
        """Method and path of the requests whose answer was lost."""
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                upstream = http.client.HTTPConnection("127.0.0.1", target, timeout=60)
                headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
                upstream.request(self.command, self.path, body, headers)
                answer = upstream.getresponse()
                content = answer.read()
                upstream.close()
                what = f"{self.command} {self.path}"
                if lose(what, hashlib.sha256(body).hexdigest()):
                    proxy.lost.append(what)
                    self.close_connection = True
                    return
                self.send_response(answer.status)
                for name in ("Content-Type", "Content-Disposition"):
                    if answer.headers.get(name):
                        self.send_header(name, answer.headers[name])
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_one

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port or 0), Handler)
        self._server.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def each_once() -> Callable[[str, str], bool]:
    """Loses the first answer to every different request; a file is the same request whatever is in it."""
    seen: set[str] = set()
    lock = threading.Lock()

    def lose(what: str, body: str) -> bool:
        request = what if what.startswith("PUT") else what + body
        with lock:
            known = request in seen
            seen.add(request)
        return not known

    return lose
