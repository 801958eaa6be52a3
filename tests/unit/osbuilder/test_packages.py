from __future__ import annotations

import hashlib
import http.server
import shutil
import socketserver
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kata.architecture import ARM64
from kata.errors import FailedPrecondition, Internal, NotFound, Unavailable
from kata.osbuilder import suite
from kata.osbuilder.packages import Package, PackageCache, PackageSet, build_date, parse_uris

LISTED = f"""\
'http://deb.debian.org/debian/pool/main/b/busybox/busybox-static_1.35.0-4%2bb1_amd64.deb' \
busybox-static_1%3a1.35.0-4+b1_amd64.deb 928188 SHA256:{"3d" * 32}
'http://deb.debian.org/debian/pool/main/c/crun/crun_1.8.1-1_amd64.deb' crun_1.8.1-1_amd64.deb 5 SHA256:{"ab" * 32}
"""


def deb(timestamp: bytes) -> bytes:
    return b"!<arch>\ndebian-binary   " + timestamp.ljust(12) + b"0     0     100644  4         `\n2.0\n"


def test_addresses_are_read() -> None:
    busybox, crun = parse_uris("Reading package lists...\n" + LISTED)
    assert busybox == Package(
        "busybox-static", "1:1.35.0-4+b1", "busybox-static_1%3a1.35.0-4+b1_amd64.deb", 928188, "3d" * 32
    )
    assert crun.version == "1.8.1-1"


@pytest.mark.parametrize("listed", ["", "E: nonsense", LISTED.replace("SHA256:", "MD5Sum:")])
def test_output_without_digests_is_not_believed(listed: str) -> None:
    with pytest.raises(Internal, match="no package addresses"):
        parse_uris(listed)


def test_the_kernel_release_is_in_the_package_name() -> None:
    kernel = Package("linux-image-6.12.118+deb13-amd64", "6.12.118-1", "k.deb", 1, "00")
    packages = PackageSet(kernel, (), ())
    assert packages.release == "6.12.118+deb13-amd64"
    assert list(packages) == [kernel]


def test_what_makes_an_image_is_needed_and_not_in_it() -> None:
    kernel, libc, tool = (Package(name, "1", f"{name}.deb", 1, "00") for name in ("linux-image-6.1", "libc6", "mkfs"))
    packages = PackageSet(kernel, (libc,), (libc,), tools=(libc, tool))
    assert list(packages) == [kernel, libc]
    assert packages.needed == (kernel, libc, tool)


def test_only_a_file_with_the_promised_content_is_taken_from_the_cache(tmp_path: Path) -> None:
    cache = PackageCache(tmp_path)
    content = b"right"
    package = Package("crun", "1", "crun_1_amd64.deb", len(content), hashlib.sha256(content).hexdigest())
    assert cache.missing([package]) == [package]

    cache.path(package).parent.mkdir()
    for wrong in (b"", b"wrong", b"right and more"):
        cache.path(package).write_bytes(wrong)
        assert cache.missing([package]) == [package]

    cache.path(package).write_bytes(content)
    assert cache.missing([package]) == []


def test_superseded_packages_leave_the_cache(tmp_path: Path) -> None:
    cache = PackageCache(tmp_path)
    kept = Package("crun", "2", "crun_2_amd64.deb", 1, "00")
    cache.path(kept).parent.mkdir()
    for name in ("crun_1_amd64.deb", "crun_2_amd64.deb"):
        (cache.path(kept).parent / name).touch()
    cache.forget_others([kept.filename])
    assert [path.name for path in cache.path(kept).parent.iterdir()] == ["crun_2_amd64.deb"]


def test_apt_is_asked_with_state_and_sources_of_the_builders_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def answer(argv: list[str], **_: object) -> str:
        asked.append(argv)
        return LISTED if "--print-uris" in argv else "Inst crun (1.8.1-1 x [amd64])\nInst libzstd1 (2 x [amd64])\n"

    monkeypatch.setattr("kata.osbuilder.packages.run", answer)
    cache = PackageCache(tmp_path, "http://mirror/debian")
    assert [package.name for package in cache.closure(["crun"], leave_out=["libzstd[0-9]*"])] == [
        "busybox-static",
        "crun",
    ]
    configuration = str(tmp_path / "apt/apt.conf")
    assert asked == [
        ["apt-get", "-q", "-c", configuration, "install", "--simulate", "crun"],
        ["apt-get", "-q", "-c", configuration, "download", "--print-uris", "crun=1.8.1-1"],
    ]
    assert f'Dir::State "{tmp_path}/apt";' in (tmp_path / "apt/apt.conf").read_text()
    assert "URIs: http://mirror/debian\n" in (tmp_path / "apt/guest.sources").read_text()


