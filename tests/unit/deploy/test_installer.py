"""What the installer does on a node, and takes back, wherever it is killed.

The node is a directory, and the API server a fake one; the plans for containerd's configuration are the real ones. What
differs on a node is run in a real root by tests/integration/test_deploy.py.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from kata.deploy import cluster as clusters
from kata.deploy import installer, journal, main, tree
from kata.deploy.cluster import LABEL, Cluster
from kata.deploy.installer import Request
from kata.deploy.main import invoke
from kata.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    KataError,
    PermissionDenied,
    ResourceExhausted,
)
from kata.linux import atomic_file
from tests.support.fakecluster import NODE, FakeCluster
from tests.support.fakenode import CONFIG, LISTING, MadeNode, make_node, make_source


@pytest.fixture
def fake(served: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    monkeypatch.setattr(clusters, "_RETRY_EVERY_S", 0.01)
    served.daemonset, served.labels = "there", {}
    served.answers_to_come.clear()
    served.requests.clear()
    return served


@pytest.fixture
def cluster(fake: FakeCluster) -> Cluster:
    return Cluster(fake.url, fake.account, retry_for=0)


@pytest.fixture(autouse=True)
def _without_syncfs(monkeypatch: pytest.MonkeyPatch) -> None:
    """It writes back all that any test has written to this disk, once for each of a hundred installations."""
    monkeypatch.setattr(tree, "syncfs", lambda fd: None)


@pytest.fixture
def node(tmp_path: Path) -> MadeNode:
    return make_node(tmp_path / "node")


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    return Request(make_source(tmp_path / "source"), "/opt/kata", None, NODE, restart=True, within_s=5)


def listed(root: Path) -> dict[str, tuple[int, bytes | str | None]]:
    """All files of a node but those of its processes."""
    found: dict[str, tuple[int, bytes | str | None]] = {}
    for path in sorted(root.rglob("*")):
        if path.relative_to(root).parts[0] == "proc":
            continue
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(root))] = (path.lstat().st_mode, content)
    return found


def is_set_up(node: MadeNode) -> bool:
    return b"runtimes.kata" in (node.root / "etc/containerd/config.toml").read_bytes()


def restarts(node: MadeNode) -> int:
    return sum(command[0] == "systemctl" for command in node.commands)


def test_all_of_it_and_nothing_is_left(node: MadeNode, request_: Request, cluster: Cluster, fake: FakeCluster) -> None:
    before = listed(node.root)
    installer.install(node, request_, cluster)
    assert (node.root / "opt/kata/bin/kata").exists()
    assert tree.is_installed(request_.source, node.root / "opt/kata")
    assert is_set_up(node)
    assert restarts(node) == 1
    assert fake.labels == {LABEL: "true"}
    installer.clean_up(node, request_, cluster)
    assert fake.labels == {}
    assert restarts(node) == 2
    assert listed(node.root) == before


def test_twice_is_as_once(node: MadeNode, request_: Request, cluster: Cluster) -> None:
    installer.install(node, request_, cluster)
    once, inode = listed(node.root), (node.root / "opt/kata").stat().st_ino
    installer.install(node, request_, cluster)
    assert listed(node.root) == once
    assert (node.root / "opt/kata").stat().st_ino == inode, "not copied again"
    assert restarts(node) == 1
    installer.clean_up(node, request_, cluster)
    installer.clean_up(node, request_, cluster)


def test_an_upgrade_is_one_step(
    node: MadeNode, request_: Request, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = listed(node.root)
    installer.install(node, request_, cluster)
    newer = replace(request_, source=make_source(tmp_path / "newer", "2"))
    seen = []
    run = MadeNode.run

    def watched(self: MadeNode, *argv: str, timeout: float = 1.0) -> str:
        seen.append((self.root / "opt/kata/lib/pykata/kata/version.py").read_text())
        return run(self, *argv, timeout=timeout)

    monkeypatch.setattr(MadeNode, "run", watched)
    installer.install(node, newer, cluster)
    assert set(seen) == {"VERSION = '1'\n", "VERSION = '2'\n"}
    assert sorted(os.listdir(node.root / "opt/kata/lib/pykata/images")) == ["2", "current"]
    assert restarts(node) == 1, "containerd's configuration is the same"
    installer.clean_up(node, newer, cluster)
    assert listed(node.root) == before


def test_another_prefix(node: MadeNode, request_: Request, cluster: Cluster) -> None:
    before = listed(node.root)
    installer.install(node, request_, cluster)
    (node.root / "srv/of-another").mkdir(parents=True)
    once = listed(node.root)
    with pytest.raises(FailedPrecondition, match="kata-deploy has not made"):
        installer.install(node, replace(request_, prefix="/srv/of-another"), cluster)
    assert listed(node.root) == once
    installer.install(node, replace(request_, prefix="/srv/tools/kata"), cluster)
    assert not (node.root / "opt/kata").exists()
    assert (node.root / "srv/tools/kata/bin/kata").exists()
    assert is_set_up(node)
    installer.clean_up(node, request_, cluster)
    shutil.rmtree(node.root / "srv")
    assert listed(node.root) == before


def test_a_link_of_the_node_stays_on_the_node(
    node: MadeNode, request_: Request, cluster: Cluster, tmp_path: Path
) -> None:
    """An absolute link would lead into the container's own files."""
    (node.root / "opt").rmdir()
    (node.root / "opt").symlink_to(tmp_path / "of-the-container")
    (tmp_path / "of-the-container").mkdir()
    there = node.root / str(tmp_path / "of-the-container").lstrip("/")
    there.mkdir(parents=True)
    installer.install(node, request_, cluster)
    assert os.listdir(there) == ["kata"]
    assert os.listdir(tmp_path / "of-the-container") == []


