"""A start and an exec take no more than so many times what they take with runc.

What they take is in docs/performance.md. The bounds here are a multiple of that, so that they hold on a busy host, and
still less than a start without a template takes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from statistics import median

import pytest

from tests.support.containerd import RUNTIME, PrivateContainerd, unique_id
from tests.support.images import BUSYBOX
from tests.support.leaks import TEST_PREFIX

pytestmark = [pytest.mark.containerd, pytest.mark.usefixtures("nothing_left_by_this")]

RUNTIMES = (RUNTIME, "io.containerd.runc.v2")
ROUNDS = 3
#: `ctr run --rm` and `ctr task exec` of `true`, restored from a template, under emulation.
MAX_START, MAX_EXEC = 40, 15


def ratio(containerd: PrivateContainerd, commands: list[tuple[str, ...]]) -> float:
    """How many times as long the first command takes as the second, each after the other; once without counting.

    "ID" in them is a new id each time.
    """
    seconds: list[list[float]] = [[], []]
    for _ in range(1 + ROUNDS):
        for command, found in zip(commands, seconds, strict=True):
            words = [unique_id(TEST_PREFIX) if word == "ID" else word for word in command]
            begin = time.monotonic()
            containerd.ctr(*words)
            found.append(time.monotonic() - begin)
    ours, runcs = (median(found[1:]) for found in seconds)
    return ours / runcs


@contextmanager
def running(containerd: PrivateContainerd, runtime: str) -> Iterator[str]:
    container_id = unique_id(TEST_PREFIX)
    containerd.ctr("run", "--detach", "--runtime", runtime, BUSYBOX, container_id, "sleep", "600")
    try:
        yield container_id
    finally:
        containerd.ctr("tasks", "delete", "--force", container_id)
        containerd.ctr("containers", "delete", container_id)


def test_a_start(containerd: PrivateContainerd) -> None:
    commands = [("run", "--rm", "--runtime", runtime, BUSYBOX, "ID", "true") for runtime in RUNTIMES]
    assert ratio(containerd, commands) < MAX_START


def test_an_exec(containerd: PrivateContainerd) -> None:
    with ExitStack() as stack:
        ids = [stack.enter_context(running(containerd, runtime)) for runtime in RUNTIMES]
        commands = [("tasks", "exec", "--exec-id", "ID", container_id, "true") for container_id in ids]
        assert ratio(containerd, commands) < MAX_EXEC
