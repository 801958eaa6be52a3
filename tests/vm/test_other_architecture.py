"""An arm64 image on this host, as a user runs it. Needs a guest for it, which `make test-long` builds."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata.architecture import ARM64
from kata.errors import NotFound
from kata.osbuilder import cpio, store
from kata.runtime.images.model import ImageConfig
from tests.support import leaks
from tests.support.cni import PLUGINS
from tests.support.containerd import RUNTIME, PrivateContainerd
from tests.support.images import write_oci_archive
from tests.support.waiting import eventually

pytestmark = [
    pytest.mark.vm,
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not ARM64.qemu.exists(), reason=f"needs {ARM64.qemu_package}"),
]

KATA = str(Path(sys.executable).with_name("kata"))
PREFIX = f"{leaks.TEST_PREFIX}a{os.getpid()}-"
NAME = "docker.io/example/arm64:1"
PLATFORM = ("--platform", ARM64.platform)
#: Seconds for a command; the first one boots a guest and makes a template.
TIMEOUT_S = 300.0
_APPLETS = ("cat", "echo", "grep", "head", "ip", "ping", "sh", "sleep", "uname", "wget")


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    with leaks.nothing_stays(PREFIX):
        yield


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image whose only program is the busybox of the guest."""
    try:
        image = store.find(version=ARM64.current)
    except NotFound as error:
        pytest.skip(f"{error}: {error.hint}")
    busybox = cpio.content(image.initrd.read_bytes(), "bin/busybox")
    rootfs = tmp_path_factory.mktemp("rootfs")
    for name in ("bin", "dev", "etc", "proc", "sys", "tmp", "data"):
        (rootfs / name).mkdir()
    (rootfs / "bin/busybox").write_bytes(busybox)
    (rootfs / "bin/busybox").chmod(0o755)
    for applet in _APPLETS:
        (rootfs / "bin" / applet).symlink_to("busybox")
    out = tmp_path_factory.mktemp("image") / "arm64.tar"
    return write_oci_archive(rootfs, ImageConfig(cmd=("uname", "-m")), out, NAME, ARM64)


def kata(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([KATA, *map(str, arguments)], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


def test_its_programs_run(archive: Path) -> None:
    """The first run may make a template, the second is restored from it."""
    for name in ("first", "second"):
        done = kata("run", *PLATFORM, "--name", f"{PREFIX}{name}", archive)
        assert (done.returncode, done.stdout) == (0, "aarch64\n"), done.stderr
        assert name == "first" or "template" not in done.stderr


def test_exec_volumes_and_network(archive: Path, tmp_path: Path) -> None:
    if not (PLUGINS / "bridge").exists():
        pytest.skip("needs containernetworking-plugins")
    name = f"{PREFIX}all"
    (tmp_path / "in").write_text("from the host\n")
    script = "cat /data/in; echo from the guest >/data/out; sleep 300"
    options = [*PLATFORM, "--name", name, "-v", f"{tmp_path}:/data", "--network", "bridge"]
    command = [KATA, "run", *options, str(archive), "--", "sh", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout
            assert running.stdout.readline() == "from the host\n"
            out = tmp_path / "out"
            eventually(lambda: out.exists() and out.read_text() == "from the guest\n", "the guest's file", within_s=60)
            done = kata("exec", name, "uname", "-m")
            assert (done.returncode, done.stdout) == (0, "aarch64\n"), done.stderr
            phases = kata("timings", name).stdout
            assert "first answer" in phases
            assert "boot" not in phases
            gateway = "ip route | grep default | { read -r _ _ to _; ping -c 1 -W 30 $to; }"
            done = kata("exec", name, "sh", "-c", gateway)
            assert done.returncode == 0, done.stdout + done.stderr
        finally:
            running.terminate()
            running.wait(60)


def test_by_containerd_with_a_configuration_of_its_own(archive: Path, tmp_path: Path) -> None:
    """As the guide has it."""
    image = store.images_root() / ARM64.current
    paths = {"path": ARM64.qemu, "kernel": image / "vmlinux", "initrd": image / "initrd"}
    paths |= {"image": image / "root.erofs", "host_programs": image / "host"}
    lines = [f'machine_type = "{ARM64.machine_type}"', *(f'{key} = "{path}"' for key, path in paths.items())]
    configuration = tmp_path / "arm64.toml"
    configuration.write_text("\n".join(["[hypervisor.qemu]", *lines]))
    with PrivateContainerd() as containerd:
        containerd.ctr("images", "import", *PLATFORM, str(archive))
        runtime = ("--runtime", RUNTIME, "--runtime-config-path", str(configuration))
        done = containerd.ctr("run", "--rm", *PLATFORM, *runtime, NAME, f"{PREFIX}ctr", timeout=TIMEOUT_S)
        assert done.stdout == "aarch64\n"


def test_it_is_told_without_the_platform(archive: Path) -> None:
    begin = time.monotonic()
    done = kata("run", "--name", f"{PREFIX}none", archive)
    assert done.returncode == 125
    assert "image for linux/amd64" in done.stderr
    assert "hint: kata run --platform linux/arm64 runs it, emulated" in done.stderr
    assert time.monotonic() - begin < 30, "no VM was started for it"


def test_it_is_told_without_a_guest(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KATA_IMAGES", str(tmp_path))
    done = kata("run", *PLATFORM, "--name", f"{PREFIX}none", archive)
    assert done.returncode == 125
    assert "hint: run: kata image build --arch arm64" in done.stderr
