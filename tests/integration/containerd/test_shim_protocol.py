"""The shim spoken to directly: nonsense, wrong order, pods, and what newer containerds say."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import struct
from pathlib import Path

import pytest
from google.protobuf import any_pb2

from kata import ttrpc
from kata.protocols.containerd import (
    bootstrap_pb2,
    runtimeoptions_pb2,
    task_v2_pb2,
    task_v3_pb2,
    types_pb2,
)
from kata.runtime.ledger.processes import processes_of
from kata.shim import daemon
from kata.ttrpc import Code, StatusError
from kata.ttrpc.typed import Stub
from kata.version import VERSION
from tests.support.leaks import TEST_PREFIX
from tests.support.rawshim import RawShim
from tests.support.waiting import eventually_async, has_ended

pytestmark = [pytest.mark.containerd, pytest.mark.usefixtures("nothing_left_by_this")]

#: A VM that boots, which takes seconds.
COLD = "[factory]\nenable_template = false\n"
PROCESS_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Process"


def options(body: str) -> bytes:
    """Runtime options as containerd passes them to `start`, with a whole configuration in them."""
    return any_pb2.Any(
        type_url="runtimeoptions.v1.Options",
        value=runtimeoptions_pb2.Options(type_url="x", config_body=body.encode()).SerializeToString(),
    ).SerializeToString()


async def refused(call: object, code: Code, *said: str) -> None:
    with pytest.raises(StatusError) as caught:
        await call  # type: ignore[misc]
    assert caught.value.code == code, caught.value.message
    for text in said:
        assert text in caught.value.message
    assert "\n" not in caught.value.message
    assert "Traceback" not in caught.value.message


async def ended(raw: RawShim, container_id: str) -> None:
    """Wait for the end of the daemon."""
    pid = raw.pid(container_id)
    await eventually_async(lambda: has_ended(pid), "the daemon's end")


class TestWithoutAVm:
    """What is refused before anything boots."""

    async def test_info(self, raw: RawShim) -> None:
        chosen = options("[runtime]\ndisable_guest_seccomp = true\n")
        done = raw.run("-info", stdin=chosen)
        assert (done.returncode, done.stderr) == (0, b"")
        answer = types_pb2.RuntimeInfo.FromString(done.stdout)
        assert (answer.name, answer.version.version) == ("io.containerd.kata.v2", VERSION)
        assert answer.options.SerializeToString() == chosen
        assert json.loads(answer.features.value)["linux"]["seccomp"] == {"enabled": False}

    async def test_nothing_inherited_stays_open(self, raw: RawShim) -> None:
        """Pitfall: containerd leaks descriptors, and waits until nobody has its pipe open any more."""
        reading, writing = os.pipe()
        os.set_inheritable(writing, True)
        container_id = raw.bundle()
        try:
            process = await asyncio.create_subprocess_exec(
                *(str(raw.directory / "bin/containerd-shim-kata-v2"), "-namespace", "raw", "-address", raw.address),
                *("-id", container_id, "start"),
                cwd=raw.path(container_id),
                env={"PATH": "/usr/bin:/bin"},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                pass_fds=(writing,),
            )
        finally:
            os.close(writing)
        async with asyncio.timeout(60):
            said, _ = await process.communicate()
            assert said.startswith(b"unix:///")
            await asyncio.to_thread(os.read, reading, 1)  # the end, once the daemon has closed its copy
        os.close(reading)

    async def test_without_the_privilege_to_be_spared(self) -> None:
        """Pitfall: a negative oom_score_adj needs CAP_SYS_RESOURCE, which a host may not give."""
        less = ("setpriv", "--bounding-set=-sys_resource", "--inh-caps=-sys_resource", "--")
        async with RawShim(TEST_PREFIX, wrapper=less) as raw:
            container_id = raw.bundle()
            task = await raw.task(container_id)
            await task.Connect(task_v2_pb2.ConnectRequest(id=container_id), timeout=10)

    async def test_questions_before_create(self, raw: RawShim) -> None:
        container_id = raw.bundle()
        task = await raw.task(container_id)
        connected = await task.Connect(task_v2_pb2.ConnectRequest(id=container_id))
        assert connected.shim_pid == raw.pid(container_id)
        for call in (
            task.State(task_v2_pb2.StateRequest(id=container_id)),
            task.Start(task_v2_pb2.StartRequest(id=container_id)),
            task.Kill(task_v2_pb2.KillRequest(id=container_id, signal=9)),
            task.Delete(task_v2_pb2.DeleteRequest(id=container_id)),
            task.Wait(task_v2_pb2.WaitRequest(id=container_id)),
            task.Pids(task_v2_pb2.PidsRequest(id=container_id)),
            task.Stats(task_v2_pb2.StatsRequest(id=container_id)),
            task.Update(task_v2_pb2.UpdateTaskRequest(id=container_id)),
            task.ResizePty(task_v2_pb2.ResizePtyRequest(id=container_id)),
            task.CloseIO(task_v2_pb2.CloseIORequest(id=container_id)),
            task.Pause(task_v2_pb2.PauseRequest(id=container_id)),
            task.Resume(task_v2_pb2.ResumeRequest(id=container_id)),
            task.Exec(task_v2_pb2.ExecProcessRequest(id=container_id, exec_id="e")),
        ):
            await refused(call, Code.NOT_FOUND, f"container {container_id} does not exist")
        await refused(task.Checkpoint(task_v2_pb2.CheckpointTaskRequest(id="x")), Code.UNIMPLEMENTED)
        await task.Shutdown(task_v2_pb2.ShutdownRequest(id=container_id))
        await ended(raw, container_id)
        assert not raw.state(container_id).exists()

    async def test_unknown_methods_and_services(self, raw: RawShim) -> None:
        container_id = raw.bundle()
        client = await ttrpc.Client.connect_unix(raw.start(container_id))
        for service, method in (("containerd.task.v2.Task", "Frobnicate"), ("no.such.Service", "Create"), ("", "")):
            await refused(client.call(service, method, b"", timeout=5), Code.UNIMPLEMENTED)
        await client.close()

    @pytest.mark.parametrize(
        "data",
        [
            b"GET / HTTP/1.1\r\n\r\n",
            struct.pack(">IIBB", 0, 1, 9, 0),
            struct.pack(">IIBB", 0, 2, 1, 0),
            struct.pack(">IIBB", 5, 1, 1, 0) + b"\xff\xff\xff\xff\xff",
            struct.pack(">IIBB", 0xFFFFFFFF, 1, 1, 0) + b"x" * 100_000,
            struct.pack(">IIBB", 100, 1, 1, 0) + b"cut off",
            b"\0" * 10_000,
        ],
        ids=["http", "kind", "stream", "envelope", "oversized", "cut", "zeros"],
    )
    async def test_malformed_frames_hurt_nobody_else(self, raw: RawShim, data: bytes) -> None:
        container_id = raw.bundle()
        path = raw.start(container_id)
        task = await raw.connect(path)
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(data)
        writer.write_eof()
        async with asyncio.timeout(60):
            await reader.read()
        writer.close()
        await writer.wait_closed()
        connected = await task.Connect(task_v2_pb2.ConnectRequest(id=container_id), timeout=5)
        assert connected.shim_pid == raw.pid(container_id)

    async def test_malformed_messages(self, raw: RawShim) -> None:
        container_id = raw.bundle()
        client = await ttrpc.Client.connect_unix(raw.start(container_id))
        for method in ("Create", "Start", "Kill", "Exec"):
            await refused(
                client.call("containerd.task.v2.Task", method, b"\xff\xff", timeout=5),
                Code.INVALID_ARGUMENT,
                "malformed",
            )
        await client.close()

    @pytest.mark.parametrize(
        ("spec", "code", "said"),
        [
            (..., Code.NOT_FOUND, "config.json"),
            ("{", Code.INVALID_ARGUMENT, "config.json"),
            ("[]", Code.INVALID_ARGUMENT, "config.json"),
            ("\xff" * 10, Code.INVALID_ARGUMENT, "config.json"),
            ({}, Code.INVALID_ARGUMENT, ""),
            ({"ociVersion": "1.0.2", "process": {"args": []}, "root": {"path": "r"}}, Code.INVALID_ARGUMENT, ""),
            (
                {"ociVersion": "9.0.0", "process": {"args": ["x"], "cwd": "/"}, "root": {"path": "r"}},
                Code.INVALID_ARGUMENT,
                "",
            ),
            ("[" * 100_000, Code.INVALID_ARGUMENT, "config.json"),
        ],
        ids=["missing", "cut", "list", "binary", "empty", "no-args", "version", "nested"],
    )
    async def test_broken_bundle(self, raw: RawShim, spec: object, code: Code, said: str) -> None:
        container_id = raw.bundle()
        config = raw.path(container_id) / "config.json"
        task = await raw.task(container_id)
        # Broken after `start`, which looks at no more of it than the pod's annotations.
        if spec is ...:
            config.unlink()
        else:
            config.write_text(spec if isinstance(spec, str) else json.dumps(spec), encoding="utf-8")
        await refused(task.Create(raw.create_request(container_id), timeout=10), code, said)

    @pytest.mark.parametrize(
        ("configuration_body", "code", "said"),
        [
            ("[hypervisor.qemu]\ndefault_memory = 12\n", Code.INVALID_ARGUMENT, "default_memory = 12: expected"),
            ("[hypervisor.qemu\n", Code.INVALID_ARGUMENT, "config body: line 1"),
            ('[hypervisor.qemu]\nkernel = "/nonexistent/vmlinux"\n', Code.NOT_FOUND, "/nonexistent/vmlinux"),
            ('[hypervisor.qemu]\nimage = "/nonexistent/root"\n', Code.NOT_FOUND, "guest image: /nonexistent/root"),
            ('[hypervisor.qemu]\ninitrd = "/dev/null"\n', Code.NOT_FOUND, "/dev/null is not a readable file"),
            ('[hypervisor.qemu]\npath = "/nonexistent/qemu"\n', Code.NOT_FOUND, "/nonexistent/qemu"),
            ('[hypervisor.qemu]\npath = "/bin/false"\n', Code.INTERNAL, "qemu"),
            ("[hypervisor.qemu]\nrequire_kvm = true\n", Code.FAILED_PRECONDITION, "kvm"),
        ],
        ids=["memory", "toml", "kernel", "image", "initrd", "qemu", "not-qemu", "kvm"],
    )
    async def test_configuration_that_cannot_work(
        self, raw: RawShim, configuration_body: str, code: Code, said: str
    ) -> None:
        container_id = raw.bundle()
        if "require_kvm" in configuration_body and {"vmx", "svm"} & set(Path("/proc/cpuinfo").read_text().split()):
            pytest.skip("needs a host without hardware virtualization")
        task = await raw.connect(raw.start(container_id, options(configuration_body)))
        await refused(task.Create(raw.create_request(container_id), timeout=20), code, said)

    @pytest.mark.parametrize(
        "packed",
        [
            any_pb2.Any(type_url="runtimeoptions.v1.Options", value=b"\xff\xff"),
            any_pb2.Any(type_url="runtimeoptions.v1.Options", value=b"\x12\x0b/etc/absent"),
        ],
        ids=["malformed", "no-file"],
    )
    async def test_options_that_say_nothing_usable(self, raw: RawShim, packed: any_pb2.Any) -> None:
        container_id = raw.bundle()
        task = await raw.task(container_id)
        with pytest.raises(StatusError) as caught:
            await task.Create(raw.create_request(container_id, options=packed), timeout=10)
        assert caught.value.code in (Code.INVALID_ARGUMENT, Code.NOT_FOUND), caught.value.message

    @pytest.mark.parametrize(
        ("streams", "code", "said"),
        [
            ({"stdout": "/nonexistent/fifo"}, Code.NOT_FOUND, "stdio /nonexistent/fifo does not exist"),
            ({"stdout": "/etc/passwd"}, Code.INVALID_ARGUMENT, "stdio /etc/passwd is not a FIFO"),
            ({"stdin": "/dev"}, Code.INVALID_ARGUMENT, "stdio /dev is not a FIFO"),
            ({"stdout": "http://example.org/"}, Code.INVALID_ARGUMENT, "scheme 'http'"),
            ({"stdout": "binary:///nonexistent/logger"}, Code.NOT_FOUND, "logging binary /nonexistent/logger"),
        ],
        ids=["missing", "file", "directory", "scheme", "binary"],
    )
    async def test_streams_that_are_not_there(
        self, raw: RawShim, streams: dict[str, str], code: Code, said: str
    ) -> None:
        container_id = raw.bundle()
        task = await raw.task(container_id)
        await refused(task.Create(raw.create_request(container_id, **streams), timeout=10), code, said)

    async def test_a_rootfs_mount_below_another(self, raw: RawShim) -> None:
        """Of containerd 2. Mounted at the root, it would hide everything else."""
        container_id = raw.bundle()
        task = await raw.task(container_id)
        below = types_pb2.Mount(type="bind", source="/etc", target="etc", options=["bind"])
        await refused(
            task.Create(raw.create_request(container_id, rootfs=[below]), timeout=10), Code.UNIMPLEMENTED, "target"
        )

    async def test_the_second_start_of_an_id(self, raw: RawShim) -> None:
        container_id = raw.bundle()
        raw.start(container_id)
        pid = raw.pid(container_id)
        again = raw.binary(container_id, "start")
        assert again.returncode == 1
        assert b"already exists" in again.stderr
        assert raw.pid(container_id) == pid
        assert Path(f"/proc/{pid}").exists()


class TestOneContainer:
    """One VM for all that can be asked of a container by hand."""

    async def test_a_life_by_hand(self, raw: RawShim) -> None:
        container_id = raw.bundle("sleep", "600")
        task: Stub = await raw.task(container_id)
        created = await task.Create(raw.create_request(container_id), timeout=60)

        # The same id again, and execs before their time.
        await refused(task.Create(raw.create_request(container_id)), Code.ALREADY_EXISTS, container_id)
        await refused(task.Exec(exec_request(container_id, "e", "not JSON")), Code.INVALID_ARGUMENT, "not JSON")
        await refused(task.Exec(exec_request(container_id, "e", "[]")), Code.INVALID_ARGUMENT, "expected an object")
        await refused(task.Exec(exec_request(container_id, "e", "{}")), Code.INVALID_ARGUMENT)
        await refused(task.Exec(exec_request(container_id, "../e", raw.exec_spec("true"))), Code.INVALID_ARGUMENT)
        await refused(task.Start(task_v2_pb2.StartRequest(id=container_id, exec_id="e")), Code.NOT_FOUND, "no exec e")

        # Created is not running; version 3 of the service tells the same.
        state = await task.State(task_v2_pb2.StateRequest(id=container_id))
        assert (state.id, state.pid, state.status) == (container_id, created.pid, 1)
        newer = await raw.connect((raw.path(container_id) / "address").read_text().removeprefix("unix://"), task_v3_pb2)
        assert (await newer.State(task_v3_pb2.StateRequest(id=container_id))).status == 1
        await refused(task.Pause(task_v2_pb2.PauseRequest(id=container_id)), Code.FAILED_PRECONDITION, "created")

        await newer.Start(task_v3_pb2.StartRequest(id=container_id), timeout=30)
        await refused(task.Start(task_v2_pb2.StartRequest(id=container_id)), Code.FAILED_PRECONDITION, "running")
        await refused(task.Delete(task_v2_pb2.DeleteRequest(id=container_id)), Code.FAILED_PRECONDITION, "running")
        await refused(
            task.ResizePty(task_v2_pb2.ResizePtyRequest(id=container_id, width=80, height=25)),
            Code.INVALID_ARGUMENT,
            "no terminal",
        )
        await refused(
            task.Update(task_v2_pb2.UpdateTaskRequest(id=container_id, resources=any_pb2.Any(value=b"{"))),
            Code.INVALID_ARGUMENT,
        )
        pids = await task.Pids(task_v2_pb2.PidsRequest(id=container_id))
        assert [process.pid for process in pids.processes] == [created.pid]

        # Shutdown while a container is there is not meant.
        await task.Shutdown(task_v2_pb2.ShutdownRequest(id=container_id))
        assert (await task.State(task_v2_pb2.StateRequest(id=container_id))).status == 2

        # Two execs of one id; one that is never started is deleted; one that ends is waited for twice.
        await task.Exec(exec_request(container_id, "e", raw.exec_spec("sh", "-c", "exit 4")))
        await refused(task.Exec(exec_request(container_id, "e", raw.exec_spec("true"))), Code.ALREADY_EXISTS, "exec e")
        await task.Exec(exec_request(container_id, "never", raw.exec_spec("true")))
        await task.Delete(task_v2_pb2.DeleteRequest(id=container_id, exec_id="never"))
        await task.Start(task_v2_pb2.StartRequest(id=container_id, exec_id="e"), timeout=30)
        wait = task_v2_pb2.WaitRequest(id=container_id, exec_id="e")
        first, second = await asyncio.gather(task.Wait(wait, timeout=30), newer.Wait(wait_v3(wait), timeout=30))
        assert first.exit_status == second.exit_status == 4
        await refused(
            task.Kill(task_v2_pb2.KillRequest(id=container_id, exec_id="e", signal=9)), Code.NOT_FOUND, "already ended"
        )
        gone = await task.Delete(task_v2_pb2.DeleteRequest(id=container_id, exec_id="e"))
        assert (gone.exit_status, gone.exited_at) == (4, first.exited_at)

        # Its end: Kill after exit MUST be NotFound, or CRI retries for ever.
        waiting = asyncio.create_task(task.Wait(task_v2_pb2.WaitRequest(id=container_id), timeout=30))
        await task.Kill(task_v2_pb2.KillRequest(id=container_id, signal=9, all=True))
        assert (await waiting).exit_status == 137
        await refused(task.Kill(task_v2_pb2.KillRequest(id=container_id, signal=9)), Code.NOT_FOUND, "already ended")
        assert (await task.State(task_v2_pb2.StateRequest(id=container_id))).status == 3
        # Two Deletes at once, as of an engine that asks again.
        again = asyncio.create_task(newer.Delete(task_v3_pb2.DeleteRequest(id=container_id)))
        deleted = await task.Delete(task_v2_pb2.DeleteRequest(id=container_id))
        assert (deleted.exit_status, deleted.pid) == (137, created.pid)
        await refused(again, Code.NOT_FOUND, container_id)
        await refused(task.State(task_v2_pb2.StateRequest(id=container_id)), Code.NOT_FOUND)
        await task.Shutdown(task_v2_pb2.ShutdownRequest(id=container_id))
        await ended(raw, container_id)
        assert not raw.state(container_id).exists()

    async def test_killed_before_its_start(self, raw: RawShim) -> None:
        container_id = raw.bundle()
        task = await raw.task(container_id)
        await task.Create(raw.create_request(container_id), timeout=60)
        await task.Kill(task_v2_pb2.KillRequest(id=container_id, signal=9))
        assert (await task.Wait(task_v2_pb2.WaitRequest(id=container_id), timeout=10)).exit_status == 137
        await refused(task.Start(task_v2_pb2.StartRequest(id=container_id)), Code.FAILED_PRECONDITION, "stopped")
        await task.Delete(task_v2_pb2.DeleteRequest(id=container_id))
        await task.Shutdown(task_v2_pb2.ShutdownRequest(id=container_id))
        await ended(raw, container_id)

    async def test_an_agent_that_never_answers(self, raw: RawShim) -> None:
        container_id = raw.bundle()
        body = (
            '[hypervisor.qemu]\nkernel_params = "rdinit=/nonexistent panic=0"\n[agent.kata]\ndial_timeout = 4\n' + COLD
        )
        task = await raw.connect(raw.start(container_id, options(body)))
        await refused(
            task.Create(raw.create_request(container_id), timeout=30),
            Code.INTERNAL,
            "phase 'agent'",
            "did not answer within 4 s",
        )

    async def test_a_deadline_of_the_callers(self, raw: RawShim) -> None:
        """Pitfall: crictl's deadline of two seconds travels into Create; what it interrupts must not stay."""
        container_id = raw.bundle()
        task = await raw.connect(raw.start(container_id, options(COLD)))
        await refused(task.Create(raw.create_request(container_id), timeout=1), Code.DEADLINE_EXCEEDED)
        done = await asyncio.to_thread(raw.binary, container_id, "delete")
        assert task_v2_pb2.DeleteResponse.FromString(done.stdout).exit_status == 137

    @pytest.mark.parametrize("by_signal", [True, False])
    async def test_the_end_of_a_sandbox_that_boots(self, raw: RawShim, by_signal: bool) -> None:
        """It does not wait for a guest that may take its time: this one never answers."""
        container_id = raw.bundle()
        body = '[hypervisor.qemu]\nkernel_params = "rdinit=/nonexistent panic=0"\n' + COLD
        task = await raw.connect(raw.start(container_id, options(body)))
        creating = asyncio.ensure_future(task.Create(raw.create_request(container_id), timeout=240))
        directory = str(raw.state(container_id))
        await eventually_async(lambda: list(processes_of(directory)), "the VM's process")
        if by_signal:
            raw.kill(container_id, signal.SIGTERM)
        else:
            await task.Shutdown(task_v2_pb2.ShutdownRequest(id=container_id), timeout=30)
        await refused(creating, Code.UNAVAILABLE, "was shut down while it started")
        await ended(raw, container_id)
        assert not Path(directory).exists()


