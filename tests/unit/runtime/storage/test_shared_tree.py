"""Which mount becomes what (Kata's table), and that the shared tree is made whole or not at all."""

from __future__ import annotations

import itertools
import json
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from kata.errors import InvalidArgument, KataError, NotFound
from kata.linux import mountinfo
from kata.oci.spec import Mount
from kata.runtime.storage.container_files import GUEST_PARTS, GUEST_SHARED, GUEST_SHM, ContainerPlan, plan_container
from kata.runtime.storage.exports import Submounts, Use
from kata.runtime.storage.host_paths import HostPath, HostView, RootfsMount, look_at_paths
from tests.support.mounts import in_mount_namespace

OVERLAY = RootfsMount("overlay", "overlay", ("lowerdir=/a",))


def mount(destination: str, kind: str = "", source: str = "", *options: str) -> Mount:
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}


def plan(*mounts: Mount, rootfs: tuple[RootfsMount, ...] = (), host: HostView | None = None) -> ContainerPlan:
    host = host or look_at_paths({"mounts": list(mounts)})
    names = map("@{}".format, itertools.count())
    return plan_container("box", mounts, host, rootfs=rootfs, rootfs_dir="/bundle/rootfs", name=names.__next__)


def volumes(planned: ContainerPlan) -> list[Use]:
    """What a container has beside its root."""
    return list(planned.uses[1:])


