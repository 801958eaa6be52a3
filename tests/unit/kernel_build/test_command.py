"""`kata kernel`, and `kata image build --kernel`, as a person meets them."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kata.cli import image, kernel
from kata.cli.render import ExitCode
from kata.errors import FailedPrecondition, InvalidArgument, KataError, NotFound
from kata.kernel_build import build, fragments, options, store
from kata.kernel_build.requirements import requirements
from kata.osbuilder import build as image_build
from kata.osbuilder.kernel import CustomKernel
from kata.osbuilder.store import BUILDING, MANIFEST, GuestImage

A, B = (f"6.12.118-kata1-{letter * 12}" for letter in "ab")
Publish = Callable[[str], CustomKernel]


def run(*arguments: str, status: int = 0) -> str:
    # A command's number is the exit code where kata.cli.main calls it.
    result = CliRunner().invoke(kernel.app, list(arguments), catch_exceptions=False, standalone_mode=False)
    assert (result.return_value or 0) == status, result.output
    return result.output


def test_config_prints_the_fragments() -> None:
    assert options.parse(run("config"), "x") == fragments.options()


def test_config_of_a_kernel(tmp_path: Path, publish: Publish) -> None:
    publish(A)
    assert run("config", A, "--root", str(tmp_path / "kernels")) == "CONFIG_PVH=y\n"


def test_list(tmp_path: Path, publish: Publish) -> None:
    publish(A)
    (publish(B).directory / MANIFEST).write_text("")
    heading, damaged, complete = run("list", "--root", str(tmp_path / "kernels")).splitlines()
    assert heading.split()[0] == "VERSION"
    assert damaged.startswith(B)
    assert damaged.split()[-1] == "unusable"
    assert complete.split()[:3] == [A, "6.12.118-kata1", "6.12.118-1"]
    assert len(run("list", "--root", str(tmp_path / "none")).splitlines()) == 1


def test_prune(tmp_path: Path, publish: Publish) -> None:
    root = str(tmp_path / "kernels")
    assert run("prune", "--root", root) == ""
    for version in (A, B):
        publish(version)
    left = tmp_path / f"kernels/{BUILDING}{A}"
    left.mkdir()
    assert run("prune", "--root", root) == f"{A}\n"
    assert store.versions(tmp_path / "kernels") == [B]
    assert not left.exists()
    assert run("prune", "--keep", "0", "--root", root) == f"{B}\n"


@pytest.mark.parametrize("packed", [False, True])
def test_check_of_a_file(tmp_path: Path, packed: bool) -> None:
    guest, engines = requirements()
    path = tmp_path / "config"
    good = options.render({**engines.options, **guest.options})

    def write(text: str) -> None:
        path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())

    write(good)
    assert "has all that a guest needs" in run("check", str(path))
    write(good.replace("CONFIG_9P_FS=y", "CONFIG_9P_FS=m").replace("# CONFIG_KEXEC is not set", "CONFIG_KEXEC=y"))
    told = run("check", str(path), status=ExitCode.FAILED)
    assert "CONFIG_9P_FS" in told
    assert "CONFIG_KEXEC" in told
    assert "CONFIG_9P_FS" not in run("check", str(path), "--modules", status=ExitCode.FAILED)


def test_check_of_a_kernel_of_this_host(tmp_path: Path, publish: Publish) -> None:
    publish(A)
    assert "CONFIG_VIRTIO_BLK" in run("check", A, "--root", str(tmp_path / "kernels"), status=ExitCode.FAILED)


@pytest.mark.parametrize(
    ("content", "kind", "said"),
    [
        (b"\xff\xfe\0", InvalidArgument, "not text"),
        (b"\x1f\x8bnot gzip", NotFound, "cannot read"),
        (gzip.compress(b"CONFIG_PVH=y\n")[:-6], NotFound, "cannot read"),
        (gzip.compress(bytes(8 << 20)), InvalidArgument, "larger than 4 MiB"),
        (b"hello\n", InvalidArgument, "invalid line 'hello'"),
    ],
    ids=["binary", "no gzip", "half", "bomb", "text"],
)
def test_check_of_what_is_no_configuration(tmp_path: Path, content: bytes, kind: type[KataError], said: str) -> None:
    path = tmp_path / "config"
    path.write_bytes(content)
    with pytest.raises(kind, match=said):
        run("check", str(path))


def test_what_is_given_is_what_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, publish: Publish) -> None:
    asked: list[build.BuildOptions] = []

    def install(given: build.BuildOptions, _: object) -> CustomKernel:
        asked.append(given)
        return publish(A)

    monkeypatch.setattr(build, "install", install)
    assert (
        run("install", "--root", str(tmp_path), "--fragment", "a", "--fragment", "b", "-p", "c", "-j", "3") == f"{A}\n"
    )
    assert run("install") == f"{A}\n"
    first, second = asked
    assert first.kernels == tmp_path
    assert (first.own_fragments, first.own_patches, first.jobs) == ((Path("a"), Path("b")), Path("c"), 3)
    assert second.kernels == store.DEFAULT_ROOT
    assert second.own_fragments == ()
    assert second.jobs >= 1


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[image_build.BuildOptions]:
    """What images were asked for; none is built."""
    asked: list[image_build.BuildOptions] = []

    def fake(given: image_build.BuildOptions, _: object) -> GuestImage:
        asked.append(given)
        return GuestImage("v", tmp_path, tmp_path, tmp_path, tmp_path, {})

    monkeypatch.setattr(image_build, "build", fake)
    return asked


def build_image(*arguments: str) -> None:
    CliRunner().invoke(image.app, ["build", *arguments], catch_exceptions=False)


def test_an_image_with_debians_kernel_needs_no_trial(built: list[image_build.BuildOptions]) -> None:
    build_image()
    assert (built[0].kernel, built[0].trial) == (None, None)


def test_an_image_with_a_kernel_of_this_host_is_tried(
    built: list[image_build.BuildOptions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, publish: Publish
) -> None:
    monkeypatch.setenv("KATA_KERNELS", str(tmp_path / "kernels"))
    kernel = publish(A)
    build_image("--kernel", A)
    assert built[0].kernel == kernel
    assert built[0].trial is not None
    with pytest.raises(NotFound, match=f"there is no kernel {B}"):
        build_image("--kernel", B)
    with pytest.raises(InvalidArgument, match="invalid version"):
        build_image("--kernel", "../x")


def test_the_tailored_kernel_is_built_for_an_image(
    built: list[image_build.BuildOptions], monkeypatch: pytest.MonkeyPatch, publish: Publish
) -> None:
    asked: list[build.BuildOptions] = []

    def install(given: build.BuildOptions, _: object) -> CustomKernel:
        asked.append(given)
        return publish(A)

    monkeypatch.setattr(build, "install", install)
    build_image("--kernel", "tailored", "--update", "--mirror", "http://mirror/debian")
    assert built[0].kernel == publish(A)
    assert (asked[0].mirror, asked[0].update) == ("http://mirror/debian", True)
    assert asked[0].cache == build.BuildOptions().cache
    build_image("--kernel", "tailored", "--cache", "/c")
    assert asked[1].cache == Path("/c/kernel")


def test_a_kernel_that_cannot_be_built_leaves_the_image(
    built: list[image_build.BuildOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    def install(_: build.BuildOptions, __: object) -> CustomKernel:
        raise FailedPrecondition("no flex")

    monkeypatch.setattr(build, "install", install)
    with pytest.raises(FailedPrecondition, match="no flex"):
        build_image("--kernel", "tailored")
    assert built == []
