"""`kata check`: what works on this host, what does not, and what to do about it. One row per check."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from kata.cli import gc, host
from kata.cli.render import printable
from kata.errors import KataError
from kata.osbuilder import store
from kata.runtime.config.loader import load
from kata.runtime.config.settings import Config
from kata.runtime.ledger.journal import STATE_ROOT

SHIM = "containerd-shim-kata-v2"
#: One sandbox's guest and what runs it need about as much.
_MIN_MEMORY_KIB = 512 << 10
_MIN_DISK = 1 << 30
_BUILD_TOOLS = ("apt-get", "dpkg-deb", "mkfs.erofs")


class Status(StrEnum):
    """FAILED: `kata run` cannot work. WARNING: something else cannot, or works less well."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True)
class Row:
    """The result of one check.

    Attributes:
        name: of what was checked.
        status: whether it works.
        text: what was found, one line.
        hint: what to do, or "".
    """

    name: str
    status: Status
    text: str
    hint: str = ""


def check(config_path: Path | None = None) -> Iterator[Row]:
    """Yield a row per check, each as soon as it is known; without a readable configuration only the first two."""
    yield root()
    try:
        loaded = load(config_path)
    except KataError as error:
        yield Row("configuration", Status.FAILED, error.message, error.hint or "")
        return
    source = ", ".join(map(str, loaded.sources)) or "built-in defaults"
    if loaded.warnings:
        yield Row("configuration", Status.WARNING, f"{source}: {'; '.join(loaded.warnings)}")
    else:
        yield Row("configuration", Status.OK, source)
    config = loaded.config
    for probe in _PROBES:
        yield probe(config)


def passed(rows: list[Row]) -> bool:
    """Return whether `kata run` can work."""
    return all(row.status is not Status.FAILED for row in rows)


def root() -> Row:
    """Check that this process is root's."""
    if os.geteuid() == 0:
        return Row("root", Status.OK, "running as root")
    return Row("root", Status.FAILED, "starting sandboxes needs root", "run it with sudo")


def qemu(config: Config) -> Row:
    """Check that the configured QEMU can be executed."""
    path = config.hypervisor.path
    if not os.access(path, os.X_OK):
        return Row(
            "qemu", Status.FAILED, f"{path} does not exist or is not executable", "install the package qemu-system-x86"
        )
    version = host.qemu_version(path)
    if not version:
        return Row("qemu", Status.FAILED, f"{path} does not print its version", "reinstall the package qemu-system-x86")
    return Row("qemu", Status.OK, f"{path}, version {version}")


def guest_image(config: Config) -> Row:
    """Check that the configured files can be read; verify the digests if they are an image of `kata image`."""
    files = (config.hypervisor.kernel, config.hypervisor.initrd, config.hypervisor.image)
    try:
        image = store.find()
        ours = [path.resolve() for path in files] == [
            path.resolve() for path in (image.kernel, image.initrd, image.rootfs)
        ]
        if ours:
            store.check(image)
            return Row("guest image", Status.OK, f"{image.version}, complete and unchanged")
    except KataError as error:
        if all(path.is_relative_to(store.images_root()) for path in files):
            return Row("guest image", Status.FAILED, error.message, error.hint or "")
    missing = [str(path) for path in files if not os.access(path, os.R_OK)]
    if missing:
        return Row("guest image", Status.FAILED, f"not readable: {', '.join(missing)}", "run: kata image build")
    return Row("guest image", Status.OK, f"{files[2]}, as configured")


def accelerator(config: Config) -> Row:
    """Check that an accelerator can be used, and warn if it is TCG."""
    import asyncio

    from kata.runtime.hypervisor import accel

    try:
        chosen = asyncio.run(accel.choose_for(config.hypervisor))
    except KataError as error:
        return Row("accelerator", Status.FAILED, error.message, error.hint or "")
    if chosen.name == "kvm":
        return Row("accelerator", Status.OK, f"kvm: {chosen.reason}")
    return Row(
        "accelerator",
        Status.WARNING,
        f"tcg (emulation): {chosen.reason}",
        "sandboxes run slowly and without KVM's isolation: do not run untrusted code",
    )


