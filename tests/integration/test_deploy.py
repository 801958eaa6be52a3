"""The installer in a real root: an overlay over this host's, which is as a node's, and shows each file that was made.

Real are chroot, the node's Python, containerd's version and `kata setup`; the API server is a fake one, and so is the
node's containerd process, whose restart nobody waits for.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kata
from kata.deploy.cluster import LABEL
from tests.support.fakecluster import NODE, FakeCluster, fake_cluster
from tests.support.fakenode import make_source

pytestmark = [pytest.mark.root, pytest.mark.containerd]

#: Puts a tmpfs over DIR, an overlay of this host's root on it, and runs the rest; all in a mount namespace of its own,
#: with /proc as of a node on which a containerd runs that has just been started.
_IN_OVERLAY = """
set -e
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
(cd "$1/root" && rm -rf var/lib/kata var/cache/kata usr/local/bin/containerd-shim-kata-v2 opt/kata)
mount -t tmpfs tmpfs "$1/root/proc"
mount --rbind /dev "$1/root/dev"
mount -t tmpfs tmpfs "$1/root/run"
mkdir "$1/root/proc/100"
echo "100 (containerd) S 1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 7 0" > "$1/root/proc/100/stat"
printf 'version = 2\\n# by hand\\n' > "$1/root/etc/containerd/config.toml"
files() { find "$1/upper" ! -path '*/__pycache__*' ! -type d -printf '%P %y %m %s\\n' | sort; }
directory=$1
shift
files "$directory" > "$directory/before"
for step; do eval "$step" || { echo "status $?"; exit 1; }; done
files "$directory" | diff "$directory/before" - && echo "nothing is left"
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree whose `kata` is the real one."""
    tree = make_source(tmp_path_factory.mktemp("deploy") / "source")
    library = tree / "lib/pykata"
    for name in ("version.py", "other.py"):
        (library / "kata" / name).unlink()
    (library / "kata").rmdir()
    (library / "SHA256SUMS").write_text("")
    paths = [str(Path(kata.__file__).parents[1]), *(path for path in sys.path if path.endswith("-packages"))]
    (tree / "bin/kata").write_text(
        f"#!{os.path.realpath(sys.executable)} -IS\nimport sys\nsys.path[:0] = {paths!r}\n"
        "from kata.cli.main import main\nmain()\n"
    )
    return tree


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeCluster]:
    with fake_cluster(tmp_path_factory.mktemp("account")) as fake:
        yield fake


def test_all_of_it_and_nothing_is_left(source: Path, cluster: FakeCluster, tmp_path: Path) -> None:
    directory = tmp_path / "d"
    directory.mkdir()
    program = (
        "import sys; from pathlib import Path; from kata.deploy import main, cluster\n"
        f"main._source = lambda: Path({str(source)!r})\n"
        f"cluster.Cluster.of_this_pod = lambda: cluster.Cluster({cluster.url!r}, Path({str(cluster.account)!r}), 0)\n"
        "sys.exit(main.invoke(sys.argv[1:]))\n"
    )
    (tmp_path / "program.py").write_text(program)
    deploy = f"{sys.executable} {tmp_path}/program.py"
    root = f"{directory}/root"
    restarted = f"echo '200 (containerd) S 1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 8 0' > {root}/proc/100/stat"
    steps = [
        # As if a person restarted it afterwards.
        f"(until grep -q runtimes.kata {root}/etc/containerd/config.toml; do sleep 0.1; done; {restarted}) &",
        f"{deploy} install --root {root} --node {NODE} --wait 60",
        f"grep -q runtimes.kata {root}/etc/containerd/config.toml",
        f"test -x {root}/usr/local/bin/containerd-shim-kata-v2 -a -f {root}/opt/kata/lib/pykata/images/1/vmlinux",
        f"cat {root}/var/lib/kata/deploy.json",
        f"{deploy} cleanup --root {root} --node {NODE}",
        f"test ! -e {root}/opt/kata -a ! -e {root}/opt/.kata.new -a ! -e {root}/var/lib/kata",
    ]
    command = ["unshare", "--mount", "sh", "-c", _IN_OVERLAY, "sh", str(directory), *steps]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[0]) == {"format": 1, "prefix": "/opt/kata", "stale": "100@7"}
    assert done.stdout.splitlines()[-1] == "nothing is left"
    assert LABEL not in cluster.labels
    patches = [request for request in cluster.requests if request[0] == "PATCH"]
    assert len(patches) == 2, "labelled, and not any more"
