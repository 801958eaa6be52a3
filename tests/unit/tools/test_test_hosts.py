"""What of `make test-hosts` is decided without a root; the whole is that command itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from kata.osbuilder import suite
from tools import test_hosts

PIP = """\
:env:.find-links='/srv/wheels'
global.extra-index-url='https://index.example/simple\\nfile:///srv/index/simple'
site.quiet='1'
"""


def test_a_host_tests_every_release_but_its_own() -> None:
    hosts = {release.number for release in suite.releases() if release.host}
    for number in hosts:
        assert {release.number for release in test_hosts.others(number)} == hosts - {number}
    assert {release.number for release in test_hosts.others("")} == hosts


def test_what_pip_is_set_to_and_the_way_to_the_network_get_into_the_root_and_nothing_else() -> None:
    variables = {
        "PIP_CERT": "/c",
        "https_proxy": "http://p:1",
        "KATA_MIRROR": "http://m",
        "LS_COLORS": "x",
        "HOME": "/h",
    }
    found = test_hosts.environment(variables, PIP)
    assert {name: value for name, value in found.items() if name not in ("PATH", "LC_ALL", "TERM")} == {
        "PIP_FIND_LINKS": "/srv/wheels",
        "PIP_EXTRA_INDEX_URL": "https://index.example/simple file:///srv/index/simple",
        "PIP_CERT": "/c",
        "https_proxy": "http://p:1",
        "KATA_MIRROR": "http://m",
        "HOME": "/root",
    }


def test_files_that_the_environment_names_are_found(tmp_path: Path) -> None:
    (tmp_path / "index/simple").mkdir(parents=True)
    (tmp_path / "certs").touch()
    values = [f"https://x.example file://{tmp_path}/index/simple", f"{tmp_path}/certs", f"{tmp_path}/missing", "word"]
    assert test_hosts.named_files(values) == [tmp_path / "certs", tmp_path / "index"]


def test_the_chosen_tests_exist() -> None:
    for name in test_hosts.TESTS:
        assert (test_hosts.PROJECT / name).exists()


def test_an_image_of_the_same_version_has_to_be_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert test_hosts.compare({"1": "a", "2": "b"}, {"1": "a", "3": "c"}) == 0
    assert capsys.readouterr().out.splitlines() == [
        "guest image 1 is the same as this host's, to the bit",
        "guest image 3: this host has none of that version to compare it with",
    ]
    assert test_hosts.compare({"1": "a"}, {"1": "b"}) == 1
