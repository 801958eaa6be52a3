"""When the shared tree comes over virtio-fs, if the configuration leaves it open."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kata.oci.default import default_spec
from kata.oci.spec import Spec
from kata.runtime.config.settings import Config
from kata.runtime.launch.shared_fs import decide, volumes_of_pod, volumes_to_write


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


def pod(uid: str = "4c3b") -> Spec:
    return spec() | {"annotations": {"io.kubernetes.cri.sandbox-uid": uid}}


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """The kubelet's directory for the volumes of pod 4c3b."""
    for plugin in ("projected", "configmap", "secret", "downward-api"):
        (tmp_path / f"4c3b/volumes/kubernetes.io~{plugin}/{plugin}").mkdir(parents=True)
    return tmp_path / "4c3b/volumes"


def of_pod(volumes: Path, *, guest_empty_dirs: bool = False) -> list[str]:
    return volumes_of_pod(pod(), guest_empty_dirs=guest_empty_dirs, pods=volumes.parents[1])


def test_a_pod_whose_volumes_are_projected_has_nothing_to_write_to(volumes: Path) -> None:
    assert of_pod(volumes) == []


@pytest.mark.parametrize("plugin", ["kubernetes.io~csi", "kubernetes.io~nfs", "kubernetes.io~empty-dir", "example~any"])
def test_a_pod_with_a_volume_to_write_to(volumes: Path, plugin: str) -> None:
    (volumes / plugin / "data").mkdir(parents=True)
    assert of_pod(volumes) == ["data"]


def test_an_empty_dir_that_the_guest_has_does_not_count(volumes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (volumes / "kubernetes.io~empty-dir/memory").mkdir(parents=True)
    assert of_pod(volumes, guest_empty_dirs=True) == []
    monkeypatch.setattr(os.path, "ismount", lambda path: path.endswith("/memory"))
    assert of_pod(volumes) == []


@pytest.mark.parametrize("uid", ["", "..", "4c3b/..", "other", "x" * 1000])
def test_a_pod_that_the_kubelet_does_not_know(volumes: Path, uid: str) -> None:
    (volumes / "kubernetes.io~csi/data").mkdir(parents=True)
    assert volumes_of_pod(pod(uid), guest_empty_dirs=False, pods=volumes.parents[1]) == []
