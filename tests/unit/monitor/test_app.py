"""Kata's paths, and those of the page, with small sandboxes that answer as a test wants."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from kata.monitor import sandboxes as following
from kata.monitor.debug import ABSENT
from tests.support.fakesandboxes import FakeSandbox, metrics_text
from tests.support.waiting import eventually_async
from tests.unit.monitor.conftest import Served, known

EVIL = "<img src=x onerror=alert(1)>\x1b[2J\u202e"


async def test_kata_s_paths(tmp_path: Path, served: Served) -> None:
    text = metrics_text()
    async with FakeSandbox(tmp_path, "one@k8s.io", metrics=text), FakeSandbox(tmp_path, "two", metrics=text):
        await known(served, "one@k8s.io", "two")
        assert (await served.get("/sandboxes")).text == "one\ntwo\n"
        assert (await served.get("/agent-url?sandbox=one")).text == f"unix://{tmp_path}/one@k8s.io/agent.sock"
        whole = await served.get("/metrics")
        assert whole.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        labels = 'sandbox_id="one",cri_uid="1234",cri_name="pod-one",cri_namespace="default"'
        assert f"kata_shim_threads{{{labels}}} 1\n" in whole.text
        packed = await served.get("/metrics", Accept_Encoding="gzip")
        assert packed.headers["content-encoding"] == "gzip"
        assert b"kata_guest_meminfo{" in gzip.decompress(packed.body)
        alone = await served.get("/metrics?sandbox=one@k8s.io")
        assert "\nkata_shim_threads 1\n" in alone.text
        assert "sandbox_id" not in alone.text
        index = await served.get("/")
        assert "/agent-url?sandbox=ID" in index.text
        page = await served.get("/", Accept="text/html")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert page.body == (await served.get("/sandbox/one@k8s.io")).body


async def test_mistakes(tmp_path: Path, served: Served) -> None:
    async with FakeSandbox(tmp_path, "box@default"), FakeSandbox(tmp_path, "box@k8s.io"):
        await known(served, "box@default", "box@k8s.io")
        for path, status, text in (
            ("/agent-url", 400, "?sandbox=ID is missing\n"),
            ("/metrics?sandbox=", 400, "?sandbox=ID is missing\n"),
            ("/metrics?sandbox=box", 400, "several sandboxes have this id; use box@default or box@k8s.io\n"),
            ("/agent-url?sandbox=../../etc", 404, "there is no sandbox '../../etc'\nhint: /sandboxes lists them\n"),
            ("/api/sandboxes/%1b%5b2J", 404, "there is no sandbox '\\x1b[2J'\nhint: /sandboxes lists them\n"),
            ("/debug/pprof/nothing", 404, "there is no profile 'nothing': it is not known\n"),
        ):
            answer = await served.get(path)
            assert (answer.status, answer.text) == (status, text)


async def test_debug(served: Served) -> None:
    variables = json.loads((await served.get("/debug/vars")).body)
    assert variables["sandboxes"] == 0
    assert variables["process_resident_memory_bytes"] > 1 << 20
    assert (await served.get("/debug/pprof/")).text == "cmdline\ngoroutine\nheap\n"
    stacks = (await served.get("/debug/pprof/goroutine")).text
    assert "thread MainThread" in stacks
    assert "test_app.py" in stacks
    heap = await served.get("/debug/pprof/heap")
    assert heap.status == 404
    assert "PYTHONTRACEMALLOC=1" in heap.text
    for name, why in ABSENT.items():
        answer = await served.get(f"/debug/pprof/{name}")
        assert answer.status == 404
        assert why in answer.text
    assert (await served.get("/debug/vars?sandbox=box")).status == 404


async def test_sandboxes_come_and_go(tmp_path: Path, served: Served) -> None:
    async with FakeSandbox(tmp_path, "box@k8s.io") as box:
        await known(served, "box@k8s.io")
        await box.close(leave=True)
        await eventually_async(lambda: served.monitor.sandboxes.all["box@k8s.io"].state, "silent", "silent".__eq__)
        assert (await served.get("/metrics")).status == 200
    await known(served)
    (tmp_path / "no sandbox").mkdir()
    (tmp_path / "link@k8s.io").symlink_to(tmp_path)
    async with FakeSandbox(tmp_path, "next"):
        await known(served, "next")
    await known(served)
    events = [(event["type"], event["sandbox"]) for event in served.monitor.sandboxes.events]
    assert events == [("sandbox-gone", "box@k8s.io"), ("sandbox-gone", "next")]


async def test_what_one_who_looks_is_told(tmp_path: Path, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "WATCHED_INTERVAL_S", 0.2)
    async with FakeSandbox(tmp_path, "box") as box:
        box.cpu_percent = 250.0
        await known(served, "box")
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(f"GET /api/stream HTTP/1.1\r\nHost: localhost:{served.port}\r\n\r\n".encode())
        told = Told(reader)
        first = await told.next("all")
        assert [one["name"] for one in first["sandboxes"]] == ["box"]
        box.described["containers"][0]["state"] = "paused"
        box.tell("container-paused")
        event = await told.next("event")
        assert (event["sandbox"], event["type"], event["container"]) == ("box", "container-paused", "box")
        changed = await told.next("sandbox", lambda one: one["containers"][0]["state"] == "paused")
        assert changed["pod"] == {"name": "pod-box", "namespace": "default", "uid": "1234"}
        usage = await told.next("usage", lambda seen: (seen["sandboxes"][0]["now"] or {}).get("cpu", 0) > 100)
        assert usage["sandboxes"][0]["now"]["memory"] == 90 << 20
        await box.close()
        assert await told.next("gone") == {"name": "box"}
        writer.transport.abort()
    await eventually_async(lambda: len(served.monitor._viewers), "nobody looks", lambda number: number == 0)


class Told:
    """The events of a stream."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader

    async def next(self, kind: str, wanted: Any = lambda _: True) -> Any:
        """The content of the next event of a kind that is as wanted."""
        async with asyncio.timeout(30):
            while True:
                line = (await self._reader.readline()).decode().rstrip()
                if line == f"event: {kind}":
                    data = json.loads((await self._reader.readline()).decode().removeprefix("data: "))
                    if wanted(data):
                        return data