class Killed(BaseException):
    pass


#: All that changes something, or asks somebody: before each of them, and right after it, it may be killed.
SEAMS: list[tuple[object, str]] = [
    (atomic_file.Replacement, "__enter__"),
    (atomic_file.Replacement, "__exit__"),
    (shutil, "copytree"),
    (shutil, "rmtree"),
    (tree, "put"),
    (Path, "rename"),
    (Path, "unlink"),
    (MadeNode, "run"),
    (Cluster, "label"),
]


@pytest.fixture
def killed_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], object]], bool]:
    """Runs something that is killed at the n-th moment; whether there is such a moment."""

    def run(moment: int, what: Callable[[], object]) -> bool:
        count = 0

        def passed() -> None:
            nonlocal count
            count += 1
            if count == moment:
                raise Killed

        with monkeypatch.context() as patched:
            for owner, name in SEAMS:
                real = getattr(owner, name)

                def wrapped(*args: object, real: Callable[..., object] = real, **kwargs: object) -> object:
                    try:
                        passed()
                        result = real(*args, **kwargs)
                        passed()
                    except Killed:
                        # The kernel would close it.
                        if file := getattr(args[0], "_file", None) if args else None:
                            file.close()
                        raise
                    return result

                patched.setattr(owner, name, wrapped)
            try:
                what()
            except Killed:
                return True
        return False

    return run


def check_as_before(node: MadeNode, before: Mapping[str, object], moment: int) -> None:
    """Check that a node has nothing that it had not; what a killed write has left is hidden, and nobody reads it."""
    after = listed(node.root)
    left = {name for name in after if name not in before and not Path(name).name.startswith(".")}
    assert left - {"var/lib/kata"} == set(), moment
    assert {name: after[name] for name in before} == before, moment


@pytest.mark.parametrize("then", ["install", "clean_up"])
def test_killed_anywhere_while_it_installs(
    tmp_path: Path,
    cluster: Cluster,
    fake: FakeCluster,
    killed_at: Callable[[int, Callable[[], object]], bool],
    then: str,
) -> None:
    request_ = Request(make_source(tmp_path / "source"), "/opt/kata", None, NODE, restart=True, within_s=5)
    moment = 0
    while True:
        moment += 1
        node = make_node(tmp_path / f"node-{moment}")
        fake.labels = {}
        before = listed(node.root)
        if not killed_at(moment, lambda node=node: installer.install(node, request_, cluster)):  # type: ignore[misc]
            break
        if then == "install":
            installer.install(node, request_, cluster)
            assert is_set_up(node), moment
            assert fake.labels == {LABEL: "true"}, moment
            assert restarts(node) >= 1, moment
            assert tree.is_installed(request_.source, node.root / "opt/kata"), moment
            assert os.listdir(node.root / "opt") == ["kata"], moment
        installer.clean_up(node, request_, cluster)
        assert fake.labels == {}, moment
        check_as_before(node, before, moment)
    assert moment > 30, "there are as many moments"


