"""The command line `kata-deploy`: what the containers of deploy/helm/kata run. Its first two commands are Kata's."""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from kata.cli.program import Invocation, log_to_stderr, occupy_standard_streams, run_command_line, version_option
from kata.cli.render import ExitCode
from kata.deploy.cluster import Cluster
from kata.deploy.installer import Request, clean_up
from kata.deploy.installer import install as install_on
from kata.deploy.node import Node
from kata.errors import FailedPrecondition

PROGRAM = "kata-deploy"
#: Where the chart mounts the node's root file system.
_ROOT = Path("/host")
#: Of the node, and of the archive's tree in the container's image.
_PREFIX = "/opt/kata"
#: Made when a node is ready; the pod's readiness probe looks for it.
READY = Path("/run/kata-deploy/ready")
#: On the command line of each guest's kernel, and of no other.
_GUESTS = ("panic=-1", "cryptomgr.notests")
_ENDING = {signal.SIGTERM, signal.SIGINT}

log = logging.getLogger(__name__)

app = typer.Typer(
    name=PROGRAM,
    help="Put the runtime onto the Kubernetes node that this container runs on.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Root = Annotated[Path, typer.Option(metavar="DIR", help="The node's root file system, in this container.")]
Prefix = Annotated[str, typer.Option(metavar="DIR", help="Where the runtime is put, on the node.")]
NodeName = Annotated[
    str | None, typer.Option("--node", metavar="NAME", help="The node's name, to label it.", show_default="no label")
]
Config = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", help="containerd's configuration, on the node.", show_default="/etc/containerd/config.toml"
    ),
]
Restart = Annotated[bool, typer.Option("--restart", help="Restart containerd when its configuration has changed.")]
Service = Annotated[str, typer.Option(metavar="NAME", help="systemd's name of containerd on the node.")]
OfDaemonSet = Annotated[
    str | None,
    typer.Option(metavar="NAMESPACE/NAME", help="When ended, clean up if this DaemonSet is being removed."),
]


class _Ended(Exception):
    """A signal that ends this program has come."""


@app.callback()
def _deploy(
    _version: Annotated[bool, version_option(PROGRAM)] = False,
) -> None:
    pass


@app.command()
def install(
    root: Root = _ROOT,
    prefix: Prefix = _PREFIX,
    node: NodeName = None,
    config: Config = None,
    restart: Restart = False,
    service: Service = "containerd",
    wait: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="How long to wait for somebody to restart containerd.",
            show_default="as long as it takes",
        ),
    ] = None,
    stay: Annotated[bool, typer.Option("--stay", help="Then run until SIGTERM, as a DaemonSet's pod has to.")] = False,
    revert: OfDaemonSet = None,
) -> int:
    """Install on this node, tell containerd, and label the node; repeat that as often as you like."""
    request = Request(_source(), prefix, config, node, restart, wait)
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    here, cluster = Node(root, service), _cluster(node or revert)
    try:
        install_on(here, request, cluster, _pause)
        if not stay:
            return ExitCode.OK
        READY.parent.mkdir(parents=True, exist_ok=True)
        READY.touch()
        while True:
            _pause(3600)
    except _Ended:
        READY.unlink(missing_ok=True)
    if revert is None:
        log.info("ended; what was installed stays")
    elif cluster.is_going(*_names(revert)):
        clean_up(here, request, cluster)
    else:
        log.info("ended; what was installed stays, since DaemonSet %s does", revert)
    return ExitCode.OK


@app.command()
def cleanup(
    root: Root = _ROOT,
    node: NodeName = None,
    restart: Restart = False,
    service: Service = "containerd",
) -> int:
    """Take back what was installed on this node; sandboxes that run go on."""
    request = Request(_source(), _PREFIX, None, node, restart)
    clean_up(Node(root, service), request, _cluster(node))
    return ExitCode.OK


@app.command()
def end(
    daemonset: Annotated[str, typer.Argument(metavar="NAMESPACE/NAME", help="The DaemonSet.")],
    wait: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="For its pods to clean up and end.")] = 240,
) -> int:
    """Remove a DaemonSet, and wait until its pods have cleaned up: before the rights that they need for it are gone."""
    namespace, name = _names(daemonset)
    Cluster.of_this_pod().remove(namespace, name, wait)
    return ExitCode.OK


@app.command()
def verify() -> int:
    """See that this container runs in a VM of the runtime."""  # noqa: DOC501 - it is the help
    words = Path("/proc/cmdline").read_text(encoding="utf-8").split()
    release = os.uname().release
    if not set(_GUESTS).issubset(words):
        raise FailedPrecondition(
            f"this container runs on its node's kernel {release}, not in a VM",
            hint="does the pod have a runtimeClassName, and the RuntimeClass the handler kata?",
        )
    print(f"this container runs in a VM, on Linux {release}")
    return ExitCode.OK


def _source() -> Path:
    """The tree that this program is of: PREFIX/lib/pykata/kata/deploy/main.py."""
    return Path(__file__).resolve().parents[4]


def _cluster(wanted: str | None) -> Cluster:
    return Cluster.of_this_pod() if wanted else Cluster("")


def _names(daemonset: str) -> tuple[str, str]:
    namespace, slash, name = daemonset.partition("/")
    if not slash or not namespace or not name or "/" in name:
        raise typer.BadParameter(f"{daemonset!r} is not NAMESPACE/NAME")
    return namespace, name


def _pause(seconds: float) -> None:
    """Wait; both signals are blocked, and seen only here.

    Raises:
        _Ended: one has come.
    """
    if signal.sigtimedwait(_ENDING, seconds):
        raise _Ended


def invoke(arguments: list[str]) -> int:
    """Run one command line and return its exit code; errors have been printed on stderr."""
    return run_command_line(app, PROGRAM, arguments, Invocation(), option=None)


def main() -> None:
    """Run the console script `kata-deploy`."""
    occupy_standard_streams()
    log_to_stderr(PROGRAM, logging.INFO)
    sys.exit(invoke(sys.argv[1:]))
