from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace

import pytest

from kata.log_fields import CONTAINER, ForContainer
from kata.shim.log import LogfmtFormatter


class Service:
    """Logs in a call, and later in a task that the call has made."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.going_on = asyncio.Event()

    def log(self, text: str) -> None:
        record = logging.LogRecord("kata.x", logging.INFO, "f", 1, text, (), None)
        self.lines.append(LogfmtFormatter("box").format(record).partition("msg=")[2])

    async def create(self, request: SimpleNamespace, context: object) -> asyncio.Task[None]:
        self.log("called")
        await asyncio.sleep(0)
        return asyncio.create_task(self.later())

    async def later(self) -> None:
        await self.going_on.wait()
        self.log("later")


async def test_records_name_the_container_of_their_call() -> None:
    service = Service()
    wrapped = ForContainer(service, "id")
    requests = [SimpleNamespace(id="c1"), SimpleNamespace(id='c 2"\n'), SimpleNamespace()]
    tasks = await asyncio.gather(*(asyncio.create_task(wrapped.create(one, None)) for one in requests))
    service.log("outside")
    service.going_on.set()
    await asyncio.gather(*tasks)
    ids = [line.partition("sandbox=box")[2].partition(" source=")[0] for line in service.lines]
    named = [" container=c1", ' container="c 2\\"\\n"', ""]
    assert ids == [*named, "", *named]
    assert CONTAINER.get() == ""


def test_a_record_is_bounded() -> None:
    record = logging.LogRecord("kata.x", logging.ERROR, "f", 1, "x%s", ("\x1b" * 5_000_000,), None)
    line = LogfmtFormatter("box").format(record)
    assert len(line) < 200_000
    assert "\x1b" not in line
    assert "more characters)" in line


def test_a_method_that_is_not_there_is_no_rpc() -> None:
    with pytest.raises(AttributeError):
        ForContainer(object(), "id").create  # noqa: B018