class TestPlan:
    @pytest.mark.parametrize("kind", ["proc", "sysfs", "cgroup", "cgroup2", "mqueue", "devpts", "tmpfs"])
    def test_what_the_guest_mounts_by_itself_is_kept(self, kind: str) -> None:
        entry = mount("/x", kind, kind, "nosuid")
        planned = plan(entry)
        assert planned.mounts == (entry,)
        assert volumes(planned) == []

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
        assert [(use.export.source, use.path) for use in volumes(planned)] == [(str(source), "@1")]
        assert planned.mounts[0]["source"] == f"{GUEST_SHARED}/@1"

    @pytest.mark.parametrize("source", ["/proc", "/proc/sys/net", "/sys", "/sys/fs/bpf", "/etc/../proc/1"])
    def test_the_hosts_kernel_trees_are_left_out(self, source: str) -> None:
        planned = plan(mount("/x", "bind", source, "rbind"))
        assert (planned.mounts, volumes(planned)) == ((), [])
        assert "the guest has its own" in planned.skipped[0]

    @pytest.mark.parametrize("source", ["/procedure", "/system"])
    def test_names_that_only_begin_like_them_are_not(self, source: str) -> None:
        with pytest.raises(NotFound, match=f"source {source} does not exist"):
            plan(mount("/x", "bind", source))

    def test_a_device_of_the_hosts_is_left_out(self) -> None:
        planned = plan(mount("/dev/null", "bind", "/dev/null", "bind"))
        assert (planned.mounts, volumes(planned)) == ((), [])

    def test_a_file_below_dev_is_shared(self, tmp_path: Path) -> None:
        """Kubernetes' /dev/termination-log."""
        file = tmp_path / "log"
        file.touch()
        (use,) = volumes(plan(mount("/dev/termination-log", "bind", str(file), "rbind")))
        assert (use.export.source, use.write) == (str(file), True)

    def test_a_bind_goes_through_the_shared_tree(self, tmp_path: Path) -> None:
        planned = plan(mount("/data/set", "bind", str(tmp_path), "rbind", "rw"))
        (use,) = volumes(planned)
        assert (use.export.source, use.path, use.write) == (str(tmp_path), "@1", True)
        (entry,) = planned.mounts
        assert entry["source"] == f"{GUEST_SHARED}/@1"
        assert (entry["destination"], entry["options"]) == ("/data/set", ["rbind", "rw"])

    @pytest.mark.parametrize("option", ["ro", "rro"])
    def test_read_only_is_known_on_the_host_too(self, tmp_path: Path, option: str) -> None:
        (use,) = volumes(plan(mount("/x", "bind", str(tmp_path), "bind", option)))
        assert not use.write

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (("bind",), Submounts.HIDDEN),
            (("bind", "ro"), Submounts.HIDDEN),
            (("rbind",), Submounts.INCLUDED),
            (("rbind", "ro"), Submounts.WRITABLE),
            (("rbind", "rro"), Submounts.READ_ONLY),
        ],
    )
    def test_what_becomes_of_mounts_beneath(self, options: tuple[str, ...], said: Submounts) -> None:
        (use,) = volumes(plan(mount("/x", "bind", "/dev", *options)))
        assert use.export.submounts is said

    def test_a_part_of_a_volume_is_mounted_by_the_agent(self, tmp_path: Path) -> None:
        (tmp_path / "sub").mkdir()
        planned = plan(mount("/sub", "bind", str(tmp_path / "sub"), "ro"), mount("/all", "bind", str(tmp_path)))
        assert [use.path for use in volumes(planned)] == ["@1/sub", "@1"]
        assert [entry["source"] for entry in planned.mounts] == [f"{GUEST_PARTS}/box-0", f"{GUEST_SHARED}/@1"]
        (storage,) = planned.storages
        assert (storage.driver, storage.source) == ("bind", f"{GUEST_SHARED}/@1/sub")
        assert (storage.point, storage.shared) == (f"{GUEST_PARTS}/box-0", False)

    def test_a_socket_of_the_hosts_is_warned_of(self, tmp_path: Path) -> None:
        path = tmp_path / "engine.sock"
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
            planned = plan(mount("/run/engine.sock", "bind", str(path)), mount("/x", "bind", str(tmp_path)))
        assert planned.warnings == (f"mount of {path}: a Unix socket of the host, to which nobody in a VM can connect",)
        assert len(planned.mounts) == 2, "its permissions and its being there are what some look at"

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
        assert volumes(plan(mount("/x", "", str(tmp_path), "bind")))
        assert volumes(plan(mount("/x", "none", str(tmp_path), "rbind")))

    @pytest.mark.parametrize("base", ["v" * 255, "é" * 127])
    def test_names_in_the_tree_are_short_whatever_the_source_is_called(self, tmp_path: Path, base: str) -> None:
        (tmp_path / base).mkdir()
        (use,) = volumes(plan(mount(f"/srv/{base}", "bind", str(tmp_path / base))))
        assert use.path == "@1"

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
        (use,) = plan().uses
        assert (use.export.source, use.write, plan().rootfs) == ("/bundle/rootfs", True, ())
        assert plan().guest_rootfs == f"{GUEST_SHARED}/@0"
        mounted = plan(rootfs=(OVERLAY,))
        assert (mounted.rootfs, mounted.uses) == ((OVERLAY,), ())
        assert mounted.guest_rootfs == f"{GUEST_SHARED}/box/rootfs"

    def test_a_root_that_is_a_part_of_a_volume(self, tmp_path: Path) -> None:
        (tmp_path / "root").mkdir()
        entry = mount("/x", "bind", str(tmp_path))
        host = look_at_paths({"mounts": [entry]}, rootfs_dir=str(tmp_path / "root"))
        first = plan_container("a", [entry], host, rootfs=(OVERLAY,), rootfs_dir="", name=lambda: "@0")
        exports = {use.export: use.write for use in first.uses}
        planned = plan_container(
            "b", [], host, rootfs=(), rootfs_dir=str(tmp_path / "root"), name=lambda: "@1", exports=exports
        )
        assert [use.path for use in planned.uses] == ["@0/root"]
        assert planned.guest_rootfs == planned.storages[0].point == f"{GUEST_PARTS}/b-root"

    def test_a_root_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "root").touch()
        host = look_at_paths({}, rootfs_dir=str(tmp_path / "root"))
        with pytest.raises(NotFound, match=r"container box: rootfs .*/root is not a directory"):
            plan_container("box", [], host, rootfs=(), rootfs_dir=str(tmp_path / "root"), name=lambda: "@0")


