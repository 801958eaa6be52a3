"""Where it happens: a containerd with its CRI plugin, a pod that nobody disturbs, and one round after the other."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from kata.errors import KataError
from kata.runtime.ledger.processes import processes_of
from tests.support.cni import Bridge
from tests.support.containerd import PrivateContainerd
from tests.support.cri import Container, Cri, Pod, pod_containerd
from tests.support.images import BUSYBOX
from tests.support.killing import PROGRAMS, kill, remove_all
from tests.support.leaks import POD_IDS, assert_nothing_left, snapshot
from tests.support.waiting import eventually
from tools.soak.figures import Outcome, measure
from tools.soak.life import live
from tools.soak.plan import RESTART, Round
from tools.soak.pressure import PodsGroup, SmallDisk, small_disk

_CONFIGURATION = "[hypervisor.qemu]\ndefault_memory = 512\n[runtime]\nsandbox_cgroup_only = true\n"
#: On which PrivateContainerd has its files.
_VAR_TMP = Path("/var/tmp")
_DISK_MIB = 1500
#: Seconds for calls to containerd to end, for pods to be removed, and for what they held to be given back.
_CALLS_S, _REMOVAL_S, _LEFT_S = 180.0, 120.0, 90.0
_POLL_S = 0.01


class Stage:
    """Runs rounds.

    Args:
        containerd: of all pods.
        cri: its client.
        undisturbed: the pod that nobody kills, and its container.
        group: of the pods that are killed.
        disk: containerd's.
        seed: of all that the plan leaves open.
    """

    def __init__(
        self,
        containerd: PrivateContainerd,
        cri: Cri,
        undisturbed: tuple[Pod, Container],
        group: PodsGroup,
        disk: SmallDisk,
        seed: int,
    ) -> None:
        self._containerd = containerd
        self._cri = cri
        self._pod, self._container = undisturbed
        self._group = group
        self._disk = disk
        self._seed = seed
        self._before = snapshot(POD_IDS)
        (self._shim,) = [pid for pid, name in containerd.shims().items() if name == self._pod.id]
        (self._vm,) = [
            pid
            for pid in processes_of(str(containerd.state(self._pod.id)))
            if Path(f"/proc/{pid}/comm").read_text().strip() == PROGRAMS["vm"]
        ]

    def run(self, planned: Round, begun: float) -> Outcome:
        """Run a round.

        Args:
            planned: the round.
            begun: when the soak was, by `time.monotonic`.
        """
        problems: list[str] = []
        ended: list[str] = []
        kills = 0
        try:
            self._group.limit(planned.memory_mib)
            if planned.disk_mib is not None:
                self._disk.fill(planned.disk_mib)
            kills = self._disturb(planned, ended)
        except (AssertionError, KataError, OSError) as error:
            problems.append(f"{error}")
        finally:
            self._disk.free()
            self._group.limit(None)
        if planned.peaceful:
            problems += [f"nobody was killed, and yet {reason}" for reason in ended]
        figures: dict[str, float] = {}
        try:
            if not self._containerd.pid:
                self._containerd.start()  # it ended when its disk was full
            remove_all(self._cri, spared=(self._pod.id,), within_s=_REMOVAL_S)
            assert_nothing_left(self._before, POD_IDS, within_s=_LEFT_S)
            self._greet(planned.number)
            figures = measure(self._containerd.pid, self._shim, self._vm)
        except (AssertionError, KataError, OSError, grpc.RpcError) as error:
            problems.append(f"{error}")
            self._before = snapshot(POD_IDS)  # it counts once
        seconds = round(time.monotonic() - begun, 1)
        return Outcome(planned.number, seconds, kills, planned.pressure, tuple(ended), tuple(problems), figures)

    def _disturb(self, planned: Round, ended: list[str]) -> int:
        """Let pods live, and kill; returns how often.

        Raises:
            AssertionError: a call to containerd does not end.
        """
        lives = [
            threading.Thread(target=self._live, args=(planned.number, index, steps, ended), daemon=True)
            for index, steps in enumerate(planned.lives)
        ]
        begin = time.monotonic()
        for life in lives:
            life.start()
        killed = 0
        for number, planned_kill in enumerate(planned.kills):
            choice = random.Random(f"{self._seed}:{planned.number}:{number}")
            time.sleep(max(0.0, begin + planned_kill.after_s - time.monotonic()))
            # What is to be killed may not be there yet.
            while any(life.is_alive() for life in lives):
                if self._kill(planned_kill.victim, choice):
                    killed += planned_kill.victim != RESTART
                    break
                time.sleep(_POLL_S)
        deadline = time.monotonic() + _CALLS_S
        for life in lives:
            life.join(max(0.0, deadline - time.monotonic()))
        assert not any(life.is_alive() for life in lives), f"a call to containerd does not end in {_CALLS_S:.0f} s"
        return killed

    def _kill(self, victim: str, choice: random.Random) -> bool:
        """Kill something of one pod, or restart containerd; returns whether there was anything.

        Raises:
            KataError: containerd does not come up again.
        """
        if victim == RESTART:
            self._containerd.restart()
            return True
        pods = sorted({*self._containerd.shims().values()} - {self._pod.id})
        spared = {self._pod.id, *pods} - ({choice.choice(pods)} if pods else set())
        return kill(self._containerd, victim, spared=spared, choice=choice)

    def _live(self, number: int, index: int, steps: tuple[str, ...], ended: list[str]) -> None:
        name = f"soak-{number}-{index}"
        if reason := live(self._cri, name, self._group.name, steps, f"{self._seed}:{name}"):
            ended.append(reason)

    def _greet(self, number: int) -> None:
        """The pod that nobody disturbs still answers. Raises AssertionError, DeadlineExceeded."""

        def answer() -> str:
            try:
                return self._container.exec("echo", str(number)).stdout
            except grpc.RpcError as error:
                return str(error)

        said = eventually(answer, "the pod that nobody disturbs answers", lambda said: said == f"{number}\n")
        assert said == f"{number}\n"


@contextmanager
def stage(scratch: Path, seed: int) -> Iterator[Stage]:
    """Everything that rounds need; the caller is in a mount namespace of its own.

    Args:
        scratch: an empty directory, not on /var/tmp.
        seed: of all that the plan leaves open.

    Raises:
        KataError, OSError: something does not come up.
    """
    configuration = scratch / "configuration.toml"
    configuration.write_text(_CONFIGURATION, encoding="utf-8")
    for name in ("logs", "cni", "containerd"):
        (scratch / name).mkdir()
    with (
        small_disk(scratch / "disk.img", _VAR_TMP, _DISK_MIB) as disk,
        Bridge(f"ks{os.getpid()}", scratch / "cni") as bridge,
        pod_containerd(
            bridge, scratch / "containerd", environment={"KATA_CONF_FILE": str(configuration)}
        ) as containerd,
        Cri(containerd.address, "kata", BUSYBOX, scratch / "logs") as cri,
    ):
        group = PodsGroup(f"/kata-soak-{os.getpid()}")
        try:
            with cri.pod("undisturbed") as pod:
                yield Stage(containerd, cri, (pod, pod.run("sleep", "1000000")), group, disk, seed)
        except BaseException:
            # The reason is in there.
            (scratch / "containerd.log").write_text(containerd.log_text(), encoding="utf-8")
            raise
        finally:
            try:
                remove_all(cri, within_s=_REMOVAL_S)
            finally:
                eventually(lambda: _removed(group), "the pods' cgroup can be removed", within_s=_LEFT_S)


def _removed(group: PodsGroup) -> bool:
    try:
        group.close()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
