"""When the shared tree comes over virtio-fs, if the configuration leaves it open."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kata.oci.default import default_spec
from kata.oci.spec import Spec
from kata.runtime.config.settings import Config
from kata.runtime.launch.shared_fs import decide, volumes_to_write


def spec(*mounts: dict[str, Any]) -> Spec:
    made: Any = default_spec(["true"], rootfs="/r", hostname="box")
    made["mounts"] = [*made["mounts"], *mounts]
    return made  # type: ignore[no-any-return]


def bind(destination: str, *options: str, kind: str = "bind") -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": "/srv/data", "options": list(options)}


@pytest.mark.parametrize(
    "mount",
    [bind("/data", "rbind", "rw"), bind("/data"), bind("/data", "bind", kind="none"), bind("/devices", "rbind")],
)
def test_a_bind_that_is_not_read_only(mount: dict[str, Any]) -> None:
    assert volumes_to_write(spec(mount)) == [mount["destination"]]
    assert decide(Config(), spec(mount)).hypervisor.shared_fs == "virtio-fs"


@pytest.mark.parametrize(
    "mount",
    [
        *(bind("/data", "rbind", "ro"), bind("/data", "rbind", "rro"), bind("/data", "rbind", "rslave", "rw")),
        *(bind("/etc/hosts", "rbind", "rw"), bind("/dev/shm", "rbind"), bind("/dev", "rbind"), bind("/sys/fs/cgroup")),
        {"destination": "/data", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/data", "type": "ext4", "source": "/dev/sda", "options": ["rw"]},
    ],
)
def test_nothing_that_a_container_writes_of_the_hosts(mount: dict[str, Any]) -> None:
    assert volumes_to_write(spec(mount)) == []
    assert decide(Config(), spec(mount)).hypervisor.shared_fs == "virtio-9p"


def test_without_a_spec_there_is_nothing_to_decide_by() -> None:
    assert decide(Config(), {}).hypervisor.shared_fs == "virtio-9p"


@pytest.mark.parametrize("value", ["virtio-9p", "virtio-fs"])
def test_what_is_configured_stays(value: str) -> None:
    config = Config()
    config = replace(config, hypervisor=replace(config.hypervisor, shared_fs=value))
    assert decide(config, spec(bind("/data", "rbind"))) is config
    assert decide(config, spec()) is config
