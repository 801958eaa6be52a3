"""Which releases there are, asked of an index on this host."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata.cli import releases
from kata.cli.main import invoke
from kata.errors import NotFound, Unavailable
from kata.version import VERSION

FILES = [{"yanked": False}]
DOCUMENT = {
    "info": {"summary": "Kata Containers in Python: containers"},
    "releases": {
        VERSION: FILES,
        "99.0.0": FILES,
        "99.1.0rc1": FILES,
        "98.0.0": [{"yanked": True}],
        "97.0": [],
        "x": FILES,
    },
}


class Index(BaseHTTPRequestHandler):
    status = 200
    body: ClassVar[bytes] = b""
    pause = 0.0

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()
        for byte in (self.body[:1], self.body[1:]):
            self.wfile.write(byte)
            self.wfile.flush()
            time.sleep(self.pause)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Index]]:
    handler = type("_Index", (Index,), {"body": json.dumps(DOCUMENT).encode()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    monkeypatch.setenv(releases.VARIABLE, f"http://127.0.0.1:{server.server_port}/")
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.usefixtures("index")
def test_the_newest(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["check", "--check-version-only"]) == 1
    assert f"{VERSION} is installed; 99.0.0 is there" in capsys.readouterr().out
    assert invoke(["check", "only-list-releases"]) == 0
    assert capsys.readouterr().out == "99.0.0\n"
    assert invoke(["check", "--only-list-releases", "--include-all-releases"]) == 0
    assert capsys.readouterr().out == "99.0.0\n99.1.0rc1\n"


@pytest.mark.usefixtures("index")
def test_modes_that_contradict_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["check", "list", "-n"]) == 1
    assert "list and no-network-checks exclude each other" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "body", "error", "said"),
    [
        (404, b"", NotFound, "127.0.0.1 has no release of pykata"),
        (500, b"", Unavailable, "HTTP status 500"),
        (200, b"<html>", Unavailable, "cannot ask 127.0.0.1"),
        (200, b"[]", Unavailable, "not an answer of a package index"),
        (200, b'{"releases": {}, "info": {"summary": "Karate"}}', Unavailable, "another project of that name"),
    ],
)
def test_answers_that_are_none(index: type[Index], status: int, body: bytes, error: type[Exception], said: str) -> None:
    index.status, index.body = status, body
    with pytest.raises(error, match=said):
        releases.fetch()


def test_a_slow_index(index: type[Index], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    index.pause = 2.0
    with pytest.raises(Unavailable, match=r"no answer within 0\.2 s"):
        releases.fetch(timeout=0.2)


def test_nothing_to_reach(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(releases.VARIABLE, "http://127.0.0.1:1/")
    assert invoke(["check", "check-version-only"]) == 1
    out = capsys.readouterr().out
    assert f"{VERSION} is installed; cannot ask 127.0.0.1 for releases: connection refused" in out.lower()
    for url in ("file:///etc/passwd", "nonsense"):
        monkeypatch.setenv(releases.VARIABLE, url)
        with pytest.raises(Unavailable, match="not an address of HTTP"):
            releases.fetch()


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20), st.sampled_from(["", "a1", "b2", "rc3"]))))
def test_versions_are_in_order(parts: list[tuple[int, int, str]]) -> None:
    names = {f"{major}.{minor}{pre}": (major, minor, pre or "~") for major, minor, pre in parts}
    found = releases.newer("0.0a1", list(names), include_all=True)
    assert [names[name] for name in found] == sorted(names[name] for name in found)
    assert set(names) - set(found) <= {"0.0a1"}
