"""`start` up to the fork, and what it costs."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from google.protobuf import any_pb2

from kata import ttrpc
from kata.protocols.containerd import bootstrap_pb2, task_v2_pb2
from kata.runtime.ledger.journal import Ledger, claim
from kata.shim.start import SOCKET_DIR, _is_served, answer, socket_path
from kata.ttrpc.typed import Stub
from tests.support.waiting import eventually, has_ended

PATH = [str(Path(__file__).resolve().parents[3] / "src"), sysconfig.get_path("purelib")]

#: The launcher's way of running, with the two directories moved and the list of loaded modules printed at the end.
SCRIPT = """
import os, sys
sys.path[:0] = {path!r}
before = set(sys.modules)
import kata.shim.start
kata.shim.start.STATE_ROOT = {state!r}
kata.shim.start.SOCKET_DIR = {sockets!r}
{more}
from kata.shim.main import main
leave = os._exit
def report(status):
    if {report!r}:
        os.write(2, " ".join(sorted(set(sys.modules) - before)).encode())
    leave(status)
os._exit = report
main()
"""

#: What `start` may load besides its own files. Everything here is built in or costs next to nothing; a name that has
#: to be added is milliseconds for every container.
ALLOWED = {"__future__", "_signal", "_socket", "_sha256", "_sha2", "errno", "fcntl", "itertools", "stat", "time"}


class Shim:
    """Runs `start` in a bundle below a scratch directory."""

    def __init__(self, scratch: Path, sockets: Path) -> None:
        self.state = scratch / "state"
        self.sockets = sockets
        self.bundle = scratch / "bundle"
        self.bundle.mkdir()
        self.config({})

    def config(self, spec: object) -> None:
        (self.bundle / "config.json").write_text(spec if isinstance(spec, str) else json.dumps(spec))

    def start(
        self,
        container_id: str = "box",
        stdin: bytes = b"",
        *,
        report: bool = False,
        action: str = "start",
        before: str = "",
        namespace: str = "ns",
    ) -> tuple[int, str, str]:
        script = SCRIPT.format(path=PATH, state=str(self.state), sockets=str(self.sockets), report=report, more=before)
        done = subprocess.run(
            [
                *(sys.executable, "-IS", "-c", script),
                *("-namespace", namespace, "-address", "/c.sock", "-id", container_id, action),
            ],
            env={},
            cwd=self.bundle,
            input=stdin,
            capture_output=True,
            timeout=20,
        )
        return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode()

    def refused(self, container_id: str = "box", stdin: bytes = b"") -> str:
        status, out, err = self.start(container_id, stdin)
        assert (status, out) == (1, "")
        assert err.count("\n") == 1
        assert not list(self.state.glob("*")), "a refused start leaves no state directory"
        return err

    def path(self, sandbox_id: str) -> Path:
        return Path(socket_path("/c.sock", "ns", sandbox_id, str(self.sockets)))

    def stop(self) -> None:
        """End the daemon, if there is one, and wait for it."""
        try:
            pid = int((self.bundle / "shim.pid").read_text())
            pidfd = os.pidfd_open(pid)
        except (FileNotFoundError, ProcessLookupError):
            return
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        try:
            eventually(lambda: has_ended(pid), "the daemon's end")
        finally:
            try:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass
            os.close(pidfd)


@pytest.fixture
def shim(tmp_path: Path) -> Iterator[Shim]:
    # Not below tmp_path: a socket's path has 108 bytes.
    with TemporaryDirectory(prefix="ks-", dir="/tmp") as sockets:
        shim = Shim(tmp_path, Path(sockets))
        yield shim
        shim.stop()


class TestSocketPath:
    def test_is_the_hash_that_containerd_computes(self) -> None:
        # containerd, runtime/v2/shim/util_unix.go: sha256 of filepath.Join(address, namespace, id), below <run>/s.
        name = hashlib.sha256(b"/run/containerd/containerd.sock/k8s.io/pod").hexdigest()
        assert socket_path("/run/containerd/containerd.sock", "k8s.io", "pod") == f"{SOCKET_DIR}/{name}"

    def test_fits_into_an_address(self) -> None:
        assert len(socket_path("/a" * 200, "n" * 76, "i" * 76)) < 108

    @pytest.mark.parametrize("other", [("/b", "n", "i"), ("/a", "m", "i"), ("/a", "n", "j")])
    def test_differs_for_each_of_the_three(self, other: tuple[str, str, str]) -> None:
        assert socket_path(*other) != socket_path("/a", "n", "i")

    def test_goes_where_containerd_2_says(self) -> None:
        assert socket_path("/a", "n", "i", "/run/x").startswith("/run/x/")


class TestRefusals:
    """Pitfall: containerd joins standard output and error, so a refusal must be one line and a status."""

    def test_no_config(self, shim: Shim) -> None:
        (shim.bundle / "config.json").unlink()
        assert "has no config.json" in shim.refused()

    @pytest.mark.parametrize("text", ['{"annotations": "io.kubernetes."', '["io.kubernetes."]', '"io.kubernetes."'])
    def test_broken_config_of_a_pod(self, shim: Shim, text: str) -> None:
        shim.config(text)
        assert "is not a spec" in shim.refused()

    @pytest.mark.parametrize(
        "annotations",
        [["io.kubernetes.x"], "io.kubernetes.x", 1, {"io.kubernetes.cri.container-type": ["io.kubernetes."]}],
    )
    def test_annotations_of_a_wrong_type(self, shim: Shim, annotations: object) -> None:
        shim.config({"annotations": annotations, "comment": "io.kubernetes."})
        assert "annotation" in shim.refused()

    def test_config_beyond_bounds(self, shim: Shim) -> None:
        shim.config(" " * (11 << 20))
        assert "is larger than 10 MiB" in shim.refused()

    def test_standard_input_that_means_nothing(self, shim: Shim) -> None:
        assert "neither runtime options nor bootstrap parameters" in shim.refused(stdin=b"\xff\xff")

    def test_standard_input_beyond_bounds(self, shim: Shim) -> None:
        assert "standard input is larger than" in shim.refused(stdin=b"\0" * (2 << 20))

    def test_container_of_a_pod_that_is_not_there(self, shim: Shim) -> None:
        shim.config(container_of("pod"))
        assert "sandbox pod of container box is not running" in shim.refused()

    def test_sandbox_id_that_leads_elsewhere(self, shim: Shim) -> None:
        shim.config(container_of("../../etc"))
        assert "invalid annotation" in shim.refused()

    def test_id_that_is_taken(self, shim: Shim) -> None:
        ledger = claim(str(shim.state / "box@ns"))
        status, out, err = shim.start()
        assert (status, out) == (1, "")
        assert "sandbox box@ns already exists" in err
        assert (shim.state / "box@ns/ledger").exists(), "what the living sandbox holds is not touched"
        ledger.release()

    def test_socket_that_another_shim_serves(self, shim: Shim) -> None:
        with serving(shim.path("box")):
            assert "another shim serves" in shim.refused()
            assert shim.path("box").exists()


def container_of(sandbox_id: str) -> dict[str, object]:
    return {
        "annotations": {
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.sandbox-id": sandbox_id,
        }
    }


def serving(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()
    return listener


#: As containerd 2.3 writes it.
PARAMETERS = bootstrap_pb2.BootstrapParams(instance_id="box", namespace="ns").SerializeToString()
#: containerd 2.0 to 2.2, which runs `start` and is known by its program only.
UNDER_CONTAINERD_2 = "import kata.shim.start; kata.shim.start.is_containerd_2 = lambda pid: True"


class TestAnswer:
    """containerd 1.x reads a bare address, 2.x JSON; `address` is what 1.x reads when it is started again."""

    @pytest.mark.parametrize(
        ("stdin", "before"), [(PARAMETERS, ""), (b"", UNDER_CONTAINERD_2)], ids=["parameters", "program"]
    )
    def test_containerd_2_hears_of_version_3(self, shim: Shim, stdin: bytes, before: str) -> None:
        status, out, err = shim.start(stdin=stdin, before=before)
        assert (status, err) == (0, "")
        address = f"unix://{shim.path('box')}"
        assert json.loads(out) == {"version": 3, "address": address, "protocol": "ttrpc"}
        assert (shim.bundle / "address").read_text() == address

    def test_a_container_of_a_pod_too(self, shim: Shim) -> None:
        shim.config(container_of("pod"))
        with serving(shim.path("pod")):
            _, out, _ = shim.start(before=UNDER_CONTAINERD_2)
        assert json.loads(out)["address"] == f"unix://{shim.path('pod')}"

    def test_options_alone_get_the_address(self, shim: Shim) -> None:
        options = any_pb2.Any(type_url="runtimeoptions.v1.Options").SerializeToString()
        assert shim.start(stdin=options)[1] == f"unix://{shim.path('box')}"

    @pytest.mark.parametrize("directory", ["/run/x", '/run/"x"', "/run/\\x", "/run/é"])
    def test_any_directory_can_be_named(self, directory: str) -> None:
        assert json.loads(answer(directory, json=True))["address"] == directory


def _daemon_that(fails: str, where: str = "kata.shim.prelaunch.run") -> str:
    """A step of the daemon raises what the expression says."""
    module = where.rpartition(".")[0]
    return f"import {module}, kata.errors\ndef boom(*_): raise {fails}\n{where} = boom"


class TestLastWords:
    """containerd has the address when the daemon begins: what fails from then on can only be told in its log."""

    def log(self, shim: Shim, before: str) -> str:
        os.mkfifo(shim.bundle / "log")
        reader = os.open(shim.bundle / "log", os.O_RDONLY | os.O_NONBLOCK)
        status, out, err = shim.start(before=before)
        assert (status, out, err) == (0, f"unix://{shim.path('box')}", "")

        def line() -> bytes:
            try:
                return os.read(reader, 1 << 16)
            except BlockingIOError:  # open, and nothing in it yet
                return b""

        said = eventually(line, "a line in the log").decode()
        os.close(reader)
        held = (shim.state / "box", shim.path("box"))
        eventually(lambda: not any(path.exists() for path in held), "all is given back")
        assert said.count("\n") == 1
        assert "level=fatal" in said
        assert "sandbox=box" in said
        return said

    def test_of_a_host_that_lacks_something(self, shim: Shim) -> None:
        said = self.log(shim, _daemon_that('kata.errors.FailedPrecondition("no namespace", hint="be root")'))
        assert 'msg="the shim of sandbox box failed: no namespace (be root)"' in said

    def test_of_an_installation_that_is_broken(self, shim: Shim) -> None:
        said = self.log(shim, _daemon_that("ModuleNotFoundError(\"No module named 'google'\")"))
        assert "the shim of sandbox box failed: ModuleNotFoundError" in said
        assert "No module named 'google'" in said
        assert "in boom" in said, "the traceback says where"

    @pytest.mark.root
    def test_of_a_daemon_that_does_not_begin_to_serve(self, shim: Shim) -> None:
        """Its log had been set up, once."""
        said = self.log(shim, _daemon_that("OSError(28, 'No space left on device')", "kata.shim.daemon.serve"))
        assert "No space left on device" in said

    def test_a_log_that_cannot_be_opened_stops_nothing(self, shim: Shim) -> None:
        (shim.bundle / "log").mkdir()
        assert shim.start(before=_daemon_that("OSError()"))[0] == 0
        eventually(lambda: not (shim.state / "box").exists(), "all is given back")


class TestPods:
    def test_a_container_of_a_pod_gets_the_pods_address(self, shim: Shim) -> None:
        shim.config(container_of("pod"))
        with serving(shim.path("pod")):
            status, out, err = shim.start()
        assert (status, err) == (0, "")
        assert out == f"unix://{shim.path('pod')}"
        assert (shim.bundle / "address").read_text() == out, "containerd reads it after its restart"
        assert not (shim.state / "box@ns").exists(), "the pod's ledger is the only one"

    def test_loads_nothing_that_takes_time_but_json(self, shim: Shim) -> None:
        shim.config(container_of("pod"))
        with serving(shim.path("pod")):
            loaded = shim.start(report=True)[2].split()
        assert "json" in loaded, "this path decodes config.json"
        assert not {"asyncio", "google", "typing", "dataclasses", "logging", "subprocess", "socket"} & set(loaded)


class TestDaemon:
    def test_prints_the_address_and_nothing_else(self, shim: Shim) -> None:
        """Pitfall: anything else on standard output or error is taken for a part of the address."""
        status, out, err = shim.start()
        assert (status, err) == (0, "")
        assert out == f"unix://{shim.path('box')}"
        assert (shim.bundle / "address").read_text() == out
        assert int((shim.bundle / "shim.pid").read_text()) > 0

    def test_loads_nothing_that_takes_time(self, shim: Shim) -> None:
        loaded = set(shim.start(report=True)[2].split())
        own = {name for name in loaded if name == "kata" or name.startswith("kata.")}
        assert loaded - own <= ALLOWED
        assert own <= {
            "kata",
            "kata.errors",
            "kata.linux",
            "kata.linux.atomic_file",
            "kata.linux.lock",
            "kata.oci",
            "kata.oci.ids",
            "kata.runtime",
            "kata.runtime.ledger",
            "kata.runtime.ledger.journal",
            "kata.runtime.ledger.kinds",
            "kata.runtime.ledger.names",
            "kata.shim",
            "kata.shim.arguments",
            "kata.shim.bootstrap",
            "kata.shim.caller",
            "kata.shim.handover",
            "kata.shim.main",
            "kata.shim.params",
            "kata.shim.start",
        }

    def test_delete_loads_as_little(self, shim: Shim) -> None:
        loaded = set(shim.start(report=True, action="delete")[2].split())
        own = {name for name in loaded if name == "kata" or name.startswith("kata.")}
        assert loaded - own <= ALLOWED
        assert "kata.shim.delete" in own

    def test_takes_over_from_a_sandbox_that_died(self, shim: Shim) -> None:
        serving(shim.path("box")).close()
        ledger = Ledger(str(shim.state / "box@ns"))
        ledger.hold("file", str(shim.path("box")))
        ledger.close()
        status, out, _ = shim.start()
        assert (status, out) == (0, f"unix://{shim.path('box')}")

    @pytest.mark.root
    def test_deleting_the_same_id_in_another_namespace_leaves_it_alone(self, shim: Shim) -> None:
        shim.start()
        daemon = int((shim.bundle / "shim.pid").read_text())
        here = f"import kata.shim.delete; kata.shim.delete.STATE_ROOT = {str(shim.state)!r}"
        assert shim.start(action="delete", namespace="other", before=here)[0] == 0
        assert not has_ended(daemon)
        assert _is_served(str(shim.path("box")))

    @pytest.mark.root
    def test_the_same_id_in_another_namespace_is_another_sandbox(self, shim: Shim) -> None:
        ledger = claim(str(shim.state / "box@other"))
        assert shim.start()[0] == 0
        ledger.release()

    @pytest.mark.root
    def test_ends_when_nobody_ever_asks_for_a_sandbox(self, shim: Shim) -> None:
        """containerd, or `start`, may be killed when the daemon is there and before anybody knows its address."""
        shim.start(before="import kata.shim.daemon; kata.shim.daemon._FIRST_REQUEST_TIMEOUT_S = 0.1")
        held = (shim.state / "box@ns", shim.path("box"))
        eventually(lambda: not any(path.exists() for path in held), "all is given back")

    @pytest.mark.root
    async def test_a_signal_ends_it_and_it_gives_everything_back(self, shim: Shim) -> None:
        shim.start()
        async with asyncio.timeout(20):
            client = await ttrpc.Client.connect_unix(str(shim.path("box")))
            task = Stub(client, task_v2_pb2.DESCRIPTOR.services_by_name["Task"])
            answer = await task.Connect(task_v2_pb2.ConnectRequest(id="box"))
            await client.close()
        assert answer.shim_pid == int((shim.bundle / "shim.pid").read_text())
        shim.stop()
        assert not (shim.state / "box@ns").exists()
        assert not shim.path("box").exists()
