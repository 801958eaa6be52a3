"""The guest image in a virtual machine, and the builder with real packages. That it boots, all other tests show.

Needs root and QEMU; the builds also need mkfs.erofs and, where the cache is empty, the network.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID

import pytest

from kata.errors import FailedPrecondition, NotFound, ResourceExhausted
from kata.osbuilder import agent_files, initrd, store, verity
from kata.osbuilder.build import BuildOptions, build, changing
from kata.osbuilder.formats import FILE_SYSTEMS
from kata.osbuilder.host_programs import LOADER, libraries_of
from kata.osbuilder.modules import ModuleTree
from kata.osbuilder.recipe import Form, load
from kata.osbuilder.root_image import modules_of_initrd
from kata.osbuilder.store import GuestImage
from kata.runtime.launch.verity import kernel_param
from tests.support.buildcache import seeded_cache
from tests.support.waiting import eventually

QEMU = shutil.which("qemu-system-x86_64")

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(QEMU is None, reason="qemu-system-x86_64 is not installed"),
]
builds = pytest.mark.skipif(shutil.which("mkfs.erofs") is None, reason="mkfs.erofs is not installed")

TIMEOUT = 150.0
#: Seconds for whole builds, each of which takes half a minute of CPU time.
_BUILDS_S = 900


@pytest.fixture(scope="module")
def image() -> GuestImage:
    try:
        return store.find()
    except NotFound as error:
        pytest.skip(f"{error}: {error.hint}")


def boot(image: GuestImage, parameters: str, *, disk: Path | None, until: str = "") -> tuple[str, int | None]:
    """Boot under emulation; return the console's text and QEMU's exit status.

    Ends when QEMU does or the console shows `until` (the status is None then); fails after TIMEOUT seconds.
    """
    assert QEMU
    command = [QEMU, "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", "512M", "-nodefaults"]
    command += ["-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"]
    command += ["-kernel", str(image.kernel), "-initrd", str(image.initrd)]
    command += ["-append", f"console=ttyS0 quiet panic=-1 cryptomgr.notests no_timer_check {parameters}"]
    command += ["-device", "virtio-serial-pci,id=serial", "-chardev", "null,id=rpc"]
    command += ["-device", "virtserialport,bus=serial.0,chardev=rpc,name=kata.rpc"]
    if disk:
        command += ["-drive", f"if=none,id=root,file={disk},format=raw,readonly=on"]
        command += ["-device", "virtio-blk-pci,drive=root"]
    deadline = time.monotonic() + TIMEOUT
    console = b""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as qemu:
        try:
            assert qemu.stdout
            with selectors.DefaultSelector() as selector:
                selector.register(qemu.stdout, selectors.EVENT_READ)
                while selector.select(max(0, deadline - time.monotonic())):
                    data = os.read(qemu.stdout.fileno(), 65536)
                    console += data
                    if not data:
                        return console.decode(errors="replace"), qemu.wait(10)
                    if until and until.encode() in console:
                        return console.decode(errors="replace"), None
            pytest.fail(f"the guest neither ended nor said '{until}' within {TIMEOUT:.0f} s: {console!r}")
        finally:
            qemu.kill()


def test_a_wrong_root_disk_is_one_clear_line_and_the_end(image: GuestImage) -> None:
    console, status = boot(image, "", disk=image.kernel)
    assert "kata-init: cannot mount the root disk /dev/vda as erofs" in console
    assert "panic" not in console
    assert status == 0


def test_no_root_disk_is_one_clear_line_and_the_end(image: GuestImage) -> None:
    console, status = boot(image, "", disk=None)
    assert "kata-init: no root disk: /dev/vda did not appear" in console
    assert status == 0


@dataclass(frozen=True)
class Root:
    """The image's root as a directory, in which there is time to make others of it.

    Attributes:
        directory: with all files.
        modules: what its kernel has.
    """

    directory: Path
    modules: ModuleTree

    def initrd(self, form: Form) -> bytes:
        """An initrd that mounts a root disk of this form; its dmsetup is the host's."""
        programs = {}
        if form.verity:
            dmsetup, libraries = Path("/usr/sbin/dmsetup"), Path("/usr/lib/x86_64-linux-gnu")
            for name in libraries_of(Path("/lib64") / LOADER, Path("/lib/x86_64-linux-gnu"), dmsetup):
                programs[f"lib/{libraries.name}/{name}"] = Path("/lib/x86_64-linux-gnu", name).read_bytes()
            programs["bin/dmsetup"] = dmsetup.read_bytes()
            programs[f"lib64/{LOADER}"] = (Path("/lib64") / LOADER).read_bytes()
        (release,) = (self.directory / "usr/lib/modules").iterdir()
        loaded = [(path, (release / path).read_bytes()) for path in self.modules.load_order(modules_of_initrd(form))]
        busybox = (self.directory / "usr/bin/busybox").read_bytes()
        return initrd.build(busybox, loaded, root_type=form.format, programs=programs)


