"""From nothing to a running container with each kind of guest, by the two commands that a person types."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kata.errors import FailedPrecondition
from kata.osbuilder import store
from kata.runtime.images.model import ImageConfig
from tests.support import leaks
from tests.support.buildcache import seeded_cache
from tests.support.images import BUSYBOX, busybox_archive, busybox_rootfs, write_oci_archive
from tests.support.waiting import eventually

#: A build, a template and a start, each of which takes half a minute on an idle host.
pytestmark = [pytest.mark.vm, pytest.mark.long, pytest.mark.timeout(900)]

KATA = str(Path(sys.executable).with_name("kata"))
NAME = f"{leaks.TEST_PREFIX}guest{os.getpid()}"
_TIMEOUT_S = 600
#: Of kata's own failures.
EXIT_OF_KATA = 125
_CONSOLE = "[agent.kata]\ndebug_console_enabled = true\n"


@dataclass(frozen=True)
class Kind:
    """A kind of guest.

    Attributes:
        options: of `kata image build`.
        shown: how `kata image list` says it.
        asks: what a container runs, to see what guest it is in.
        answer: what it prints then.
    """

    options: tuple[str, ...]
    shown: str
    asks: str = "awk '$4 == \"vda\" && $3 < 4294967296' /proc/partitions | wc -l"  # KiB: the disks of layers seem huge
    answer: str = "1"


_PARAMETERS = "grep -o 'dm-mod.create=\"root,,,ro,' /proc/cmdline"
KINDS = {
    "default": Kind((), "default erofs"),
    "minimal": Kind(("--recipe", "minimal"), "minimal erofs"),
    "debug": Kind(("--recipe", "debug"), "debug erofs"),
    "ext4": Kind(("--format", "ext4"), "default ext4"),
    "xfs": Kind(("--format", "xfs"), "default xfs"),
    "partitioned": Kind(("--partitioned",), "default erofs, partitioned", "grep -c vda1 /proc/partitions"),
    "initrd": Kind(("--format", "initrd"), "default initrd", answer="0"),
    "verity": Kind(("--verity",), "default erofs, verity", _PARAMETERS, 'dm-mod.create="root,,,ro,'),
}


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    with leaks.nothing_stays(NAME):
        yield


@pytest.fixture
def busybox(tmp_path: Path) -> Path:
    """An image for the container, with the busybox of the guest that this host has."""
    return busybox_archive(tmp_path / "busybox.tar")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return seeded_cache(tmp_path / "cache")


def kata(images: Path, *arguments: str | Path) -> str:
    done = subprocess.run(
        [KATA, *map(str, arguments)],
        env={**os.environ, "KATA_IMAGES": str(images)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", KINDS)
def test_a_guest_from_nothing(name: str, tmp_path: Path, cache: Path, busybox: Path) -> None:
    kind, images = KINDS[name], tmp_path / "images"
    kata(images, "image", "build", "--cache", cache, *kind.options)
    image = store.find(images)
    assert f"{image.manifest['recipe']} {image.form}" == kind.shown
    assert kata(images, "run", "--name", NAME, busybox, "sh", "-c", kind.asks) == kind.answer


#: Of a root that the guest's kernel checks: a file that nobody reads but who asks for it, of whole blocks.
_CHECKED = """
extends = "minimal"
[image]
verity = true
[[files]]
path = "/etc/checked"
content = "{content}"
"""


def test_a_changed_byte_ends_the_guest_when_it_is_read(tmp_path: Path, cache: Path, busybox: Path) -> None:
    """Whether a guest is booted or restored: its template does not have what nobody has read."""
    images, recipe = tmp_path / "images", tmp_path / "checked.toml"
    mark = b"a block that nobody has read... "  # so that there are whole blocks, none of which is beside the inode
    content = mark.decode() * 1024
    recipe.write_text(_CHECKED.format(content=content))
    kata(images, "image", "build", "--cache", cache, "--recipe", recipe)
    root = store.find(images).rootfs
    assert root
    (tmp_path / "configuration.toml").write_text(_CONSOLE)
    command = [KATA, "run", "--name", NAME, "--config", str(tmp_path / "configuration.toml"), str(busybox)]
    ready = [KATA, "exec", NAME, "true"]
    environment = {**os.environ, "KATA_IMAGES": str(images)}

    def read() -> subprocess.CompletedProcess[str]:
        asked = [KATA, "exec", "--guest", NAME, "--", "cat", "/etc/checked"]
        return subprocess.run(asked, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)

    for changed in (False, True):
        if changed:
            where = root.read_bytes().index(mark)
            root.chmod(0o644)
            with root.open("r+b") as file:
                file.seek(where)
                file.write(b"T")
        with subprocess.Popen(
            [*command, "sleep", "600"], env=environment, stderr=subprocess.PIPE, text=True
        ) as running:
            try:
                eventually(
                    lambda: subprocess.run(ready, capture_output=True, timeout=_TIMEOUT_S, check=False).returncode,
                    "the container runs",
                    lambda status: status == 0 or running.poll() is not None,
                    within_s=_TIMEOUT_S,
                )
                assert running.poll() is None
                done = read()
                if not changed:
                    assert (done.returncode, done.stdout) == (0, content), done.stderr
                    continue
                assert done.returncode == EXIT_OF_KATA
                _, said = running.communicate(timeout=_TIMEOUT_S)
                assert running.returncode == EXIT_OF_KATA
                assert "its root image is damaged, or has been changed: device-mapper: verity: " in said
                assert "is corrupted" in said
            finally:
                running.terminate()
    with pytest.raises(FailedPrecondition, match=r"root\.erofs"):
        store.check(store.find(images))


def test_a_guest_with_the_files_of_a_container_image(tmp_path: Path, cache: Path, busybox: Path) -> None:
    """As Alpine's: busybox is all that it has, and /bin and /lib are no links."""
    root, images = tmp_path / "root", tmp_path / "images"
    root.mkdir()
    busybox_rootfs(root)
    (root / "etc/alpine-release").write_text("3.22.0\n")
    (root / "bin/hello").write_text("#!/bin/sh\necho hello from Alpine\n")
    (root / "bin/hello").chmod(0o755)
    archive = write_oci_archive(root, ImageConfig(cmd=("sh",)), tmp_path / "alpine.tar", BUSYBOX)
    kata(images, "image", "build", "--cache", cache, "--from", archive)
    (tmp_path / "configuration.toml").write_text(_CONSOLE)

    options = ("--name", NAME, "--config", str(tmp_path / "configuration.toml"))
    environment = {**os.environ, "KATA_IMAGES": str(images)}
    with subprocess.Popen([KATA, "run", *options, busybox, "sleep", "600"], env=environment) as running:
        try:
            said = eventually(
                lambda: subprocess.run(
                    [KATA, "exec", "--guest", NAME, "--", "sh", "-c", "hello; cat /etc/alpine-release; ls -d /bin/sh"],
                    capture_output=True,
                    text=True,
                    timeout=_TIMEOUT_S,
                    check=False,
                ),
                "the guest answers",
                lambda done: done.returncode == 0,
                within_s=_TIMEOUT_S,
            )
            assert said.stdout.split("\n")[:2] == ["hello from Alpine", "3.22.0"]
        finally:
            running.terminate()
