"""Devices of a real guest: disks of every kind, and PCI devices that are driven by the kernel or by a container.

QEMU has an IOMMU and devices of its own, so nothing of this host's is assigned here: what the agent does with a device
is the same. That a host's device gets this far is tested by `make test-nested`.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kata.errors import Code
from kata.protocols import agent_pb2 as pb
from kata.ttrpc import StatusError
from tests.vm.guest import SHARED, Agent, Guest, container_spec, make_rootfs, sandboxed

pytestmark = [pytest.mark.vm, pytest.mark.timeout(120)]

MIB = 1 << 20
_ids = (f"d{number}" for number in itertools.count())


def disk(directory: Path, name: str) -> str:
    """A disk of 16 MiB that begins with its name."""
    path = directory / name
    path.write_bytes(f"{name}\n".encode().ljust(16 * MIB, b"\0"))
    return str(path)


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    images = tmp_path_factory.mktemp("disks")
    ports = [
        f"pcie-root-port,id=rp{slot:x},bus=pcie.0,chassis={slot},slot={slot},addr={slot:#x}" for slot in range(16, 20)
    ]
    devices = [
        "-machine", "nvdimm=on", "-m", "slots=2,maxmem=2G", "-device", "intel-iommu,caching-mode=on",
        *(word for port in ports for word in ("-device", port)),
        "-drive", f"if=none,id=blk,file={disk(images, 'on-virtio')},format=raw",
        "-device", "virtio-blk-pci,drive=blk,bus=rp10",
        "-drive", f"if=none,id=scsi,file={disk(images, 'on-scsi')},format=raw",
        "-device", "virtio-scsi-pci", "-device", "scsi-hd,drive=scsi,scsi-id=0,lun=3",
        "-drive", f"if=none,id=nvme,file={disk(images, 'on-nvme')},format=raw",
        "-device", "nvme,drive=nvme,serial=1,bus=rp11",
        "-object", f"memory-backend-file,id=pm,share=on,mem-path={disk(images, 'on-pmem')},size=16M",
        "-device", "nvdimm,memdev=pm",
        "-device", "edu,bus=rp12", "-device", "edu,bus=rp13",
    ]  # fmt: skip
    for guest in sandboxed("intel_iommu=on", "iommu=pt", "agent.hotplug_timeout=3s", devices=devices):
        make_rootfs(guest.share, "base")
        yield guest


def spec(script: str, *devices: dict[str, Any], rules: bool = True, **process: Any) -> dict[str, Any]:
    """A container that may use its devices and nothing else."""
    wanted = container_spec(f"{SHARED}/base/rootfs", "sh", "-c", script, **process)
    wanted["linux"]["devices"] = list(devices)
    allowed = [
        {"allow": True, "access": "rwm", **{key: device[key] for key in ("type", "major", "minor")}}
        for device in devices
    ]
    wanted["linux"]["resources"] = {"devices": [{"allow": False, "access": "rwm"}, *(allowed if rules else [])]}
    return wanted


def node(path: str, kind: str = "b", major: int = 7, minor: int = 0) -> dict[str, Any]:
    return {"path": path, "type": kind, "major": major, "minor": minor, "fileMode": 0o660}


async def output(agent: Agent, wanted: dict[str, Any], **fields: Any) -> str:
    """What a container prints, on both streams."""
    container_id = next(_ids)
    await agent.run(container_id, wanted, **fields)
    said = await agent.read_all(container_id) + await agent.read_all(container_id, stderr=True)
    await agent.remove(container_id)
    return said.decode()


@pytest.mark.parametrize(
    ("device", "content"),
    [
        (pb.Device(type="blk", id="10/00"), "on-virtio"),
        (pb.Device(type="scsi", id="0:3"), "on-scsi"),
        (pb.Device(type="nvdimm", vm_path="/dev/pmem0"), "on-pmem"),
        (pb.Device(type="mmioblk", vm_path="/dev/vda"), ""),
    ],
)
async def test_a_disk_is_where_the_spec_has_it(agent: Agent, device: pb.Device, content: str) -> None:
    device.container_path = "/dev/some/where"
    script = "head -c 9 /dev/some/where | head -n 1; echo; echo end"
    said = await output(agent, spec(script, node("/dev/some/where")), devices=[device])
    if content:
        assert said.startswith(content[:9]), said
    else:
        # The guest's own root disk: found like any other, and denied like to any container.
        assert "Operation not permitted" in said


async def test_a_disk_can_be_written_if_its_rule_says_so(agent: Agent) -> None:
    wanted = spec("dd if=/dev/zero of=/dev/a bs=512 seek=8 count=1 2>&1; echo $?", node("/dev/a"))
    device = pb.Device(type="blk", id="10/00", container_path="/dev/a")
    assert (await output(agent, wanted, devices=[device])).endswith("\n0\n")
    wanted["linux"]["resources"]["devices"][1]["access"] = "r"
    said = await output(agent, wanted, devices=[device])
    assert "Operation not permitted" in said


async def test_two_disks_whose_numbers_cross(agent: Agent) -> None:
    """The host's number of the second is what the first has in the guest."""
    numbers = (await output(agent, spec("cat /sys/class/block/vdb/dev"))).strip().split(":")
    first = node("/dev/a", major=200, minor=0)
    second = node("/dev/b", major=int(numbers[0]), minor=int(numbers[1]))
    devices = [
        pb.Device(type="blk", id="10/00", container_path="/dev/a"),
        pb.Device(type="scsi", id="0:3", container_path="/dev/b"),
    ]
    said = await output(agent, spec("head -n 1 /dev/a; head -n 1 /dev/b", first, second), devices=devices)
    assert said == "on-virtio\non-scsi\n"