def namespaces(_config: Config) -> Row:
    """Check that a mount namespace can be created, in a child so that this process keeps its own."""
    pid = os.fork()
    if pid == 0:
        try:
            from kata.runtime.launch.mount_namespace import enter_mount_namespace

            # Before the first sandbox there is no such directory.
            enter_mount_namespace(STATE_ROOT if os.path.isdir(STATE_ROOT) else os.path.dirname(STATE_ROOT))
            os._exit(0)
        except BaseException:
            os._exit(1)
    if os.waitpid(pid, 0)[1] == 0:
        return Row("mount namespaces", Status.OK, "can be created")
    return Row(
        "mount namespaces",
        Status.FAILED,
        "cannot be created",
        "run it as root; a container needs CAP_SYS_ADMIN (a privileged container has it)",
    )


def memory(_config: Config) -> Row:
    """Check the available memory against what a sandbox needs."""
    available = host.memory()["MemAvailable"]
    text = f"{available >> 10} MiB available"
    if available < _MIN_MEMORY_KIB:
        return Row("memory", Status.WARNING, text, f"a sandbox needs about {_MIN_MEMORY_KIB >> 10} MiB")
    return Row("memory", Status.OK, text)


def disk(_config: Config) -> Row:
    """Check the free space where `kata run` keeps images."""
    directory = next(path for path in (gc.RUN_ROOT, *gc.RUN_ROOT.parents) if path.is_dir())
    free = shutil.disk_usage(directory).free
    text = f"{free >> 20} MiB free in {directory}"
    if free < _MIN_DISK:
        return Row("disk", Status.WARNING, text, "`kata run` keeps images there")
    return Row("disk", Status.OK, text)


def leftovers(_config: Config) -> Row:
    """Check for what sandboxes have left behind whose process is gone."""
    try:
        names = gc.leftovers()
    except OSError as error:
        return Row("leftovers", Status.WARNING, f"cannot be listed: {error.strerror}", "run it as root")
    if names:
        return Row(
            "leftovers", Status.WARNING, f"of {len(names)} dead sandboxes: {', '.join(names[:5])}", "run: kata gc"
        )
    return Row("leftovers", Status.OK, "none")


def containerd(_config: Config) -> Row:
    """Check for containerd and, on *its* PATH, the shim. `kata run` needs neither."""
    shim = shutil.which(SHIM, path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    engine = shutil.which("containerd")
    if engine and shim:
        return Row("containerd", Status.OK, f"{engine}, with {shim}")
    if engine:
        return Row(
            "containerd",
            Status.WARNING,
            f"{SHIM} is not on containerd's usual PATH",
            "only containerd needs it; run: make install",
        )
    return Row("containerd", Status.WARNING, "not installed", "`kata run` does not need it")


def build_tools(_config: Config) -> Row:
    """Check for the programs that `kata image build` executes."""
    missing = [name for name in _BUILD_TOOLS if not shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")]
    if missing:
        return Row(
            "build tools",
            Status.WARNING,
            f"missing: {', '.join(missing)}",
            "`kata image build` needs them, and `kata run IMAGE` mkfs.erofs",
        )
    return Row("build tools", Status.OK, "installed")


def vhost(_config: Config) -> Row:
    """List vhost devices. They are not needed, but other runtimes use them."""
    found = [name for name in ("vhost-vsock", "vhost-net") if _is_device(f"/dev/{name}")]
    return Row("vhost devices", Status.OK, f"{', '.join(found) or 'none'} (not needed)")


def _is_device(path: str) -> bool:
    try:
        return stat.S_ISCHR(os.stat(path).st_mode)
    except OSError:
        return False


_PROBES: tuple[Callable[[Config], Row], ...] = (
    qemu,
    guest_image,
    accelerator,
    namespaces,
    memory,
    disk,
    leftovers,
    containerd,
    build_tools,
    vhost,
)


def as_json(rows: list[Row]) -> dict[str, Any]:
    """Return the document that `kata check --json` prints."""
    return {"ok": passed(rows), "checks": [asdict(row) for row in rows]}


_COLORS = {Status.OK: "32", Status.WARNING: "33", Status.FAILED: "31"}


def as_text(row: Row, *, color: bool = False) -> str:
    """Format a row for people: one line, and one more for the hint."""
    status = f"{row.status:<8}"
    if color:
        status = f"\x1b[{_COLORS[row.status]}m{status}\x1b[0m"
    line = f"{status} {row.name:<17} {printable(row.text)}"
    return f"{line}\n{'':27}{printable(row.hint)}" if row.hint else line
