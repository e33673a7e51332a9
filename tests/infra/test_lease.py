"""A run on another host, whose process cannot be looked at, is dead when it has long not said that it lives."""

from __future__ import annotations

import time
from pathlib import Path

from infra.journal import runs
from infra.journal.process import ProcessIdentity
from infra.storage.store import Store


def test_a_run_of_another_host_counts_as_dead_when_its_lease_ran_out(tmp_path: Path) -> None:
    store, now = Store.open(str(tmp_path / "root")), time.time()
    here = ProcessIdentity.current().host
    for name, host, renewed_at in (("lapsed", "gone", 7200), ("living", "away", 100), ("local", here, 7200)):
        record = runs.RunRecord(
            id=name,
            pipeline="llm",
            status="RUNNING",
            started_at=now - 9000,
            renewed_at=now - renewed_at,
            process={**ProcessIdentity.current().to_json(), "host": host},
            root=str(store.root),
            tracking_uri="",
        )
        runs.save(store, record)
    assert [record.id for record in runs.close_dead(store)] == ["lapsed"]
    found = {record.id: record.status for record in runs.load_all(store)}
    assert found == {"lapsed": "KILLED", "living": "RUNNING", "local": "RUNNING"}
