"""One error tree: what failed, on what, what to do about it.

    KataError
    ├── InvalidArgument      the caller's input is wrong: a spec, a flag, a configuration value
    ├── NotFound             no such sandbox, container, process, file
    ├── AlreadyExists        the id is taken
    ├── PermissionDenied     policy says no
    ├── FailedPrecondition   wrong state for this, or the host lacks something
    ├── ResourceExhausted    full disk, no memory, no slot left
    ├── DeadlineExceeded     a bounded wait ended
    ├── Unavailable          the peer is gone
    ├── Unimplemented        known, and not built
    └── Internal             everything else
        └── VmLaunchError    a VM did not come up

Messages are lower case, one line, without a full stop, and name the object. `hint` says what to do next. Nothing is
imported here, so that the shim's lean path can use it.
"""


class Code:
    """gRPC status codes, as numbers on the wire."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


class KataError(Exception):
    """Base of every error that this project raises on purpose.

    Attributes:
        code: the gRPC status code that a remote caller gets.
        hint: one sentence that says what to do next, or None.
    """

    code: int = Code.INTERNAL

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint

    @property
    def message(self) -> str:
        """What happened, without the hint."""
        return str(self.args[0])


class InvalidArgument(KataError):
    """The caller's input is wrong."""

    code = Code.INVALID_ARGUMENT


class NotFound(KataError):
    """There is no such thing."""

    code = Code.NOT_FOUND


class AlreadyExists(KataError):
    """The id is taken."""

    code = Code.ALREADY_EXISTS


class PermissionDenied(KataError):
    """Policy says no."""

    code = Code.PERMISSION_DENIED


class FailedPrecondition(KataError):
    """The thing is in the wrong state, or the host lacks something."""

    code = Code.FAILED_PRECONDITION


class ResourceExhausted(KataError):
    """Something ran out: disk, memory, slots."""

    code = Code.RESOURCE_EXHAUSTED


class DeadlineExceeded(KataError):
    """A bounded wait ended."""

    code = Code.DEADLINE_EXCEEDED


class Unavailable(KataError):
    """The peer is gone."""

    code = Code.UNAVAILABLE


class Unimplemented(KataError):
    """Known, and not built."""

    code = Code.UNIMPLEMENTED


class Internal(KataError):
    """Everything else."""


class VmLaunchError(Internal):
    """A VM did not come up.

    One such error is a whole bug report: it names the phase and the time spent, how QEMU ended and its last words, and
    what the guest's console said last.

    Attributes:
        phase: what was being waited for, e.g. "qemu start", "agent".
        elapsed: seconds since QEMU was executed.
        exit_status: QEMU's exit status (negative: signal), or None while it still ran.
        output: the last lines that QEMU wrote.
        console: the last lines of the guest's console.
    """

    def __init__(
        self,
        phase: str,
        reason: str,
        *,
        elapsed: float,
        exit_status: int | None = None,
        output: str = "",
        console: str = "",
        hint: str | None = None,
    ) -> None:
        self.phase = phase
        self.elapsed = elapsed
        self.exit_status = exit_status
        self.output = output
        self.console = console
        parts = [f"VM failed in phase '{phase}' after {elapsed:.1f} s: {reason}"]
        if exit_status is not None:
            how = f"signal {-exit_status}" if exit_status < 0 else f"status {exit_status}"
            parts.append(f"qemu ended with {how}")
        if output:
            parts.append(f"qemu said: {' | '.join(output.strip().splitlines()[-3:])}")
        if console:
            parts.append(f"guest console ends with: {' | '.join(console.strip().splitlines()[-3:])}")
        super().__init__("; ".join(parts), hint=hint)


def from_code(code: int, message: str) -> KataError:
    """The error that stands for a gRPC status which a peer answered."""
    for kind in KataError.__subclasses__():
        if kind.code == code and kind is not Internal:
            return kind(message)
    return Internal(message)
