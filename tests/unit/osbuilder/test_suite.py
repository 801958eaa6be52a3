from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from kata.errors import InvalidArgument
from kata.osbuilder import suite
from kata.osbuilder.suite import Release

TABLE = """\
# a comment
7   lion    host          -
8   tiger   host,guest    tooth,claw
"""


def test_the_table_is_read() -> None:
    assert suite.parse(TABLE) == (
        Release("7", "lion", host=True, guest=False, packages=()),
        Release("8", "tiger", host=True, guest=True, packages=("tooth", "claw")),
    )


def test_guests_are_made_of_one_suite_that_is_also_a_host() -> None:
    (guest,) = (release for release in suite.releases() if release.guest)
    assert suite.guest_suite() == guest.suite
    assert guest.host
    assert len({release.number for release in suite.releases()}) == len(suite.releases())


def test_another_suite_than_the_guests_is_told() -> None:
    suite.check_guest("trixie")
    suite.check_guest("13")
    for other in ("bookworm", "12", "trixi"):
        with pytest.raises(InvalidArgument, match=rf"made of trixie \(Debian 13\), not of {other}"):
            suite.check_guest(other)


def test_a_suite_comes_with_its_updates_and_security_updates() -> None:
    text = suite.sources("tiger", "https://mirror.example/debian/")
    first, second = text.split("\n\n")
    assert "URIs: https://mirror.example/debian\nSuites: tiger tiger-updates\n" in first
    assert "URIs: https://mirror.example/debian-security\nSuites: tiger-security\n" in second
    for stanza in (first, second):
        assert f"Signed-By: {suite.KEYRING}\n" in f"{stanza}\n"


@pytest.mark.skipif(not suite.KEYRING.exists(), reason="needs debian-archive-keyring")
@pytest.mark.parametrize("architecture", ["amd64", "arm64"])
def test_apt_understands_the_configuration(tmp_path: Path, architecture: str) -> None:
    configuration = tmp_path / "apt.conf"
    configuration.write_text('APT::Update::Post-Invoke { "exit 1"; };\nAPT::Default-Release "nowhere";\n')
    ours = tmp_path / "ours.conf"
    ours.write_text(suite.configuration(tmp_path, architecture))
    dumped = subprocess.run(
        ["apt-config", "-c", str(ours), "dump"],
        env={"PATH": "/usr/bin:/bin", "APT_CONFIG": str(configuration)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "APT::Update::Post-Invoke" not in dumped
    assert 'APT::Default-Release "";' in dumped
    assert f'Dir::State "{tmp_path}";' in dumped
    (tmp_path / "guest.sources").write_text(suite.sources("tiger", "http://mirror.example/debian", architecture))
    addresses = subprocess.run(
        ["apt-get", "-c", str(ours), "update", "--print-uris"],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    mirror = "http://mirror.example"
    assert {line.split("'")[1].removesuffix(".xz") for line in addresses.splitlines()} == {
        f"{mirror}/{directory}/{index}"
        for directory in ("debian/dists/tiger", "debian/dists/tiger-updates", "debian-security/dists/tiger-security")
        for index in ("InRelease", "main/binary-all/Packages", f"main/binary-{architecture}/Packages")
    }
