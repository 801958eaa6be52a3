"""Requests to the agent, made from spec and configuration alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kata.oci.default import default_spec
from kata.oci.spec import Spec
from kata.runtime.config.settings import Config
from kata.runtime.devices.block import Attached
from kata.runtime.sandbox.requests import (
    create_container_request,
    create_sandbox_request,
    root_options,
)
from kata.runtime.storage.container_files import plan_container
from kata.runtime.storage.disk import Layers, plan_disks
from kata.runtime.storage.host_paths import HostView, look_at_paths, random_token


def spec(**changes: Any) -> Spec:
    made: Any = {**default_spec(["true"], rootfs="/r", hostname="box"), **changes}
    return made  # type: ignore[no-any-return]


class TestRequests:
    def test_sandbox(self) -> None:
        request = create_sandbox_request("box", spec(), Config())
        assert (request.sandbox_id, request.hostname) == ("box", "box")
        share, shm = request.storages
        assert (share.driver, share.source, share.mount_point) == (
            "9p",
            "kataShared",
            "/run/kata-containers/shared/containers/",
        )
        assert "version=9p2000.L" in share.options
        assert (shm.driver, shm.mount_point) == ("ephemeral", "/run/kata-containers/sandbox/shm")
        assert {"noexec", "nosuid", "nodev", "mode=1777", "size=67108864"} <= set(shm.options)

    def test_a_pods_own_container_does_not_take_the_device_for_a_root(self) -> None:
        kinds = {
            kind: {"io.kubernetes.cri.container-type": kind, "io.kubernetes.cri.sandbox-id": "box"}
            for kind in ("sandbox", "container")
        }
        assert root_options("box", spec(annotations=kinds["sandbox"]), Config()) == ()
        for other in ({}, kinds["container"]):
            assert "cache=loose" in root_options("box", spec(annotations=other), Config())

    def test_sandbox_without_a_hostname_takes_its_id(self) -> None:
        assert create_sandbox_request("b" * 70, spec(hostname=""), Config()).hostname == "b" * 64

    def test_shm_has_the_size_of_the_engines(self) -> None:
        assert "size=1024" in create_sandbox_request("box", spec(), Config(), 1024).storages[1].options

    def test_kernel_modules_with_parameters(self) -> None:
        modules = replace(Config(), agent=replace(Config().agent, kernel_modules=("loop max_loop=8 x=y", "tun")))
        first, second = create_sandbox_request("box", spec(), modules).kernel_modules
        assert (first.name, list(first.parameters)) == ("loop", ["max_loop=8", "x=y"])
        assert (second.name, list(second.parameters)) == ("tun", [])

    def test_container(self) -> None:
        given = spec()
        files = plan_container(
            "box", given["mounts"], look_at_paths(given), rootfs=(), rootfs_dir="/r", name=lambda: "@0"
        )
        request = create_container_request("box", given, files, Config())
        assert (request.container_id, request.exec_id) == ("box", "box")
        assert request.OCI.Root.Path == files.guest_rootfs
        shm = next(mount for mount in request.OCI.Mounts if mount.destination == "/dev/shm")
        assert (shm.type, "size=65536k" in shm.options) == ("tmpfs", True), "each container has its own, as with runc"
        assert given["root"]["path"] == "/r", "the spec of the caller is not changed"

    def test_what_a_root_is_made_of_comes_after_its_disks(self) -> None:
        given = spec()
        disks = plan_disks("box", given, (), HostView(), token=random_token, layers=Layers(("/base",), "/up"))
        files = plan_container(
            "box", (), HostView(), rootfs=(), rootfs_dir="/r", name=lambda: "@0", disk_root=disks.root
        )
        attached = [Attached(disk, "blk", f"09/0{number}") for number, disk in enumerate(disks.disks)]
        request = create_container_request("box", given, files, Config(), attached, root=disks.storages)
        lower, upper, overlay = request.storages
        assert (lower.driver, lower.source, lower.fstype) == ("blk", "09/00", "erofs")
        assert (upper.driver, upper.source, upper.fstype) == ("blk", "09/01", "ext4")
        assert overlay.driver == "overlayfs"
        made = [option.partition("=")[2] for option in overlay.driver_options]
        assert made == [f"{upper.mount_point}/upper", f"{upper.mount_point}/work"]
        assert all(
            option.startswith("io.katacontainers.volume.overlayfs.create_directory=")
            for option in overlay.driver_options
        )
        assert request.OCI.Root.Path == overlay.mount_point