class TestPod:
    async def test_containers_of_a_pod_share_a_vm(self, raw: RawShim) -> None:
        sandbox_id = raw.bundle(annotations={"io.kubernetes.cri.container-type": "sandbox"})
        member = {
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.sandbox-id": sandbox_id,
        }
        first, second = (raw.bundle("sleep", length, annotations=member) for length in ("600", "601"))

        # A container without its pod has nowhere to go.
        assert b"is not running" in raw.binary(first, "start").stderr

        address = raw.start(sandbox_id)
        task = await raw.connect(address)
        pod = await task.Create(raw.create_request(sandbox_id), timeout=60)
        await task.Start(task_v2_pb2.StartRequest(id=sandbox_id), timeout=30)
        pids = {sandbox_id: pod.pid}
        for container_id in (first, second):
            assert raw.start(container_id) == address, "`start` finds the pod's shim"
            created = await task.Create(raw.create_request(container_id), timeout=60)
            pids[container_id] = created.pid
            await task.Start(task_v2_pb2.StartRequest(id=container_id), timeout=30)
        assert len(set(pids.values())) == 3, "containers can be told apart by them"
        vmm = Path(f"/proc/{raw.vmm(sandbox_id)}/ns/net")
        assert {os.readlink(f"/proc/{pid}/ns/net") for pid in pids.values()} == {os.readlink(vmm)}
        assert await self._first_process(raw, task, member, pids[second]) == b"sleep\x00601\x00"

        # The end of one is not the end of the others; `delete` of one leaves the pod alone.
        waiting = asyncio.create_task(task.Wait(task_v2_pb2.WaitRequest(id=first), timeout=30))
        await task.Kill(task_v2_pb2.KillRequest(id=first, signal=9))
        await waiting
        assert not has_ended(pids[first])
        await task.Delete(task_v2_pb2.DeleteRequest(id=first))
        assert has_ended(pids[first])
        await task.Shutdown(task_v2_pb2.ShutdownRequest(id=first))
        raw.binary(first, "delete")
        for container_id in (sandbox_id, second):
            assert (await task.State(task_v2_pb2.StateRequest(id=container_id))).status == 2

        # Whoever kills what he is told is the container's process means the container.
        os.kill(pids[second], signal.SIGKILL)
        assert (await task.Wait(task_v2_pb2.WaitRequest(id=second), timeout=30)).exit_status == 137
        await task.Kill(task_v2_pb2.KillRequest(id=sandbox_id, signal=9))
        for container_id in (second, sandbox_id):
            await task.Wait(task_v2_pb2.WaitRequest(id=container_id), timeout=30)
            await task.Delete(task_v2_pb2.DeleteRequest(id=container_id))
        await task.Shutdown(task_v2_pb2.ShutdownRequest(id=sandbox_id))
        await ended(raw, sandbox_id)

    @staticmethod
    async def _first_process(raw: RawShim, task: Stub, annotations: dict[str, str], pid: int) -> bytes:
        """What process 1 is for a container that joins the pid namespace of `pid`, as `kubectl debug --target` does."""
        container_id = raw.bundle("cat", "/proc/1/cmdline", annotations=annotations)
        config = raw.path(container_id) / "config.json"
        spec = json.loads(config.read_text())
        kept = [entry for entry in spec["linux"]["namespaces"] if entry["type"] != "pid"]
        spec["linux"]["namespaces"] = [*kept, {"type": "pid", "path": f"/proc/{pid}/ns/pid"}]
        config.write_text(json.dumps(spec))
        output = raw.path(container_id) / "output"
        await task.Create(raw.create_request(container_id, stdout=f"file://{output}"), timeout=60)
        await task.Start(task_v2_pb2.StartRequest(id=container_id), timeout=30)
        await task.Wait(task_v2_pb2.WaitRequest(id=container_id), timeout=30)
        await task.Delete(task_v2_pb2.DeleteRequest(id=container_id))
        return output.read_bytes()

    async def test_the_parameters_of_containerd_2(self, raw: RawShim) -> None:
        container_id = raw.bundle()
        sockets = raw.directory / "s"
        parameters = bootstrap_pb2.BootstrapParams(
            instance_id=container_id, namespace="raw", containerd_grpc_address=raw.address, socket_dir=str(sockets)
        )
        extension = parameters.extensions.add().value
        extension.ParseFromString(options("[hypervisor.qemu]\ndefault_memory = 1\n"))
        path = raw.start(container_id, parameters.SerializeToString())
        assert Path(path).parent == sockets
        task = await raw.connect(path, task_v3_pb2)
        request = task_v3_pb2.CreateTaskRequest(id=container_id, bundle=str(raw.path(container_id)))
        # That these options are heard is seen by their being refused.
        await refused(task.Create(request, timeout=10), Code.INVALID_ARGUMENT, "default_memory = 1: expected")


