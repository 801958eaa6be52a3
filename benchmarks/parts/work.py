"""Real work: installing with apt and pip, cloning with git, unpacking with tar, SQLite's transactions, Python's start.

Each in a root file system over 9p, in layers on disks, in a volume over virtio-fs, and in runc. Nothing is fetched: the
image has what is worked on.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from benchmarks import work_image as image
from benchmarks.figures import alternate
from benchmarks.shell import shell_in
from benchmarks.stage import Stage

#: The slowest takes a minute over 9p.
_MAX_RUNS = 2
_TRANSACTIONS = 1000

_SOURCE = f"deb [trusted=yes] file:{image.PLACE}/mirror ./"
_APT = "-o Dir::Etc::SourceList=/tmp/work.list -o Dir::Etc::SourceParts=/dev/null -o APT::Sandbox::User=root"
_SQLITE = f"""
import sqlite3
with sqlite3.connect("database") as database:
    database.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, text TEXT)")
for number in range({_TRANSACTIONS}):
    with database:
        database.execute("INSERT INTO t (text) VALUES (?)", ("x" * 100,))
"""

#: By name. Each runs in a directory of its own, all that it says goes to a file.
_WORK: Mapping[str, str] = {
    f"apt-get install, {image.PACKAGES} packages of {image.FILES_OF_A_PACKAGE} files": (
        f"echo '{_SOURCE}' >/tmp/work.list && apt-get {_APT} -q update"
        f" && apt-get {_APT} -q -y install --reinstall $(seq -f work-%g 0 {image.PACKAGES - 1})"
    ),
    f"git clone, {image.FILES_OF_THE_REPOSITORY:,} files": (
        f"git clone -q --no-local {image.PLACE}/repository.git clone"
    ),
    f"pip install, {image.WHEELS} wheels of {image.MODULES_OF_A_WHEEL} modules": (
        "pip install --quiet --no-index --root-user-action ignore --disable-pip-version-check --target target"
        f" {image.PLACE}/wheels/*.whl"
    ),
    f"tar x, {image.FILES_OF_THE_ARCHIVE:,} files": f"tar -xf {image.PLACE}/files.tar",
    f"SQLite, {_TRANSACTIONS:,} transactions": f"python3 -c '{_SQLITE}'",
    f"start of Python with {image.MODULES_OF_THE_PROGRAM} modules": f"python3 {image.PLACE}/program/program.py",
}
#: The directory for the work, of those that do not do it in their root file system.
_PLACES = {"kata, virtio-fs volume": "/data"}


def measure(stage: Stage) -> None:
    stage.containerd.import_image(image.work_archive(stage.directory))
    stage = replace(stage, contenders=_ways(stage), image=image.NAME)
    with ExitStack() as stack:
        shells = {
            name: stack.enter_context(shell_in(stage, stack.enter_context(stage.running(name))))
            for name in stage.contenders
        }
        for name, shell in shells.items():
            # The program starts once, uncounted: Python keeps what it has compiled.
            shell.run(f"mkdir -p {_PLACES.get(name, '')}/work && cd {_PLACES.get(name, '')}/work && n=0")
            shell.run(f"python3 {image.PLACE}/program/program.py")
        for what, script in _WORK.items():
            alone = f"n=$((n+1)) && mkdir $n && cd $n && {{ {script}; }} >/tmp/said 2>&1 && cd .."
            actions = {name: partial(shell.seconds, alone) for name, shell in shells.items()}
            stage.record(what, "s", alternate(min(stage.runs, _MAX_RUNS), actions, warm_up=False))


def _ways(stage: Stage) -> dict[str, tuple[str, ...]]:
    """Return the contenders, and kata with other kinds of file systems."""
    if "kata" not in stage.contenders:
        return dict(stage.contenders)
    ours = stage.contenders["kata"]
    volume = stage.directory / "volume"
    volume.mkdir()
    # What is written to the host over 9p is not among them: dpkg cannot install anything there.
    layers = '[runtime]\nrootfs_layers = "disks"\nrootfs_upper = "disk"\n'

    return {
        "kata": ours,
        "kata, layers and a disk": stage.configured(ours, "work-layers", layers),
        "kata, virtio-fs volume": (*ours, "--mount", f"type=bind,src={volume},dst=/data,options=rbind:rw"),
        **{name: options for name, options in stage.contenders.items() if name != "kata"},
    }