#: In a mount namespace of its own, as the shim has it, so that a failing test leaves nothing mounted.
SCRIPT = """
import json, os, sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from kata.errors import KataError
from kata.linux import mount as linux
from kata.linux import mountinfo
from kata.runtime.launch.mount_namespace import enter_mount_namespace
from kata.runtime.storage.host_mounts import on_host
from kata.runtime.storage.host_paths import *
from kata.runtime.storage.container_files import *
from kata.runtime.storage.shared_tree import *
scratch = Path(sys.argv[1])
shared = scratch / "state" / "shared"
shared.parent.mkdir()
enter_mount_namespace(str(shared.parent))
tree = SharedTree(shared)

def points():
    return [mount.point for mount in mountinfo.read() if mount.point.startswith(str(shared))]

def plan(name, *volumes, rootfs=(), root="rootfs"):
    mounts = []
    for number, volume in enumerate(volumes):
        source, *options = volume.split(":")
        mounts.append({"destination": f"/{number}", "type": "bind", "source": str(scratch / source),
                       "options": ["rbind", *options]})
    host = on_host(partial(look_at_paths, rootfs_dir=str(scratch / root)), {"mounts": mounts})
    host = replace(host, exports=look_at_exports(str(shared)))
    planned = plan_container(name, mounts, host, rootfs=rootfs, rootfs_dir=str(scratch / root), name=tree.new_name,
                             exports=tree.exports())
    tree.claim(planned)
    return planned

def added(*arguments, **more):
    planned = plan(*arguments, **more)
    tree.add(planned)
    return [use.path for use in planned.uses]

def refused(planned):
    try:
        tree.add(planned)
    except KataError as error:
        return [str(error), points(), os.listdir(shared)]
    return "not refused"

def touched(path):
    try:
        (shared / path).touch()
    except OSError as error:
        return error.strerror
    return "written"

def inode(path):
    return os.stat(shared / path).st_ino

say = {}
"""


