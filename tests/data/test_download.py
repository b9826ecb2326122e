from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dipolegnn.data.download import DownloadError, download

CONTENT = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()

fetch = partial(download, size=len(CONTENT), sha256=SHA256, pause=0.0, attempts=2)


class Server(ThreadingHTTPServer):
    """A server on this machine that breaks off after ``break_after`` bytes."""

    ranges: list[str]
    break_after: int = len(CONTENT)
    resumes: bool = True
    status: int = 200
    content: bytes = CONTENT


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "")
        self.server.ranges.append(asked)
        match = re.fullmatch(r"bytes=(\d+)-", asked)
        start = int(match[1]) if match and self.server.resumes else 0
        body = self.server.content[start:]
        status = self.server.status
        self.send_response(206 if start and status == 200 else status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.break_after])

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(
    *,
    break_after: int = len(CONTENT),
    resumes: bool = True,
    status: int = 200,
    content: bytes = CONTENT,
) -> Iterator[tuple[Server, str]]:
    with Server(("127.0.0.1", 0), Handler) as server:
        server.ranges = []
        server.break_after, server.resumes = break_after, resumes
        server.status, server.content = status, content
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server, f"http://127.0.0.1:{server.server_port}/file"
        finally:
            server.shutdown()
            thread.join()


def test_a_file_is_fetched_once(tmp_path: Path) -> None:
    with serving() as (server, url):
        for _ in range(2):
            assert fetch(url, tmp_path / "new" / "file").read_bytes() == CONTENT
    assert server.ranges == [""]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


def test_a_broken_connection_is_resumed(tmp_path: Path) -> None:
    with serving(break_after=100_000) as (server, url):
        assert fetch(url, tmp_path / "file").read_bytes() == CONTENT
    assert server.ranges == ["", "bytes=100000-", "bytes=200000-"]


def test_a_stopped_program_goes_on_where_it_was(tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT[:1234])
    with serving() as (server, url):
        assert fetch(url, tmp_path / "file").read_bytes() == CONTENT
    assert server.ranges == ["bytes=1234-"]


def test_a_server_that_cannot_resume_sends_all_again(tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT[:1234])
    with serving(resumes=False) as (_, url):
        assert fetch(url, tmp_path / "file").read_bytes() == CONTENT


def test_another_file_is_not_kept(tmp_path: Path) -> None:
    other = bytes(len(CONTENT))
    with (
        serving(content=other) as (_, url),
        pytest.raises(DownloadError, match=f"expected {SHA256}"),
    ):
        fetch(url, tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_already_is_checked(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"other")
    with pytest.raises(DownloadError, match=r"has 5 bytes, expected 256000. Delete"):
        fetch("http://127.0.0.1:9/file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"other"


@pytest.mark.parametrize("status", [202, 403, 500])
def test_a_refusal_keeps_what_has_arrived(tmp_path: Path, status: int) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT[:1234])
    with (
        serving(status=status) as (server, url),
        pytest.raises(DownloadError, match=f"{status}.* run it again to go on"),
    ):
        fetch(url, tmp_path / "file")
    assert len(server.ranges) == (1 if status == 403 else 2)
    assert (tmp_path / "file.part").read_bytes() == CONTENT[:1234]


def test_no_server(tmp_path: Path) -> None:
    with serving() as (_, url):
        pass
    with pytest.raises(DownloadError, match="cannot be fetched"):
        fetch(url, tmp_path / "file")
