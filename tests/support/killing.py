"""kill -9 of what runs a pod, and the removal of what is left, as a kubelet does it."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Collection
from pathlib import Path

import grpc

from kata.runtime.ledger.processes import processes_of
from tests.support.containerd import PrivateContainerd
from tests.support.cri import Cri

#: What is killed of a pod, by the name of the program in /proc; see `kill`.
PROGRAMS = {"shim": "containerd-shim", "vm": "qemu-system-x86", "file server": "virtfs-proxy-he"}
ALL_THREE, CONTAINERD, ANY = "all three", "containerd", "any process"
#: Seconds for containerd to get rid of what has been cut short.
REMOVAL_S = 60.0


def kill(
    containerd: PrivateContainerd, victim: str, *, spared: Collection[str] = (), choice: random.Random | None = None
) -> bool:
    """Send SIGKILL; return whether there was anything to kill.

    Args:
        containerd: whose pods.
        victim: one of PROGRAMS, of all pods; ALL_THREE; CONTAINERD, which is run again; ANY process of a pod.
        spared: ids of pods that are left alone.
        choice: says which, of ANY.
    """
    if victim == CONTAINERD:
        containerd.restart(signal.SIGKILL)
        return True
    shims = {pid: name for pid, name in containerd.shims().items() if name not in spared}
    pids = sorted({*shims, *(pid for name in shims.values() for pid in processes_of(str(containerd.state(name))))})
    if victim == ANY:
        pids = (choice or random.Random()).sample(pids, min(1, len(pids)))
    wanted = [program for name, program in PROGRAMS.items() if victim in (name, ALL_THREE)]
    killed = False
    for pid in pids:
        try:
            if victim == ANY or Path(f"/proc/{pid}/comm").read_text().strip() in wanted:
                os.kill(pid, signal.SIGKILL)
                killed = True
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended by itself
    return killed


def remove_all(cri: Cri, *, spared: Collection[str] = (), within_s: float = REMOVAL_S) -> None:
    """Stop and remove every pod, as a kubelet does: again and again until it works.

    Raises:
        AssertionError: one cannot be removed in time.
    """
    deadline = time.monotonic() + within_s
    while True:
        try:
            for pod in cri.call("ListPodSandbox").items:
                if pod.id not in spared:
                    cri.call("StopPodSandbox", pod_sandbox_id=pod.id)
                    cri.call("RemovePodSandbox", pod_sandbox_id=pod.id)
        except grpc.RpcError as error:
            if time.monotonic() > deadline:
                raise AssertionError(f"a pod cannot be removed: {error}") from error
            time.sleep(0.2)
        else:
            return
