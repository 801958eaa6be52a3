"""One kernel beside the other: the newest image of each on this host, in turns.

What differs is the image alone; configuration, containers and file servers are the same.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from benchmarks.figures import alternate
from benchmarks.guests import MB, another_root, measure_starts, native
from benchmarks.parts import execs, files, memory, network
from benchmarks.stage import Stage
from kata.errors import NotFound
from kata.osbuilder import store
from kata.osbuilder.recipe import DEFAULT
from kata.osbuilder.store import GuestImage


def measure(stage: Stage) -> None:
    images = newest_by_kernel(store.list_images())
    if len(images) < 2:
        raise NotFound(
            f"there are images of {len(images)} kernel on this host", hint="run: kata image build --kernel tailored"
        )
    stage.record("vmlinux", "MB", {name: (image.kernel.stat().st_size / MB,) for name, image in images.items()})
    stage.record("guest image, all its files", "MB", {name: (image.size / MB,) for name, image in images.items()})
    configurations = measure_starts(stage, images)

    ours = stage.contenders["kata"]
    stage = replace(
        stage, contenders={name: (*ours, "--runtime-config-path", str(path)) for name, path in configurations.items()}
    )
    starts = {name: partial(stage.run_true, options) for name, options in stage.contenders.items()}
    stage.record("ctr run --rm", "s", alternate(stage.runs, starts))
    execs.measure(stage)
    for name in stage.contenders:
        memory.sandboxes(stage, name)
    network.measure(stage)
    files.in_containers(stage)


def newest_by_kernel(images: list[GuestImage]) -> dict[str, GuestImage]:
    """The newest image of each kernel with the usual root, by the kernel's release.

    Args:
        images: newest first.
    """
    found: dict[str, GuestImage] = {}
    for image in native(images):
        if image.manifest["recipe"] == DEFAULT and image.form == "erofs" and not another_root(image):
            found.setdefault(str(image.manifest["kernel_release"]), image)
    return found
