"""What `kata-agent-ctl examples` prints."""

from __future__ import annotations

#: A container from nothing to removed: every command uses the ids of those before it.
CONTAINER = (
    "CreateSandbox",
    "CreateContainer cid=hello",
    "StartContainer",
    "ReadStdout",
    "WaitProcess",
    "RemoveContainer",
    "DestroySandbox",
)


def text() -> str:
    """The examples."""
    script = " \\\n".join(f"      -c '{line}'" for line in CONTAINER)
    return f"""\
Run a container from nothing to removed, in a guest that is booted for it. The bundle is a directory with config.json
and a root file system, as `runc spec` and `docker export` make them:

  $ mkdir -p bundle/rootfs && (cd bundle && runc spec)
  $ docker export $(docker create busybox) | tar -xC bundle/rootfs
  $ kata-agent-ctl connect --vm --bundle-dir bundle \\
{script}

The same commands from a file, one a line, or typed at a prompt:

  $ kata-agent-ctl connect --vm --bundle-dir bundle --interactive < commands
  $ kata-agent-ctl connect --vm --bundle-dir bundle --interactive

Ask an agent whether it is there, over a Unix socket, an abstract one, vsock and hybrid vsock:

  $ kata-agent-ctl connect --server-address unix:///tmp/agent.sock -c Check
  $ kata-agent-ctl connect --server-address unix://@/tmp/agent.sock -c Check
  $ kata-agent-ctl connect --server-address vsock://3:1024 -c Check
  $ kata-agent-ctl connect --server-address unix:///run/vc/vm/foo/clh.sock --hybrid-vsock -c Check

Fields of a request as FIELD=VALUE, as JSON, from a file, and without anything that is filled in by itself:

  $ kata-agent-ctl connect --server-address vsock://3:1024 -c 'SignalProcess signal=usr1 cid=hello'
  $ kata-agent-ctl connect --server-address vsock://3:1024 -c 'GetGuestDetails json://{{"mem_block_size": true}}'
  $ kata-agent-ctl connect --server-address vsock://3:1024 -c 'SetPolicy policy=file:///tmp/policy.toml'
  $ kata-agent-ctl connect --server-address vsock://3:1024 -n -c GetGuestDetails

A spec of its own, and a process in a container whose input comes through a pipe:

  $ kata-agent-ctl connect --server-address vsock://3:1024 -c 'CreateContainer spec=file:///tmp/config.json'
  $ date | kata-agent-ctl connect --server-address vsock://3:1024 \\
      -c 'ExecProcess cid=hello process.Args=cat' -c attach -c WaitProcess

Three times, with a pause; the answers as lines of JSON; going on after errors:

  $ kata-agent-ctl connect --server-address vsock://3:1024 -c 'repeat 3' -c GetMetrics -c 'sleep 500ms' -c Version
  $ kata-agent-ctl connect --server-address vsock://3:1024 --json --ignore-errors -c Check -c StatsContainer | jq .

Which commands there are, and what the fields of one are:

  $ kata-agent-ctl connect -c list
  $ kata-agent-ctl connect -c 'help CreateContainer'
"""
