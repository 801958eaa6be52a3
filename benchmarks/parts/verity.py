"""A root that the guest's kernel checks (dm-verity) beside one that it does not: the newest image of each, in turns."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from benchmarks.bare import default_plan, run_bare
from benchmarks.figures import alternate
from benchmarks.guests import MB, another_root, measure_starts, native
from benchmarks.stage import Stage
from kata.errors import NotFound
from kata.osbuilder import store
from kata.osbuilder.store import GuestImage
from kata.runtime.agent_client.client import AgentClient
from kata.runtime.hypervisor.base import VirtualMachine

#: Each run takes seconds.
_MAX_RUNS = 5
_CLOCK = "cut -d' ' -f1 /proc/uptime"
#: All files of the root, read once to warm up and once with nothing in the guest's page cache.
_READ = f"""
files=$(find / -xdev -type f)
cat $files | wc -c
cat $files >/dev/null
echo 3 >/proc/sys/vm/drop_caches
{_CLOCK}
cat $files >/dev/null
{_CLOCK}
"""


def measure(stage: Stage) -> None:
    images = twins(store.list_images())
    sizes = {name: (sum(path.stat().st_size for path in _root(image)) / MB,) for name, image in images.items()}
    stage.record("root and initrd", "MB", sizes)
    configurations = measure_starts(stage, images)
    reads = {name: partial(_reading, stage, path) for name, path in configurations.items()}
    stage.record("read all files of the root", "MB/s", alternate(min(stage.runs, _MAX_RUNS), reads))


def twins(images: list[GuestImage]) -> dict[str, GuestImage]:
    """The newest image with dm-verity, and the newest without that is otherwise made of the same.

    Args:
        images: newest first.

    Raises:
        NotFound: there are no such two.
    """

    def made_of(image: GuestImage) -> tuple[object, ...]:
        manifest = image.manifest
        root = {**manifest["root"], "verity": False}
        return (*(manifest[name] for name in ("recipe", "kernel_release")), root, another_root(image))

    images = native(images)
    for checked in (image for image in images if image.manifest["root"].get("verity")):
        for plain in images:
            if not plain.manifest["root"].get("verity") and made_of(plain) == made_of(checked):
                return {"unchecked": plain, "dm-verity": checked}
    raise NotFound(
        "this host has no image with dm-verity beside one without",
        hint="run: kata image build; kata image build --verity --no-switch",
    )


def _root(image: GuestImage) -> list[Path]:
    return [path for path in (image.initrd, image.rootfs) if path]


def _reading(stage: Stage, path: Path) -> float:
    """MB/s of the second reading."""
    size, begin, end = run_bare(default_plan(stage.directory, path), _READ, _nothing_more).split()
    return int(size) / MB / (float(end) - float(begin))


async def _nothing_more(vm: VirtualMachine, agent: AgentClient) -> None:
    pass