def test_the_kernels_sources_are_what_the_suite_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = f"'http://x/l.deb' linux-source-6.12_6.12.118-1_all.deb 5 SHA256:{'ab' * 32}\n"
    described = "Package: linux-source\nDepends: linux-source-6.12 (= 6.12.118-1)\n"

    def answer(argv: list[str], **_: object) -> str:
        return described if argv[0] == "apt-cache" else listed

    monkeypatch.setattr("kata.osbuilder.packages.run", answer)
    source = PackageCache(tmp_path).kernel_source()
    assert (source.name, source.version) == ("linux-source-6.12", "6.12.118-1")

    described = "Package: linux-source\n"
    with pytest.raises(FailedPrecondition, match="does not depend on sources"):
        PackageCache(tmp_path).kernel_source()


def test_another_suite_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kata.osbuilder.packages.run", lambda *_, **__: "")
    PackageCache(tmp_path, name="forky").update()
    assert "Suites: forky forky-updates\n" in (tmp_path / "apt/guest.sources").read_text()


def test_files_that_apt_has_seen_are_not_touched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kata.osbuilder.packages.run", lambda *_, **__: "")
    PackageCache(tmp_path).update()
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "apt").iterdir() if path.is_file()}
    PackageCache(tmp_path).update()
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "apt").iterdir() if path.is_file()}


def test_a_package_says_when_it_was_made(tmp_path: Path) -> None:
    path = tmp_path / "a.deb"
    path.write_bytes(deb(b"1747785600"))
    assert build_date(path) == 1747785600


@pytest.mark.parametrize("content", [b"", b"!<arch>\n", b"PK\3\4" + bytes(64), deb(b"yesterday")])
def test_what_is_no_package_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.deb"
    path.write_bytes(content)
    with pytest.raises(Internal, match="not a Debian package"):
        build_date(path)


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """An archive that does not do what one should."""

    daemon_threads = True


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes | None], str]]:
    """Serves the same bytes for every path, or accepts and never answers (None); returns the address."""
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "host.conf"))
    (tmp_path / "host.conf").write_text(
        'Acquire::http::Timeout "1"; Acquire::Retries "0"; Acquire::http::Proxy "DIRECT";'
    )
    servers: list[Server] = []
    gone = threading.Event()

    def serve(content: bytes | None) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if content is None:
                    gone.wait(60)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:
                pass

        servers.append(Server(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_address[1]}/debian"

    yield serve
    gone.set()
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="apt-get is not installed")
@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"<html>please log in</html>", id="another page"),
        pytest.param(b"Origin: Debian\nSuite: stable\nSHA256:\n", id="lists that nobody has signed"),
        pytest.param(None, id="never an answer"),
    ],
)
def test_a_server_that_lies_or_stalls_is_told(
    tmp_path: Path, archive: Callable[[bytes | None], str], content: bytes | None
) -> None:
    cache = PackageCache(tmp_path / "cache", archive(content))
    with pytest.raises(Unavailable, match="cannot update the package lists") as caught:
        cache.update()
    assert caught.value.hint == "check the network, or name a mirror with --mirror"
    with pytest.raises(FailedPrecondition, match="apt cannot find"):
        cache.resolve()


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="apt-get is not installed")
def test_an_archive_without_the_suite_is_told(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=rf"file://{tmp_path} has no suite {suite.guest_suite()}") as caught:
        PackageCache(tmp_path / "cache", f"file://{tmp_path}").update()
    assert caught.value.hint == "name an archive of Debian with --mirror"


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="apt-get is not installed")
@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(b"evil", "Hash Sum mismatch", id="another package"),
        pytest.param(None, "(Connection failed|[Tt]imed out)", id="no answer"),
    ],
)
def test_a_package_that_is_not_what_the_lists_promise_is_not_kept(
    tmp_path: Path, archive: Callable[[bytes | None], str], content: bytes | None, says: str
) -> None:
    mirror = archive(content)
    # These lists have no signature, which is not what this is about.
    with (tmp_path / "host.conf").open("a") as configuration:
        configuration.write('APT::Get::AllowUnauthenticated "true";')
    cache = PackageCache(tmp_path / "cache", mirror)
    package = Package("crun", "1", "crun_1_amd64.deb", 4, hashlib.sha256(b"good").hexdigest())
    lists = tmp_path / "cache/apt/lists"
    lists.mkdir(parents=True)
    name = f"{mirror.removeprefix('http://').replace('/', '_')}_dists_{suite.guest_suite()}_main_binary-amd64_Packages"
    fields = {"Package": "crun", "Version": "1", "Architecture": "amd64", "Size": "4", "SHA256": package.sha256}
    fields["Filename"] = "pool/crun_1_amd64.deb"
    (lists / name).write_text("".join(f"{key}: {value}\n" for key, value in fields.items()))
    assert cache.named("crun") == [package]

    with pytest.raises(Unavailable, match=f"cannot download packages: .*Failed to fetch .*{says}") as caught:
        cache.download([package])
    assert caught.value.hint
    assert not cache.path(package).exists()


