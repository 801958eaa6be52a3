"""`kata run`: one container in one VM, owned by this process and gone with it.

    request → root file system and spec (here) → sandbox, container, streams, signals (`Foreground`) → exit code

What is held outside this process is on the sandbox's ledger: a kill -9 ends the VM and its mounts as well, and
`kata gc` or the next sandbox of that name removes the rest.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from kata.cli.foreground import Foreground
from kata.cli.gc import RUN_ROOT
from kata.cli.network import join_network
from kata.cli.render import detail, signalled, warn
from kata.cli.request import RunRequest
from kata.cli.root import require_root
from kata.cli.signals import Interrupted, Signals, ignore
from kata.errors import InvalidArgument, NotFound
from kata.oci.default import DEFAULT_PATH, default_spec
from kata.oci.spec import MAX_HOSTNAME, Bundle, Spec
from kata.runtime.config.loader import for_architecture, load
from kata.runtime.config.settings import Config
from kata.runtime.images.archive import open_archive
from kata.runtime.images.layer_cache import LayerCache
from kata.runtime.images.model import Image, ImageConfig
from kata.runtime.images.root_disks import root_disks
from kata.runtime.images.unpack import unpack
from kata.runtime.images.user import User, resolve_user
from kata.runtime.launch.mount_namespace import enter_mount_namespace
from kata.runtime.launch.vm_plan import with_layers
from kata.runtime.ledger.files import remove_tree
from kata.runtime.ledger.journal import STATE_ROOT, Ledger, claim
from kata.runtime.ledger.kinds import TREE
from kata.runtime.storage.container_files import plan_container
from kata.runtime.storage.disk import Layers, plan_disks
from kata.runtime.storage.host_paths import look_at_paths, random_token
from kata.runtime.storage.upper_disk import upper_of
from kata.shim.log import keep_log


def run(request: RunRequest) -> int:
    """Run the command in the foreground and return the exit code. This process's signal handlers are replaced.

    Raises:
        PermissionDenied: this is not root.
        NotFound: the guest image, the root file system, a volume or the network does not exist.
        InvalidArgument: no command is named, or -it without a terminal.
        KataError: any other reason why it could not be run. Nothing is left behind.
    """
    _setup_logging(request.debug)
    require_root("kata run")
    loaded = load(request.config)
    for warning in loaded.warnings:
        warn(warning)
    config = for_architecture(loaded.config, request.architecture) if request.architecture else loaded.config
    _check_before(request, config)
    sandbox_id = request.name or f"run-{secrets.token_hex(6)}"
    signals = Signals()
    try:
        ledger = claim(f"{STATE_ROOT}/{sandbox_id}")
        end_log = keep_log(ledger.directory, sandbox_id, "kata-run")
        try:
            enter_mount_namespace(ledger.directory)
            with _root_filesystem(request, sandbox_id, ledger, config) as root:
                user = resolve_user(root.users, _user(request, root.image))
                spec = make_spec(request, root.image, sandbox_id, str(root.directory), user)
                if request.network:
                    spec = join_network(spec, request.network, sandbox_id, ledger)
                _print_plan(sandbox_id, spec, root.layers, debug=request.debug)
                bundle = Bundle(Path(ledger.directory), spec, root.directory)
                foreground = Foreground(
                    request,
                    sandbox_id,
                    bundle,
                    with_layers(config) if root.layers else config,
                    ledger,
                    signals,
                    root.layers,
                )
                return asyncio.run(foreground.run())
        finally:
            signals.deliver_to(ignore)
            # Usually the sandbox has done so already; then there is nothing to release.
            for problem in ledger.release():
                warn(f"cannot release {problem}")
            end_log()
    except Interrupted as interruption:
        return signalled(interruption.number)


def _check_before(request: RunRequest, config: Config) -> None:
    """Fail early on what would otherwise fail after the slow parts.

    Raises:
        NotFound: the guest image, the root file system or a volume does not exist.
        InvalidArgument: -it without a terminal.
    """
    guest = config.hypervisor.architecture
    for path in (config.hypervisor.kernel, config.hypervisor.initrd, config.hypervisor.image):
        if path is not None and not os.access(path, os.R_OK):
            raise NotFound(f"guest image: cannot read {path}", hint=f"run: {guest.build_command}")
    if request.interactive and request.tty and not os.isatty(0):
        raise InvalidArgument("standard input is not a terminal", hint="omit -t or -i")
    if request.rootfs is not None and not request.rootfs.is_dir():
        raise NotFound(f"rootfs {request.rootfs} is not a directory")
    for volume in request.volumes:
        if not os.path.exists(volume.source):
            raise NotFound(f"volume on {volume.destination}: {volume.source} does not exist")


@dataclass(frozen=True)
class _Root:
    """The root file system of a run.

    Attributes:
        directory: the root itself; with layers, nothing that matters.
        users: a directory with its /etc/passwd and /etc/group.
        image: how to run it by default.
        layers: the disks.
    """

    directory: Path
    users: Path
    image: ImageConfig
    layers: Layers | None = None


@contextmanager
def _root_filesystem(request: RunRequest, sandbox_id: str, ledger: Ledger, config: Config) -> Iterator[_Root]:
    if request.rootfs is not None:
        directory = request.rootfs.resolve()
        yield _Root(directory, directory, ImageConfig())
        return
    assert request.image is not None
    with ExitStack() as held:
        with open_archive(request.image, platform=config.hypervisor.architecture.platform) as image:
            if config.hypervisor.disable_block_device_use:
                directory = _unpacked(image, sandbox_id, ledger)
                root = _Root(directory, directory, image.config)
            else:
                users = Path(ledger.directory, "users")
                cache = LayerCache(config.runtime.layer_cache_path, config.runtime.layer_cache_size << 20)
                disks = held.enter_context(root_disks(image, cache, users))
                layers = Layers(tuple(map(str, disks)), upper_of(config.runtime, held))
                root = _Root(users, users, image.config, layers)
        yield root


def _unpacked(image: Image, sandbox_id: str, ledger: Ledger) -> Path:
    tree = RUN_ROOT / sandbox_id
    ledger.hold(TREE, str(tree))
    remove_tree(str(tree))  # left behind by a reboot, after which no ledger has it
    # For root only: the image may contain setuid programs.
    RUN_ROOT.mkdir(mode=0o700, parents=True, exist_ok=True)
    tree.mkdir(mode=0o700)
    unpack(image, tree / "rootfs")
    return tree / "rootfs"


def _user(request: RunRequest, image: ImageConfig) -> str:
    return image.user if request.user is None else request.user


def make_spec(request: RunRequest, image: ImageConfig, sandbox_id: str, rootfs: str, user: User) -> Spec:
    """Make the container's spec; the request overrides the image's configuration (image-spec, config.md).

    Args:
        request: what the user asked for.
        image: the image's configuration.
        sandbox_id: becomes the host name, as far as it fits.
        rootfs: path of the root file system on the host.
        user: who runs the command.

    Raises:
        InvalidArgument: neither the request nor the image names a command.
    """
    args = (*image.entrypoint, *(request.command or image.cmd))
    if not args:
        raise InvalidArgument(f"image {request.image} has no command", hint=f"kata run {request.image} -- COMMAND")
    env = dict([DEFAULT_PATH.split("=", 1)], **({"TERM": "xterm"} if request.tty else {}))
    env.update(_variables(image))
    env.update(request.env)
    return default_spec(
        args,
        rootfs=rootfs,
        hostname=sandbox_id[:MAX_HOSTNAME],
        env=[f"{name}={value}" for name, value in env.items()],
        cwd=request.workdir or image.working_dir or "/",
        user={"uid": user.uid, "gid": user.gid, "additionalGids": list(user.additional_gids)},
        terminal=request.tty,
        # Sorted, so that a volume beneath another one is mounted after it.
        mounts=[volume.mount() for volume in sorted(request.volumes, key=lambda volume: volume.destination)],
        resources=request.resources(),
    )


def _variables(image: ImageConfig) -> Mapping[str, str]:
    pairs = (text.partition("=") for text in image.env)
    return {name: value for name, _, value in pairs if name}


def _print_plan(sandbox_id: str, spec: Spec, layers: Layers | None, *, debug: bool) -> None:
    """Warn about skipped mounts; with `debug`, print spec and mounts. The VM's plan is in the log."""
    rootfs = spec["root"]["path"]
    names = map("@{}".format, itertools.count())
    host = look_at_paths(spec, rootfs_dir=rootfs)
    disks = plan_disks(sandbox_id, spec, (), host, token=random_token, layers=layers)
    files = plan_container(
        sandbox_id,
        spec["mounts"],
        host,
        rootfs=(),
        rootfs_dir=rootfs,
        name=names.__next__,
        disk_root=disks.root,
        on_disk=disks.mounted,
    )
    for reason in files.skipped:
        warn(reason)
    if debug:
        detail(f"spec: {json.dumps(spec, indent=2)}")
        if layers:
            for disk in layers.lower:
                detail(f"rootfs: {disk}, read-only")
            detail(f"rootfs: written to {'a disk' if layers.upper else 'memory'}")
        else:
            detail(f"rootfs: {rootfs} on {files.guest_rootfs} in the guest")
        for use in files.uses[0 if layers else 1 :]:
            access = "writable" if use.write else "read-only"
            detail(f"volume: {use.export.source}, shared as {use.path}, {access}")


class _StderrHandler(logging.Handler):
    """Print log records on stderr like all other messages."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            warn(record.getMessage())
        else:
            detail(f"{record.name}: {record.getMessage()}")


def _setup_logging(debug: bool) -> None:
    handler = _StderrHandler()
    handler.setLevel(logging.DEBUG if debug else logging.WARNING)
    handler.addFilter(lambda record: not record.name.startswith("qemu.qmp"))  # a transcript is for logs
    root = logging.getLogger()
    # A log in a file that was asked for stays, and has all levels.
    others = [other for other in root.handlers if not isinstance(other, _StderrHandler)]
    root.setLevel(logging.DEBUG if others or debug else logging.INFO)  # what the state directory keeps
    root.handlers[:] = [*others, handler]
    logging.getLogger("asyncio").setLevel(logging.WARNING)
