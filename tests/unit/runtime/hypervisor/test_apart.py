"""The namespaces of a VMM: never the host's, and the pod's network namespace if there is one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kata.linux.namespaces import inside_new
from kata.runtime.hypervisor.qemu.apart import apart, thread_ids

pytestmark = pytest.mark.root
KINDS = ("net", "ipc", "uts", "pid")


def own(*kinds: str, process: str = "thread-self") -> list[str]:
    return [os.readlink(f"/proc/{process}/ns/{kind}") for kind in kinds]


def look_like_a_vmm(network: str) -> list[str]:
    with apart(network), inside_new("pid"):
        child = subprocess.Popen(["sleep", "60"])
    try:
        return own(*KINDS, process=str(child.pid))
    finally:
        child.kill()
        child.wait()


def test_without_a_network_namespace_it_has_one_of_its_own() -> None:
    home = own(*KINDS)
    assert not set(look_like_a_vmm("")) & set(home)
    assert own(*KINDS) == home, "the caller stays where it was"


def test_it_is_in_the_pods(network_namespace: str) -> None:
    found = look_like_a_vmm(network_namespace)
    assert found[0] == f"net:[{os.stat(network_namespace).st_ino}]"
    assert not set(found) & set(own(*KINDS))


def test_a_pod_that_is_gone() -> None:
    home = own(*KINDS)
    with pytest.raises(FileNotFoundError, match="/run/netns/absent"), apart("/run/netns/absent"):
        pass
    assert own(*KINDS) == home


def test_threads_by_the_numbers_that_the_process_knows() -> None:
    program = "import threading, time; t = threading.Thread(target=time.sleep, args=(60,)); t.start()\n"
    program += "print(threading.main_thread().native_id, t.native_id, flush=True)"
    with inside_new("pid"):
        child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout
        main, thread = (int(word) for word in child.stdout.readline().split())
        found = thread_ids(child.pid)
        assert main == 1
        assert found[main] == child.pid
        assert str(found[thread]) in os.listdir(f"/proc/{child.pid}/task")
        assert len(set(found.values())) == 2
    finally:
        child.kill()
        child.communicate()
    assert thread_ids(child.pid) == {}
