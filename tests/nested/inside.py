"""What runs in level 1: this project, on a host that has KVM and an IOMMU. Prints one JSON object a line.

Argument "kvm": two sandboxes under KVM, the second one restored from the template that the first one made.
Argument "nvme": a sandbox whose kernel drives an NVMe disk, and the network card that its pod has.
Argument "edu": a container drives QEMU's `edu` device, with which its machine was booted.
Argument "vsock": an agent is spoken to over vhost-vsock, and the spans of a traced call come back over it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from kata.oci.default import default_spec
from kata.oci.spec import Bundle
from kata.osbuilder import store
from kata.protocols import agent_pb2, health_pb2, traces
from kata.runtime.agent_client.client import AgentClient
from kata.runtime.config.settings import Config
from kata.runtime.devices import vfio
from kata.runtime.devices.binding import driver_of, override_of
from kata.runtime.hypervisor import accel, trial_boot
from kata.runtime.hypervisor.qemu import vm
from kata.runtime.hypervisor.template import build
from kata.runtime.launch import bring_up, timings
from kata.runtime.launch.mount_namespace import enter_mount_namespace
from kata.runtime.ledger.journal import STATE_ROOT, claim
from kata.runtime.sandbox import health
from kata.runtime.sandbox.sandbox import ContainerRequest
from kata.runtime.sandbox.start import start_sandbox
from kata.runtime.sandbox.stdio import FdSink, Stdio
from kata.ttrpc import Client
from kata.ttrpc.typed import Stub

WORK = Path("/mnt")
NVME, EDU, CARD = "0000:01:00.0", "0000:02:00.0", "0000:03:00.0"
#: The network of QEMU's own, behind the card: it answers as the second address.
ADDRESS, ROUTER = "10.0.2.15/24", "10.0.2.2"
POD = "/run/netns/pod"
CID = 5
#: Seconds, for everything: the one deadline is level 0's, which knows what time level 1 has had.
PATIENCE_S = 10_000.0
TEMPLATES = Path("/tmp/templates")
TELL = "cat /sys/devices/system/clocksource/clocksource0/current_clocksource /proc/sys/kernel/random/uuid; uname -r"
COPY = "/run/kata-containers/shared/containers/file"
VFIO = {"type": "c", "major": 10, "minor": 196}
#: The span that a call is made in.
CALLER = traces.TraceParent(bytes(range(1, 17)), bytes(range(1, 9)))
READ = "dd if=/dev/nvme0n1 bs=512 count=1 2>/dev/null | head -c 21; echo"
WRITE = "echo hello-from-level-2 | dd of=/dev/nvme0n1 bs=512 seek=1 conv=sync,fsync 2>/dev/null"
PING = f"ping -c 1 -w 120 {ROUTER}; ip route"
PROBE = 'ls /dev/vfio; for group in /dev/vfio/[0-9]*; do /vfio_read $group "$PCIDEVICE_EDU"; done'


def tell(**facts: object) -> None:
    print(json.dumps({"at": round(time.monotonic(), 1), **facts}), flush=True)  # noqa: T201


def bind(address: str) -> int:
    """Bind a device to vfio-pci, as an administrator does; its group."""
    device = Path("/sys/bus/pci/devices", address)
    (device / "driver_override").write_text("vfio-pci")
    Path("/sys/bus/pci/drivers_probe").write_text(address)
    return int((device / "iommu_group").resolve().name)


def interface() -> str:
    """The name of the card's interface, wherever it is; "" while it is lent."""
    return next((path.name for path in Path("/sys/bus/pci/devices", CARD).glob("net/*")), "")


def make_pod() -> None:
    """A network namespace with the card in it, as a CNI plugin such as host-device leaves it."""
    name = interface()
    for line in (
        "ip netns add pod",
        f"ip link set {name} netns pod",
        f"ip -n pod addr add {ADDRESS} dev {name}",
        f"ip -n pod link set {name} up",
        f"ip -n pod route add default via {ROUTER}",
    ):
        subprocess.run(line.split(), check=True)


def name_device(group: int) -> None:
    """Have a container get a group by an annotation (CDI), as vendors and device plugins write it down."""
    (WORK / "cdi").mkdir()
    (WORK / "cdi/disk.yaml").write_text(
        "cdiVersion: 0.6.0\nkind: kata.test/disk\ndevices:\n- name: fast\n  containerEdits:\n    deviceNodes:\n"
        f"    - path: /dev/vfio/{group}\n"
    )


def load_modules() -> None:
    """What level 0 has put beside: KVM, and the host's side of vsock."""
    loaded = {line.split()[0] for line in Path("/proc/modules").read_text().splitlines()}
    for file in (WORK / "modules/order").read_text().split():
        if file.removesuffix(".ko").replace("-", "_") not in loaded:
            subprocess.run([WORK / "rootfs/bin/busybox", "insmod", WORK / "modules" / file], check=True)