@pytest.fixture(scope="module")
def root(image: GuestImage, tmp_path_factory: pytest.TempPathFactory) -> Root:
    directory = tmp_path_factory.mktemp("root") / "root"
    subprocess.run(["fsck.erofs", f"--extract={directory}", str(image.rootfs)], check=True, capture_output=True)
    (release,) = (directory / "usr/lib/modules").iterdir()
    tree = ModuleTree.parse((release / "modules.dep").read_text(), (release / "modules.builtin").read_text())
    return Root(directory, tree)


LISTENS = "agent.server_addr=virtio-serial://kata.rpc"


@builds
def test_an_initrd_can_be_the_whole_root(image: GuestImage, root: Root, tmp_path: Path) -> None:
    path = tmp_path / "initrd"
    path.write_bytes(initrd.build_alone(root.directory))
    console, _ = boot(replace(image, initrd=path), LISTENS, disk=None, until="listening on")
    assert "kata-init" not in console


@builds
@pytest.mark.skipif(shutil.which("veritysetup") is None, reason="cryptsetup-bin is not installed")
def test_a_root_that_is_checked_boots_and_a_flipped_bit_ends_the_guest(
    image: GuestImage, root: Root, tmp_path: Path
) -> None:
    """With ext4, so that another file system than the usual one boots as well."""
    form = Form("ext4", verity=True)
    guest = replace(image, initrd=tmp_path / "initrd")
    guest.initrd.write_bytes(root.initrd(form))
    disk = tmp_path / "root.ext4"
    FILE_SYSTEMS["ext4"].write(root.directory, disk, form, 1_700_000_000, str(UUID(int=1)), None)
    sealed = verity.seal(disk, "00ff")
    parameters = f"{LISTENS} {kernel_param(sealed.text)}"
    console, _ = boot(guest, parameters, disk=disk, until="listening on")
    assert "kata-init" not in console

    content = disk.read_bytes()
    of_a_program = content.index(b"Be the guest's PID 1")
    for offset in (1024 + 56, of_a_program, sealed.blocks * 4096):
        with disk.open("r+b") as file:
            file.seek(offset)
            file.write(bytes([content[offset] ^ 1]))
            file.flush()
            console, status = boot(guest, parameters, disk=disk)
            assert "device-mapper: verity" in console, offset
            assert "is corrupted" in console
            assert status == 0
            file.seek(offset)
            file.write(content[offset : offset + 1])


@contextlib.contextmanager
def disk_of(directory: Path, mib: int) -> Iterator[Path]:
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(directory)], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with disk_of(tmp_path / "small", 30) as directory:
        yield directory


@pytest.fixture
def large_disk(tmp_path: Path) -> Iterator[Path]:
    """Enough for a build and its packages."""
    with disk_of(tmp_path / "large", 1500) as directory:
        yield directory


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of the package, so that nobody changes the agent between two builds."""
    copy = tmp_path / "kata"
    shutil.copytree(agent_files.source_directory(), copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def processes_of(directory: Path) -> list[str]:
    """Command lines that name a directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(directory) in text:
            found.append(text)
    return found


