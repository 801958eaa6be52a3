"""The installer in a real root: an overlay over this host's, which is as a node's, and shows each file that was made.

Real are chroot, the node's Python, containerd's version and `kata setup`; the API server is a fake one, and so is the
node's containerd process, whose restart nobody waits for.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kata
from kata.deploy.cluster import ACCOUNT, LABEL
from kata.osbuilder import store
from kata.osbuilder.build import DEFAULT_CACHE
from kata.osbuilder.packages import PackageCache
from kata.runtime.images.archive import open_archive
from kata.version import VERSION
from tests.support.fakecluster import NODE, FakeCluster, fake_cluster
from tests.support.fakenode import make_source
from tests.support.fakesandboxes import FakeSandbox, metrics_text
from tests.support.waiting import eventually_async
from tools.release import __main__ as release
from tools.release import image
from tools.release import tree as trees

pytestmark = [pytest.mark.root, pytest.mark.containerd]

#: As the chart's.
PROBE = """/usr/bin/python3 -ISc "import os; os.stat('/run/kata-deploy/ready')\""""
INSTALLERS = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_SYS_CHROOT"]
ROUNDS = int(os.environ.get("KATA_FAULT_ROUNDS", "20"))
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
files "$directory" | diff "$directory/before" - && echo "nothing is left" || true
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


def in_overlay(directory: Path, *steps: str, timeout: float = 200) -> subprocess.CompletedProcess[str]:
    """Run steps of a shell with a node's root in directory/root; then say what is left of them."""
    command = ["unshare", "--mount", "sh", "-c", _IN_OVERLAY, "sh", str(directory), *steps]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


def test_all_of_it_and_nothing_is_left(source: Path, cluster: FakeCluster, tmp_path: Path) -> None:
    directory = tmp_path / "d"
    directory.mkdir()
    deploy = write_program(tmp_path, source, cluster)
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
    done = in_overlay(directory, *steps)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[0]) == {"format": 1, "prefix": "/opt/kata", "stale": "100@7"}
    assert done.stdout.splitlines()[-1] == "nothing is left"
    assert LABEL not in cluster.labels
    patches = [request for request in cluster.requests if request[0] == "PATCH"]
    assert len(patches) == 2, "labelled, and not any more"


def write_program(directory: Path, source: Path, cluster: FakeCluster) -> str:
    """The installer with a tree and an API server of the test's; returns its command line."""
    (directory / "program.py").write_text(
        "import sys; from pathlib import Path; from kata.deploy import main, cluster\n"
        f"main._source = lambda: Path({str(source)!r})\n"
        f"cluster.Cluster.of_this_pod = lambda: cluster.Cluster({cluster.url!r}, Path({str(cluster.account)!r}), 0)\n"
        "sys.exit(main.invoke(sys.argv[1:]))\n"
    )
    return f"{sys.executable} {directory}/program.py"


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_killed_at_any_moment(source: Path, cluster: FakeCluster, tmp_path: Path) -> None:
    """SIGKILL, later and later, until it is through; whatever was done then is taken back, or finished first."""
    directory = tmp_path / "d"
    directory.mkdir()
    deploy = write_program(tmp_path, source, cluster)
    root = f"{directory}/root"
    # A containerd that is always another one: nothing waits for its restart.
    (tmp_path / "restart.sh").write_text(
        "n=200; while sleep 0.1; do n=$((n + 1)); "
        f'echo "$n (containerd) S{" 0" * 18} $n 0" > {root}/proc/100/stat; done\n'
    )
    install = f"{deploy} install --root {root} --node {NODE} --wait 60"
    clean_up = f"{deploy} cleanup --root {root} --node {NODE}"
    there = " -o ".join(f"-e {root}/{name}" for name in ("opt/kata", "opt/.kata.new", "var/lib/kata/deploy.json"))
    rounds = [
        step
        for number in range(ROUNDS)
        for step in (
            f"timeout --signal KILL {0.4 + number * 0.3:.1f} {install} || true",
            *([install] if number % 2 else []),
            f"timeout --signal KILL {0.4 + number * 0.2:.1f} {clean_up} || true",
            clean_up,
            f"! test {there}",
        )
    ]
    done = in_overlay(directory, f"sh {tmp_path}/restart.sh & restarting=$!", *rounds, "kill $restarting", timeout=3500)
    assert done.returncode == 0, done.stdout + done.stderr
    # Hidden files are what a killed write has left.
    left = [line for line in done.stdout.splitlines() if line.startswith(">") and "/." not in line]
    assert left == []
    assert LABEL not in cluster.labels