async def be_patient(config: Config) -> None:
    """Leave all waiting to level 0; see that the guest kernel boots under KVM, however long that takes here."""
    bring_up._RESTORE_TIMEOUT_S = bring_up._WARM_UP_TIMEOUT_S = build._SAVE_TIMEOUT_S = PATIENCE_S
    vm._QMP_TIMEOUT_S = vfio._UNPLUG_TIMEOUT_S = health._ANSWER_TIMEOUT_S = PATIENCE_S
    vm.QemuVm.start.__defaults__ = vm.QemuVm.unplug.__defaults__ = (PATIENCE_S,)
    for call in (AgentClient._call, AgentClient._about):
        call.__kwdefaults__ = {**(call.__kwdefaults__ or {}), "timeout": PATIENCE_S}
    hypervisor = config.hypervisor
    files = {"vmm": hypervisor.path, "kernel": hypervisor.kernel, "initrd": hypervisor.initrd}
    begun = time.monotonic()
    obstacle = await trial_boot.probe("kvm", **files, timeout=PATIENCE_S)
    tell(step="trial boot", obstacle=obstacle, seconds=round(time.monotonic() - begun, 1))
    assert obstacle is None, obstacle
    accel._remember(accel.CACHE, accel._key("kvm", *files.values()), "")


def configuration(mode: str, cold_plug: str, *, template: bool = False) -> Config:
    config = Config()
    params = "agent.hotplug_timeout=1000s mitigations=off nokaslr"
    hypervisor = replace(config.hypervisor, default_memory=320, kernel_params=params, cold_plug_vfio=cold_plug)
    agent = replace(config.agent, dial_timeout=int(PATIENCE_S))
    runtime = replace(
        config.runtime,
        vfio_mode=mode,
        create_container_timeout=int(PATIENCE_S),
        cdi_spec_dirs=(WORK / "cdi",),
    )
    return replace(
        config,
        hypervisor=hypervisor,
        agent=agent,
        runtime=runtime,
        factory=replace(config.factory, enable_template=template, template_path=TEMPLATES),
    )


def spec_with(groups: list[int], script: str, environment: list[str], pod: str) -> Any:
    spec: Any = default_spec(["/bin/sh", "-c", script], rootfs=str(WORK / "rootfs"), hostname="nested")
    spec["process"]["env"] = ["PATH=/bin", *environment]
    if pod:
        others = [one for one in spec["linux"]["namespaces"] if one["type"] != "network"]
        spec["linux"]["namespaces"] = [*others, {"type": "network", "path": pod}]
    spec["linux"]["devices"] = [dict(VFIO, path="/dev/vfio/vfio", fileMode=0o666)] if groups else []
    for group in groups:
        number = os.stat(f"/dev/vfio/{group}").st_rdev
        numbers = {"type": "c", "major": os.major(number), "minor": os.minor(number)}
        spec["linux"]["devices"].append({"path": f"/dev/vfio/{group}", **numbers, "fileMode": 0o600})
        spec["linux"]["resources"]["devices"].append({"allow": True, **numbers, "access": "rwm"})
    spec["linux"]["resources"]["devices"].append(dict(VFIO, allow=True, access="rwm"))
    return spec


async def run(
    name: str,
    mode: str,
    groups: list[int],
    script: str,
    environment: list[str],
    pod: str = "",
    annotations: dict[str, str] | None = None,
    template: bool = False,
) -> None:
    """One sandbox with one container, to the end."""
    output = os.open(f"/tmp/{name}", os.O_RDWR | os.O_CREAT, 0o600)
    spec = spec_with(groups, script, environment, pod)
    spec["annotations"] = annotations or {}
    bundle = Bundle(WORK, spec, WORK / "rootfs")
    ledger = claim(f"{STATE_ROOT}/{name}")
    begun = time.monotonic()
    watching = asyncio.create_task(show_console(name))
    config = configuration(mode, "root-port" if mode == "vfio" else "no-port", template=template)
    sandbox = await start_sandbox(name, bundle, config, ledger)
    phases = [phase.name for phase in timings.read(Path(ledger.directory)).phases]
    tell(step="sandbox", name=name, seconds=round(time.monotonic() - begun, 1), phases=phases)
    try:
        stdio = Stdio(stdout=FdSink(os.dup(output)), stderr=FdSink(os.dup(output)))
        container = await sandbox.create_container(ContainerRequest(name, bundle, stdio))
        tell(step="created", name=name, seconds=round(time.monotonic() - begun, 1))
        await container.start()
        status = (await container.wait()).status
    finally:
        watching.cancel()
        problems = await sandbox.stop()
    tell(
        step="ended",
        name=name,
        status=status,
        output=Path(f"/tmp/{name}").read_text(),
        problems=problems,
        seconds=round(time.monotonic() - begun, 1),
    )


