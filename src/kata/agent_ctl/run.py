"""`kata-agent-ctl connect`: everything is read and checked, then the guest is booted if need be, then the steps run."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kata.agent_ctl import address, duration
from kata.agent_ctl.automatic import Values
from kata.agent_ctl.messages import PROGRAM, Log, warn
from kata.agent_ctl.output import HostOutput
from kata.agent_ctl.script import Step, read_all
from kata.agent_ctl.session import ForeignLink, Link, Options, Session
from kata.cli import terminal
from kata.cli.management import call
from kata.cli.render import ExitCode, report, signalled
from kata.cli.root import require_root
from kata.cli.signals import ENDING, Interrupted, Signals, ignore
from kata.errors import InvalidArgument, KataError, NotFound, PermissionDenied
from kata.oci.spec import load_bundle
from kata.runtime.config.loader import load
from kata.runtime.launch.mount_namespace import enter_mount_namespace
from kata.runtime.ledger.journal import STATE_ROOT, claim

#: Bytes of a file that an argument names, and of commands from a pipe: more does not fit into a message.
_MAX_FILE = 4 << 20
_VMM = "qemu"


@dataclass(frozen=True)
class Request:
    """What a command line asks for; see the options in `kata.agent_ctl.main`.

    Attributes:
        sandbox: whose agent it is, instead of an address.
        hybrid_port: the guest's port of a hybrid vsock address; None for another address.
        hypervisor: the word after --vm, or None.
        level: of messages.
    """

    server_address: str | None = None
    sandbox: str | None = None
    hybrid_port: int | None = None
    vm: bool = False
    hypervisor: str | None = None
    bundle: Path | None = None
    commands: Sequence[str] = ()
    interactive: bool = False
    ignore_errors: bool = False
    timeout: str = "0"
    automatic: bool = True
    as_json: bool = False
    config: Path | None = None
    level: str = "info"


def run(request: Request) -> int:
    """Carry out a request, and return the exit code. This process's signal handlers are replaced.

    Raises:
        KataError: a step failed, or the guest could not be booted.
        OSError: the output cannot be written.
    """
    try:
        session, steps = _prepare(request)
    except KataError as error:
        report(error, debug=_is_debug(request), program=PROGRAM)
        return ExitCode.USAGE
    signals = Signals()
    try:
        if not request.vm or not (request.interactive or any(step.needs_agent for step in steps)):
            return asyncio.run(Run(request, session, steps, signals).run())
        return _run_in_vm(request, session, steps, signals)
    except Interrupted as interruption:
        return signalled(interruption.number)
    finally:
        signals.deliver_to(ignore)


def _with_address_of(sandbox: str, request: Request) -> Request:
    """The request with the address that a running sandbox tells.

    Raises:
        InvalidArgument: the request says another one.
        PermissionDenied: this is not root.
        KataError: the sandbox does not tell.
    """
    if request.vm or request.server_address or request.hybrid_port is not None:
        raise InvalidArgument("--sandbox says which agent it is", hint="omit --server-address, --hybrid-vsock and --vm")
    require_root(f"{PROGRAM} --sandbox")
    return replace(request, server_address=call(sandbox, "GET", "/agent-url").decode())


def _is_debug(request: Request) -> bool:
    return Log(request.level).shows("debug")


def _prepare(request: Request) -> tuple[Session, list[Step]]:
    """Read and check everything; nothing is sent.

    Raises:
        InvalidArgument: the command line or a command is wrong.
        NotFound: the bundle or a file does not exist.
        KataError: a file cannot be read.
    """
    if request.hypervisor is not None and not request.vm:
        raise InvalidArgument(f"unexpected argument {request.hypervisor!r}", hint=f"{PROGRAM} connect --help")
    if request.hypervisor not in (None, _VMM):
        raise InvalidArgument(f"--vm {request.hypervisor}: there is {_VMM} only", hint="omit the word after --vm")
    if request.vm and request.server_address:
        raise InvalidArgument("--vm has an agent of its own", hint="omit --server-address")
    if request.sandbox is not None:
        request = _with_address_of(request.sandbox, request)
    if request.hybrid_port is not None and request.vm:
        raise InvalidArgument("--vm needs no hybrid vsock", hint="omit --hybrid-vsock")
    is_terminal = os.isatty(0)
    steps = read_all(request.commands)
    if not steps and not request.interactive:
        raise InvalidArgument("there are no commands", hint="name them with -c, or use --interactive")
    server = _address(request, steps)
    if request.interactive and not is_terminal:
        steps = read_all([*request.commands, *_read_commands()])
    bundle = load_bundle(request.bundle) if request.bundle else None
    seconds = duration.parse(request.timeout, "--timeout")
    size = terminal.size(0, 1, 2)

    async def connect() -> Link:
        assert server is not None
        return ForeignLink(await address.connect(server))

    session = Session(
        connect,
        Values(
            automatic=request.automatic,
            bundle=bundle,
            terminal=None if size is None else (size.lines, size.columns),
        ),
        Options(
            timeout=seconds or None,
            ignore_errors=request.ignore_errors,
            as_json=request.as_json,
            reads_stdin=is_terminal or not request.interactive,
        ),
        read_file,
        HostOutput(),
        Log(request.level),
    )
    session.check(steps)
    return session, steps


def _address(request: Request, steps: Sequence[Step]) -> address.Address | None:
    """The address of the agent; None if there is no need for one.

    Raises:
        InvalidArgument: it is missing, or malformed.
    """
    if request.server_address:
        return address.parse(request.server_address, request.hybrid_port)
    if not request.vm and (request.interactive or any(step.needs_agent for step in steps)):
        raise InvalidArgument("where is the agent?", hint="use --server-address URI, or --vm to boot a guest")
    return None


def _read_commands() -> list[str]:
    """The commands in standard input, which is read to its end.

    Raises:
        InvalidArgument: they are too much, or not text.
    """
    text = sys.stdin.buffer.read(_MAX_FILE + 1)
    if len(text) > _MAX_FILE:
        raise InvalidArgument(f"standard input has more than {_MAX_FILE >> 20} MiB of commands")
    try:
        return text.decode().splitlines()
    except UnicodeDecodeError:
        raise InvalidArgument("standard input is not text in UTF-8") from None


def read_file(path: str) -> bytes:
    """The content of a file that an argument names.

    Raises:
        NotFound: it does not exist.
        PermissionDenied: it may not be read.
        InvalidArgument: it is not a regular file, or too large.
    """
    try:
        # Non-blocking: a FIFO in the file's place must not hang the caller.
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InvalidArgument(f"{path} is not a regular file")
            content = file.read(_MAX_FILE + 1)
    except FileNotFoundError:
        raise NotFound(f"{path} does not exist", hint="file:// is followed by a path, such as file:///tmp/x") from None
    except PermissionError:
        raise PermissionDenied(f"{path} may not be read") from None
    except (OSError, ValueError) as error:
        reason = str(getattr(error, "strerror", None) or error).lower()
        raise InvalidArgument(f"cannot read {path!r}: {reason}") from None
    if len(content) > _MAX_FILE:
        raise InvalidArgument(f"{path} is larger than {_MAX_FILE >> 20} MiB, which no message may be")
    return content


def _run_in_vm(request: Request, session: Session, steps: Sequence[Step], signals: Signals) -> int:
    """Run the steps in a guest that is booted for them.

    Raises:
        PermissionDenied: this is not root.
        KataError: the guest could not be booted, or a step failed. Nothing is left behind.
    """
    require_root(f"{PROGRAM} connect --vm")
    loaded = load(request.config)
    for warning in loaded.warnings:
        warn(warning)
    logging.basicConfig(
        format=f"{PROGRAM}: %(message)s", level=logging.DEBUG if _is_debug(request) else logging.WARNING
    )
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    ledger = claim(f"{STATE_ROOT}/agent-ctl-{secrets.token_hex(6)}")
    try:
        # Before there are threads: each has a mount namespace of its own.
        enter_mount_namespace(ledger.directory)

        async def connect() -> Link:
            from kata.agent_ctl.vm import boot

            return await boot(loaded.config, ledger, session.values.bundle, session.log.info)

        booted = replace(session, connect=connect)
        return asyncio.run(Run(request, booted, steps, signals).run())
    finally:
        signals.deliver_to(ignore)
        for problem in ledger.release():
            warn(f"cannot release {problem}")


class Run:
    """The steps in an event loop. A signal ends them; at the prompt, Ctrl-C ends the command only.

    Args:
        request: what was asked for.
        session: that carries out the steps; closed in the end.
        steps: before the prompt, if there is one.
        signals: of this process; delivered to this while it lasts.
    """

    def __init__(self, request: Request, session: Session, steps: Sequence[Step], signals: Signals) -> None:
        self._request = request
        self._session = session
        self._steps = steps
        self._signals = signals
        self._cut = 0

    async def run(self) -> int:
        """Run all steps, then the prompt if there is one; returns the exit code.

        Raises:
            KataError, OSError: as `Session.run`.
        """  # noqa: DOC501 - the session raises it
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None

        def end(number: int) -> None:
            if number in ENDING and not self._cut:
                self._cut = number
                task.cancel()

        self._signals.deliver_in(loop, end)
        try:
            goes_on = await self._session.run(self._steps)
            if goes_on and self._request.interactive and os.isatty(0):
                from kata.agent_ctl.prompt import converse

                await converse(self._session, own_agent=self._request.vm)
            return ExitCode.OK
        except asyncio.CancelledError:
            if not self._cut:
                raise
            # Taken note of: until then Python 3.11 takes deadlines of what follows for this cancellation.
            task.uncancel()
            return signalled(self._cut)
        finally:
            self._signals.deliver_to(ignore)
            await self._session.close()
            self._session.output.close()