async def test_rules_are_enforced(agent: Agent) -> None:
    """A container can make nodes of the guest's memory and of another's disk, and open neither."""
    tries = "mknod /dev/m c 1 1; cat /dev/m; mknod /dev/d b 254 16; cat /dev/d; head -c 0 /dev/null && echo fine"
    said = await output(agent, spec(tries.replace("mknod", "/bin/busybox mknod"), rules=False))
    assert said.count("Operation not permitted") == 2, said
    assert "fine" in said


async def test_the_guests_kernel_takes_a_device_and_the_container_gets_its_nodes(agent: Agent) -> None:
    device = pb.Device(type="vfio-pci-gk", id="7", container_path="/dev/vfio/7", options=["0000:3b:00.0=11/00"])
    script = 'head -n 1 /dev/nvme0n1; echo "$PCIDEVICE_X"; ls /dev/vfio'
    said = await output(agent, spec(script, env=["PATH=/bin", "PCIDEVICE_X=0000:3b:00.0"]), devices=[device])
    address = said.splitlines()[1]
    assert said.startswith("on-nvme\n")
    assert address.endswith(":00.0")
    assert address != "0000:3b:00.0"
    assert "/dev/vfio: No such file" in said


def group_device(option: str = "0000:3b:00.0=12/00") -> pb.Device:
    return pb.Device(type="vfio-pci", id="97", container_path="/dev/vfio/97", options=option.split())


async def test_a_container_gets_the_group_under_the_guests_number(agent: Agent) -> None:
    """Three paths: /dev/vfio/97 on the host, /dev/vfio/N in the guest, and so the same N in the container."""
    container_id = next(_ids)
    control = node("/dev/vfio/vfio", "c", 10, 196)
    wanted = spec(
        'cd /dev/vfio; ls; for group in [0-9]*; do : <>$group && echo opened; done; echo "$PCIDEVICE_E"; sleep 60',
        control, node("/dev/vfio/97", "c", 240, 97), env=["PATH=/bin", "PCIDEVICE_E=0000:3b:00.0"],
    )  # fmt: skip
    await agent.run(container_id, wanted, devices=[group_device()])
    said = ""
    while said.count("\n") < 4:
        said += (await agent.read(container_id)).decode()
    group, name, opened, address = said.splitlines()
    assert (name, opened) == ("vfio", "opened")
    assert group.isdecimal()
    assert group != "97"
    variable = ["PATH=/bin", "PCIDEVICE_E_INFO={'0000:3b:00.0':1}"]
    await agent.exec(container_id, "again", "sh", "-c", "echo $PCIDEVICE_E_INFO", env=variable)
    assert await agent.read_all(container_id, "again") == f"{{'{address}':1}}\n".encode()
    await agent.remove(container_id)


