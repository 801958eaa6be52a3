"""`kata iptables`: the packet filter of a running sandbox's guest, with the syntax of `kata-runtime iptables`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from kata.cli.render import ExitCode
from kata.errors import InvalidArgument

app = typer.Typer(help="Read and write the packet filter of a running sandbox's guest.", no_args_is_help=True)

SandboxId = Annotated[
    str, typer.Option("--sandbox-id", metavar="ID", help="Id of the sandbox: the pod's, or the container's own.")
]
Version6 = Annotated[bool, typer.Option("--v6", help="IPv6 instead of IPv4.")]

#: Bytes; a ttrpc message has room for 4 MiB.
_MAX_RULES = 3 << 20


@app.command()
def get(sandbox_id: SandboxId, v6: Version6 = False) -> int:
    """Print all tables, as iptables-save(8) does."""
    from kata.cli.management import call
    from kata.protocols import agent_pb2

    response = call(sandbox_id, "PacketFilter", "GetIPTables", agent_pb2.GetIPTablesRequest(is_ipv6=v6))
    sys.stdout.buffer.write(response.data)
    return ExitCode.OK


@app.command("set")
def set_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Output of iptables-save(8); - for stdin.")],
    sandbox_id: SandboxId,
    v6: Version6 = False,
) -> int:
    """Replace the tables that FILE contains, as iptables-restore(8) does."""
    from kata.cli.management import call
    from kata.protocols import agent_pb2

    rules = _read(file)
    response = call(sandbox_id, "PacketFilter", "SetIPTables", agent_pb2.SetIPTablesRequest(is_ipv6=v6, data=rules))
    sys.stdout.buffer.write(response.data)
    return ExitCode.OK


def _read(file: Path) -> bytes:
    try:
        if str(file) == "-":
            rules = sys.stdin.buffer.read(_MAX_RULES + 1)
        else:
            with file.open("rb") as opened:
                rules = opened.read(_MAX_RULES + 1)
    except OSError as error:
        raise InvalidArgument(f"cannot read {file}: {error.strerror}") from error
    if len(rules) > _MAX_RULES:
        raise InvalidArgument(f"{file} is too large; the maximum is {_MAX_RULES >> 20} MiB")
    return rules
