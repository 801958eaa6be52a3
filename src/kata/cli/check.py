"""`kata check`: what works on this host, what does not, and what to do about it. One row per check."""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from kata.cli import gc, host, releases
from kata.cli.options import AsJson, ConfigFile
from kata.cli.render import ExitCode, printable
from kata.errors import InvalidArgument, KataError, NotFound
from kata.osbuilder import store
from kata.runtime.config.loader import load
from kata.runtime.config.settings import Config
from kata.runtime.ledger.journal import STATE_ROOT
from kata.version import VERSION

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
        detail: what `--verbose` adds, lines.
    """

    name: str
    status: Status
    text: str
    hint: str = ""
    detail: tuple[str, ...] = ()


class Mode(StrEnum):
    """What is checked: Kata's modes."""

    ALL = "all"
    NO_NETWORK_CHECKS = "no-network-checks"
    CHECK_VERSION_ONLY = "check-version-only"
    ONLY_LIST_RELEASES = "only-list-releases"
    INCLUDE_ALL_RELEASES = "include-all-releases"
    LIST = "list"


def command(
    mode: Annotated[
        Mode, typer.Argument(metavar="MODE", help=f"One of {', '.join(Mode)}.", show_default="all")
    ] = Mode.ALL,
    no_network_checks: Annotated[
        bool, typer.Option("-n", "--no-network-checks", help="Do not ask for newer releases.")
    ] = False,
    check_version_only: Annotated[
        bool, typer.Option("--check-version-only", help="Only ask for newer releases.")
    ] = False,
    only_list_releases: Annotated[
        bool, typer.Option("--only-list-releases", help="Print newer releases, one a line, and nothing else.")
    ] = False,
    include_all_releases: Annotated[
        bool, typer.Option("--include-all-releases", help="Count pre-releases, too.")
    ] = False,
    strict: Annotated[bool, typer.Option("-s", "--strict", help="Exit with 1 for warnings, too.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Print what each check has looked at.")] = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> int:
    """Check the host: what works, what does not, and what to do about it."""
    flags = {
        Mode.NO_NETWORK_CHECKS: no_network_checks,
        Mode.CHECK_VERSION_ONLY: check_version_only,
        Mode.ONLY_LIST_RELEASES: only_list_releases,
    }
    mode, include_all = _mode(mode, [flag for flag, is_set in flags.items() if is_set], include_all_releases)
    if mode is Mode.LIST:
        every: list[Callable[..., Any]] = [root, configuration, *_PROBES, release]
        names = {_name(probe): _purpose(probe) for probe in every}
        print(json.dumps(names, indent=2) if as_json else "\n".join(f"{name:<17} {names[name]}" for name in names))
        return ExitCode.OK
    if mode is Mode.ONLY_LIST_RELEASES:
        found = releases.newer(VERSION, releases.fetch(), include_all=include_all)
        print(json.dumps(found) if as_json else "\n".join(found), end="\n" if found or as_json else "")
        return ExitCode.OK
    rows: list[Row] = []
    for row in _rows(mode, config, include_all):
        rows.append(row)
        if not as_json:
            print(as_text(row, color=sys.stdout.isatty() and "NO_COLOR" not in os.environ, verbose=verbose), flush=True)
    if as_json:
        print(json.dumps(document(rows), indent=2))
    # Who asks for the version alone is not told by a warning that nobody knows.
    strict = strict or mode is Mode.CHECK_VERSION_ONLY
    return ExitCode.OK if passed(rows, strict=strict) else ExitCode.FAILED


def _mode(mode: Mode, flags: list[Mode], include_all: bool) -> tuple[Mode, bool]:
    """Mode, and whether pre-releases count: said by a word, as kata-ctl has it, or by flags, as kata-runtime has.

    Raises:
        InvalidArgument: two of them contradict each other.
    """
    if mode is Mode.INCLUDE_ALL_RELEASES:
        mode, include_all = Mode.ALL, True
    wanted = {*flags, *([] if mode is Mode.ALL else [mode])}
    if len(wanted) > 1:
        raise InvalidArgument(f"{' and '.join(sorted(wanted))} exclude each other", hint="kata check --help")
    return next(iter(wanted), Mode.ALL), include_all


def _rows(mode: Mode, config: Path | None, include_all: bool) -> Iterator[Row]:
    if mode is not Mode.CHECK_VERSION_ONLY:
        yield from check(config)
    if mode is not Mode.NO_NETWORK_CHECKS:
        yield release(include_all=include_all)


def check(config_path: Path | None = None) -> Iterator[Row]:
    """Yield a row per check that needs no network, each as soon as it is known.

    Without a readable configuration there are only the first two.
    """
    yield root()
    row, config = configuration(config_path)
    yield row
    if config is not None:
        for probe in _PROBES:
            yield probe(config)


def passed(rows: list[Row], *, strict: bool = False) -> bool:
    """Return whether `kata run` can work; with `strict`, whether everything is right."""
    return all(row.status is Status.OK or (row.status is Status.WARNING and not strict) for row in rows)


def configuration(path: Path | None) -> tuple[Row, Config | None]:
    """Check that the configuration can be read, and warn about names in it that have no effect."""
    try:
        loaded = load(path)
    except KataError as error:
        return Row("configuration", Status.FAILED, error.message, error.hint or ""), None
    source = ", ".join(map(str, loaded.sources)) or "built-in defaults"
    if loaded.warnings:
        return Row("configuration", Status.WARNING, f"{source}: {'; '.join(loaded.warnings)}"), loaded.config
    return Row("configuration", Status.OK, source), loaded.config


def root() -> Row:
    """Check that this process is root's."""
    if os.geteuid() == 0:
        return Row("root", Status.OK, "running as root")
    return Row("root", Status.FAILED, "starting sandboxes needs root", "run it with sudo")


def cpu(_config: Config) -> Row:
    """Check for the CPU's features that virtualization needs."""
    vendor, model = host.cpu()
    flags = host.cpu_flags()
    wanted = ("vmx", "svm", "lm", "sse4_1")
    detail = (f"{vendor} {model}", *(f"{flag}: {'yes' if flag in flags else 'no'}" for flag in wanted))
    if not {"vmx", "svm"} & flags:
        text = "has no hardware virtualization (vmx, svm) that this host may use"
        hint = "sandboxes are emulated, and slow; in a VM, switch nested virtualization on"
        return Row("cpu", Status.WARNING, text, hint, detail)
    return Row("cpu", Status.OK, f"{model}: hardware virtualization", detail=detail)


def kernel_modules(_config: Config) -> Row:
    """List the kernel modules that Kata's own runtime needs; here only KVM's are used."""
    names = ("kvm", "kvm_intel", "kvm_amd", "vhost", "vhost_net", "vhost_vsock", "vfio_pci")
    loaded = [name for name in names if os.path.isdir(f"/sys/module/{name}")]
    detail = tuple(f"{name}: {'loaded' if name in loaded else 'not loaded'}" for name in names)
    return Row("kernel modules", Status.OK, f"{', '.join(loaded) or 'none'} loaded", detail=detail)


def qemu(config: Config) -> Row:
    """Check that the configured QEMU can be executed."""
    path, package = config.hypervisor.path, config.hypervisor.architecture.qemu_package
    if not os.access(path, os.X_OK):
        return Row(
            "qemu", Status.FAILED, f"{path} does not exist or is not executable", f"install the package {package}"
        )
    version = host.qemu_version(path)
    if not version:
        return Row("qemu", Status.FAILED, f"{path} does not print its version", f"reinstall the package {package}")
    return Row("qemu", Status.OK, f"{path}, version {version}")


def guest_image(config: Config) -> Row:
    """Check that the configured files can be read; verify the digests if they are an image of `kata image`."""
    wanted = (config.hypervisor.kernel, config.hypervisor.initrd, config.hypervisor.image)
    files = [path for path in wanted if path is not None]
    try:
        image = store.find()
        theirs = (image.kernel, image.initrd, image.rootfs)
        ours = [path.resolve() for path in files] == [path.resolve() for path in theirs if path is not None]
        if ours:
            store.check(image)
            return Row("guest image", Status.OK, f"{image.version}, complete and unchanged")
    except KataError as error:
        if all(path.is_relative_to(store.images_root()) for path in files):
            return Row("guest image", Status.FAILED, error.message, error.hint or "")
    missing = [str(path) for path in files if not os.access(path, os.R_OK)]
    if missing:
        return Row("guest image", Status.FAILED, f"not readable: {', '.join(missing)}", "run: kata image build")
    return Row("guest image", Status.OK, f"{files[-1]}, as configured")


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
    """Check that a mount namespace can be created."""
    pid = os.fork()  # so that this process keeps its own
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


def jail(config: Config) -> Row:
    """Check that QEMU can be run in a jail."""
    from kata.runtime.config.kinds import id_range
    from kata.runtime.hypervisor import factory

    ids = id_range(config.hypervisor.jail_uid_range)
    if not ids:
        return Row("jail", Status.OK, "off (jail_uid_range): QEMU runs as root, among the host's files")
    try:
        factory.check_jail(config.hypervisor.path, ids)
    except KataError as error:
        return Row("jail", Status.FAILED, error.message, error.hint or "")
    return Row("jail", Status.OK, f"QEMU runs as one of {ids[0]}-{ids[-1]}, in a root of its own")


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
    """Check for containerd and, on the PATH that it has, the shim. `kata run` needs neither."""
    shim = shutil.which(SHIM, path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    engine = shutil.which("containerd")
    if engine and shim:
        return Row("containerd", Status.OK, f"{engine}, with {shim}")
    if engine:
        return Row(
            "containerd",
            Status.WARNING,
            f"{SHIM} is not on containerd's usual PATH",
            "only container engines need it; run: kata setup containerd",
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


def release(*, include_all: bool = False) -> Row:
    """Ask the project's package index for a newer release. Nothing else needs the network."""
    installed = f"{VERSION} is installed"
    try:
        found = releases.newer(VERSION, releases.fetch(), include_all=include_all)
    except NotFound as error:
        return Row("release", Status.OK, f"{installed}; {error.message}")
    except KataError as error:
        return Row("release", Status.WARNING, f"{installed}; {error.message}", "--no-network-checks does not ask")
    if not found:
        return Row("release", Status.OK, f"{installed}, which is the newest")
    hint = "read CHANGELOG.md and install it"
    return Row("release", Status.WARNING, f"{installed}; {found[-1]} is there", hint, tuple(found))


_PROBES: tuple[Callable[[Config], Row], ...] = (
    cpu,
    kernel_modules,
    qemu,
    guest_image,
    accelerator,
    namespaces,
    jail,
    memory,
    disk,
    leftovers,
    containerd,
    build_tools,
    vhost,
)


def _name(probe: Callable[..., Any]) -> str:
    """What a check's row is called."""
    names = {"namespaces": "mount namespaces", "vhost": "vhost devices"}
    return names.get(probe.__name__, probe.__name__.replace("_", " "))


def _purpose(probe: Callable[..., Any]) -> str:
    return (probe.__doc__ or "").partition("\n")[0].rstrip(".")


def document(rows: list[Row]) -> dict[str, Any]:
    """Return the document that `kata check --json` prints."""
    return {"ok": passed(rows), "checks": [asdict(row) for row in rows]}


_COLORS = {Status.OK: "32", Status.WARNING: "33", Status.FAILED: "31"}


def as_text(row: Row, *, color: bool = False, verbose: bool = False) -> str:
    """Format a row for people: one line, and one more for the hint and each line of detail."""
    status = f"{row.status:<8}"
    if color:
        status = f"\x1b[{_COLORS[row.status]}m{status}\x1b[0m"
    more = (row.hint, *(row.detail if verbose else ()))
    lines = [f"{status} {row.name:<17} {printable(row.text)}"]
    return "\n".join([*lines, *(f"{'':27}{printable(line)}" for line in more if line)])
