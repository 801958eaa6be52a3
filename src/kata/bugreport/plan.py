"""What a report has, and where it is from: a list that is printed before anything is done.

Each part is the output of a program, of `tail` for a file: a program can be given a deadline, and be killed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kata.architecture import ALL

#: Bytes that are kept of one part; of a file, and of a log, the last ones.
_MAX_PART = 1 << 20
_MAX_LOG = 8 << 20
_TIMEOUT_S = 10.0
#: `kata check` boots the guest's kernel, to see whether KVM works.
_CHECK_TIMEOUT_S = 120.0
_LOG_LINES = 20_000

_PACKAGES = (
    "containerd", "crun", "docker.io", "podman", "python3", "runc", "util-linux", "virtiofsd",
    *(one.qemu_package for one in ALL),
)  # fmt: skip
#: As the kernel cuts names: the shim, and what it runs.
_COMMANDS = (
    *("containerd", "containerd-shim", "dockerd", "kata", "virtfs-proxy-he", "virtiofsd"),
    *(one.qemu.name[:15] for one in ALL),
)
_PS_COLUMNS = "pid,ppid,stat,nlwp,rss,etime,wchan:24,comm"


@dataclass(frozen=True)
class Part:
    """One file of a report.

    Attributes:
        name: path in the archive.
        what: a few words for the list.
        argv: the program that prints it.
        timeout_s: after which it is killed.
        limit: bytes that are kept.
        toml: it is TOML, which is read and written again without its secrets; comments are lost.
    """

    name: str
    what: str
    argv: tuple[str, ...]
    timeout_s: float = _TIMEOUT_S
    limit: int = _MAX_PART
    toml: bool = False


@dataclass(frozen=True)
class Host:
    """What there is to report on.

    Attributes:
        kata: how this program is run.
        configuration: paths of the configuration's files.
        config_option: `--config FILE` for its commands, or nothing.
        containerd_configuration: paths of containerd's that exist.
        state_root: where state directories are.
        sandboxes: names of files in them, by the name of a state directory.
    """

    kata: tuple[str, ...]
    configuration: Sequence[Path]
    config_option: tuple[str, ...]
    containerd_configuration: Sequence[Path]
    state_root: Path
    sandboxes: Mapping[str, Sequence[str]]


def is_reported(name: str) -> bool:
    """Whether a file of a state directory goes into a report: what this project writes there, and no spec."""
    return name in ("ledger", "timings.json", "resources.json") or name.endswith((".log", ".log.1"))


def plan(host: Host) -> Iterator[Part]:
    """Yield the parts, the most important ones first: time may run out."""
    kata = host.kata
    yield Part("env.json", "versions, paths and settings", (*kata, "env", "--json", *host.config_option), 30.0)
    yield Part(
        "check.json",
        "what works on this host",
        (*kata, "check", "--json", "--no-network-checks", *host.config_option),
        _CHECK_TIMEOUT_S,
    )
    for path in host.configuration:
        yield _file(f"configuration{path}", "configuration", path, toml=True)
    for sandbox, names in host.sandboxes.items():
        for name in names:
            yield _file(f"sandboxes/{sandbox}/{name}", "sandbox's state", host.state_root / sandbox / name)
    yield Part("timings.txt", "where running sandboxes' start times went", (*kata, "metrics"))
    yield Part(
        "processes.txt", "processes of sandboxes and engines", ("ps", "-o", _PS_COLUMNS, "-C", ",".join(_COMMANDS))
    )
    yield Part(
        "containerd/log.txt",
        "log of containerd and the shims",
        ("journalctl", "-q", "--no-pager", "-u", "containerd", "-n", str(_LOG_LINES)),
        30.0,
        _MAX_LOG,
    )
    for path in host.containerd_configuration:
        yield _file(f"containerd{path}", "containerd's configuration", path, toml=True)
    yield Part("containerd/dump.toml", "its defaults included", ("containerd", "config", "dump"), toml=True)
    yield Part("containerd/version.txt", "containerd's version", ("containerd", "--version"))
    yield Part("host/packages.txt", "versions of packages", ("dpkg-query", "-W", *_PACKAGES, "linux-image-*"))
    yield Part("host/kernel.txt", "kernel", ("uname", "-a"))
    yield Part("host/kernel-log.txt", "the kernel's log", ("dmesg",), limit=_MAX_LOG)
    yield _file("host/os-release.txt", "distribution", Path("/etc/os-release"))
    yield _file("host/memory.txt", "memory", Path("/proc/meminfo"))
    yield Part("host/disks.txt", "free space", ("df", "-h", "--local"))


def _file(name: str, what: str, path: Path, *, toml: bool = False) -> Part:
    # TOML is of no use without its beginning; what is too long is not read at all then.
    return Part(name, what, ("tail", "-c", str(_MAX_PART), "--", str(path)), toml=toml)
