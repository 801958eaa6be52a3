"""Which mount becomes what (Kata's table), and that the shared tree is made whole or not at all."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from kata.errors import InvalidArgument, KataError, NotFound
from kata.linux import mountinfo
from kata.oci.spec import Mount
from kata.runtime.storage.host_paths import HostPath, HostView, RootfsMount, look_at_paths, random_token
from kata.runtime.storage.shared_tree import GUEST_SHARED, GUEST_SHM, Bind, ContainerPlan, plan_container
from tests.support.mounts import in_mount_namespace


def mount(destination: str, kind: str = "", source: str = "", *options: str) -> Mount:
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}


def plan(*mounts: Mount, rootfs: tuple[RootfsMount, ...] = (), host: HostView | None = None) -> ContainerPlan:
    host = host or look_at_paths({"mounts": list(mounts)})
    token = lambda: "0123456789abcdef"  # noqa: E731
    return plan_container("box", mounts, host, rootfs=rootfs, rootfs_dir="/bundle/rootfs", token=token)


class TestPlan:
    @pytest.mark.parametrize("kind", ["proc", "sysfs", "cgroup", "cgroup2", "mqueue", "devpts", "tmpfs"])
    def test_what_the_guest_mounts_by_itself_is_kept(self, kind: str) -> None:
        entry = mount("/x", kind, kind, "nosuid")
        planned = plan(entry)
        assert planned.mounts == (entry,)
        assert planned.volumes == ()

    @pytest.mark.parametrize("destination", ["/dev/shm", "/dev/shm/", "/dev/../dev/shm"])
    def test_shm_that_the_engine_has_made_is_the_sandboxes(self, destination: str) -> None:
        host = HostView({"/sandboxes/0123/shm": HostPath((1, 2), stat.S_IFDIR, engines_shm=True)})
        asked = mount(destination, "bind", "/sandboxes/0123/shm", "rbind", "nosuid", "size=1k", "noexec")
        (entry,) = plan(asked, host=host).mounts
        assert (entry["type"], entry["source"]) == ("bind", GUEST_SHM)
        assert entry["options"] == ["rbind", "nosuid", "noexec"]

    def test_a_tmpfs_as_shm_is_the_containers_own(self) -> None:
        entry = mount("/dev/shm", "tmpfs", "shm", "nosuid", "size=256m")
        assert plan(entry).mounts == (entry,)

    @pytest.mark.parametrize("name", ["data", "shm"])
    def test_a_directory_as_shm_is_shared_like_any_other(self, tmp_path: Path, name: str) -> None:
        source = tmp_path / name
        source.mkdir()
        planned = plan(mount("/dev/shm", "bind", str(source), "rbind"))
        assert planned.volumes == (Bind(str(source), "box-0123456789abcdef-shm"),)
        assert planned.mounts[0]["source"] == f"{GUEST_SHARED}/box-0123456789abcdef-shm"

    @pytest.mark.parametrize("source", ["/proc", "/proc/sys/net", "/sys", "/sys/fs/bpf", "/etc/../proc/1"])
    def test_the_hosts_kernel_trees_are_left_out(self, source: str) -> None:
        planned = plan(mount("/x", "bind", source, "rbind"))
        assert (planned.mounts, planned.volumes) == ((), ())
        assert "the guest has its own" in planned.skipped[0]

    @pytest.mark.parametrize("source", ["/procedure", "/system"])
    def test_names_that_only_begin_like_them_are_not(self, source: str) -> None:
        with pytest.raises(NotFound, match=f"source {source} does not exist"):
            plan(mount("/x", "bind", source))

    def test_a_device_of_the_hosts_is_left_out(self) -> None:
        planned = plan(mount("/dev/null", "bind", "/dev/null", "bind"))
        assert (planned.mounts, planned.volumes) == ((), ())

    def test_a_file_below_dev_is_shared(self, tmp_path: Path) -> None:
        """Kubernetes' /dev/termination-log."""
        file = tmp_path / "log"
        file.touch()
        planned = plan(mount("/dev/termination-log", "bind", str(file), "rbind"))
        assert planned.volumes == (Bind(str(file), "box-0123456789abcdef-termination-log"),)

    def test_a_bind_goes_through_the_shared_tree(self, tmp_path: Path) -> None:
        planned = plan(mount("/data/set", "bind", str(tmp_path), "rbind", "rw"))
        assert planned.volumes == (Bind(str(tmp_path), "box-0123456789abcdef-set"),)
        (entry,) = planned.mounts
        assert entry["source"] == f"{GUEST_SHARED}/box-0123456789abcdef-set"
        assert (entry["destination"], entry["options"]) == ("/data/set", ["rbind", "rw"])

    @pytest.mark.parametrize("option", ["ro", "rro"])
    def test_read_only_is_enforced_on_the_host_too(self, tmp_path: Path, option: str) -> None:
        (volume,) = plan(mount("/x", "bind", str(tmp_path), "bind", option)).volumes
        assert volume.readonly
        assert volume.readonly_below is (option == "rro")
        assert not volume.recursive

    @pytest.mark.parametrize(
        ("options", "in_guest"),
        [
            (("rbind", "ro"), ["rbind"]),
            (("rbind", "ro", "rro"), ["rbind", "ro", "rro"]),
            (("bind", "ro"), ["bind", "ro"]),
        ],
    )
    def test_what_is_mounted_below_a_volume_is_not_read_only_with_it(
        self, options: tuple[str, ...], in_guest: list[str]
    ) -> None:
        # /dev has mounts beneath it on every host.
        (entry,) = plan(mount("/x", "bind", "/dev", *options)).mounts
        assert entry["options"] == in_guest

    def test_a_bind_is_one_by_its_options_as_well(self, tmp_path: Path) -> None:
        assert plan(mount("/x", "", str(tmp_path), "bind")).volumes
        assert plan(mount("/x", "none", str(tmp_path), "rbind")).volumes

    def test_a_bind_on_the_root_has_a_name(self, tmp_path: Path) -> None:
        (volume,) = plan(mount("/", "bind", str(tmp_path))).volumes
        assert volume.name == "box-0123456789abcdef-root"

    @pytest.mark.parametrize("base", ["v" * 200, "v" * 255, "é" * 127, "x" + "é" * 127])
    def test_long_names_are_cut(self, tmp_path: Path, base: str) -> None:
        entry = mount(f"/srv/{base}", "bind", str(tmp_path))
        host = look_at_paths({"mounts": [entry]})
        planned = plan_container("c" * 76, [entry], host, rootfs=(), rootfs_dir="/r", token=random_token)
        name = planned.volumes[0].name
        assert 250 < len(name.encode()) <= 255
        assert base.endswith(name[100:])

    def test_names_differ(self, tmp_path: Path) -> None:
        entry = mount("/a/x", "bind", str(tmp_path))
        host = look_at_paths({"mounts": [entry]})
        planned = plan_container("box", [entry, entry], host, rootfs=(), rootfs_dir="/r", token=random_token)
        assert len({volume.name for volume in planned.volumes}) == 2

    @pytest.mark.parametrize("kind", ["nfs", "nosuchfs", ""])
    def test_a_type_that_the_guest_cannot_mount_is_refused(self, kind: str) -> None:
        """As runc refuses what the host cannot: a container without its data must not run."""
        with pytest.raises(InvalidArgument, match=f"mount on /x: a VM cannot mount the file system '{kind}'"):
            plan(mount("/x", kind, "server:/export"))

    @pytest.mark.parametrize(
        ("source", "kind", "said"),
        [
            ("", InvalidArgument, "mount on /x: source '' is not an absolute path"),
            ("relative", InvalidArgument, "mount on /x: source 'relative' is not an absolute path"),
            ("/nonexistent/volume", NotFound, "mount on /x: source /nonexistent/volume does not exist"),
        ],
    )
    def test_sources_that_lead_nowhere(self, source: str, kind: type[KataError], said: str) -> None:
        with pytest.raises(kind, match=said):
            plan(mount("/x", "bind", source))

    def test_the_rootfs(self) -> None:
        overlay = RootfsMount("overlay", "overlay", ("lowerdir=/a",))
        assert (plan().rootfs, plan().rootfs_dir) == ((), "/bundle/rootfs")
        assert (plan(rootfs=(overlay,)).rootfs, plan(rootfs=(overlay,)).rootfs_dir) == ((overlay,), "")
        assert plan().guest_rootfs == f"{GUEST_SHARED}/box/rootfs"


