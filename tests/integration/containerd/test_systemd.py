"""systemd as the init process of a privileged container: its services come up in the VM as on a VM."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.containerd import RUNTIME, PrivateContainerd, unique_id
from tests.support.leaks import TEST_PREFIX
from tests.support.packages import merge_usr, unpack
from tests.support.waiting import eventually

pytestmark = [pytest.mark.containerd, pytest.mark.usefixtures("nothing_left_by_this"), pytest.mark.long]

#: A first boot makes much that is in the root file system later.
BOOTS = 10

PACKAGES = ("systemd", "systemd-sysv", "dbus", "libkmod2", "libc-bin")
FILES = {
    "passwd": "root:x:0:0:root:/root:/bin/sh\nmessagebus:x:100:100::/:/bin/false\nnobody:x:65534:65534::/:/bin/false\n",
    "group": "root:x:0:\nmessagebus:x:100:\nnogroup:x:65534:\n",
    "shadow": "root:*:1::::::\n",
    "machine-id": "",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("systemd")
    merge_usr(root)
    unpack(root, *PACKAGES)
    for name, content in FILES.items():
        (root / "etc" / name).write_text(content)
    return root


@pytest.mark.parametrize("boot", range(1, BOOTS + 1))
def test_it_is_running_and_not_degraded(containerd: PrivateContainerd, root: Path, boot: int, tmp_path: Path) -> None:
    subprocess.run(["cp", "--archive", f"{root}/.", tmp_path], check=True, timeout=60)
    container_id = unique_id(TEST_PREFIX)
    options = ("--privileged", "--env", "container=oci", "--env", "PATH=/usr/sbin:/usr/bin")
    command = ("run", "--detach", *options, "--runtime", RUNTIME, "--rootfs", str(tmp_path), container_id, "/sbin/init")
    containerd.ctr(*command)

    def systemctl(*words: str) -> str:
        run = ("task", "exec", "--exec-id", unique_id("e"), container_id, "systemctl", "--no-pager", *words)
        return containerd.ctr(*run, check=False).stdout

    try:
        state = eventually(
            lambda: systemctl("is-system-running").strip(),
            "systemd has started what it starts",
            lambda seen: seen in ("running", "degraded"),
            within_s=180,
            poll_s=1,
        )
        assert state == "running", systemctl("--failed")
    finally:
        containerd.ctr("task", "delete", "--force", container_id)
        containerd.ctr("container", "delete", container_id)