@pytest.mark.parametrize(
    ("device", "code", "said"),
    [
        (group_device("0000:3b:00.0=12/00 0000:3b:00.1=13/00"), Code.FAILED_PRECONDITION, "several groups"),
        (group_device("0000:3b:00.0=1f/00"), Code.DEADLINE_EXCEEDED, "no PCI device at 1f/00"),
        (group_device("0000:3b:00.0=/etc/passwd"), Code.INVALID_ARGUMENT, "invalid PCI path"),
        (pb.Device(type="blk", id="10/00", container_path="/dev/b"), Code.INVALID_ARGUMENT, "no device /dev/b"),
        (pb.Device(type="blk", id="1f/00", container_path="/dev/a"), Code.DEADLINE_EXCEEDED, "no disk at blk 1f/00"),
        (pb.Device(type="vfio-ap", id="1", container_path="/dev/a"), Code.UNIMPLEMENTED, "s390x only"),
        (pb.Device(type="tape", id="1", container_path="/dev/a"), Code.INVALID_ARGUMENT, "unknown type 'tape'"),
    ],
)
async def test_what_cannot_be_had_leaves_nothing(agent: Agent, device: pb.Device, code: int, said: str) -> None:
    with pytest.raises(StatusError, match=said) as caught:
        await agent.create("never", spec("true", node("/dev/a")), devices=[device])
    assert caught.value.code == code
    assert await output(agent, spec("echo still here")) == "still here\n"


async def test_the_guests_own_devices_have_their_numbers_everywhere(agent: Agent) -> None:
    """/dev/fuse and /dev/net/tun: nothing to be found, and nothing to be changed."""
    wanted = spec(
        # Reading the kernel's log takes a capability, writing to it does not.
        "for path in /dev/fuse /dev/net/tun; do : <>$path && echo $path; done; : >/dev/kmsg && echo /dev/kmsg",
        node("/dev/fuse", "c", 10, 229), node("/dev/net/tun", "c", 10, 200), node("/dev/kmsg", "c", 1, 11),
    )  # fmt: skip
    assert await output(agent, wanted) == "/dev/fuse\n/dev/net/tun\n/dev/kmsg\n"


async def test_a_device_of_the_guests_by_its_name(agent: Agent, guest: Guest) -> None:
    """Container Device Interface: as a driver in the guest would, a container leaves the file, a while afterwards."""
    edits = {"deviceNodes": [{"path": "/dev/random-by-name", "hostPath": "/dev/urandom"}], "env": ["FOUND=by name"]}
    described = {"cdiVersion": "0.6.0", "kind": "kata.test/random", "devices": [{"name": "0", "containerEdits": edits}]}
    (guest.share / "base/rootfs/random.json").write_text(json.dumps(described))
    driver, named = next(_ids), next(_ids)
    with_run = spec("sleep 1; mkdir -p /guest/cdi && cp /random.json /guest/cdi/")
    with_run["mounts"].append({"destination": "/guest", "type": "bind", "source": "/run", "options": ["rbind", "rw"]})
    await agent.run(driver, with_run)
    asks = spec("echo $FOUND; head -c 4 /dev/random-by-name | wc -c")
    asks["annotations"] = {"cdi.k8s.io/test": "kata.test/random=0"}
    await agent.run(named, asks)
    assert await agent.wait(named) == 0
    assert (await agent.read_all(named)).split() == [b"by", b"name", b"4"]
    asks["annotations"] = {"cdi.k8s.io/test": "kata.test/random=1"}
    with pytest.raises(StatusError, match=r"no CDI device kata\.test/random=1 appeared within 3 s"):
        await agent.create("never", asks)
    for container_id in (driver, named):
        await agent.remove(container_id)
