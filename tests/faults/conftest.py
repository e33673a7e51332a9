"""One undisturbed run, which all kills are compared with."""

from __future__ import annotations

import pytest

from tests.faults import micro
from tests.faults.micro import Left


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Left:
    folder = tmp_path_factory.mktemp("undisturbed")
    ended = micro.run(folder)
    assert ended.code == 0, ended.err
    assert not micro.orphans(ended)
    return micro.left(folder / "root")
