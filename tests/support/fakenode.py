"""A node in a directory: real files, the real `kata setup`, and no process of it. What runs there runs here instead."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from kata.cli import engine_setup
from kata.deploy.node import Node
from kata.engines import host as engines
from kata.errors import Internal, KataError

CONFIG = b"version = 2\n# edited by hand\n"
LISTING = "lib/pykata/SHA256SUMS"


def make_source(directory: Path, version: str = "1") -> Path:
    """A tree such as the archive's, with a guest image."""
    files = {"kata/version.py": f"VERSION = {version!r}\n", "kata/other.py": "pass\n"}
    library = directory / "lib/pykata"
    for name, text in files.items():
        (library / name).parent.mkdir(parents=True, exist_ok=True)
        (library / name).write_text(text)
    sums = (f"{hashlib.sha256(text.encode()).hexdigest()}  {name}\n" for name, text in files.items())
    (directory / LISTING).write_text("".join(sums))
    image = library / "images" / version
    image.mkdir(parents=True)
    content = {name: name.encode() * 1000 for name in ("vmlinux", "initrd", "root.erofs")}
    for name, data in content.items():
        (image / name).write_bytes(data)
    described = {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in content.items()
    }
    (image / "manifest.json").write_text(
        json.dumps({"format": 0, "kernel_release": "6", "date": "2026", "files": described})
    )
    (library / "images/current").symlink_to(version)
    (directory / "bin").mkdir()
    (directory / "bin/kata").write_text("#!/usr/bin/python3 -IS\n")
    (directory / "bin/kata").chmod(0o755)
    return directory


@dataclass(frozen=True)
class MadeNode(Node):
    """A node whose commands are carried out here.

    Attributes:
        commands: what was run there.
        python: what its Python says of its version.
    """

    commands: list[tuple[str, ...]] = field(default_factory=list)
    python: str = "3 11"

    def run(self, *argv: str, timeout: float = 1.0) -> str:
        """Run a command as the node would."""
        self.commands.append(argv)
        if argv[0].endswith("python3"):
            if not self.path(argv[0]).exists():
                raise Internal(f"unshare failed with status 127: unshare: failed to execute {argv[0]}")
            return f"{self.python}\n"
        if argv[0] == "systemctl":
            self.start_engine(self.pid + 1)
            return ""
        assert argv[0].endswith("/bin/kata")
        return self._kata(self.path(argv[0]).parents[1], *argv[1:])

    def _kata(self, prefix: Path, command: str, engine: str, *options: str) -> str:
        assert (prefix / "bin/kata").exists(), "no such program on the node"
        host = engines.Host(
            path=str(self.root / "usr/bin"),
            containerd_config=self.path("/etc/containerd/config.toml"),
            bin=self.root / "usr/local/bin",
            records=self.root / "var/lib/kata/setup",
        )
        launcher = f"#!/usr/bin/python3 -IS\n# {prefix.name}\nfrom kata.shim.main import main\n".encode()
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            try:
                if command == "setup":
                    plans = engines.make([engines.Engine(engine)], host, launcher)
                    done = "is set up already"
                else:
                    plans = [plan for plan in engines.removal([engines.Engine(engine)], host) if plan.record.changes]
                    done = "is not set up"
                    if not plans:
                        return "nothing was set up\n"
                engine_setup._change(plans, host, yes="--yes" in options, dry_run="--dry-run" in options, done=done)
            except KataError as error:
                hint = f" | hint: {error.hint}" if error.hint else ""
                raise Internal(f"/opt/kata {command} failed with status 1: kata: {error.message}{hint}") from None
        return said.getvalue()

    @property
    def pid(self) -> int:
        """Of containerd."""
        return int(self.engine().partition("@")[0] or 0)

    def start_engine(self, pid: int) -> None:
        """Have another containerd run."""
        proc = self.root / "proc"
        for directory in proc.glob("[0-9]*"):
            # Not by pathlib: a test kills the installer there, and this is the node's own doing.
            os.unlink(directory / "stat")
            directory.rmdir()
        (proc / str(pid)).mkdir(parents=True)
        (proc / str(pid) / "stat").write_text(f"{pid} (containerd) S " + " ".join(["0"] * 18) + f" {pid}00 0\n")


def make_node(root: Path) -> MadeNode:
    """A node with containerd, Python and QEMU."""
    for name in ("etc/containerd", "usr/bin", "usr/local/bin", "var/lib", "opt", "run"):
        (root / name).mkdir(parents=True)
    (root / "etc/containerd/config.toml").write_bytes(CONFIG)
    for program in ("python3", "qemu-system-x86_64", "containerd"):
        (root / "usr/bin" / program).write_text(
            "#!/bin/sh\necho containerd github.com/containerd/containerd 1.6.20 x\n"
        )
        (root / "usr/bin" / program).chmod(0o755)
    node = MadeNode(root)
    node.start_engine(100)
    return node
