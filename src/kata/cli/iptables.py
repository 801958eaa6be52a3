"""`kata iptables`: a running sandbox's packet filter, in the words of `kata-runtime iptables`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from kata.cli.render import ExitCode
from kata.errors import InvalidArgument

app = typer.Typer(help="The packet filter of a sandbox's guest.", no_args_is_help=True)

SandboxId = Annotated[str, typer.Option("--sandbox-id", metavar="ID", help="The pod's, or the container's own.")]
Version6 = Annotated[bool, typer.Option("--v6", help="IPv6's in place of IPv4's.")]

#: More would not fit into a message.
_MAXIMUM = 3 << 20


@app.command()
def get(sandbox_id: SandboxId, v6: Version6 = False) -> int:
    """Print all tables, as iptables-save does."""
    from kata.cli.management_client import ask
    from kata.protocols import agent_pb2

    answer = ask(sandbox_id, "PacketFilter", "GetIPTables", agent_pb2.GetIPTablesRequest(is_ipv6=v6))
    sys.stdout.buffer.write(answer.data)
    return ExitCode.OK


@app.command("set")
def set_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What iptables-save has written; - for stdin.")],
    sandbox_id: SandboxId,
    v6: Version6 = False,
) -> int:
    """Replace the tables that a file has, as iptables-restore does."""
    from kata.cli.management_client import ask
    from kata.protocols import agent_pb2

    rules = _read(file)
    answer = ask(sandbox_id, "PacketFilter", "SetIPTables", agent_pb2.SetIPTablesRequest(is_ipv6=v6, data=rules))
    sys.stdout.buffer.write(answer.data)
    return ExitCode.OK


def _read(file: Path) -> bytes:
    try:
        if str(file) == "-":
            rules = sys.stdin.buffer.read(_MAXIMUM + 1)
        else:
            with file.open("rb") as opened:
                rules = opened.read(_MAXIMUM + 1)
    except OSError as error:
        raise InvalidArgument(f"{file}: {error.strerror}") from error
    if len(rules) > _MAXIMUM:
        raise InvalidArgument(f"{file} has more than {_MAXIMUM >> 20} MiB of rules")
    return rules
