"""One kernel beside the other: the newest image of each on this host, in turns.

What differs is the image alone; configuration, containers and file servers are the same.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.bare import answered, default_plan, template_of
from benchmarks.figures import alternate
from benchmarks.parts import execs, files, memory, network
from benchmarks.stage import Stage
from kata.errors import NotFound
from kata.osbuilder import store
from kata.osbuilder.store import GuestImage

_MB = 1_000_000


def measure(stage: Stage) -> None:
    images = newest_by_kernel(store.list_images())
    if len(images) < 2:
        raise NotFound(
            f"there are images of {len(images)} kernel on this host", hint="run: kata image build --kernel tailored"
        )
    warm = {name: configuration(stage.directory / f"{name}.toml", image) for name, image in images.items()}
    cold = {
        name: configuration(stage.directory / f"{name}-cold.toml", image, "[factory]\nenable_template = false\n")
        for name, image in images.items()
    }
    for path in warm.values():
        answered(path)  # makes the template
    stage.record("vmlinux", "MB", {name: (image.kernel.stat().st_size / _MB,) for name, image in images.items()})
    stage.record("template", "MB", {name: (template_size(stage, path),) for name, path in warm.items()})
    for what, configurations in (("cold boot", cold), ("restore", warm)):
        actions = {name: partial(answered, path) for name, path in configurations.items()}
        stage.record(f"{what} to the agent's answer", "s", alternate(stage.runs, actions))

    ours = stage.contenders["kata"]
    stage = replace(
        stage, contenders={name: (*ours, "--runtime-config-path", str(path)) for name, path in warm.items()}
    )
    starts = {name: partial(stage.run_true, options) for name, options in stage.contenders.items()}
    stage.record("ctr run --rm", "s", alternate(stage.runs, starts))
    execs.measure(stage)
    for name in stage.contenders:
        memory.sandboxes(stage, name)
    network.measure(stage)
    files.in_containers(stage)


def newest_by_kernel(images: list[GuestImage]) -> dict[str, GuestImage]:
    """The newest image of each kernel, by the kernel's release.

    Args:
        images: newest first.
    """
    found: dict[str, GuestImage] = {}
    for image in images:
        found.setdefault(str(image.manifest["kernel_release"]), image)
    return found


def configuration(path: Path, image: GuestImage, more: str = "") -> Path:
    """Write a configuration that names a guest image, and ends with `more` TOML."""
    parts = {"kernel": image.kernel, "initrd": image.initrd, "image": image.rootfs}
    lines = [f'{name} = "{file}"' for name, file in parts.items()]
    path.write_text("\n".join(["[hypervisor.qemu]", *lines, more]), encoding="utf-8")
    return path


def template_size(stage: Stage, path: Path) -> float:
    """MB of the template that sandboxes with this configuration are restored from."""
    with template_of(default_plan(stage.directory, path)) as saved:
        return saved.size / _MB