@builds
@pytest.mark.long
@pytest.mark.timeout(_BUILDS_S)
def test_a_killed_build_leaves_no_trace_and_two_builds_are_equal(tmp_path: Path, source: Path) -> None:
    first = build(BuildOptions(images=tmp_path / "first", agent=source))

    cache = seeded_cache(tmp_path / "cache")
    images = tmp_path / "second"
    command = [sys.executable, "-m", "kata.cli.image", "build", "--root", str(images), "--cache", str(cache)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as builder:
        try:
            assert builder.stderr
            for line in builder.stderr:
                if "unpacking the kernel" in line:
                    break
        finally:
            builder.kill()
    with pytest.raises(NotFound):
        store.find(images)
    assert list(cache.glob(".build-*"))
    eventually(lambda: processes_of(cache), "the killed build's children end", lambda orphans: not orphans)

    second = build(BuildOptions(images=images, cache=cache, agent=source))
    assert not list(cache.glob(".build-*"))
    assert [path.name for path in images.iterdir() if path.name.startswith(".")] == [".lock"]
    assert second.version == first.version
    assert second.manifest == first.manifest
    store.check(second)

    steps: list[str] = []
    assert build(BuildOptions(images=images, cache=cache, agent=source), steps.append) == second
    assert steps[-1].endswith("is up to date")


_AS_NOBODY = """
import ctypes, os, sys
from pathlib import Path
from kata.cli.build_options import as_root
from kata.osbuilder.build import BuildOptions, build
from kata.osbuilder.recipe import load
os.setgroups([]), os.setresgid(65534, 65534, 65534), os.setresuid(65534, 65534, 65534)
# As it is after a login: /proc/self belongs to the user.
ctypes.CDLL(None).prctl(4, 1)
home = Path(sys.argv[1])
as_root()
options = BuildOptions(images=home / "images", cache=home / "cache", agent=home / "kata", recipe=load("minimal"))
print(build(options).version)
"""


@builds
@pytest.mark.long
@pytest.mark.timeout(_BUILDS_S)
def test_a_user_who_is_not_root_builds_the_same(tmp_path: Path, source: Path) -> None:
    ours = build(BuildOptions(images=tmp_path / "images", agent=source, recipe=load("minimal")))
    # Where nobody can go, unlike to pytest's directories.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as home:
        shutil.copytree(source, Path(home) / "kata")
        seeded_cache(Path(home) / "cache")
        subprocess.run(["chown", "-R", "65534:65534", home], check=True)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([home, *sys.path])}
        command = [sys.executable, "-c", _AS_NOBODY, home]
        told = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=_BUILDS_S)
        assert told.stdout.strip() == ours.version, told.stderr
        assert store.find(Path(home) / "images").manifest == ours.manifest


#: What a build says before each step that takes a while.
STEPS = (
    *("choosing packages", "unpacking packages", "unpacking the kernel", "choosing kernel modules"),
    *("collecting licenses", "compiling the Python library", "unpacking the programs", "installing the agent"),
    *("checking the agent", "writing the root image"),
)


#: Of each step, at moments that are spread over its first seconds.
_KILLS = 10
_KILL_EVERY_S = 0.15


