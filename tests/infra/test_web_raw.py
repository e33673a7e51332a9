"""Raw files on the web: known by content, read once for that, fetched once a machine; a real server answers."""

from __future__ import annotations

import gzip
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from components.corpus.readers import read_rows
from components.corpus.rows import Columns
from components.corpus.units import Unit
from infra.errors import DataError, StorageError, UserError
from infra.storage import raw
from infra.storage.digests import DigestCache
from infra.storage.raw import RawFile


class Web:
    """What the server has, and what it was asked for."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.files: dict[str, bytes] = {}
        self.gets: list[str] = []
        self.tells_etag = True
        self.status = 200
        self.cut_bytes = 0


@pytest.fixture
def web() -> Iterator[Web]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(has_body=False)

        def do_GET(self) -> None:
            found.gets.append(self.path)
            self._answer(has_body=True)

        def _answer(self, *, has_body: bool) -> None:
            data = found.files.get(self.path)
            if self.path == "/moved.jsonl":
                self.send_response(302)
                self.send_header("Location", "/a.jsonl")
                self.end_headers()
                return
            self.send_response(found.status if data is not None or found.status != 200 else 404)
            self.send_header("Content-Length", str(len(data or b"")))
            self.send_header("Content-Type", "application/octet-stream")
            if self.path.endswith(".gz"):
                self.send_header("Content-Encoding", "gzip")  # as many servers do for files that are so named
            if data is not None and found.tells_etag:
                self.send_header("ETag", hashlib.md5(data).hexdigest())
            self.end_headers()
            if has_body and data is not None:
                self.wfile.write(data[: len(data) - found.cut_bytes])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Web(f"http://127.0.0.1:{server.server_port}")
    found.files = {
        "/a.jsonl": b'{"text": "one"}\n',
        "/b.jsonl.gz": gzip.compress(b'{"text": "two"}\n'),
        "/c%20d.txt": b"three\n",
    }
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


def find(url: str, root: Path) -> RawFile:
    with DigestCache.opened(root / "cache" / "digests.json") as digests:
        (file,) = raw.resolve(url, None, "corpus.sources[0].path", digests)
    return file


def texts_of(file: RawFile) -> list[str]:
    return [row.text for row in read_rows(Unit(file=file), Columns())]


def test_a_file_is_known_by_its_bytes_read_once_and_fetched_once(web: Web, tmp_path: Path) -> None:
    for name, texts in (("/a.jsonl", ["one"]), ("/b.jsonl.gz", ["two"]), ("/c%20d.txt", ["three"])):
        data = web.files[name]
        file = find(web.url + name, tmp_path)
        assert (file.digest, file.num_bytes) == (hashlib.sha256(data).hexdigest(), len(data))
        assert web.gets.count(name) == 1 or name.endswith(".gz")  # it is asked for its size too
        asked = len(web.gets)
        find(web.url + name, tmp_path)
        assert len(web.gets) - asked <= name.endswith(".gz")
        assert texts_of(file) == texts_of(file) == texts
    asked = len(web.gets)
    texts_of(file)
    assert len(web.gets) == asked and file.copy and Path(file.copy).read_bytes() == web.files["/c%20d.txt"]


def test_a_server_that_gives_no_etag_is_read_at_each_plan(web: Web, tmp_path: Path) -> None:
    web.tells_etag = False
    first = find(f"{web.url}/a.jsonl", tmp_path)
    web.files["/a.jsonl"] = b'{"text": "ONE"}\n'
    assert find(f"{web.url}/a.jsonl", tmp_path).digest != first.digest


def test_a_file_that_changed_or_went_since_it_was_planned_is_refused(web: Web, tmp_path: Path) -> None:
    file = find(f"{web.url}/a.jsonl", tmp_path)
    web.files["/a.jsonl"] = b'{"text": "ONE"}\n'
    with pytest.raises(DataError, match=r"http://.*/a.jsonl: has changed since the run was planned, or is gone"):
        texts_of(file)
    del web.files["/a.jsonl"]
    with pytest.raises(DataError, match="has changed since the run was planned, or is gone"):
        texts_of(file)
    assert list((tmp_path / "cache" / "raw").iterdir()) == []


def test_a_redirect_is_followed(web: Web, tmp_path: Path) -> None:
    assert texts_of(find(f"{web.url}/moved.jsonl", tmp_path)) == ["one"]


def test_mistakes_are_the_users_and_an_away_server_is_nobodys(web: Web, tmp_path: Path) -> None:
    for url, told in (
        (f"{web.url}/none.jsonl", r"corpus.sources\[0\].path: http://.*: the server has no such file for us \(404\)"),
        (f"{web.url}/", "name one file, for the web has no listing"),
        (f"{web.url}/a.xyz", "cannot tell the format"),
        (f"{web.url}/a.jsonl?token=secret", "no user, query or fragment in a URL"),
        (web.url.replace("//", "//me:secret@") + "/a.jsonl", "no user, query or fragment in a URL"),
    ):
        web.files["/a.xyz"] = b"x"
        with pytest.raises(UserError, match=told) as refused:
            find(url, tmp_path)
        assert "secret" not in str(refused.value)
    web.status = 403
    with pytest.raises(UserError, match=r"no such file for us \(403\)"):
        find(f"{web.url}/a.jsonl", tmp_path)
    web.status = 503
    with pytest.raises(StorageError, match="status 503"):
        find(f"{web.url}/a.jsonl", tmp_path)
    web.status, web.cut_bytes = 200, 3
    with pytest.raises(StorageError):
        find(f"{web.url}/a.jsonl", tmp_path)
    with pytest.raises(StorageError):
        find("http://127.0.0.1:9/a.jsonl", tmp_path)
