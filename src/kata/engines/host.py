"""The engines of this host: which there are, and the plan for each from what is found.

A plan is made from the files as they are without what an earlier `kata setup` has put in, so it comes to the same
however often it is made, and to the new one after an upgrade.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from kata.command import run
from kata.engines import containerd, crio, docker, record
from kata.engines.change import Change, diff, new_file, parsed
from kata.errors import FailedPrecondition, InvalidArgument, KataError, NotFound, Unimplemented

SHIM = "containerd-shim-kata-v2"
#: Where services of systemd look for programs, containerd for its shims among them.
SERVICE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: What every launcher of ours has in it, whichever installation it belongs to.
_OURS = b"kata.shim.main"
_VERSION_TIMEOUT_S = 20.0
_MAX_LAUNCHER = 64 << 10


class Engine(StrEnum):
    """A container engine."""

    CONTAINERD = "containerd"
    DOCKER = "docker"
    CRIO = "crio"
    PODMAN = "podman"


#: What the launcher's own record is called.
LAUNCHER = "launcher"
#: The daemon of each, whose being there counts as the engine's.
PROGRAMS = {
    Engine.CONTAINERD: "containerd",
    Engine.DOCKER: "dockerd",
    Engine.CRIO: "crio",
    Engine.PODMAN: "podman",
}
#: What has each read its configuration again.
RELOAD = {
    Engine.CONTAINERD: "systemctl restart containerd",
    Engine.DOCKER: "systemctl reload docker",
    Engine.CRIO: "systemctl restart crio",
}


@dataclass(frozen=True)
class Host:
    """Where things are on a host.

    Attributes:
        path: directories of programs, as in PATH.
        containerd_config, docker_config, crio_config: their configurations.
        crio_drop_ins: the directory of CRI-O's drop-ins.
        bin: where a launcher of the shim is put, unless there is one.
        records: directory of the records.
    """

    path: str = SERVICE_PATH
    containerd_config: Path = containerd.CONFIG
    docker_config: Path = docker.CONFIG
    crio_config: Path = crio.CONFIG
    crio_drop_ins: Path = crio.DROP_INS
    bin: Path = Path("/usr/local/bin")
    records: Path = record.ROOT

    def has(self, engine: Engine) -> bool:
        """Whether an engine is installed."""
        return shutil.which(PROGRAMS[engine], path=self.path) is not None

    def is_set_up(self, engine: Engine) -> bool:
        """Whether there is a record of it. Raises as `record.load`."""
        return bool(record.load(engine, self.records).changes)


@dataclass(frozen=True)
class Plan:
    """What to change for an engine, or for the shim's launcher, which serves all of them.

    Attributes:
        name: of the engine, or LAUNCHER.
        changes: all of it, from files without any of ours.
        record: what an earlier set-up has changed.
        now: the content of all files that the two are about.
        notes: what a person should know besides, one line each.
    """

    name: str
    changes: tuple[Change, ...]
    record: record.Record
    now: Mapping[Path, bytes | None]
    notes: tuple[str, ...] = ()

    @property
    def wanted(self) -> dict[Path, bytes | None]:
        """What the files become."""
        return {**record.without(self.record), **{change.path: change.after for change in self.changes}}

    @property
    def is_done(self) -> bool:
        """Whether they are that already, and the record says so."""
        return self.record.changes == self.changes and all(
            self.now[path] == content for path, content in self.wanted.items()
        )

    @property
    def diff(self) -> str:
        """How the files change."""
        return "".join(diff(self.now[path], content, path) for path, content in self.wanted.items())


def make(engines: Sequence[Engine], host: Host, launcher: bytes) -> list[Plan]:
    """The plans for some engines, and the one for the launcher before them.

    Args:
        engines: to set up.
        host: where to look.
        launcher: of the shim; written where there is none.

    Raises:
        NotFound: an engine is not installed.
        Unimplemented: the runtime does not serve it.
        InvalidArgument, FailedPrecondition: its configuration is not understood, or cannot be added to.
    """
    for engine in engines:
        _check_is_there(engine, host)
    old = {name: record.load(name, host.records) for name in (LAUNCHER, *engines)}
    files = _Files({path: content for one in old.values() for path, content in record.without(one).items()})
    shim, changes = _shim(host, launcher, files)
    plans = [_plan(LAUNCHER, changes, old[LAUNCHER])]
    for engine in engines:
        changes, notes = _FINDERS[engine](host, files, shim)
        plans.append(_plan(engine, changes, old[engine], notes))
    return plans


def removal(engines: Sequence[Engine], host: Host) -> list[Plan]:
    """The plans for taking back what was set up; with the last engine goes the launcher.

    Raises:
        FailedPrecondition: a record cannot be read.
    """
    names: list[str] = [engine for engine in engines if host.is_set_up(engine)]
    if not any(host.is_set_up(other) for other in RELOAD if other not in names):
        names.append(LAUNCHER)
    return [_plan(name, [], record.load(name, host.records)) for name in names]


def carry_out(plans: Sequence[Plan], host: Host) -> None:
    """Do what is planned; if one plan fails, what the ones before it have made is taken back.

    Raises:
        KataError: as `record.undo` and `record.do`.
    """
    made: list[str] = []
    for plan in plans:
        if plan.is_done:
            continue
        try:
            if plan.record.changes:
                record.undo(plan.name, plan.record, host.records)
            if plan.changes:
                record.do(plan.name, plan.changes, host.records)
        except KataError:
            for name in reversed(made):
                with suppress(KataError, OSError):
                    record.undo(name, record.load(name, host.records), host.records)
            raise
        if plan.changes:
            made.append(plan.name)


def _check_is_there(engine: Engine, host: Host) -> None:
    if engine is Engine.PODMAN:
        raise Unimplemented(
            "podman cannot use this runtime yet: it starts runtimes by OCI's command line, which kata does not have",
            hint="use containerd or Docker; kata run needs neither",
        )
    if not host.has(engine):
        raise NotFound(
            f"{PROGRAMS[engine]} is not installed in {host.path}", hint="install it first; kata run needs no engine"
        )


def _plan(name: str, changes: Sequence[Change], old: record.Record, notes: Sequence[str] = ()) -> Plan:
    now = {change.path: record.read(change.path) for change in (*old.changes, *changes)}
    return Plan(name, tuple(changes), old, now, tuple(notes))


@dataclass
class _Files:
    """Files as they are without our changes."""

    without: dict[Path, bytes | None] = field(default_factory=dict)

    def read(self, path: Path) -> bytes | None:
        path = path.resolve()
        return self.without[path] if path in self.without else record.read(path)

    def matching(self, patterns: Iterable[Path]) -> dict[Path, bytes]:
        """The files of patterns, sorted by their names."""
        found = {}
        for pattern in patterns:
            for path in sorted(Path("/").glob(str(pattern.absolute()).lstrip("/"))):
                if path.is_file() and (content := self.read(path)) is not None:
                    found[path] = content
        return found


def _shim(host: Host, launcher: bytes, files: _Files) -> tuple[Path, list[Change]]:
    """Where engines find the shim, and what has to be made for that.

    Raises:
        FailedPrecondition: they would find another one.
    """
    ours = host.bin / SHIM
    for directory in map(Path, host.path.split(":")):
        path = directory / SHIM
        content = files.read(path)
        if content is None:
            continue
        if _OURS not in content[:_MAX_LAUNCHER]:
            raise FailedPrecondition(
                f"{path} is not of this project: another Kata is installed",
                hint="remove that one first, or take its shim from there; nothing was changed",
            )
        return path, []
    return ours, [new_file(ours.resolve(), launcher, 0o755)]


def _find_containerd(host: Host, files: _Files, _shim: Path) -> tuple[list[Change], list[str]]:
    version = containerd.parse_version(_version_of("containerd", host))
    path = host.containerd_config.resolve()
    config = files.read(path)
    imported: dict[Path, bytes] = {}
    if config is not None:
        imported = files.matching(containerd.patterns(parsed(path, config), path))
    found = containerd.Containerd(version, path, config, imported)
    notes = []
    if containerd.cri_is_disabled(found):
        notes.append(f"{path} disables the CRI plugin: Kubernetes cannot use this containerd; ctr and Docker can")
    return containerd.plan(found), notes


def _find_docker(host: Host, files: _Files, _shim: Path) -> tuple[list[Change], list[str]]:
    version = docker.parse_version(_version_of("dockerd", host))
    path = host.docker_config.resolve()
    return docker.plan(docker.Docker(version, path, files.read(path))), []


def _find_crio(host: Host, files: _Files, shim: Path) -> tuple[list[Change], list[str]]:
    found = crio.Crio(
        shim, host.crio_drop_ins.resolve(), files.matching([host.crio_config, host.crio_drop_ins / "*.conf"])
    )
    return crio.plan(found), ["this runtime has not been tested with CRI-O"]


_FINDERS: dict[Engine, Callable[[Host, _Files, Path], tuple[list[Change], list[str]]]] = {
    Engine.CONTAINERD: _find_containerd,
    Engine.DOCKER: _find_docker,
    Engine.CRIO: _find_crio,
}


def _version_of(program: str, host: Host) -> str:
    path = shutil.which(program, path=host.path)
    assert path, "who asks has looked"
    try:
        return run([path, "--version"], timeout=_VERSION_TIMEOUT_S)
    except (KataError, OSError) as error:
        raise InvalidArgument(f"cannot ask {path} for its version: {error}") from None