@builds
@pytest.mark.long
@pytest.mark.timeout(_KILLS * 120)
@pytest.mark.parametrize("step", STEPS)
def test_a_build_that_is_killed_in_a_step_leaves_nothing_that_is_used(tmp_path: Path, source: Path, step: str) -> None:
    images, cache = tmp_path / "images", seeded_cache(tmp_path / "cache")
    command = [sys.executable, "-m", "kata.cli.image", "build", "--root", str(images), "--cache", str(cache)]
    for kill in range(_KILLS):
        with subprocess.Popen([*command, "--recipe", "minimal"], stderr=subprocess.PIPE, text=True) as builder:
            try:
                assert builder.stderr
                assert any(step in line for line in builder.stderr), f"{step} never came"
                time.sleep(kill * _KILL_EVERY_S)
            finally:
                builder.kill()
        eventually(lambda: processes_of(tmp_path), "the killed build's children end", lambda orphans: not orphans)
        # What is there is whole: a build that was quicker than its end.
        for image in store.list_images(images):
            store.check(image)
            shutil.rmtree(image.directory)
        # As the next build begins.
        with changing(images, cache):
            assert not list(cache.glob(".build-*"))
            assert {path.name for path in images.iterdir()} <= {".lock", store.CURRENT}
    image = build(BuildOptions(images=images, cache=cache, agent=source, recipe=load("minimal")))
    store.check(image)


@builds
@pytest.mark.long
@pytest.mark.timeout(_BUILDS_S)
@pytest.mark.parametrize("step", STEPS)
def test_a_disk_that_is_full_in_a_step_is_told_and_its_space_comes_back(
    large_disk: Path, source: Path, step: str
) -> None:
    images, cache, filler = large_disk / "images", seeded_cache(large_disk / "cache"), large_disk / "filler"
    options = BuildOptions(images=images, cache=cache, agent=source)

    def fill(said: str) -> None:
        if step in said and not filler.exists():
            free = shutil.disk_usage(large_disk).free
            with filler.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, free - (free % 4096))

    with pytest.raises(ResourceExhausted, match="no space left on the file system of") as caught:
        build(options, fill)
    assert caught.value.hint == "free 1 GB there and build again"
    assert store.list_images(images) == []
    assert [path.name for path in images.iterdir()] == [".lock"]
    assert {path.name for path in cache.iterdir()} <= {".lock", "apt", "base", "debs"}


@builds
@pytest.mark.long
@pytest.mark.timeout(_BUILDS_S)
def test_force_repairs_an_image_and_its_intermediate(tmp_path: Path, source: Path) -> None:
    options = BuildOptions(images=tmp_path / "images", cache=seeded_cache(tmp_path / "cache", base=True), agent=source)
    image = build(options)
    assert image.rootfs
    for damaged in (*options.cache.glob("base/*/vmlinux"), image.rootfs):
        with damaged.open("r+b") as file:
            file.seek(5000)
            file.write(b"damaged")
    assert build(options) == image
    with pytest.raises(FailedPrecondition, match=r"root\.erofs"):
        store.check(image)

    store.check(build(dataclasses.replace(options, force=True)))


@builds
def test_a_changed_agent_is_a_new_version_with_the_same_kernel(image: GuestImage, tmp_path: Path, source: Path) -> None:
    # Usually the one that is current, which then is not built again.
    shutil.copytree(image.directory, tmp_path / "images" / image.version)
    first = build(BuildOptions(images=tmp_path / "images", agent=source))
    with (source / "agent" / "__init__.py").open("a") as module:
        module.write("# changed\n")

    second = build(BuildOptions(images=tmp_path / "images", agent=source))
    assert second.version != first.version
    for name, equal in (("vmlinux", True), ("initrd", True), ("root.erofs", False)):
        assert (second.manifest["files"][name] == first.manifest["files"][name]) is equal
    assert store.find(tmp_path / "images").version == second.version
    assert first.version in store.prune(tmp_path / "images", keep=1)


@builds
def test_an_agent_that_the_guest_cannot_import_is_not_published(tmp_path: Path, source: Path) -> None:
    (source / "agent" / "broken.py").write_text("import ssl\n")
    with pytest.raises(Exception, match="No module named 'ssl'"):
        build(BuildOptions(images=tmp_path / "images", agent=source))
    assert [path.name for path in (tmp_path / "images").iterdir()] == [".lock"]


@builds
def test_a_full_disk_is_told_and_leaves_nothing(small_disk: Path) -> None:
    with pytest.raises(ResourceExhausted, match="no space left"):
        build(BuildOptions(images=small_disk))
    assert [path.name for path in small_disk.iterdir()] == [".lock"]
