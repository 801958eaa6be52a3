"""What is said of a container that gets something otherwise than its spec says."""

from __future__ import annotations

from typing import Any

from kata.oci.default import default_spec
from kata.oci.spec import Spec
from kata.runtime.hypervisor.base import SHARE_9P, SHARE_VIRTIO_FS
from kata.runtime.sandbox.differences import host_namespaces, lost_propagation, warnings
from kata.runtime.storage.container_files import GUEST_SHARED, ContainerPlan
from kata.runtime.storage.host_paths import HostView


def spec(**changes: Any) -> Spec:
    made: Any = {**default_spec(["true"], rootfs="/r", hostname="box"), **changes}
    return made  # type: ignore[no-any-return]


def test_namespaces_of_the_host() -> None:
    """A container that asks for them is told: it may wait for ever for a program of the host."""
    assert host_namespaces(spec()) == []
    given = spec(linux={"namespaces": [{"type": "mount"}, {"type": "network"}, {"type": "uts"}]})
    assert host_namespaces(given) == ["ipc", "pid"]


def test_mount_propagation_that_cannot_be() -> None:
    def asked(*options: str) -> list[str]:
        entry = {"type": "bind", "source": "/volume", "destination": "/data", "options": ["rbind", *options]}
        return lost_propagation(spec(mounts=[entry]), HostView(private=frozenset({"/volume"})))

    (later,) = asked("rslave")
    assert later.startswith("what the host mounts in /volume later is not seen")
    to_host, again = asked("rshared")
    assert to_host.startswith("what it mounts in /data stays in its VM")
    assert again == later
    assert lost_propagation(spec(), HostView()) == []


def test_a_volume_to_write_to_over_9p() -> None:
    bind: Any = {"type": "bind", "source": "/volume", "destination": "/data", "options": ["rbind", "rw"]}
    given = spec(mounts=[bind])
    shared, of_guest = (
        ContainerPlan("box", "/r", mounts=(bind | {"source": source},))
        for source in (f"{GUEST_SHARED}/box-1", "/run/of-the-guest")
    )
    (warning,) = warnings(given, HostView(), shared, SHARE_9P)
    assert warning.startswith("may write to /data over 9p")
    assert warnings(given, HostView(), shared, SHARE_VIRTIO_FS) == []
    assert warnings(given, HostView(), of_guest, SHARE_9P) == []


def test_all_that_is_to_be_said() -> None:
    namespaces = [{"type": kind} for kind in ("mount", "network", "ipc", "pid")]
    given = spec(linux={"namespaces": namespaces, "timeOffsets": {"boottime": {"secs": 1}}})
    plan = ContainerPlan("box", "/r", warnings=("a mount that cannot do it",))
    first, *others = warnings(given, HostView(), plan, SHARE_9P)
    assert first == "a mount that cannot do it"
    assert [line.partition(":")[0] for line in others] == [
        "asks for the host's uts namespace, which a VM cannot share",
        "not passed to the guest",
    ]
