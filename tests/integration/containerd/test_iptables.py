"""`kata iptables`: the packet filter of a running sandbox's guest, read and written from the host."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.containerd import RUNTIME, PrivateContainerd, unique_id
from tests.support.images import BUSYBOX
from tests.support.leaks import TEST_PREFIX

pytestmark = [pytest.mark.containerd, pytest.mark.usefixtures("nothing_left_by_this")]

KATA = str(Path(sys.executable).with_name("kata"))
_TIMEOUT_S = 60.0
RULES = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -p tcp --dport 8081 -j REJECT --reject-with tcp-reset\nCOMMIT\n"
SERVE = "for port in 8080 8081; do httpd -p $port -h /etc; done; sleep 600"


def iptables(*arguments: str, rules: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [KATA, "iptables", *arguments]
    return subprocess.run(command, input=rules, check=check, capture_output=True, text=True, timeout=_TIMEOUT_S)


@contextmanager
def serving(containerd: PrivateContainerd) -> Iterator[tuple[str, Callable[[str], str]]]:
    """The id of a container with two web servers, and what runs scripts in it."""
    name = unique_id(TEST_PREFIX)
    containerd.ctr("run", "-d", "--runtime", RUNTIME, BUSYBOX, name, "sh", "-c", SERVE)

    def run(script: str) -> str:
        return containerd.ctr("task", "exec", "--exec-id", unique_id("e"), name, "sh", "-c", script).stdout

    try:
        yield name, run
    finally:
        containerd.ctr("task", "rm", "--force", name, check=False)
        containerd.ctr("container", "rm", name)


def test_rules_from_the_host_count_in_the_guest(containerd: PrivateContainerd, tmp_path: Path) -> None:
    with serving(containerd) as (name, run):
        for address, version in (("127.0.0.1", []), ("[::1]", ["--v6"])):
            fetch = f"wget -q -O - http://{address}:%d/passwd | head -n 1"
            run(f"until wget -q -O - http://{address}:8081/passwd; do sleep 0.2; done")
            if version:
                (tmp_path / "rules").write_text(RULES)
                iptables("set", "--sandbox-id", name, *version, str(tmp_path / "rules"))
            else:
                iptables("set", "--sandbox-id", name, "-", rules=RULES)
            assert run(fetch % 8081) == ""
            assert run(fetch % 8080).startswith("root:x:0:0")
            said = iptables("get", "--sandbox-id", name, *version).stdout
            assert said.count("--dport 8081 -j REJECT") == 1

        # What is no rule, or not all of them, changes nothing.
        for wrong, message in (
            ("", "no rules"),
            (f"{RULES}*nonsense", "failed with status"),
            ("-A INPUT", "failed with status"),
        ):
            refused = iptables("set", "--sandbox-id", name, "-", rules=wrong, check=False)
            assert refused.returncode == 1
            assert message in refused.stderr
        assert iptables("get", "--sandbox-id", name).stdout.count("--dport 8081 -j REJECT") == 1


def test_who_is_not_there_is_told(tmp_path: Path) -> None:
    for arguments, message in (
        (("get", "--sandbox-id", "nobody-of-this-name"), "sandbox nobody-of-this-name is not running"),
        (("get", "--sandbox-id", "../etc"), "is not the name of a pod"),
        (("set", "--sandbox-id", "nobody", str(tmp_path / "none")), "/none: no such file or directory"),
    ):
        refused = iptables(*arguments, check=False)
        assert refused.returncode == 1
        assert message in refused.stderr
        assert "Traceback" not in refused.stderr