async def test_what_a_guest_says_is_bounded_and_nothing_but_text(tmp_path: Path, served: Served) -> None:
    async with FakeSandbox(tmp_path, "box") as box:
        one = {"id": EVIL * 20, "name": EVIL, "state": EVIL, "exit_status": "x"}
        box.described.update(state=EVIL, pod={"name": EVIL, "namespace": 7}, containers=[one] * 500, vm={"vcpus": EVIL})
        box.console = f"{EVIL}\n" * 100
        await known(served, "box")
        answer = await served.get("/api/sandboxes/box")
        assert answer.headers["content-type"] == "application/json"
        details = json.loads(answer.body)
        assert details["state"] == "unknown"
        assert details["pod"] == {"name": "<img src=x onerror=alert(1)> [2J ", "namespace": "", "uid": ""}
        assert len(details["containers"]) == 128
        assert len(details["containers"][0]["id"]) == 256
        assert details["vm"]["vcpus"] is None
        metrics = (await served.get("/metrics")).text
        assert "\x1b" not in metrics
        console = await served.get("/api/sandboxes/box/console")
        assert console.headers["content-type"] == "text/plain; charset=utf-8"
        assert console.text.splitlines()[0] == "<img src=x onerror=alert(1)>"


async def test_events_of_a_guest_that_floods(tmp_path: Path, served: Served) -> None:
    async with FakeSandbox(tmp_path, "box") as box:
        await known(served, "box")
        for number in range(2000):
            box.tell("oom", number=number, text="x" * 1000)
        box.tell("x" * 40_000)
        box.tell("container-exited", exit_status=0)
        sandbox = served.monitor.sandboxes.all["box"]
        await eventually_async(
            lambda: sandbox.events[-1]["type"] if sandbox.events else "", "the last one", "container-exited".__eq__
        )
        assert len(sandbox.events) == 100
        assert {event["sandbox"] for event in sandbox.details()["events"]} == {"box"}
        assert len(served.monitor.sandboxes.events) == 500
        assert len(sandbox.events[-2]["detail"]["text"]) == 100


async def test_a_hung_sandbox_holds_nothing_up(tmp_path: Path, served: Served) -> None:
    async with FakeSandbox(tmp_path, "hung", delay=3600), FakeSandbox(tmp_path, "box", metrics="kata_shim_threads 3\n"):
        begin = time.monotonic()
        await eventually_async(lambda: served.get("/metrics"), "it", lambda seen: b'"box"' in seen.body)
        assert time.monotonic() - begin < 10
        assert (await served.get("/sandboxes")).text == "box\nhung\n"


def test_the_page_makes_no_markup_of_what_it_is_told() -> None:
    page = Path(following.__file__).parent / "page"
    scripts = [path.read_text() for path in page.glob("*.js")]
    assert len(scripts) >= 3
    for script in scripts:
        for name in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "srcdoc"):
            assert name not in script
    for path in page.iterdir():
        urls = set(re.findall(r"""["'(]((?:https?:)?//[^\s"')]+)""", path.read_text()))
        assert urls <= {"http://www.w3.org/2000/svg"}
