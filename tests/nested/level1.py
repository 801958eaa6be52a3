"""Level 1: a machine with KVM, an IOMMU and devices behind it, whose root is this host's: the project runs there.

It is emulated, twenty to forty times slower than this host. QEMU emulates AMD's virtualization with nested paging, so
what runs in level 1 runs under the KVM of its kernel, and is not emulated once more.
"""

from __future__ import annotations

import lzma
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from kata.errors import DeadlineExceeded
from kata.osbuilder import cpio, rootfs, store
from kata.osbuilder.build import DEFAULT_CACHE
from kata.osbuilder.packages import PackageCache
from kata.runtime.hypervisor.deadline import run_delay
from kata.runtime.launch.host import tsc_mhz

HERE = Path(__file__).parent


def make_initrd(path: Path) -> None:
    """The guest image's initrd with another first process: of two archives, the second one's files win."""
    ours = cpio.archive([cpio.file("init", (HERE / "init.sh").read_bytes(), 0o755)])
    path.write_bytes(store.find().initrd.read_bytes() + ours)


def command(work: Path, devices: Sequence[str]) -> list[str]:
    """QEMU's arguments; `devices` are options for what is behind the root ports rp1, rp2…"""
    image = store.find()
    nine_p = "security_model=none,multidevs=remap"
    return [
        "qemu-system-x86_64", "-M", "q35,sata=off,smbus=off,usb=off", "-accel", "tcg,thread=multi,tb-size=512",
        "-cpu", "EPYC,+svm,+npt", "-smp", "1", "-m", "4096",
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", f"file:{work}/console",
        "-device", "intel-iommu,intremap=on,eim=off,caching-mode=on",
        "-kernel", str(image.kernel), "-initrd", str(work / "initrd"),
        "-append", "console=ttyS0 loglevel=4 panic=-1 intel_iommu=on iommu=nopt mitigations=off random.trust_cpu=on "
        f"nokaslr cryptomgr.notests no_timer_check tsc=reliable tsc_early_khz={tsc_mhz() * 1000}",
        "-drive", f"if=none,id=root,file={image.rootfs},format=raw,readonly=on", "-device", "virtio-blk-pci,drive=root",
        "-fsdev", f"local,id=root9p,path=/,readonly=on,{nine_p}",
        "-device", "virtio-9p-pci,fsdev=root9p,mount_tag=hostroot",
        "-fsdev", f"local,id=work9p,path={work},{nine_p}", "-device", "virtio-9p-pci,fsdev=work9p,mount_tag=work",
        "-object", "rng-builtin,id=rng", "-device", "virtio-rng-pci,rng=rng",
        "-device", "pcie-root-port,id=rp1,chassis=1,slot=1", "-device", "pcie-root-port,id=rp2,chassis=2,slot=2",
        "-device", "pcie-root-port,id=rp3,chassis=3,slot=3",
        *devices,
    ]  # fmt: skip


def put_modules(work: Path, names: Sequence[str]) -> None:
    """Put into `work`/modules what no guest needs of the kernel's package, and `order`, in which it is loaded.

    Raises:
        KeyError: the kernel has no such module.
    """
    cache = PackageCache(DEFAULT_CACHE)
    packages = cache.resolve()
    assert packages.kernel
    unpacked = work / "unpacked"
    unpacked.mkdir()
    rootfs.unpack_part(cache.path(packages.kernel), unpacked, f"./{rootfs.MODULES}/{packages.release}/kernel")
    found = {path.name.partition(".")[0].replace("-", "_"): path for path in unpacked.rglob("*.ko*")}
    target = work / "modules"
    target.mkdir()
    order: list[str] = []

    def put(name: str) -> None:
        path = found[name.replace("-", "_")]
        content = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
        needs = re.search(rb"\0depends=([^\0]*)\0", content)
        for other in needs[1].decode().split(",") if needs and needs[1] else ():
            put(other)
        file = f"{path.name.partition('.')[0]}.ko"
        if file not in order:
            (target / file).write_bytes(content)
            order.append(file)

    for name in names:
        put(name)
    (target / "order").write_text("".join(f"{file}\n" for file in order))
    shutil.rmtree(unpacked)


def run(work: Path, job: Sequence[str], devices: Sequence[str], timeout: float) -> float:
    """Run `job`, a command line of this host's, in level 1; its output is in `work`/log, which is /mnt there.

    Args:
        timeout: seconds, less those that level 1 waits for a processor of this host. Nothing in level 1 has a shorter
            one, as nobody there knows of these.

    Returns:
        Seconds that it took, boot included.

    Raises:
        DeadlineExceeded: it took longer, and was killed.
    """
    make_initrd(work / "initrd")
    (work / "job.sh").write_text(
        "export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp PYTHONDONTWRITEBYTECODE=1\n"
        f"{shlex.join(job)} >/mnt/log 2>&1 </dev/null\n"
        "echo $? >/mnt/status; sync; echo o >/proc/sysrq-trigger; sleep 10\n"
    )
    begun = time.monotonic()
    with (work / "qemu.log").open("wb") as log:
        process = subprocess.Popen(command(work, devices), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            while process.poll() is None:
                if time.monotonic() - begun - run_delay(process.pid) > timeout:
                    raise DeadlineExceeded(f"level 1 did not end within {timeout:.0f} s of its own")
                time.sleep(0.2)
        finally:
            process.kill()
            process.wait(10)
    return time.monotonic() - begun


def lacking() -> str:
    """What this host needs for it and has not, or ""."""
    wanted = ("qemu-system-x86_64", "gcc")
    return ", ".join(program for program in wanted if not shutil.which(program))