@pytest.mark.long
def test_the_image_on_a_node(rootfs: Path, cluster: FakeCluster, tmp_path: Path) -> None:
    """The release's own image, with the rights that the chart gives it, under runc: it installs, and takes it back."""
    directory = tmp_path / "d"
    directory.mkdir()
    root = directory / "root"
    host, _, port = cluster.url.removeprefix("https://").partition(":")
    environment = [f"KUBERNETES_SERVICE_HOST={host}", f"KUBERNETES_SERVICE_PORT={port}"]
    mounts: list[dict[str, object]] = [
        {"destination": "/host", "type": "bind", "source": str(root), "options": ["rbind", "rprivate"]},
        {"destination": str(ACCOUNT), "type": "bind", "source": str(cluster.account), "options": ["rbind", "ro"]},
        {"destination": "/run/kata-deploy", "type": "tmpfs", "source": "tmpfs"},
    ]
    bundles = {}
    once = ["install", "--node", NODE, "--wait", "60"]
    stays = [*once, "--stay", "--revert", "kata-system/kata-deploy"]
    for name, arguments in {"once": once, "stays": stays}.items():
        command = ["/usr/bin/kata-deploy", *arguments]
        bundles[name] = write_bundle(tmp_path / name, rootfs, command, environment, INSTALLERS, mounts)
    # Nobody asks before it is ended.
    cluster.daemonset = "going"
    restarted = f"echo '200 (containerd) S 1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 8 0' > {root}/proc/100/stat"
    runc = f"runc --root {tmp_path}/runc run --bundle"
    steps = [
        f"(until grep -q runtimes.kata {root}/etc/containerd/config.toml; do sleep 0.1; done; {restarted}) &",
        f"{runc} {bundles['once']} kata-deploy-test-once",
        f"unshare --root {root} /opt/kata/bin/kata --version",
        f"{runc} {bundles['stays']} kata-deploy-test-stays & container=$!",
        f"until runc --root {tmp_path}/runc exec kata-deploy-test-stays {PROBE} 2>/dev/null; do sleep 0.2; done",
        f"runc --root {tmp_path}/runc kill kata-deploy-test-stays TERM",
        "wait $container",
    ]
    done = in_overlay(directory, *steps)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == [f"kata {VERSION}", "nothing is left"]
    assert LABEL not in cluster.labels


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image, unpacked."""
    directory = tmp_path_factory.mktemp("image")
    unpack_image(build_image(directory), directory / "rootfs")
    return directory / "rootfs"


def build_image(directory: Path) -> Path:
    """The image as `make dist` makes it."""
    date = release.date_of_commit()
    _, wheel = release.build_python(directory, directory / "scratch", date)
    installed = release.installed([wheel, *release.fetch_wheels(directory / "wheels")])
    cache = PackageCache(DEFAULT_CACHE)
    root = image.root([cache.path(package) for package in image.packages(cache)])
    tree = trees.under(image.PREFIX, installed | trees.image(store.find()))
    image.write([root, tree], directory / "image.tar", date)
    return directory / "image.tar"


def unpack_image(archive: Path, root: Path) -> None:
    root.mkdir(parents=True)
    with open_archive(archive) as opened:
        for layer in opened.layers:
            with layer.open() as stored:
                command = ["tar", "--extract", "--gzip", f"--directory={root}"]
                subprocess.run(command, input=stored.read(), check=True, timeout=120)


def write_bundle(
    directory: Path,
    rootfs: Path,
    command: list[str],
    environment: list[str],
    capabilities: list[str],
    mounts: list[dict[str, object]],
) -> Path:
    """A bundle of runc with a pod's rights, in this network namespace: what it asks is in it."""
    directory.mkdir()
    subprocess.run(["runc", "spec", "--bundle", directory], check=True)
    spec = json.loads((directory / "config.json").read_text())
    spec["process"] |= {
        "terminal": False,
        "args": command,
        "env": ["PATH=/usr/sbin:/usr/bin", *environment],
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
        "noNewPrivileges": True,
    }
    spec["root"] = {"path": str(rootfs), "readonly": True}
    spec["mounts"] += mounts
    spec["linux"]["namespaces"] = [one for one in spec["linux"]["namespaces"] if one["type"] != "network"]
    (directory / "config.json").write_text(json.dumps(spec))
    return directory


@pytest.mark.long
async def test_the_images_monitor(rootfs: Path, tmp_path: Path) -> None:
    """kata-monitor of the image has no capability, and reads the node's sandboxes through a mount for reading only."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    state = tmp_path / "state"
    mounts: list[dict[str, object]] = [
        {"destination": "/run/kata", "type": "bind", "source": str(state), "options": ["rbind", "ro"]}
    ]
    command = ["/opt/kata/bin/kata-monitor", f"--listen-address=:{port}", "--host=kata-monitor.kata-system.svc"]
    bundle = write_bundle(tmp_path / "monitor", rootfs, command, [], [], mounts)
    async with FakeSandbox(state, "a-sandbox", metrics=metrics_text()):
        runc = ["runc", "--root", str(tmp_path / "runc")]
        name = f"kata-monitor-test-{os.getpid()}"
        monitor = await asyncio.create_subprocess_exec(*runc, "run", "--bundle", str(bundle), name)
        try:

            async def scrape() -> str:
                asked = ["curl", "--silent", "--max-time", "5", "--header", "Host: kata-monitor.kata-system.svc"]
                curl = await asyncio.create_subprocess_exec(
                    *asked, f"http://127.0.0.1:{port}/metrics", stdout=asyncio.subprocess.PIPE
                )
                return (await curl.communicate())[0].decode()

            await eventually_async(scrape, "a sandbox's metrics", lambda text: 'sandbox_id="a-sandbox"' in text)
        finally:
            kill = await asyncio.create_subprocess_exec(*runc, "kill", name, "KILL")
            await kill.wait()
            await asyncio.wait_for(monitor.wait(), 60)
