from __future__ import annotations

import json
import mmap
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kata import installed
from kata.architecture import HOST
from kata.cli.image import app as image_app
from kata.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, KataError, NotFound
from kata.osbuilder import store


@pytest.fixture
def root(tmp_path: Path, make_image: Callable[..., Path]) -> Path:
    for age, version in enumerate(("new", "old", "older", "oldest")):
        make_image(tmp_path, version, age)
    store.switch_current(tmp_path, "new")
    return tmp_path


def versions(root: Path) -> set[str]:
    return {path.name for path in root.iterdir() if path.is_dir() and not path.is_symlink()}


def test_the_current_image_is_found_by_its_own_name(root: Path) -> None:
    image = store.find(root)
    assert (image.version, image.directory) == ("new", root / "new")
    assert [image.kernel.name, image.initrd.name, image.rootfs and image.rootfs.name] == [*store.FILES, "root.erofs"]
    assert image.size == sum((image.directory / name).stat().st_size for name in (*store.FILES, "root.erofs"))

    store.switch_current(root, "old")
    assert store.find(root).version == "old"
    assert image.kernel.exists()


def test_another_version_is_found(root: Path) -> None:
    assert store.find(root, "older").directory == root / "older"


def test_the_environment_names_the_root(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KATA_IMAGES", str(root))
    assert store.find().directory == root / "new"
    monkeypatch.setenv("KATA_IMAGES", "")
    assert store.images_root() == store.DEFAULT_ROOT


def test_what_came_along_is_found_until_an_image_is_built(
    root: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = tmp_path_factory.mktemp("built")
    monkeypatch.delenv("KATA_IMAGES", raising=False)
    monkeypatch.setattr(store, "DEFAULT_ROOT", built)
    monkeypatch.setattr(installed, "IMAGES", root)
    assert store.find().directory == root / "new"
    (root / "old").rename(built / "old")
    store.switch_current(built, "old")
    assert store.find().directory == built / "old"
    assert store.find(version="oldest").directory == root / "oldest"
    assert sorted(image.version for image in store.list_images()) == ["new", "old", "older", "oldest"]
    assert store.prune(keep=0) == [], "what came along is not this command's to remove"

    result = CliRunner().invoke(image_app, ["switch", "new"])
    assert (result.exit_code, result.stdout) == (0, f"{root / 'new'}\n")
    assert store.find().directory == root / "new"
    assert not (built / "current").is_symlink()


def test_no_image_says_how_to_get_one(tmp_path: Path) -> None:
    for where in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(NotFound, match=str(where)) as caught:
            store.find(where)
        assert caught.value.hint == "run: kata image build"
    assert store.list_images(tmp_path / "nowhere") == []


@pytest.mark.parametrize("version", ["", "..", ".", "../x", "a/b", ".build-x", "/etc", "x" * 200, "a\nb", "current/"])
def test_a_version_cannot_leave_the_root(root: Path, version: str) -> None:
    with pytest.raises(InvalidArgument):
        store.find(root, version)


def test_a_current_link_that_leaves_the_root_is_not_followed(root: Path) -> None:
    (root / "current").unlink()
    (root / "current").symlink_to("/etc")
    with pytest.raises(FailedPrecondition, match="does not point to a guest image"):
        store.find(root)


def test_a_current_link_to_nothing_says_so(root: Path) -> None:
    store.switch_current(root, "gone")
    with pytest.raises(NotFound, match="gone"):
        store.find(root)


def remove_kernel(directory: Path) -> None:
    (directory / "vmlinux").unlink()


def cut_root(directory: Path) -> None:
    (directory / "root.erofs").write_bytes(b"")


def remove_manifest(directory: Path) -> None:
    (directory / "manifest.json").unlink()


def name_another_images_file(directory: Path) -> None:
    found = json.loads((directory / "manifest.json").read_text())
    found["files"]["../old/vmlinux"] = found["files"]["vmlinux"]
    (directory / "manifest.json").write_text(json.dumps(found))


def manifest(text: str) -> Callable[[Path], None]:
    def write(directory: Path) -> None:
        (directory / "manifest.json").write_text(text)

    return write


@pytest.mark.parametrize(
    "damage",
    [
        remove_kernel,
        cut_root,
        remove_manifest,
        name_another_images_file,
        *map(manifest, ["", "[]", "{}", "null", '{"files": {"vmlinux": 3}}', "[" * 100_000, '{"files": []}']),
    ],
)
def test_a_damaged_image_is_found_out_and_not_listed(root: Path, damage: Callable[[Path], None]) -> None:
    damage(root / "new")
    with pytest.raises(FailedPrecondition, match="damaged") as caught:
        store.find(root)
    assert caught.value.hint
    assert [image.version for image in store.list_images(root)] == ["old", "older", "oldest"]


def test_check_reads_the_contents(root: Path) -> None:
    image = store.find(root)
    store.check(image)
    assert image.rootfs
    content = bytearray(image.rootfs.read_bytes())
    content[3] ^= 1
    image.rootfs.write_bytes(content)
    with pytest.raises(FailedPrecondition, match=r"root\.erofs does not match its digest"):
        store.check(image)
    image.rootfs.unlink()
    with pytest.raises(FailedPrecondition, match="damaged"):
        store.check(image)


def test_images_are_listed_newest_first(root: Path) -> None:
    (root / ".build-x").mkdir()
    (root / "stray").write_text("")
    assert [image.version for image in store.list_images(root)] == ["new", "old", "older", "oldest"]


def test_prune_keeps_the_newest(root: Path) -> None:
    assert store.prune(root, keep=2) == ["older", "oldest"]
    assert versions(root) == {"new", "old"}
    assert store.prune(root, keep=2) == []


def test_prune_never_removes_the_current_image(root: Path) -> None:
    store.switch_current(root, "oldest")
    assert store.prune(root, keep=0) == ["new", "old", "older"]
    assert store.find(root).version == "oldest"


def test_each_architecture_has_a_current_image(root: Path) -> None:
    with pytest.raises(NotFound, match="no guest image for arm64") as caught:
        store.find(root, "current-arm64")
    assert caught.value.hint == "run: kata image build --arch arm64"
    manifest = root / "old" / store.MANIFEST
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"architecture": "arm64"}))
    image = store.find(root, "old")
    store.switch_current(root, image.version, image.architecture)
    assert (store.find(root).version, store.find(root, "current-arm64").version) == ("new", "old")
    assert store.find(root).architecture is HOST, "older images do not say it"
    assert store.current_versions(root) == {"new", "old"}
    assert store.prune(root, keep=0) == ["older", "oldest"]