#: In a mount namespace of its own, as the shim has it, so that a failing test leaves nothing mounted.
SCRIPT = """
import json, os, sys
from pathlib import Path
from kata.errors import KataError
from kata.linux import mount as linux
from kata.linux import mountinfo
from kata.runtime.launch.mount_namespace import enter_mount_namespace
from kata.runtime.storage.host_mounts import on_host
from kata.runtime.storage.host_paths import *
from kata.runtime.storage.shared_tree import *
scratch = Path(sys.argv[1])
shared = scratch / "state" / "shared"
shared.parent.mkdir()
enter_mount_namespace(str(shared.parent))
tree = SharedTree(shared)

def points():
    return [mount.point for mount in mountinfo.read() if mount.point.startswith(str(shared))]

def plan(name, *volumes, rootfs=()):
    return ContainerPlan(name, tuple(rootfs), "" if rootfs else str(scratch / "rootfs"), volumes)

def refused(*arguments, **more):
    try:
        tree.add(plan(*arguments, **more))
    except KataError as error:
        return [str(error), points(), os.listdir(shared)]
    return "not refused"

def touched(path):
    try:
        (shared / path).touch()
    except OSError as error:
        return error.strerror
    return "written"

say = {}
"""


def in_namespace(tmp_path: Path, script: str) -> dict[str, object]:
    (tmp_path / "rootfs/etc").mkdir(parents=True)
    (tmp_path / "volume/sub").mkdir(parents=True)
    (tmp_path / "file").write_text("content")
    done = subprocess.run(
        in_mount_namespace(sys.executable, "-c", SCRIPT + script + "\nprint(json.dumps(say))", str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    assert not mountinfo.points_below(str(tmp_path)), "nothing reaches the host's mount namespace"
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.root
class TestSharedTree:
    def test_a_whole_life(self, tmp_path: Path) -> None:
        said = in_namespace(
            tmp_path,
            """
on_host(linux.mount, "tmpfs", str(scratch / "volume/sub"), "tmpfs")
tree.add(plan("a", Bind(str(scratch / "volume"), "a-1-rw"), Bind(str(scratch / "file"), "a-2-file", readonly=True),
              Bind(str(scratch / "volume"), "a-3-ro", readonly=True),
              Bind(str(scratch / "volume"), "a-4-rro", readonly=True, readonly_below=True)))
tree.add(plan("b", rootfs=[RootfsMount("tmpfs", "tmpfs", ("size=64k", "nosuid"))]))
say["rootfs"] = os.listdir(shared / "a/rootfs")
say["file"] = (shared / "a-2-file").read_text()
say["rw"], say["ro"], say["ro file"] = touched("a-1-rw/new"), touched("a-3-ro/x"), touched("a-2-file")
say["below ro"], say["below rro"] = touched("a-3-ro/sub/x"), touched("a-4-rro/sub/x")
say["mounts"] = len(points())
tree.remove("a")
tree.remove("a")
say["after a"] = sorted(os.listdir(shared))
tree.remove("b")
say["after b"] = [os.listdir(shared), points()]
""",
        )
        assert said == {
            "rootfs": ["etc"],
            "file": "content",
            "rw": "written",
            "ro": "Read-only file system",
            "ro file": "Read-only file system",
            "below ro": "written",
            "below rro": "Read-only file system",
            "mounts": 9,
            "after a": ["b"],
            "after b": [[], []],
        }
        assert (tmp_path / "volume/new").exists()
        assert (tmp_path / "rootfs/etc").exists(), "what was bound is still there"

    def test_what_the_host_mounts_later_on_private_mounts(self, tmp_path: Path) -> None:
        """Its "/" is private here, so that nothing propagates."""
        said = in_namespace(
            tmp_path,
            """
volume = str(scratch / "volume")
on_host(linux.mount, "late", volume, "tmpfs")
on_host(os.mkdir, volume + "/made")
say["there"] = [os.listdir(volume), on_host(os.listdir, volume)]
seen = on_host(look_at_paths, {"mounts": [{"type": "bind", "source": volume}]}).paths[volume]
tree.add(plan("a", Bind(volume, "a-1-x", identity=seen.identity)))
say["shared"] = os.listdir(shared / "a-1-x")
on_host(linux.set_propagation, volume, linux.MS_SHARED)
tree.add(plan("b", Bind(volume, "b-1-x")))
on_host(linux.mount, "later", volume + "/made", "tmpfs")
on_host(os.mkdir, volume + "/made/below")
say["propagates"] = [os.listdir(shared / "a-1-x/made"), os.listdir(shared / "b-1-x/made")]
linux.mount("ours", str(shared / "b-1-x/made/below"), "tmpfs")
say["back"] = [mount.fstype for mount in on_host(mountinfo.read) if mount.point.endswith("below")]
linux.umount(str(shared / "b-1-x/made/below"))
tree.remove("a")
tree.remove("b")
say["after"] = [os.listdir(shared), points()]
""",
        )
        assert said == {
            "there": [["sub"], ["made"]],
            "shared": ["made"],
            "propagates": [[], ["below"]],
            "back": [],
            "after": [[], []],
        }

    def test_all_of_it_or_nothing(self, tmp_path: Path) -> None:
        said = in_namespace(
            tmp_path,
            """
say["volume"] = refused("a", Bind(str(scratch / "volume"), "a-1-x"), Bind(str(scratch / "gone"), "a-2-x"))
say["type"] = refused("b", rootfs=[RootfsMount("nosuchfs", "none")])
say["second"] = refused("c", rootfs=[RootfsMount("tmpfs", "x"), RootfsMount("overlay", "x", ("lowerdir=/no",))])
say["options"] = refused("d", rootfs=[RootfsMount("tmpfs", "tmpfs", ("size=nonsense",))])
os.rmdir(scratch / "rootfs/etc"); os.rmdir(scratch / "rootfs")
say["rootfs"] = refused("e")
""",
        )
        for name, outcome in said.items():
            assert isinstance(outcome, list), f"{name}: {outcome}"
            message, points, entries = outcome
            assert (points, entries) == ([], []), f"{name} left something behind"
            assert "\n" not in message
        assert "cannot mount none (nosuchfs) in the shared tree" in str(said["type"])
        assert "rootfs is not a directory" in str(said["rootfs"])
