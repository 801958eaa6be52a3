"""The confinement of a child, seen from inside the child."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kata.errors import NotFound
from kata.runtime.hypervisor.qemu import confine

REPORT = """
import os, resource
for line in open("/proc/self/status"):
    if line.startswith(("CapBnd", "CapEff", "CapAmb", "NoNewPrivs")):
        print(line.strip().replace("\\t", " "))
print("cwd", os.getcwd())
print("session", os.getsid(0) == os.getpid())
print("core", resource.getrlimit(resource.RLIMIT_CORE))
fds = [fd for fd in map(int, os.listdir("/proc/self/fd")) if fd > 2]
print("fds", sorted(fd for fd in fds if os.path.exists(f"/proc/self/fd/{fd}")))
print("environment", sorted(name for name in os.environ if name != "LC_CTYPE"))
"""


def test_wrapper() -> None:
    wrapper = confine.confined(["/bin/qemu", "-x"], ("chown", "fowner"))
    assert Path(wrapper[0]).name == "setpriv"
    assert wrapper[-3:] == ["--", "/bin/qemu", "-x"]
    assert "--bounding-set=-all,+chown,+fowner" in wrapper
    assert {"--no-new-privs", "--pdeathsig=SIGKILL", "--inh-caps=-all", "--clear-groups"} <= set(wrapper)


def test_without_capabilities() -> None:
    assert "--bounding-set=-all" in confine.confined(["/bin/qemu"], ())


def test_without_setpriv(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(confine, "_SETPRIV", (str(tmp_path / "setpriv"),))
    with pytest.raises(NotFound, match="setpriv is not installed") as caught:
        confine.confined(["/bin/qemu"], ())
    assert caught.value.hint


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_what_the_child_sees() -> None:
    read_end, write_end = os.pipe()
    passed, kept = os.pipe()
    os.set_inheritable(kept, True)
    capabilities = ("chown", "fowner")
    child = confine.spawn(
        # It looks when the limits have been set from outside.
        confine.confined([sys.executable, "-IS", "-c", f"import os; os.read({passed}, 1)" + REPORT], capabilities),
        fds=(passed,),
        output=write_end,
        environment={"NAME": "value"},
    )
    os.write(kept, b".")
    os.close(write_end)
    with os.fdopen(read_end) as output:
        lines = dict(line.rstrip().split(" ", 1) for line in output)
    assert child.wait(10) == 0
    os.close(passed)
    os.close(kept)
    assert int(lines["CapBnd:"], 16) == int(lines["CapEff:"], 16) == 1 << 0 | 1 << 3
    assert int(lines["CapAmb:"], 16) == 0
    assert lines["NoNewPrivs:"] == "1"
    assert lines["cwd"] == "/"
    assert lines["session"] == "True"
    assert lines["core"] == "(0, 0)"
    assert lines["fds"] == f"[{passed}]"
    assert lines["environment"] == "['NAME']"


def test_a_child_that_hangs_in_the_kernel_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The event loop would wait with it, and everything else in the shim."""
    monkeypatch.setattr(confine, "_KILL_TIMEOUT_S", 0.05)
    with subprocess.Popen(["sleep", "600"]) as child:
        try:
            with monkeypatch.context() as hanging:
                hanging.setattr(child, "kill", lambda: None)
                confine.end(child)
            assert child.poll() is None
            assert f"process {child.pid} does not end" in caplog.text
        finally:
            confine.end(child)
    assert child.returncode == -9