def in_namespace(tmp_path: Path, script: str) -> dict[str, object]:
    (tmp_path / "rootfs/etc").mkdir(parents=True)
    (tmp_path / "volume/sub/deep").mkdir(parents=True)
    (tmp_path / "volume/sub/file").write_text("in sub")
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
    def test_one_root_at_a_time_has_the_device_for_that(self, tmp_path: Path) -> None:
        said = in_namespace(
            tmp_path,
            """
root = shared.parent / "root"
tree = SharedTree(shared, root)
mounts = [RootfsMount("tmpfs", "tmpfs", ("size=64k",))]
def with_root(name):
    options = ("cache=loose",) if tree.has_room_for_root else ()
    planned = plan_container(name, [], look_at_paths({}, rootfs_dir=""), rootfs=mounts, rootfs_dir="",
                             name=tree.new_name, root_options=options)
    tree.claim(planned)
    tree.add(planned)
    return [planned.guest_rootfs, [[storage.source, storage.point] for storage in planned.storages]]
say["a"], say["b"] = with_root("a"), with_root("b")
say["there"] = [os.listdir(root), os.path.ismount(root / "a"), os.listdir(shared)]
tree.remove("b")
say["room"] = tree.has_room_for_root
tree.remove("a")
say["left"] = [os.listdir(root), os.listdir(shared), tree.has_room_for_root]
say["c"] = with_root("c")[0]
""",
        )
        point = "/run/kata-containers/sandbox/root"
        assert said == {
            "a": [f"{point}/a", [["kataRoot", point]]],
            "b": ["/run/kata-containers/shared/containers/b/rootfs", []],
            "there": [["a"], True, ["b"]],
            "room": False,
            "left": [[], [], True],
            "c": f"{point}/c",
        }

    def test_a_whole_life(self, tmp_path: Path) -> None:
        said = in_namespace(
            tmp_path,
            """
say["a"] = added("a", "volume", "file:ro")
added("b", rootfs=[RootfsMount("tmpfs", "tmpfs", ("size=64k", "nosuid"))])
say["rootfs"] = os.listdir(shared / "@0")
say["file"] = (shared / "@1").read_text()
say["rw"], say["ro file"] = touched("@2/new"), touched("@1")
say["mounts"] = len(points())
tree.remove("a")
tree.remove("a")
say["after a"] = sorted(os.listdir(shared))
tree.remove("b")
say["after b"] = [os.listdir(shared), points(), len(tree.exports())]
""",
        )
        assert said == {
            "a": ["@0", "@2", "@1"],
            "rootfs": ["etc"],
            "file": "content",
            "rw": "written",
            "ro file": "Read-only file system",
            "mounts": 4,
            "after a": ["b"],
            "after b": [[], [], 0],
        }
        assert (tmp_path / "volume/new").exists()
        assert (tmp_path / "rootfs/etc").exists(), "what was bound is still there"

    def test_what_the_host_mounts_later_on_private_mounts(self, tmp_path: Path) -> None:
        """Its "/" is private here, so that nothing propagates."""
        said = in_namespace(
            tmp_path,
            """
volume, other = str(scratch / "volume"), str(scratch / "other")
on_host(linux.mount, "late", volume, "tmpfs")
on_host(os.mkdir, volume + "/made")
say["there"] = [os.listdir(volume), on_host(os.listdir, volume)]
added("a", "volume")
say["shared"] = os.listdir(shared / "@1")
os.mkdir(other)
on_host(linux.mount, "shared", other, "tmpfs")
on_host(linux.set_propagation, other, linux.MS_SHARED)
on_host(os.mkdir, other + "/made")
added("b", "other")
for mounted in volume, other:
    on_host(linux.mount, "later", mounted + "/made", "tmpfs")
    on_host(os.mkdir, mounted + "/made/below")
say["propagates"] = [os.listdir(shared / "@1/made"), os.listdir(shared / "@2/made")]
linux.mount("ours", str(shared / "@2/made/below"), "tmpfs")
say["back"] = [mount.fstype for mount in on_host(mountinfo.read) if mount.point.endswith("below")]
linux.umount(str(shared / "@2/made/below"))
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
os.mkdir(scratch / "gone")
planned = plan("a", "volume", "gone")
os.rmdir(scratch / "gone")
say["volume"] = refused(planned)
say["type"] = refused(plan("b", rootfs=[RootfsMount("nosuchfs", "none")]))
second = [RootfsMount("tmpfs", "x"), RootfsMount("overlay", "x", ("lowerdir=/no",))]
say["second"] = refused(plan("c", rootfs=second))
say["options"] = refused(plan("d", rootfs=[RootfsMount("tmpfs", "tmpfs", ("size=nonsense",))]))
say["rootfs"] = refused(plan("e", root="absent"))
os.mkdir(scratch / "other")
planned = plan("f", "volume", "file")
os.replace(scratch / "rootfs/etc", scratch / "other")
(scratch / "fresh").write_text("content")
os.replace(scratch / "fresh", scratch / "file")
say["replaced"] = refused(planned)
say["exports"] = ["", [], [export.name for export in tree.exports()]]
""",
        )
        for name, outcome in said.items():
            assert isinstance(outcome, list), f"{name}: {outcome}"
            message, points, entries = outcome
            assert (points, entries) == ([], []), f"{name} left something behind"
            assert "\n" not in message
        assert "cannot mount none (nosuchfs) in the shared tree" in str(said["type"])
        assert "cannot share" in str(said["rootfs"])
        assert "file was replaced while the container was being created" in str(said["replaced"])

    def test_a_source_is_there_once_for_all_who_mount_it(self, tmp_path: Path) -> None:
        said = in_namespace(
            tmp_path,
            """
os.symlink("volume", scratch / "link")
say["a"] = added("a", "volume", "volume", "link", "volume/../volume")
say["b"] = added("b", "volume")
say["mounts"] = len(points())
tree.remove("a")
say["after a"] = [touched("@1/b"), len(points())]
say["c"] = added("c", "volume")
tree.remove("b")
tree.remove("c")
say["after all"] = [os.listdir(shared), points()]
say["d"] = added("d", "volume")
""",
        )
        assert said == {
            "a": ["@0", "@1", "@1", "@1", "@1"],
            "b": ["@0", "@1"],
            "mounts": 2,
            "after a": ["written", 2],
            "c": ["@0", "@1"],
            "after all": [[], []],
            "d": ["@2", "@3"],
        }

    def test_it_is_writable_as_long_as_somebody_may_write(self, tmp_path: Path) -> None:
        said = in_namespace(
            tmp_path,
            """
say["ro"] = [added("ro", "volume:ro"), touched("@1/x")]
say["rw"] = [added("rw", "volume"), touched("@1/x")]
tree.remove("rw")
say["ro again"] = touched("@1/y")
added("rw", "volume")
file = open(shared / "@1/held", "w")
tree.remove("rw")
say["in use"] = [added("another", "volume:ro"), touched("@1/y")]
file.close()
added("other", "volume:ro")
say["no more"] = touched("@1/z")
""",
        )
        assert said == {
            "ro": [["@0", "@1"], "Read-only file system"],
            "rw": [["@0", "@1"], "written"],
            "ro again": "Read-only file system",
            "in use": [["@0", "@1"], "written"],
            "no more": "Read-only file system",
        }

    def test_what_the_host_has_read_only_stays_so(self, tmp_path: Path) -> None:
        said = in_namespace(
            tmp_path,
            """
on_host(linux.bind, str(scratch / "volume"), str(scratch / "rootfs/etc"))
on_host(partial(linux.make_read_only, recursive=False), str(scratch / "rootfs/etc"))
say["a"] = [added("a", "volume:ro", "rootfs/etc:ro"), touched("@2/x")]
say["b"] = [added("b", "volume", "rootfs/etc"), touched("@2/x"), touched("@1/x")]
""",
        )
        refusal = "Read-only file system"
        # The root has a mount beneath it, and so the volume in it is not one of its parts.
        assert said == {"a": [["@0", "@1", "@2"], refusal], "b": [["@0", "@1", "@2"], refusal, "written"]}

    def test_a_part_is_taken_from_where_it_is(self, tmp_path: Path) -> None:
        said = in_namespace(
            tmp_path,
            """
say["a"] = added("a", "volume/sub/file", "volume/sub", "volume", "volume/sub/deep:ro")
say["b"] = added("b", "volume/sub")
tree.remove("a")
say["after a"] = [(shared / "@1/sub/file").read_text(), len(points())]
os.rename(scratch / "volume", scratch / "moved")
say["moved"] = added("c", "moved/sub/deep")
os.mkdir(scratch / "volume"); os.mkdir(scratch / "volume/sub")
say["another"] = added("d", "volume/sub")
""",
        )
        assert said == {
            "a": ["@0", "@1/sub/file", "@1/sub", "@1", "@1/sub/deep"],
            "b": ["@0", "@1/sub"],
            "after a": ["in sub", 2],
            "moved": ["@0", "@1/sub/deep"],
            "another": ["@0", "@2"],
        }

    def test_a_part_is_not_taken_from_where_nobody_may_write(self, tmp_path: Path) -> None:
        """What kubelet replaces by a rename would be gone for a path; a mount of its own keeps what it was."""
        said = in_namespace(
            tmp_path,
            """
say["ro"] = added("a", "volume:ro", "volume/sub:ro", "volume/sub/deep")
say["outer"] = [touched("@1/x"), touched("@2/x"), touched("@3/x")]
""",
        )
        refusal = "Read-only file system"
        assert said == {"ro": ["@0", "@1", "@2", "@3"], "outer": [refusal, refusal, "written"]}

    def test_a_part_that_is_mounted_elsewhere_as_subpath_is(self, tmp_path: Path) -> None:
        said = in_namespace(
            tmp_path,
            """
os.makedirs(scratch / "subpaths/0"); os.mkdir(scratch / "subpaths/1")
on_host(linux.bind, str(scratch / "volume/sub"), str(scratch / "subpaths/0"))
on_host(linux.bind, str(scratch / "volume/sub"), str(scratch / "subpaths/1"))
on_host(linux.restrict, str(scratch / "subpaths/1"), linux.MS_RDONLY)
say["a"] = added("a", "volume", "subpaths/0", "subpaths/1")
say["same"] = inode("@1/sub") == inode("@2")
on_host(linux.mount, "tmpfs", str(scratch / "volume/sub"), "tmpfs")
say["hidden"] = added("b", "volume", "subpaths/0", "volume/sub")
""",
        )
        assert said == {
            "a": ["@0", "@1", "@1/sub", "@2"],
            "same": True,
            # With the tmpfs it is another export; in the first one its part is still in reach.
            "hidden": ["@0", "@4", "@1/sub", "@3"],
        }

    def test_mounts_beneath_a_source(self, tmp_path: Path) -> None:
        said = in_namespace(
            tmp_path,
            """
on_host(linux.mount, "tmpfs", str(scratch / "volume/sub"), "tmpfs")
say["a"] = added("a", "volume", "volume:ro", "volume:ro:rro", "volume")
say["b"] = added("b", "volume:ro")
say["written"] = [touched(f"{export}/{path}") for export in ("@1", "@2", "@3") for path in ("x", "sub/x")]
""",
        )
        refusal = "Read-only file system"
        assert said == {
            "a": ["@0", "@1", "@2", "@3", "@1"],
            "b": ["@0", "@2"],
            "written": ["written", "written", refusal, "written", refusal, refusal],
        }

    def test_a_failed_one_leaves_what_others_use(self, tmp_path: Path) -> None:
        said = in_namespace(
            tmp_path,
            """
added("a", "volume:ro")
os.mkdir(scratch / "gone")
planned = plan("b", "volume", "gone")
os.rmdir(scratch / "gone")
say["b"] = len(refused(planned)[1])
say["a"] = [touched("@1/x"), os.listdir(shared / "@1")]
first, second = plan("c", "file"), plan("d", "file")
tree.remove("c")
say["d"] = [refused(second), (shared / second.uses[1].path).read_text()]
planned = plan("e", "volume", "volume/sub")
os.rename(scratch / "volume/sub", scratch / "volume/old")
os.mkdir(scratch / "volume/sub")
say["part"] = refused(planned)[0]
""",
        )
        assert said == {
            "b": 2,
            "a": ["Read-only file system", ["sub"]],
            "d": ["not refused", "content"],
            "part": said["part"],
        }
        assert "volume/sub was replaced while the container was being created" in str(said["part"])

    def test_two_containers_of_one_root(self, tmp_path: Path) -> None:
        said = in_namespace(
            tmp_path,
            """
say["a"], say["b"] = added("a"), added("b", "rootfs/etc")
tree.remove("a")
say["still"] = os.listdir(shared / "@0")
""",
        )
        assert said == {"a": ["@0"], "b": ["@0", "@0/etc"], "still": ["etc"]}

    def test_sandbox_mounts_are_exports_like_others(self, tmp_path: Path) -> None:
        said = in_namespace(
            tmp_path,
            """
tree.add_sandbox_mounts([str(scratch / "volume"), str(scratch / "file:rw")])
say["before"] = [touched("sandbox-mounts/volume/x"), touched("sandbox-mounts/file")]
say["a"] = added("a", "volume:ro", "file")
say["b"] = [added("b", "volume", "volume/sub"), touched("sandbox-mounts/volume/x")]
tree.remove("a"); tree.remove("b")
say["after"] = [touched("sandbox-mounts/volume/y"), len(points())]
""",
        )
        refusal = "Read-only file system"
        assert said == {
            "before": [refusal, "written"],
            "a": ["@0", "sandbox-mounts/volume", "sandbox-mounts/file"],
            "b": [["@0", "sandbox-mounts/volume", "sandbox-mounts/volume/sub"], "written"],
            "after": [refusal, 2],
        }