def exec_request(container_id: str, exec_id: str, spec: object) -> task_v2_pb2.ExecProcessRequest:
    text = spec if isinstance(spec, str) else json.dumps(spec)
    return task_v2_pb2.ExecProcessRequest(
        id=container_id, exec_id=exec_id, spec=any_pb2.Any(type_url=PROCESS_TYPE, value=text.encode())
    )


def wait_v3(request: task_v2_pb2.WaitRequest) -> task_v3_pb2.WaitRequest:
    return task_v3_pb2.WaitRequest.FromString(request.SerializeToString())


class TestForgotten:
    """A containerd that died half-way and does not come back to what it began: the shim ends by itself."""

    async def test_after_the_deletion_of_the_only_container(self, raw: RawShim) -> None:
        container_id = raw.bundle("true")
        task = await raw.task(container_id)
        await task.Create(raw.create_request(container_id), timeout=60)
        await task.Start(task_v2_pb2.StartRequest(id=container_id))
        await task.Wait(task_v2_pb2.WaitRequest(id=container_id))
        await task.Delete(task_v2_pb2.DeleteRequest(id=container_id))
        await ended(raw, container_id)

    async def test_a_bundle_that_was_removed_while_nobody_listens(self, raw: RawShim) -> None:
        container_id = raw.bundle()
        client = await ttrpc.Client.connect_unix(raw.start(container_id))
        pid = raw.pid(container_id)
        task = Stub(client, task_v2_pb2.DESCRIPTOR.services_by_name["Task"])
        await task.Create(raw.create_request(container_id), timeout=60)
        await client.close()
        shutil.rmtree(raw.path(container_id))
        await eventually_async(lambda: has_ended(pid), "the daemon's end")
        raw.path(container_id).mkdir()  # where its `delete` is run

    async def test_a_container_whose_manager_is_away_lives_on(self, raw: RawShim) -> None:
        """As while containerd is upgraded."""
        container_id = raw.bundle()
        path = await asyncio.to_thread(raw.start, container_id)
        client = await ttrpc.Client.connect_unix(path)
        task = Stub(client, task_v2_pb2.DESCRIPTOR.services_by_name["Task"])
        await task.Create(raw.create_request(container_id), timeout=60)
        await client.close()
        await asyncio.sleep(3 * daemon._CHECK_INTERVAL_S)
        again = await raw.connect(path)
        state = await again.State(task_v2_pb2.StateRequest(id=container_id), timeout=10)
        assert state.id == container_id
