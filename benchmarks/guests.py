"""Guest images beside each other: a configuration for each of them, and what their starts cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

from benchmarks.bare import answered, default_plan, template_of
from benchmarks.figures import alternate
from benchmarks.stage import Stage
from kata.architecture import HOST
from kata.osbuilder.store import GuestImage

MB = 1_000_000
_BOOTED = "[factory]\nenable_template = false\n"


def another_root(image: GuestImage) -> str:
    """What the image has of another root file system (`kata image build --from`); "" of none."""
    return str(image.manifest.get("inputs", {}).get("other", ""))


def native(images: Iterable[GuestImage]) -> list[GuestImage]:
    """The images whose guests have the host's architecture: others are emulated as a whole, and not compared."""
    return [image for image in images if image.architecture is HOST]


def measure_starts(stage: Stage, images: Mapping[str, GuestImage]) -> dict[str, Path]:
    """Record the size of each image's template, and how long the agent takes to answer after a boot and a restore.

    Args:
        stage: to record on.
        images: by what they are called in the figures.

    Returns:
        A configuration with each image, whose template is there.
    """
    restored = {name: _configuration(stage, name, image) for name, image in images.items()}
    booted = {name: _configuration(stage, f"{name}-booted", image, _BOOTED) for name, image in images.items()}
    for path in restored.values():
        answered(path)  # makes the template
    stage.record("template", "MB", {name: (_template_size(stage, path),) for name, path in restored.items()})
    for what, configurations in (("cold boot", booted), ("restore", restored)):
        starts = {name: partial(answered, path) for name, path in configurations.items()}
        stage.record(f"{what} to the agent's answer", "s", alternate(stage.runs, starts))
    return restored


def _configuration(stage: Stage, name: str, image: GuestImage, more: str = "") -> Path:
    """Write a configuration that names a guest image, and ends with `more` TOML."""
    parts = {"kernel": image.kernel, "initrd": image.initrd, "image": image.rootfs}
    lines = [f'{key} = "{file}"' for key, file in parts.items() if file]
    path = stage.directory / f"{name}.toml"
    path.write_text("\n".join(["[hypervisor.qemu]", *lines, more]), encoding="utf-8")
    return path


def _template_size(stage: Stage, path: Path) -> float:
    """MB of the template that sandboxes with this configuration are restored from."""
    with template_of(default_plan(stage.directory, path)) as saved:
        return saved.size / MB