def test_killed_anywhere_while_it_cleans_up(
    tmp_path: Path, cluster: Cluster, fake: FakeCluster, killed_at: Callable[[int, Callable[[], object]], bool]
) -> None:
    request_ = Request(make_source(tmp_path / "source"), "/opt/kata", None, NODE, restart=True, within_s=5)
    moment = 0
    while True:
        moment += 1
        node = make_node(tmp_path / f"node-{moment}")
        before = listed(node.root)
        installer.install(node, request_, cluster)
        (node.root / "var/lib/kata/templates/a").mkdir(parents=True)
        if not killed_at(moment, lambda node=node: installer.clean_up(node, request_, cluster)):  # type: ignore[misc]
            break
        installer.clean_up(node, request_, cluster)
        assert fake.labels == {}, moment
        check_as_before(node, before, moment)
    assert moment > 20


def test_of_several_containerds_any_may_be_the_one(node: MadeNode) -> None:
    """One in a container, for instance: what counts is that another one runs than before."""
    alone = node.engine()
    (node.root / "proc/70").mkdir()
    (node.root / "proc/70/stat").write_text("70 (containerd) S " + " ".join(["0"] * 18) + " 5 0\n")
    (node.root / "proc/71").mkdir()
    (node.root / "proc/71/stat").write_text("71 (a) (containerd-shim) S " + " ".join(["0"] * 18) + " 5 0\n")
    assert node.engine() == f"{alone} 70@5"


