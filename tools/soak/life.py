"""A pod's life, step by step, as far as it gets."""

from __future__ import annotations

import random
from collections.abc import Sequence

import grpc

from kata.protocols import cri_pb2 as pb
from tests.support.cri import Container, Cri

MIB = 1 << 20
_OUTPUT = 300_000


def live(cri: Cri, name: str, group: str, steps: Sequence[str], seed: str) -> str:
    """Live a pod's life; return what went wrong, or "".

    Args:
        cri: makes the pod.
        name: the pod's.
        group: the cgroup of all pods.
        steps: of `tools.soak.plan`.
        seed: for what the plan leaves open.
    """
    choice = random.Random(seed)
    doing = "RunPodSandbox"
    try:
        with cri.pod(name, linux=pb.LinuxPodSandboxConfig(cgroup_parent=group)) as pod:
            containers: list[Container] = []
            for step in steps:
                doing = step
                if step == "container" or not containers:
                    containers.append(pod.run())
                else:
                    _step(step, containers, choice)
            doing = "StopPodSandbox"
    except (grpc.RpcError, AssertionError) as error:
        said = error.details() if isinstance(error, grpc.Call) else str(error)
        return f"{doing}: {said}"
    return ""


def _step(step: str, containers: list[Container], choice: random.Random) -> None:
    container = choice.choice(containers)
    if step == "exec":
        number = choice.randrange(100)
        assert container.exec("sh", "-c", f"exit {number}").status == number
    elif step == "output":
        assert len(container.exec("sh", "-c", f"yes | head -c {_OUTPUT}").stdout) == _OUTPUT
    elif step == "resize":
        # Memory and a vCPU are plugged into the VM, and unplugged again.
        container.update(memory_limit_in_bytes=choice.randint(300, 600) * MIB, cpu_quota=150_000, cpu_period=100_000)
        container.update(memory_limit_in_bytes=128 * MIB, cpu_quota=50_000, cpu_period=100_000)
    else:
        containers.remove(container)
        container.stop(choice.randint(0, 1))
        container.remove()
