"""An MLflow server that is killed in the middle of an upload, stays away for a while and comes back: everything
arrives once and in order, and whoever sends never waits. FROMZERO_TEST_AWAY_SECONDS=60 makes it a minute."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from infra.tracking.tracker import Destination, Tracker
from tests.servers import MlflowServer

AWAY_SECONDS = float(os.environ.get("FROMZERO_TEST_AWAY_SECONDS", "3"))
RUN = {"kind": "run", "name": "s", "parent_id": None, "start_time": 1, "tags": {}, "parameters": {}}


class Load(threading.Thread):
    """Sends a point every few milliseconds until it is stopped; keeps the time of the longest call."""

    def __init__(self, tracker: Tracker) -> None:
        super().__init__(daemon=True)
        self.num_sent = 0
        self.longest_seconds = 0.0
        self.stopped = threading.Event()
        self._tracker = tracker

    def run(self) -> None:
        while not self.stopped.is_set():
            self.num_sent += 1
            metrics = {"train_loss": 1.0 / self.num_sent, "tokens_per_second": 100.0 + self.num_sent}
            started = time.monotonic()
            self._tracker.receive("metrics", "s", {"metrics": metrics, "step": self.num_sent, "time": time.time()})
            self.longest_seconds = max(self.longest_seconds, time.monotonic() - started)
            time.sleep(0.002)


def test_a_server_that_is_killed_in_an_upload_and_comes_back_gets_everything_once(
    mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    tracker = Tracker("restart", tmp_path, Destination(uri=mlflow_server.uri, experiment="e", artifact_location=None))
    tracker.put({**RUN, "id": "restart/s"})
    for step in range(-6_000, 0):  # enough to upload for seconds
        tracker.receive("metrics", "s", {"metrics": {"warmup": float(step)}, "step": step, "time": time.time()})
    load = Load(tracker)
    load.start()
    while not tracker.spool.position:
        time.sleep(0.001)
    mlflow_server.kill()
    delivered = tracker.spool.position
    assert 0 < delivered < tracker.spool.path.stat().st_size
    try:
        time.sleep(AWAY_SECONDS)
        assert tracker.uploader.error == f"{mlflow_server.uri} does not answer"
    finally:
        mlflow_server.start()
    load.stopped.set()
    load.join()
    delivery = tracker.flush(120)
    tracker.close()
    assert delivery.complete and not delivery.kept_aside and not list(tmp_path.glob("restart*"))
    assert load.longest_seconds < AWAY_SECONDS  # a call that waits for the server waits for all of it
    client = Destination(uri=mlflow_server.uri, experiment="e", artifact_location=None).open().client
    run_id = delivery.run_ids["restart/s"]
    history = client.get_metric_history(run_id, "train_loss")
    assert [(m.step, m.value) for m in history] == [(n, 1.0 / n) for n in range(1, load.num_sent + 1)]
    assert [m.timestamp for m in history] == sorted(m.timestamp for m in history)
    assert len(client.get_metric_history(run_id, "tokens_per_second")) == load.num_sent
    assert [m.step for m in client.get_metric_history(run_id, "warmup")] == list(range(-6_000, 0))