class TestBadInput:
    def test_another_kata(self, node: MadeNode, request_: Request, cluster: Cluster, fake: FakeCluster) -> None:
        (node.root / "opt/kata/bin").mkdir(parents=True)
        (node.root / "opt/kata/bin/containerd-shim-kata-v2").write_bytes(b"\x7fELF")
        before = listed(node.root)
        with pytest.raises(FailedPrecondition, match="kata-deploy has not made: another Kata"):
            installer.install(node, request_, cluster)
        assert listed(node.root) == before
        assert fake.requests == []

    def test_another_katas_shim(self, node: MadeNode, request_: Request, cluster: Cluster) -> None:
        (node.root / "usr/bin/containerd-shim-kata-v2").write_bytes(b"\x7fELF")
        before = listed(node.root)
        with pytest.raises(FailedPrecondition, match="another Kata is installed") as caught:
            installer.install(node, request_, cluster)
        assert caught.value.hint == "remove that one first, or take its shim from there; nothing was changed"
        assert listed(node.root) == before

    @pytest.mark.parametrize(
        ("config", "words"),
        [
            (b"version = [", "cannot understand .*config.toml"),
            (b'version = 2\n[plugins]\n"io.containerd.grpc.v1.cri" = {}\n', "nothing can be added"),
            (
                b'version = 2\n[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kata]\nruntime_type = "x"\n',
                "already",
            ),
        ],
    )
    def test_a_configuration_that_cannot_be_added_to(
        self, node: MadeNode, request_: Request, cluster: Cluster, config: bytes, words: str
    ) -> None:
        (node.root / "etc/containerd/config.toml").write_bytes(config)
        before = listed(node.root)
        with pytest.raises(FailedPrecondition, match=words) as caught:
            installer.install(node, request_, cluster)
        assert caught.value.hint
        assert listed(node.root) == before
        assert restarts(node) == 0

    def test_an_upgrade_that_is_refused_leaves_the_old_one(
        self, node: MadeNode, request_: Request, cluster: Cluster, tmp_path: Path
    ) -> None:
        installer.install(node, request_, cluster)
        config = node.root / "etc/containerd/config.toml"
        config.write_bytes(config.read_bytes().replace(b"runtime_type", b"runtime_tipe"))
        before = listed(node.root)
        with pytest.raises(FailedPrecondition, match="was edited since"):
            installer.install(node, replace(request_, source=make_source(tmp_path / "newer", "2")), cluster)
        assert listed(node.root) == before

    def test_no_engine(self, node: MadeNode, request_: Request, cluster: Cluster) -> None:
        (node.root / "usr/bin/containerd").unlink()
        before = listed(node.root)
        with pytest.raises(FailedPrecondition, match="containerd is not installed"):
            installer.install(node, request_, cluster)
        assert listed(node.root) == before

    def test_a_node_that_cannot_run_it(self, node: MadeNode, request_: Request, cluster: Cluster) -> None:
        before = listed(node.root)
        with pytest.raises(FailedPrecondition, match=r"the node has Python 3\.9"):
            installer.install(replace(node, python="3 9"), request_, cluster)
        with pytest.raises(FailedPrecondition, match="is not a node's root"):
            installer.install(replace(node, root=node.root / "opt"), request_, cluster)
        assert listed(node.root) == before
        for program, words in (("qemu-system-x86_64", "the node has no"), ("python3", "does not run")):
            (node.root / "usr/bin" / program).unlink()
            with pytest.raises(FailedPrecondition, match=words) as caught:
                installer.install(node, request_, cluster)
            assert "apt-get install" in str(caught.value.hint)

    def test_no_room(
        self, node: MadeNode, request_: Request, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = listed(node.root)
        monkeypatch.setattr(tree, "_ROOM", 1e12)
        with pytest.raises(ResourceExhausted, match=r"cannot write .*/opt/kata: \d+ MB are free, \d+ MB are needed"):
            installer.install(node, request_, cluster)
        assert listed(node.root) == before

    def test_read_only(
        self, node: MadeNode, request_: Request, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = listed(node.root)

        def refuse(*_: object, **__: object) -> None:
            raise OSError(30, "Read-only file system", "x")

        monkeypatch.setattr(shutil, "copytree", refuse)
        with pytest.raises(FailedPrecondition, match="read-only file system") as caught:
            installer.install(node, request_, cluster)
        assert "prefix" in str(caught.value.hint)
        assert listed(node.root) == before

    def test_half_an_installation_is_mended(self, node: MadeNode, request_: Request, cluster: Cluster) -> None:
        installer.install(node, request_, cluster)
        once = listed(node.root)
        (node.root / "opt/kata/lib/pykata/kata/other.py").unlink()
        installer.install(node, request_, cluster)
        (node.root / "opt/kata/lib/pykata/images/1/initrd").write_bytes(b"half")
        installer.install(node, request_, cluster)
        assert listed(node.root) == once

    def test_a_damaged_journal(self, node: MadeNode, request_: Request, cluster: Cluster) -> None:
        installer.install(node, request_, cluster)
        for text in ("{", "[]", '{"format": 2}', '{"format": 1, "prefix": 3}', '{"format": 1, "prefix": "opt"}'):
            (node.root / "var/lib/kata/deploy.json").write_text(text)
            with pytest.raises(FailedPrecondition, match="cannot read"):
                installer.clean_up(node, request_, cluster)

    def test_nobody_restarts_containerd(
        self, node: MadeNode, request_: Request, cluster: Cluster, fake: FakeCluster
    ) -> None:
        request_ = replace(request_, restart=False, within_s=0)
        with pytest.raises(DeadlineExceeded, match="containerd has not been restarted within") as caught:
            installer.install(node, request_, cluster, pause=lambda _: None)
        assert caught.value.hint == "on the node, run: systemctl restart containerd"
        assert fake.labels == {}, "no pod is sent to a node whose containerd does not know of the runtime"

        def somebody_does(_: float) -> None:
            node.start_engine(node.pid + 1)

        installer.install(node, replace(request_, within_s=5), cluster, pause=somebody_does)
        assert fake.labels == {LABEL: "true"}
        assert restarts(node) == 0

    def test_a_service_account_that_may_do_nothing(
        self, node: MadeNode, request_: Request, cluster: Cluster, fake: FakeCluster
    ) -> None:
        before = listed(node.root)
        fake.answers_to_come[:] = [403]
        with pytest.raises(PermissionDenied):
            installer.install(node, request_, cluster)
        installer.install(node, request_, cluster)
        fake.answers_to_come[:] = [403]
        with pytest.raises(FailedPrecondition, match="the label stays") as caught:
            installer.clean_up(node, request_, cluster)
        assert caught.value.hint == f"run: kubectl label node {NODE} {LABEL}-"
        assert listed(node.root) == before

    def test_sandboxes_that_run_go_on(self, node: MadeNode, request_: Request, cluster: Cluster) -> None:
        installer.install(node, request_, cluster)
        for name in ("run/kata/a-sandbox", "var/lib/kata/templates/a"):
            (node.root / name).mkdir(parents=True)
        (node.root / "run/kata/start-slot-0").touch()
        installer.clean_up(node, request_, cluster)
        assert os.listdir(node.root / "run/kata") == ["a-sandbox"]
        assert os.listdir(node.root / "var/lib/kata") == ["templates"]
        assert not (node.root / "opt/kata").exists()

    @pytest.mark.parametrize("prefix", ["opt/kata", "/", "/opt", "/opt/../etc/x", ""])
    def test_a_prefix_that_is_none(self, request_: Request, prefix: str) -> None:
        with pytest.raises(InvalidArgument):
            replace(request_, prefix=prefix)


class TestCommandLine:
    @pytest.fixture(autouse=True)
    def _on_the_made_node(
        self, node: MadeNode, request_: Request, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(main, "Node", lambda root, service: node)
        monkeypatch.setattr(main, "_source", lambda: request_.source)
        monkeypatch.setattr(Cluster, "of_this_pod", lambda: cluster)
        monkeypatch.setattr(main, "READY", tmp_path / "run/ready")
        monkeypatch.setattr(signal, "pthread_sigmask", lambda *_: None)

    def test_once(self, node: MadeNode, fake: FakeCluster) -> None:
        assert invoke(["install", "--restart", "--node", NODE]) == 0
        assert fake.labels == {LABEL: "true"}
        assert invoke(["cleanup", "--node", NODE]) == 0
        assert not is_set_up(node)

    @pytest.mark.parametrize(
        ("revert", "daemonset", "stays"), [(False, "going", True), (True, "there", True), (True, "going", False)]
    )
    def test_until_it_is_ended(
        self,
        node: MadeNode,
        fake: FakeCluster,
        monkeypatch: pytest.MonkeyPatch,
        revert: bool,
        daemonset: str,
        stays: bool,
    ) -> None:
        """It cleans up only if all of it is removed, and not for a new version of itself or of the node."""

        def end(_: float) -> None:
            assert main.READY.exists()
            fake.daemonset = daemonset
            raise main._Ended

        monkeypatch.setattr(main, "_pause", end)
        options = ["--revert", "kata-system/kata-deploy"] if revert else []
        assert invoke(["install", "--restart", "--node", NODE, "--stay", *options]) == 0
        assert is_set_up(node) == stays
        assert (fake.labels == {LABEL: "true"}) == stays
        assert not main.READY.exists()

    def test_a_mistake_is_one_line_and_a_hint(self, node: MadeNode, capsys: pytest.CaptureFixture[str]) -> None:
        (node.root / "usr/bin/qemu-system-x86_64").unlink()
        assert invoke(["install"]) == 1
        err = capsys.readouterr().err.splitlines()
        assert err[-2] == "kata-deploy: the node has no /usr/bin/qemu-system-x86_64"
        assert err[-1].startswith("hint: there, run: apt-get install")
        assert invoke(["install", "--prefix", "/opt"]) == 1
        assert "a top directory" in capsys.readouterr().err
        assert invoke(["end", "no-slash"]) == 2
        assert "is not NAMESPACE/NAME" in capsys.readouterr().err

    def test_the_end_of_a_daemonset(self, fake: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(clusters, "_POLL_S", 0.01)
        fake.gone_after = 2
        assert invoke(["end", "kata-system/kata-deploy"]) == 0
        assert fake.daemonset == ""

    def test_whether_it_runs_in_a_vm(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert invoke(["verify"]) == 1
        assert "on its node's kernel" in capsys.readouterr().err


def test_the_fake_is_like_the_archive(request_: Request) -> None:
    """What a made source has stands for what the archive has, by the names that the installer knows it by."""
    assert str(tree.LISTING) == LISTING
    assert journal.DIRECTORY == "/var/lib/kata"
    assert CONFIG.startswith(b"version")
    assert issubclass(FailedPrecondition, KataError)