def test_debians_kernel_is_not_asked_for_where_there_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def answer(argv: list[str], **_: object) -> str:
        asked.extend(argv)
        return "Depends: linux-image-6.12-amd64\n" + LISTED

    monkeypatch.setattr("kata.osbuilder.packages.run", answer)
    monkeypatch.setattr(PackageCache, "closure", lambda *_, **__: [])
    packages = PackageCache(tmp_path).resolve(kernel=False)
    assert packages.kernel is None
    assert not [word for word in asked if word.startswith("linux-image")]
    assert None not in list(packages)


def test_a_package_that_debian_does_not_have_has_a_suggestion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(argv: list[str], **_: object) -> str:
        return "strace\ngdb\ntrace-cmd\n" if "pkgnames" in argv else "Depends: linux-image-6.12-amd64\n" + LISTED

    monkeypatch.setattr("kata.osbuilder.packages.run", answer)
    monkeypatch.setattr(PackageCache, "closure", lambda *_, **__: [])
    with pytest.raises(NotFound, match="no package straec in forky") as caught:
        PackageCache(tmp_path, name="forky").resolve(["gdb", "straec"])
    assert caught.value.hint == "did you mean strace?"


def test_what_the_host_runs_is_of_its_own_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a guest of another one: apt is asked with the state of each."""
    asked: list[tuple[str, tuple[str, ...]]] = []

    def answer(argv: list[str], **_: object) -> str:
        state, words = Path(argv[3]).parent.name, tuple(argv[4:])
        asked.append((state, words))
        architecture = "amd64" if state == "apt" else "arm64"
        if argv[0] == "apt-cache":
            return f"Depends: linux-image-6.12.1-{architecture} (= 1)\n"
        if words[0] == "install":
            return "".join(f"Inst {name} (1 x [{architecture}])\n" for name in words[2:])
        return "".join(
            f"'http://x/d.deb' {name.partition('=')[0]}_1_{architecture}.deb 5 SHA256:{'ab' * 32}\n"
            for name in words[2:]
        )

    monkeypatch.setattr("kata.osbuilder.packages.run", answer)
    packages = PackageCache(tmp_path, architecture=ARM64).resolve()
    assert packages.release == "6.12.1-arm64"
    assert {package.filename.rpartition("_")[2] for package in packages.userland} == {"arm64.deb"}
    assert {package.filename.rpartition("_")[2] for package in packages.host} == {"amd64.deb"}
    assert [package.filename for package in packages.emulator] == ["qemu-user_1_amd64.deb"]
    assert not set(packages.emulator) & set(packages)
    assert 'APT::Architecture "arm64";' in (tmp_path / "apt-arm64/apt.conf").read_text()
    assert "Architectures: amd64\n" in (tmp_path / "apt/guest.sources").read_text()
    assert PackageCache(tmp_path).resolve().emulator == ()

    asked.clear()
    assert packages.kernel
    wanted = [packages.kernel, *packages.emulator]
    with pytest.raises(Unavailable, match="has not the promised content"):
        PackageCache(tmp_path, architecture=ARM64).download(wanted)
    assert asked == [("apt", ("download", "qemu-user=1"))], "the host's are fetched by its own lists"
