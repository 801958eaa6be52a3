"""`kata setup` with real engines: a pod runs by what it has written, and afterwards every byte is as before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kata.engines import host as engines
from kata.engines.host import Engine, Host
from tests.support.cni import Bridge
from tests.support.containerd import PrivateContainerd
from tests.support.cri import Cri, pod_containerd
from tests.support.images import BUSYBOX


@pytest.fixture(params=["1.x: its own file", "2.x: a drop-in"])
def containerd(
    request: pytest.FixtureRequest, bridge: Bridge, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PrivateContainerd]:
    """One whose configuration names no runtime; 2.x imports drop-ins."""
    is_2 = request.param.startswith("2")
    scratch = tmp_path_factory.mktemp("setup")
    configuration = scratch / "configuration.toml"
    configuration.write_text("[hypervisor.qemu]\ndefault_memory = 512\n")
    programs = request.getfixturevalue("containerd_2_programs") if is_2 else None
    environment = {"KATA_CONF_FILE": str(configuration)}
    with pod_containerd(bridge, scratch, environment=environment, debug=True, programs=programs) as containerd:
        text, handler, _ = containerd.config.read_text().partition(
            '  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.'
        )
        assert handler
        imports = f'imports = ["{containerd.directory}/conf.d/*.toml"]\n' if is_2 else ""
        containerd.config.write_text(imports + text + "# the last line, without an end")
        yield containerd


def test_a_pod_by_what_setup_has_written(containerd: PrivateContainerd, tmp_path: Path) -> None:
    host = Host(
        path=containerd.environment["PATH"],
        containerd_config=containerd.config,
        bin=tmp_path / "bin",
        records=tmp_path / "records",
    )
    before = {path: path.read_bytes() for path in containerd.config.parent.rglob("*.toml")}
    plans = engines.make([Engine.CONTAINERD], host, b"")
    engines.carry_out(plans, host)
    has_drop_in = b"imports" in before[containerd.config]
    assert (containerd.config.read_bytes() == before[containerd.config]) == has_drop_in
    assert (containerd.config.parent / "conf.d/kata.toml").exists() == has_drop_in
    containerd.restart()
    with Cri(containerd.address, "kata", BUSYBOX, tmp_path) as cri:
        with cri.pod("set-up") as pod:
            assert pod.output("sh", "-c", "echo by the runtime of the set-up") == "by the runtime of the set-up\n"
            assert pod.id in containerd.shims().values()
            container = pod.run()
            # What runs goes on without it.
            engines.carry_out(engines.removal([Engine.CONTAINERD], host), host)
            containerd.restart()
            assert container.sh("echo goes on") == "goes on\n"
    assert {path: path.read_bytes() for path in containerd.config.parent.rglob("*.toml")} == before
    assert not (tmp_path / "records").exists()
