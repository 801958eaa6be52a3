"""A container in a user namespace: what the spec has read-only is, as with runc."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

from tests.support import oracle
from tests.support.containerd import RUNTIME, PrivateContainerd, unique_id
from tests.support.images import busybox_rootfs
from tests.support.leaks import TEST_PREFIX

pytestmark = [pytest.mark.containerd, pytest.mark.usefixtures("nothing_left_by_this")]

#: Of the host's, how the root user of the container is called there, and how many follow.
MAPPING = [{"containerID": 0, "hostID": 100_000, "size": 65_536}]
LOOK = "cat /proc/self/uid_map; while read a b c d point options e; do echo $point $options; done </proc/self/mountinfo"


@pytest.mark.parametrize("runtime", [RUNTIME, oracle.RUNC], ids=["kata", "runc"])
def test_mount_options(containerd: PrivateContainerd, tmp_path: Path, runtime: str) -> None:
    rootfs = tmp_path / "rootfs"
    busybox_rootfs(rootfs)
    for path in (rootfs, *rootfs.parents):
        if path == Path(tempfile.gettempdir()):
            break
        path.chmod(0o755)
    spec = json.loads(containerd.ctr("oci", "spec").stdout)
    kinds = [*spec["linux"]["namespaces"], {"type": "user"}]
    container = unique_id(TEST_PREFIX)
    # The one that ctr writes has other containers in it, and runc cannot set its devices then.
    spec["linux"].update(uidMappings=MAPPING, gidMappings=MAPPING, namespaces=kinds, cgroupsPath=f"/{container}")
    spec["process"].update(args=["/bin/sh", "-c", LOOK], terminal=False, env=["PATH=/bin"])
    spec["root"] = {"path": str(rootfs), "readonly": True}
    (tmp_path / "config.json").write_text(json.dumps(spec))
    command = ("run", "--rm", "--runtime", runtime, "--config", str(tmp_path / "config.json"), container)
    mapping, *lines = oracle.answer(runtime, lambda: containerd.ctr(*command).stdout).splitlines()
    assert mapping.split() == ["0", "100000", "65536"]
    # The last one of a path is what is seen there.
    options = {point: set(given.split(",")) for point, given in (line.split() for line in lines)}
    for point in ("/sys", "/dev/mqueue", "/proc"):
        assert {"nosuid", "nodev", "noexec"} <= options[point], point
    assert "ro" in options["/sys"]
    assert "ro" in options["/"]
