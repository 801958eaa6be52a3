"""The shim's `start`: find or make the process that serves this container, and print how it is reached.

A container of an existing pod is served by the pod's shim: only its address is printed. Otherwise this process binds
the socket and forks, and the child becomes the daemon without executing a new program. Calls that arrive while the
daemon still imports its modules wait in the socket's backlog.

The answer is the address, or for a caller that reads it (`kata.shim.caller`) JSON, which also says that this shim has
version 3 of the Task service. With that containerd runs `start` and `delete` only for a pod's first container.

Source: containerd, core/runtime/v2/README.md, "start".
"""

from __future__ import annotations

import _socket
import fcntl
import os
import stat
import time

from kata.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from kata.linux import atomic_file
from kata.oci.ids import validate_id
from kata.runtime.ledger.journal import STATE_ROOT, Ledger, claim
from kata.runtime.ledger.kinds import FILE
from kata.runtime.ledger.names import digest, state_name
from kata.shim.bootstrap import read_bootstrap
from kata.shim.caller import is_containerd_2
from kata.shim.handover import hand_over
from kata.shim.params import ShimParams

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kata.shim.arguments import Arguments

SOCKET_DIR = "/run/containerd/s"

_MAX_STDIN = 1 << 20
_MAX_CONFIG = 10 << 20


def start(arguments: Arguments) -> None:
    """Do the `start` action: the parent prints the answer and returns, the child never returns.

    Raises:
        InvalidArgument: the command line, standard input or the bundle is invalid.
        NotFound: the bundle has no spec, or the container's sandbox is not running.
        AlreadyExists: the sandbox or its socket is in use.
        FailedPrecondition: the socket cannot be made.
        OSError: a file cannot be written.
    """
    begun = time.monotonic()
    validate_id(arguments.id)
    bootstrap = read_bootstrap(read_stdin(), arguments.id)
    json = bootstrap.parameters or is_containerd_2(os.getppid())
    sandbox_id = _sandbox_of_bundle(arguments.id)
    path = socket_path(arguments.values["address"], arguments.namespace, sandbox_id, bootstrap.socket_dir)
    if sandbox_id != arguments.id:
        if not _is_served(path):
            raise NotFound(f"sandbox {sandbox_id} of container {arguments.id} is not running")
        _publish(path, json)
        return
    ledger = claim(f"{STATE_ROOT}/{state_name(arguments.id, arguments.namespace)}")
    params = ShimParams(
        sandbox_id=arguments.id,
        namespace=arguments.namespace,
        events_address=os.environ.get("TTRPC_ADDRESS", ""),
        options=bootstrap.options,
        debug=arguments.switches["debug"],
        bundle=os.getcwd(),
        begun=begun,
        environment=os.environ,
    )
    try:
        listener = _bind(path, ledger)
        child = hand_over(params, (listener.fileno(), ledger.fileno())) or os.fork()
    except BaseException:
        ledger.release()
        raise
    if child == 0:
        _become_daemon(params, listener, ledger)
    ledger.close()
    atomic_file.write("shim.pid", str(child))
    _publish(path, json)


def socket_path(containerd: str, namespace: str, sandbox_id: str, directory: str = "") -> str:
    """The path of a sandbox's socket, the same for every container of a pod.

    Args:
        containerd: its address.
        namespace: containerd's, of the sandbox.
        sandbox_id: the id of its first container.
        directory: where to put it; "": SOCKET_DIR.
    """
    return os.path.join(directory or SOCKET_DIR, digest(os.path.join(containerd, namespace, sandbox_id)))


def read_stdin() -> bytes:
    """Read standard input, unless it is a terminal or /dev/null: containerd passes a pipe.

    Raises:
        InvalidArgument: it is too large.
    """
    if os.isatty(0) or stat.S_ISCHR(os.fstat(0).st_mode):
        return b""
    data = b""
    while len(data) <= _MAX_STDIN:
        piece = os.read(0, 1 << 16)
        if not piece:
            return data
        data += piece
    raise InvalidArgument(f"standard input is larger than {_MAX_STDIN >> 20} MiB")


def _sandbox_of_bundle(own_id: str) -> str:
    """Return the id of the sandbox to which the bundle's container belongs.

    Raises:
        NotFound: the bundle has no config.json.
        InvalidArgument: config.json is too large, or not a spec.
    """
    try:
        with open("config.json", "rb") as file:
            text = file.read(_MAX_CONFIG + 1)
    except FileNotFoundError:
        raise NotFound(f"bundle {os.getcwd()} has no config.json") from None
    if len(text) > _MAX_CONFIG:
        raise InvalidArgument(f"config.json of bundle {os.getcwd()} is larger than {_MAX_CONFIG >> 20} MiB")
    # Parsing takes longer than all the rest of `start`; without these annotations there is no pod.
    if b"io.kubernetes." not in text:
        return own_id
    import json

    from kata.oci.annotations import classify

    try:
        annotations = dict(json.loads(text).get("annotations") or {})
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise InvalidArgument(f"config.json of bundle {os.getcwd()} is not a spec") from None
    return classify({name: str(value) for name, value in annotations.items()}, own_id)[1]


def _is_served(path: str) -> bool:
    probe = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        probe.connect(path)
    except OSError:
        return False
    finally:
        probe.close()
    return True


def _bind(path: str, ledger: Ledger) -> _socket.socket:
    if os.path.exists(path):
        if _is_served(path):
            raise AlreadyExists(f"another shim serves {path}")
        os.unlink(path)
    os.makedirs(os.path.dirname(path), mode=0o711, exist_ok=True)
    ledger.hold(FILE, path)
    listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    mask = os.umask(0o077)
    try:
        listener.bind(path)
    except OSError as error:
        raise FailedPrecondition(f"cannot listen on {path}: {error.strerror}") from error
    finally:
        os.umask(mask)
    listener.listen(128)
    return listener


def _publish(path: str, json: bool) -> None:
    address = f"unix://{path}"
    atomic_file.write("address", address)  # containerd 1.x may look at any time, also after a downgrade
    os.write(1, answer(address, json=json).encode())


def answer(address: str, *, json: bool) -> str:
    """What `start` prints: the address, or containerd's `BootstrapParams` as JSON."""
    if not json:
        return address
    quoted = address.replace("\\", "\\\\").replace('"', '\\"')
    return f'{{"version":3,"address":"{quoted}","protocol":"ttrpc"}}'


def _become_daemon(params: ShimParams, listener: _socket.socket, ledger: Ledger) -> None:
    """The child: leave containerd's session, close its descriptors, then serve. Never returns."""
    status = 1
    try:
        os.setsid()
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            # containerd waits until no process has its pipe open.
            os.dup2(null, fd)
        _close_inherited(keep={listener.fileno(), ledger.fileno(), null})
        from kata.shim.imports import leave_out_inspect, leave_out_openssl

        leave_out_inspect()
        leave_out_openssl()
        from kata.shim.prelaunch import run

        run(params, listener.detach(), ledger)
        status = 0
    except BaseException as error:
        # containerd has the address by now: only its log can tell why nobody answers there.
        try:
            from kata.shim.log import tell_failure

            tell_failure(params, error)
        finally:
            ledger.release()
    finally:
        os._exit(status)


def _close_inherited(keep: set[int]) -> None:
    """Close descriptors that containerd has leaked (no close-on-exec): they would stay open as long as the sandbox."""
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd > 2 and fd not in keep:
            try:
                if not fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC:
                    os.close(fd)
            except OSError:
                pass
