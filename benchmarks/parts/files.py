"""Files of a container over 9p, over virtio-fs, on layers and on a disk: start, memory, and how fast files are.

Scripts run in one shell per container: an exec for each would take longer than what is measured.
"""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.figures import alternate
from benchmarks.processes import processes, pss_by_kind
from benchmarks.shell import shell_in
from benchmarks.stage import Stage

_MEGABYTES = 200
_FILES = 5000
_PACKED = 1000
#: Each run takes seconds, with many small files a minute.
_MAX_RUNS, _MAX_SLOW_RUNS = 3, 2

_CREATE = "mkdir {place}; i=0; while [ $i -lt {count} ]; do echo $i >{place}/$i || exit 1; i=$((i+1)); done"
_STAT = f"[ $(find many -type f -size -9 | wc -l) = {_FILES} ]"
_READ = f"[ $(find many -type f -exec cat {{}} + | wc -l) = {_FILES} ]"
_PACK = "tar -cf packed.tar few"
_UNPACK = f"mkdir unpacked && tar -xf packed.tar -C unpacked && [ $(ls unpacked/few | wc -l) = {_PACKED} ]"
#: Flushed, so that the data is not just in the guest's memory.
_WRITE_BIG = f"dd if=/dev/zero of=big bs=1000000 count={_MEGABYTES} conv=fsync 2>/dev/null"
_READ_BIG = "dd if=big of=/dev/null bs=1000000 2>/dev/null"


_DISK_MIB = 512
#: Mount points of disks; the others are measured in their root file system.
_PLACES = {"kata, on a disk": "/data"}


def measure(stage: Stage) -> None:
    stage = replace(stage, contenders=_ways(stage))
    starts = {name: partial(stage.run_true, options) for name, options in stage.contenders.items()}
    stage.record("ctr run --rm", "s", alternate(min(stage.runs, _MAX_RUNS), starts))
    in_containers(stage)


def in_containers(stage: Stage) -> None:
    """Measure files in a running container of each contender."""
    with ExitStack() as stack:
        containers = {name: stack.enter_context(stage.running(name)) for name in stage.contenders}
        pids = processes(stage.containerd.shims())
        sizes = {name: (sum(pss_by_kind(pids[container]).values()),) for name, container in containers.items()}
        stage.record("sandbox beside the others", "MiB", sizes)
        shells = {name: stack.enter_context(shell_in(stage, container)) for name, container in containers.items()}
        for name, shell in shells.items():
            shell.run(f"cd {_PLACES.get(name, '/')}")

        def repeated(script: str, most: int, *, warm_up: bool = True) -> dict[str, tuple[float, ...]]:
            actions = {name: partial(shell.seconds, script) for name, shell in shells.items()}
            return alternate(min(stage.runs, most), actions, warm_up=warm_up)

        for what, script in (("write", _WRITE_BIG), ("read", _READ_BIG)):
            took = repeated(script, _MAX_RUNS)
            rates = {name: tuple(_MEGABYTES / seconds for seconds in values) for name, values in took.items()}
            stage.record(f"{what} {_MEGABYTES} MB", "MB/s", rates)

        # Once: it takes long, and what follows needs one set of files.
        def once(script: str) -> dict[str, tuple[float, ...]]:
            return {name: (shell.seconds(script),) for name, shell in shells.items()}

        stage.record(f"create {_FILES:,} files", "s", once(_CREATE.format(place="many", count=_FILES)))
        for what, script in (("stat", _STAT), ("read", _READ)):
            stage.record(f"{what} {_FILES:,} files", "s", repeated(script, _MAX_SLOW_RUNS, warm_up=False))
        for shell in shells.values():
            shell.run(f"{_CREATE.format(place='few', count=_PACKED)} && {_PACK}")
        stage.record(f"unpack {_PACKED:,} files", "s", once(_UNPACK))


def _ways(stage: Stage) -> dict[str, tuple[str, ...]]:
    """Return the contenders, and kata with other kinds of file systems."""
    if "kata" not in stage.contenders:
        return dict(stage.contenders)
    ours = stage.contenders["kata"]
    disk = _disk(stage.directory / "files.img")

    def layered(upper: str) -> tuple[str, ...]:
        text = f'[runtime]\nrootfs_layers = "disks"\nrootfs_upper = "{upper}"\n'
        return stage.configured(ours, f"layers-{upper}", text)

    return {
        "kata": ours,
        "kata, virtio-fs": stage.configured(ours, "virtio-fs", '[hypervisor.qemu]\nshared_fs = "virtio-fs"\n'),
        "kata, layers": layered("host"),
        "kata, layers and a disk": layered("disk"),
        "kata, layers and memory": layered("memory"),
        "kata, on a disk": (*ours, "--mount", f"type=ext4,src={disk},dst=/data,options=loop"),
        **{name: options for name, options in stage.contenders.items() if name != "kata"},
    }


def _disk(image: Path) -> Path:
    with image.open("wb") as file:
        file.truncate(_DISK_MIB << 20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True, capture_output=True, timeout=60)
    return image
