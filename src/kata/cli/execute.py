"""Run a command in a running sandbox, whoever started it: over the agent's socket, with this process's streams.

    what the sandbox tells of itself → container, process (pure) → agent: exec, streams, exit status

The sandbox's own books do not know the command. It is bound to this process's connection: whatever ends this process,
even SIGKILL, ends the command.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kata.cli.agent_files import AgentFiles
from kata.cli.attached import Attached
from kata.cli.render import command_exit_code, report, signalled, unwritten
from kata.cli.root import require_root
from kata.cli.running import RunningSandbox
from kata.cli.signals import ENDING, Interrupted, Signals, ignore
from kata.errors import FailedPrecondition, InvalidArgument, KataError, NotFound, Unavailable
from kata.loop.off import off_loop
from kata.oci import convert, edit
from kata.oci.default import DEFAULT_PATH
from kata.oci.spec import Capabilities
from kata.oci.spec import Process as ProcessSpec
from kata.protocols import bound
from kata.runtime.agent_client.client import AgentClient
from kata.runtime.images.user import User, resolve_user
from kata.runtime.sandbox.process import KILLED, Process
from kata.runtime.sandbox.states import State
from kata.ttrpc import Client

#: Seconds for the agent to answer a health check, when a command has been killed.
_CHECK_TIMEOUT_S = 5.0
#: What the agent calls the guest itself (`kata.agent.guest_shell`).
GUEST = ""
_SHELL = "/bin/sh"
#: Bytes of a container's /etc/passwd that are read.
_MAX_USERS = 4 << 20


@dataclass(frozen=True)
class ExecRequest:
    """What the user asked for.

    Attributes:
        sandbox: id, or name of a state directory.
        container: id or its beginning; None for the only one.
        guest: in the guest itself.
        command: program and arguments; empty for a shell.
        env: variables beside those of the container's own process; the last of a name wins.
        workdir: None for the container's.
        user: None for the container's.
        interactive: whether standard input is forwarded.
        tty: whether the command has a terminal.
    """

    sandbox: str
    container: str | None = None
    guest: bool = False
    command: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    workdir: str | None = None
    user: str | None = None
    interactive: bool = False
    tty: bool = False

    @property
    def names_container(self) -> bool:
        """Whether it says which container."""
        return self.container is not None or self.sandbox.count("/") == 2


def plan_process(base: ProcessSpec, wanted: ExecRequest, user: User | None) -> ProcessSpec:
    """The process: what was asked for, on top of the container's own (OCI runtime-spec, config.md, "Process").

    Args:
        base: the container's own.
        wanted: what was asked for.
        user: who runs it; None for the container's user.
    """
    process = base.copy()
    env = dict(text.partition("=")[::2] for text in base.get("env") or [DEFAULT_PATH])
    if wanted.tty:
        env.setdefault("TERM", os.environ.get("TERM", "xterm"))
    env.update(wanted.env)
    process["args"] = list(wanted.command) or [_SHELL]
    process["env"] = [f"{name}={value}" for name, value in env.items()]
    process["cwd"] = wanted.workdir or base.get("cwd") or "/"
    process["terminal"] = wanted.tty
    process.pop("consoleSize", None)
    if user is not None:
        process["user"] = {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.additional_gids)}
        if "capabilities" in base and user.uid != (base.get("user") or {}).get("uid", 0):
            process["capabilities"] = _capabilities_of(user, base["capabilities"])
    return process


def _capabilities_of(user: User, held: Capabilities) -> Capabilities:
    """Root has what the container may have at most, any other user nothing, as after su(1)."""
    most = list(held.get("bounding") or ())
    own = most if user.uid == 0 else []
    return {"bounding": most, "effective": list(own), "permitted": list(own)}


def look_up_user(text: str, found: Mapping[str, bytes]) -> User:
    """The user that is named, by the content of the files of /etc; see `resolve_user`."""
    with tempfile.TemporaryDirectory(prefix="kata-users-") as root:
        etc = Path(root, "etc")
        etc.mkdir()
        for name, content in found.items():
            (etc / name).write_bytes(content)
        return resolve_user(Path(root), text)


def execute(wanted: ExecRequest) -> int:
    """Run the command and return its exit status. This process's signal handlers are replaced.

    Raises:
        PermissionDenied: this is not root.
        InvalidArgument: it contradicts itself, or is ambiguous.
        NotFound: no such sandbox or container.
        KataError: any other reason why it could not be run.
    """
    require_root("kata exec")
    if wanted.interactive and wanted.tty and not os.isatty(0):
        raise InvalidArgument("standard input is not a terminal", hint="omit -t or -i")
    if wanted.guest and (wanted.names_container or wanted.user is not None):
        raise InvalidArgument("--guest contradicts a container and --user")
    signals = Signals()
    try:
        return asyncio.run(_Execution(wanted, signals).run())
    except Interrupted as interruption:
        return signalled(interruption.number)


class _Execution:
    def __init__(self, wanted: ExecRequest, signals: Signals) -> None:
        self._wanted = wanted
        self._sandbox = RunningSandbox(wanted.sandbox)
        self._signals = signals
        self._attached: Attached | None = None
        self._main: asyncio.Task[Any] | None = None
        self._cut = 0

    async def run(self) -> int:
        """Run it.

        Raises:
            KataError: it could not be run, or its sandbox has ended.
            CancelledError: the task was cancelled, and not by a signal.
        """
        self._main = asyncio.current_task()
        loop = asyncio.get_running_loop()
        self._signals.deliver_in(loop, self._signalled)
        try:
            wanted = self._wanted
            container = GUEST if wanted.guest else await self._sandbox.container(wanted.container)
            async with await self._sandbox.agent() as client:
                return await self._run(container, client)
        except asyncio.CancelledError:
            if self._cut:
                return signalled(self._cut)
            raise
        finally:
            self._signals.deliver_to(ignore)

    async def _run(self, container: str, client: Client) -> int:
        spec = plan_process(await self._base(container), self._wanted, await self._user(container, client))
        agent = AgentClient(client)
        exec_id = f"kata-exec-{secrets.token_hex(8)}"
        attached = Attached(
            interactive=self._wanted.interactive,
            tty=self._wanted.tty,
            hung_up=lambda: self._signalled(signal.SIGHUP),
        )
        process = Process(agent, container, exec_id, attached.stdio)
        try:
            message = convert.process_to_proto(edit.process_for_guest(spec))
            try:
                await agent.exec_process(container, exec_id, message, {bound.KEY: bound.CONNECTION})
            except KataError as error:
                if container == GUEST and isinstance(error, FailedPrecondition):
                    error.hint = "set debug_console_enabled = true in the configuration, and start the sandbox again"
                report(error)
                return command_exit_code(error)
            process.become(State.CREATED)
            await attached.attach(process)
            self._attached = attached
            process.follow()
            status = await attached.wait()
            if attached.output_error is not None:
                return unwritten(attached.output_error)
            if status == KILLED:
                await self._require_alive(agent)
            return status
        finally:
            self._attached = None
            await attached.close()
            await process.close()

    async def _base(self, container: str) -> ProcessSpec:
        if container == GUEST:
            return {"env": [DEFAULT_PATH, "HOME=/root"], "cwd": "/"}
        base: ProcessSpec = await self._sandbox.ask("/process", container=container)
        return base

    async def _user(self, container: str, client: Client) -> User | None:
        """Look up the user, by name in the container's own files."""
        if self._wanted.user is None:
            return None
        found: dict[str, bytes] = {}
        user, _, group = self._wanted.user.partition(":")
        for name in () if user.isdecimal() and group.isdecimal() else ("passwd", "group"):
            with contextlib.suppress(NotFound):
                found[name] = await AgentFiles(client).read(container, f"/etc/{name}", _MAX_USERS)
        return await off_loop(look_up_user, self._wanted.user, found)

    async def _require_alive(self, agent: AgentClient) -> None:
        """A command that was killed may have been so with its VM.

        Raises:
            Unavailable: it was.
        """
        try:
            await agent.check(_CHECK_TIMEOUT_S)
        except KataError as error:
            raise Unavailable(
                f"sandbox {self._sandbox.name} ended while the command was running",
                hint="`kata inspect` or the shim's log says why",
            ) from error

    def _signalled(self, number: int) -> None:
        if self._attached is not None:
            self._attached.signalled(number)
        elif number in ENDING and self._main is not None and not self._cut:
            self._cut = number
            self._main.cancel()
