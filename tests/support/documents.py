"""The documents' blocks of commands, and how a test runs them.

A block says behind its language in which setting it works, or what is missing here to run it:

    ```sh {setting=containerd}      run by a test
    ```sh {setting=sandbox long}    run by `make test-long`
    ```sh {setting=sandbox follows} each line goes on until it is interrupted
    ```sh {not-run=internet}        not run, for a reason of `NOT_RUN`
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from tests.support.terminal import TERM, on_a_terminal

ROOT = Path(__file__).parents[2]

#: Where a block works. The directory that it is run in is empty but for what is named; /srv is a directory of the test.
SETTINGS = {
    "host": "a host with kata",
    "run": "host, and a root file system in /srv/rootfs, an image in busybox.tar",
    "containerd": "run, and a containerd that has docker.io/library/busybox:latest; /srv/data is a directory",
    "sandbox": "containerd, and a running container `web`",
    "pod": "the running pod `web-7d4b9` of the namespace `default`, with a container `nginx`",
}
#: What is missing to run a block, and who runs the like.
NOT_RUN = {
    "collector": "a collector of OpenTelemetry; tests/integration/containerd has one of the test's",
    "docker": "Docker's daemon, on this containerd; tests/integration/test_docker.py brings its own",
    "guest-swap": "a configuration of its own; tests/integration/containerd/test_swap.py has one",
    "image-build": "guest images that no other test boots; tests/unit/osbuilder builds them elsewhere",
    "internet": "a registry, or another host of the Internet",
    "kernel-build": "half an hour of two CPUs",
    "kubernetes": "a cluster",
    "nested-make": "a host, or a clone, of its own: it would install and test what the test is a part of",
    "other-architecture": "QEMU for arm64 and a guest for it; tests/vm/test_other_architecture.py has them at night",
    "release": "the files of a release, and a host of its own; tools/try_release.py makes one",
    "shared-host": "a host without other tests, of whose sandboxes it would take what is left",
    "systemd": "systemd and its journal",
    "vfio": "a device behind an IOMMU; tests/nested has one",
}
#: For one block. The first sandbox of a kind makes a template, and a host that runs other tests may be busy.
TIMEOUT_S = 240.0
#: After which SIGINT ends a line that follows something.
FOLLOW_S = 3

_BLOCK = re.compile(r"^```(sh|console)\b([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_ATTRIBUTES = re.compile(r"\{(.*)\}")


@dataclass(frozen=True)
class Block:
    """A block of commands.

    Attributes:
        name: document and line, for people.
        attributes: what is behind its language; flags have the value "".
        text: the commands.
    """

    name: str
    attributes: Mapping[str, str]
    text: str

    @property
    def setting(self) -> str | None:
        """A key of `SETTINGS`; None for a block that is not run."""
        return self.attributes.get("setting")

    @property
    def script(self) -> str:
        """What a shell runs."""
        if "follows" not in self.attributes:
            return self.text
        lines = [line.partition(" #")[0].strip() for line in self.text.splitlines()]
        # 124: timeout(1) had to end it, which is what is expected.
        ended = f"timeout --foreground --signal=INT {FOLLOW_S} "
        return "".join(f"{ended}{line} || [ $? = 124 ]\n" for line in lines)


def documents() -> list[Path]:
    """All documents of the repository."""
    return sorted(chain(ROOT.glob("*.md"), ROOT.glob("docs/**/*.md")))


def blocks(text: str, name: str) -> list[Block]:
    """The blocks of commands in a document."""
    found = []
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        given = _ATTRIBUTES.fullmatch(match[2].strip())
        pairs = (word.partition("=") for word in (given[1].split() if given else []))
        found.append(Block(f"{name}:{line}", {key: value for key, _, value in pairs}, match[3]))
    return found


def all_blocks() -> list[Block]:
    """The blocks of all documents, in their order."""
    return [block for path in documents() for block in blocks(path.read_text("utf-8"), str(path.relative_to(ROOT)))]


def run(block: Block, directory: Path, *, names: Mapping[str, str] | None = None, conf_file: Path) -> str:
    """Run a block as one script on a terminal, as somebody would who pastes it; returns what it has said.

    Whatever asks for a line (a shell) is told to exit.

    Args:
        block: with a setting.
        directory: where it is run. Its `bin` is first in PATH, and its `srv` is /srv.
        names: further words of the text, with what stands for them here.
        conf_file: configuration of kata.

    Raises:
        AssertionError: a command has failed.
        TimeoutError: it did not end in time.
    """
    script = block.script
    for word, here in {"/srv/": f"{directory}/srv/", **(names or {})}.items():
        script = script.replace(word, here)
    path = f"{directory}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "KATA_CONF_FILE": str(conf_file), "TERM": TERM, "HOME": str(directory)}
    argv = ["env", f"--chdir={directory}", "bash", "-euxo", "pipefail", "-c", script]
    # A shell's prompt, which ends in "# ".
    status, said = on_a_terminal(argv, *[(b"# ", b"exit\n")] * 8, environment=environment, timeout=TIMEOUT_S)
    text = said.decode("utf-8", "replace")
    assert status == 0, f"{block.name}: status {status}\n{text}"
    return text