def test_prune_spares_what_is_open_or_mapped(root: Path) -> None:
    with (root / "old/root.erofs").open("rb"), (root / "older/root.erofs").open("rb") as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
            file.close()
            assert store.prune(root, keep=1) == ["oldest"]
    assert store.prune(root, keep=1) == ["old", "older"]


def test_prune_sees_other_processes(root: Path) -> None:
    holder = subprocess.Popen(
        ["sh", "-c", f"exec <{root}/old/initrd; echo ready; exec sleep 60"], stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert store.prune(root, keep=1) == ["older", "oldest"]
    finally:
        holder.kill()
        holder.communicate()


def test_prune_of_nothing(tmp_path: Path) -> None:
    assert store.prune(tmp_path / "nowhere") == []
    with pytest.raises(InvalidArgument):
        store.prune(tmp_path, keep=-1)


def test_only_one_holds_the_lock(tmp_path: Path) -> None:
    with store.lock(tmp_path, timeout=0):
        with pytest.raises(DeadlineExceeded, match=str(tmp_path)):
            with store.lock(tmp_path, timeout=0.2):
                pytest.fail("two hold the lock")
    with store.lock(tmp_path, timeout=0):
        pass


def test_the_lock_of_a_dead_process_is_free(tmp_path: Path) -> None:
    program = "import sys, time; from pathlib import Path; from kata.osbuilder import store\n"
    program += "with store.lock(Path(sys.argv[1]), timeout=0): print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(DeadlineExceeded), store.lock(tmp_path, timeout=0):
            pytest.fail("two hold the lock")
    finally:
        holder.kill()
        holder.communicate()
    with store.lock(tmp_path, timeout=5):
        pass


def test_current_changes_at_once(root: Path) -> None:
    """Somebody who looks all the time never finds it missing."""
    program = "import sys; from pathlib import Path; from kata.osbuilder import store\n"
    program += (
        "print('go', flush=True)\nfor i in range(300): store.switch_current(Path(sys.argv[1]), ('new', 'old')[i % 2])"
    )
    switcher = subprocess.Popen([sys.executable, "-c", program, str(root)], stdout=subprocess.PIPE)
    seen: set[str] = set()
    try:
        assert switcher.stdout is not None
        switcher.stdout.readline()
        while switcher.poll() is None:
            seen.add(store.find(root).version)
    except KataError as error:
        pytest.fail(f"the current image was not there: {error}")
    finally:
        switcher.kill()
        switcher.communicate()
    assert seen == {"new", "old"}