async def show_console(name: str) -> None:
    """Keep a copy of the guest's console where level 0 sees it: this machine's own files end with it."""
    source = Path(STATE_ROOT, name, "console.log")
    while True:
        if source.exists():
            (WORK / f"console-{name}").write_bytes(source.read_bytes())
        await asyncio.sleep(5)


def reusable(group: int) -> bool:
    """Whether the host can open a group again."""
    os.close(os.open(f"/dev/vfio/{group}", os.O_RDWR))
    return True


async def start_forwarder() -> asyncio.subprocess.Process:
    """kata-trace-forwarder on vsock, which prints each span; it ends with this machine."""
    program = Path(sys.executable).with_name("kata-trace-forwarder")
    process = await asyncio.create_subprocess_exec(
        program, "--vsock-cid=any", "--dump-only", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stderr
    line = (await process.stderr.readline()).decode()
    assert f"listening on vsock port {traces.PORT}" in line, line
    return process


async def vsock() -> None:
    """The agent of a guest over vhost-vsock, as Kata has it: a first call, as much as a message can carry, spans."""
    image = store.find()
    forwarder = await start_forwarder()
    parameters = "console=ttyS0 quiet panic=-1 cryptomgr.notests no_timer_check mitigations=off nokaslr"
    process = subprocess.Popen(
        [
            "qemu-system-x86_64", "-M", "q35", "-accel", "kvm", "-cpu", "host", "-m", "320",
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-kernel", str(image.kernel), "-initrd", str(image.initrd),
            "-append", f"{parameters} agent.trace agent.server_addr=vsock://-1:1024",
            "-serial", f"file:{WORK}/console-vsock",
            "-drive", f"if=none,id=root,file={image.rootfs},format=raw,readonly=on",
            "-device", "virtio-blk-pci,drive=root", "-device", f"vhost-vsock-pci,guest-cid={CID}",
        ]
    )  # fmt: skip
    begun = time.monotonic()
    try:
        while True:
            sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
            sock.settimeout(PATIENCE_S)
            try:
                sock.connect((CID, 1024))
                break
            except OSError:
                sock.close()
                assert process.poll() is None
                await asyncio.sleep(1)
        async with await Client.from_socket(sock) as client:
            agent = Stub(client, agent_pb2.DESCRIPTOR.services_by_name["AgentService"])
            health = Stub(client, health_pb2.DESCRIPTOR.services_by_name["Health"])
            version = await health.Version(health_pb2.CheckRequest(), timeout=PATIENCE_S)
            first = time.monotonic() - begun
            request = agent_pb2.CreateSandboxRequest(sandbox_id="vsock")
            await agent.CreateSandbox(request, timeout=PATIENCE_S, metadata={traces.TRACEPARENT: str(CALLER)})
            data = bytes(1 << 20)
            copy = agent_pb2.CopyFileRequest(path=COPY, file_size=len(data), file_mode=0o100644, data=data)
            await agent.CopyFile(copy, timeout=PATIENCE_S)
            tell(step="answered", version=version.agent_version, seconds=round(first, 1), bytes=len(data))
        assert forwarder.stdout
        tell(step="traced", caller=str(CALLER), span=json.loads(await forwarder.stdout.readline()))
        forwarder.terminate()
        tell(step="forwarder", status=await forwarder.wait())
    finally:
        process.kill()
        process.wait()


async def main(case: str) -> None:
    load_modules()
    if case == "vsock":
        await vsock()
        return
    await be_patient(configuration("guest-kernel", "no-port"))
    if case == "kvm":
        for name in ("first", "second"):
            await run(name, "guest-kernel", [], TELL, [], template=True)
        return
    groups = {address: bind(address) for address in (NVME, EDU)}
    tell(step="bound", groups=groups)
    if case == "nvme":
        make_pod()
        name_device(groups[NVME])
        script = f"{READ}; {WRITE}; ls /dev/vfio 2>&1; {PING}"
        await run(case, "guest-kernel", [], script, [], POD, {"cdi.k8s.io/disk": "kata.test/disk=fast"})
        tell(step="card", driver=driver_of(CARD), override=override_of(CARD), interface=interface())
    else:
        await run(case, "vfio", [groups[EDU]], PROBE, [f"PCIDEVICE_EDU={EDU}"])
    tell(step="back", free=reusable(groups[NVME if case == "nvme" else EDU]))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(relativeCreated)d %(name)s %(message)s")
    os.makedirs(STATE_ROOT, exist_ok=True)
    enter_mount_namespace(STATE_ROOT)
    asyncio.run(main(sys.argv[1]))
