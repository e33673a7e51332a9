"""`fromzero ui`: a real MLflow server on the loopback address that leaves nothing behind."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from tests.pipelines.conftest import Cli

pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_the_server_answers_on_the_loopback_address_and_ends_whole(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "pipelines.cli", "ui", "--json", "--port", str(port), f"storage.root={tmp_path}"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                assert urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).status == 200
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline
                time.sleep(0.5)
        process = psutil.Process(server.pid)
        family = [process, *process.children(recursive=True)]
        listening = {c.laddr.ip for p in family for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
        assert listening == {"127.0.0.1"}
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
        assert json.loads(server.stdout.read() if server.stdout else "")["url"] == f"http://127.0.0.1:{port}"
        assert not psutil.wait_procs(family, timeout=20)[1]
    finally:
        server.kill()


def test_a_port_that_is_taken_is_named(cli: Cli, tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        result = cli("ui", "--port", str(port), f"storage.root={tmp_path}")
    assert result.code == 2 and f"port {port} is taken" in result.err
