"""Where the programs that look at files run: each way that files come to a container, and each place in it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.containerd import RUNTIME, PrivateContainerd, unique_id
from tests.support.fileprograms import There
from tests.support.leaks import TEST_PREFIX

RUNC = "runc"
#: What a way sets, and whether the root or the volumes come by it.
_SETTINGS = {
    "virtio-9p": 'shared_fs = "virtio-9p"',
    "virtio-fs": 'shared_fs = "virtio-fs"',
    "layers, disk": "[runtime]\nrootfs_layers = 'disks'\nrootfs_upper = 'disk'",
    "layers, memory": "[runtime]\nrootfs_layers = 'disks'\nrootfs_upper = 'memory'",
    "layers, host": "shared_fs = 'virtio-9p'\n[runtime]\nrootfs_layers = 'disks'\nrootfs_upper = 'host'",
    "layers, small disk": "[runtime]\nrootfs_layers = 'disks'\nrootfs_upper = 'disk'\nrootfs_upper_size = 64",
}
#: Where in a container the volume and what may only be read are.
_VOLUME, _AGAIN, _READ_ONLY, _READ_ONLY_PART = "/a", "/b", "/ro", "/ro-part"
_TIMEOUT_S = 240.0
#: Between two kernels much does not work, and is not waited for as long.
_STEP_BETWEEN_KERNELS = "STEP_TIMEOUT_S=4"


@dataclass(frozen=True)
class Files:
    """Containers with a volume, and files by one way.

    Attributes:
        containerd: that runs them.
        image: with Python and the programs (`tests.support.packages.python_archive`).
        way: how files come to them: "runc", or a key of the settings above.
        directory: for the configuration and the volumes.
    """

    containerd: PrivateContainerd
    image: str
    way: str
    directory: Path

    @property
    def volume(self) -> Path:
        """A volume, a part of which is also mounted to be read only."""
        return self._readable(self.directory / "volume", "ro").parent

    @property
    def _read_only(self) -> Path:
        """A volume that nobody may write to."""
        return self._readable(self.directory, "read-only")

    @staticmethod
    def _readable(parent: Path, name: str) -> Path:
        if not (parent / name).exists():
            (parent / name / "directory").mkdir(parents=True)
            (parent / name / "file").write_text("content")
            (parent / name / "link").symlink_to("nowhere")
        return parent / name

    def options(self) -> tuple[str, ...]:
        """Options of `ctr run`."""
        if self.way == RUNC:
            return ("--runtime", "io.containerd.runc.v2")
        path = self.directory / "configuration.toml"
        path.write_text(f"[hypervisor.qemu]\ndefault_memory = 512\n{_SETTINGS[self.way]}\n")
        return ("--runtime", RUNTIME, "--runtime-config-path", str(path))

    def found(self, program: str, directory: str = "/srv/files", *options: str) -> dict[str, Any]:
        """What a program finds in a directory: in the root file system, or in what the options mount."""
        return self.run(program, (directory, "", _READ_ONLY), *options)

    def run(
        self, program: str, arguments: tuple[str, ...], *options: str, timeout: float = _TIMEOUT_S
    ) -> dict[str, Any]:
        """What a program prints."""
        command = self.command(program, arguments, *options)
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
        return _found(done.stdout, done.stderr)

    def in_volume(self, program: str) -> dict[str, Any]:
        """What a program finds in a volume."""
        return self.found(program, f"{_VOLUME}/files")

    def two_mounts(self, program: str) -> dict[str, Any]:
        """What two programs find that have a volume by two mounts of one container."""
        return self.run(program, (_VOLUME, _AGAIN, _READ_ONLY_PART))

    def two_containers(self, program: str) -> dict[str, Any]:
        """What two programs find that have a volume in two containers of one pod."""
        pod, port = unique_id(TEST_PREFIX), f":{_free_port()}"
        network = ("--net-host",) if self.way == RUNC else ()
        first = self.command(program, ("--serve", _AGAIN, port), *network, *in_pod(pod, "sandbox"), container_id=pod)
        second = self.command(program, (_VOLUME, port, _READ_ONLY_PART), *network, *in_pod(pod, "container"))
        with subprocess.Popen(first, stdout=subprocess.PIPE, text=True) as other:
            try:
                assert other.stdout
                assert other.stdout.readline() == "ready\n"
                # In runc both have one shim, which may end before ctr has deleted the second: what it said counts.
                done = subprocess.run(second, capture_output=True, text=True, timeout=_TIMEOUT_S)
                assert other.wait(60) == 0
            finally:
                other.kill()
        return _found(done.stdout, done.stderr)

    def two_sandboxes(self, program: str) -> dict[str, Any]:
        """What two programs find that have a volume in two sandboxes."""
        waited = ("--env", _STEP_BETWEEN_KERNELS)
        first = self.command(program, (_VOLUME, "-"), *waited)
        return _joined(first, self.command(program, ("--serve", _AGAIN, "-"), *waited))

    def beside_the_host(self, program: str, *, first: bool) -> dict[str, Any]:
        """What two programs find, one of which is on the host: the first one, or the second."""
        on_host = ["env", _STEP_BETWEEN_KERNELS, sys.executable, "-m", f"tests.support.{program}"]
        waited = ("--env", _STEP_BETWEEN_KERNELS)
        if first:
            there = self.command(program, ("--serve", _AGAIN, "-"), *waited)
            return _joined([*on_host, str(self.volume), "-"], there)
        here = self.command(program, (_VOLUME, "-"), *waited)
        return _joined(here, [*on_host, "--serve", str(self.volume), "-"])

    def command(self, program: str, arguments: tuple[str, ...], *options: str, container_id: str = "") -> list[str]:
        """The command line that runs a program of `tests.support` in a container with the volume."""
        mounts = (
            *bind(self.volume, _VOLUME),
            *bind(self.volume, _AGAIN),
            *bind(self.volume / "ro", _READ_ONLY_PART, "ro"),
            *bind(self._read_only, _READ_ONLY, "ro"),
        )
        python = ("/usr/bin/python3", "-m", f"support.{program}", *arguments)
        run = ("run", "--rm", *self.options(), "--cap-add", "CAP_SETFCAP", *mounts, *options)
        return self.containerd.ctr_command(*run, self.image, container_id or unique_id(TEST_PREFIX), *python)

    @contextmanager
    def serving(self, program: str) -> Iterator[There]:
        """Have a second program in a sandbox of its own, which has the volume and is called from here."""
        command = self.command(program, ("--serve", _VOLUME, "-"))
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as serving:
            try:
                assert serving.stdin
                assert serving.stdout
                yield There(serving.stdout, serving.stdin)
                serving.stdin.close()
                assert serving.wait(60) == 0
            finally:
                serving.kill()


def bind(source: str | Path, destination: str, *options: str) -> tuple[str, ...]:
    """Options of `ctr run` for a bind mount."""
    return "--mount", f"type=bind,src={source},dst={destination},options={':'.join(('rbind', *options))}"


def missed(found: dict[str, Any]) -> dict[str, Any]:
    """What is not as it should be, of what `filecheck` or `fileissues` found."""
    return {name: said for name, said in found.items() if said is not True}


def _joined(first: list[str], second: list[str]) -> dict[str, Any]:
    """Join the standard input and output of two programs; what the first one has found."""
    one, other = socket.socketpair()
    with one, other, subprocess.Popen(second, stdin=other.fileno(), stdout=other.fileno()) as there:
        try:
            other.close()
            end = one.fileno()
            with subprocess.Popen(first, stdin=end, stdout=end, stderr=subprocess.PIPE, text=True) as here:
                try:
                    one.close()
                    _, said = here.communicate(timeout=_TIMEOUT_S)
                finally:
                    here.kill()
            assert there.wait(60) == 0, said
        finally:
            there.kill()
    return _found(said, said)


def _found(output: str, errors: str) -> dict[str, Any]:
    lines = [line for line in output.splitlines() if line.startswith("{")]
    assert lines, errors
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def in_pod(pod: str, kind: str) -> tuple[str, ...]:
    annotations = (f"io.kubernetes.cri.container-type={kind}", f"io.kubernetes.cri.sandbox-id={pod}")
    return tuple(word for annotation in annotations for word in ("--annotation", annotation))


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
