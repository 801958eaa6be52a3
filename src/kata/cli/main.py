"""The command line `kata`: arguments to requests, results to text and exit codes. Each command has its own module.

Commands import what they need when they run, so that `kata --version` is fast.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from kata import architecture
from kata.cli import (
    check,
    configuration,
    cp,
    direct_volume,
    env,
    events,
    exec_,
    factory,
    image,
    iptables,
    kernel,
    layers,
    logs,
    metrics,
    operate,
    policy,
    ps,
    setup,
    stats,
    top,
    version,
)
from kata.cli.options import AsJson, ConfigFile, SandboxName
from kata.cli.program import Invocation, occupy_standard_streams, run_command_line, version_option
from kata.cli.render import ExitCode, say

app = typer.Typer(
    name="kata",
    help="Run containers, each sandbox in its own virtual machine (VM).",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(image.app, name="image")
app.add_typer(kernel.app, name="kernel")
app.add_typer(layers.app, name="layers")
app.add_typer(factory.app, name="factory")
app.add_typer(direct_volume.app, name="direct-volume")
app.add_typer(iptables.app, name="iptables")
app.add_typer(logs.app, name="logs")
app.add_typer(policy.app, name="policy")

#: Commands whose exit code is a program's.
_RUNNING = ("run", "exec")


@dataclass
class KataInvocation(Invocation):
    """What one command line says about all of it. With `debug`, `kata run` prints its plan, too.

    Attributes:
        command: its first word.
        exec_in_guest: whether `exec` without a container is about the guest itself.
    """

    command: str = ""
    exec_in_guest: bool = False

    def exit_code(self, error: Exception) -> int:
        """As any program's, but what runs a program leaves the lower codes to that one."""
        return ExitCode.RUN_FAILED if self.command in _RUNNING else super().exit_code(error)


@app.callback()
def _kata(
    context: typer.Context,
    _version: Annotated[bool, version_option("kata")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Print Python's traceback of an error.")] = False,
) -> None:
    context.obj.debug = debug
    context.obj.command = context.invoked_subcommand or ""


@app.command(
    context_settings={"allow_interspersed_args": False},
    epilog="Nothing is ever kept: when the command has ended, or this process has died for any reason, the VM is gone, "
    "too. The exit code is the command's; 125: kata failed, 126: not executable, 127: not found.",
)
def run(
    context: typer.Context,
    image_: Annotated[
        str | None,
        typer.Argument(
            metavar="IMAGE",
            help="A file from `docker save`, an OCI archive or an OCI layout directory. Not with --rootfs.",
            show_default=False,
        ),
    ] = None,
    command: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="COMMAND", help="Program and arguments, instead of the image's command.", show_default=False
        ),
    ] = None,
    rootfs: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A directory as root file system.", show_default=False)
    ] = None,
    platform: Annotated[
        str | None,
        typer.Option(
            metavar="OS/ARCH",
            help="Run an image for another platform, emulated: "
            + ", ".join(one.platform for one in architecture.ALL)
            + ".",
            show_default=False,
        ),
    ] = None,
    interactive: Annotated[bool, typer.Option("-i", "--interactive", help="Forward standard input.")] = False,
    tty: Annotated[bool, typer.Option("-t", "--tty", help="Give the command a terminal.")] = False,
    env: Annotated[
        list[str] | None,
        typer.Option(
            "-e",
            "--env",
            metavar="NAME[=VALUE]",
            help="Set an environment variable, or pass yours. May be repeated; the last one of a name wins.",
        ),
    ] = None,
    volume: Annotated[
        list[str] | None,
        typer.Option(
            "-v", "--volume", metavar="SRC:DST[:ro]", help="Mount a host path in the container. May be repeated."
        ),
    ] = None,
    workdir: Annotated[
        str | None, typer.Option("-w", "--workdir", metavar="DIR", help="Working directory of the command.")
    ] = None,
    user: Annotated[
        str | None, typer.Option("-u", "--user", metavar="USER[:GROUP]", help="Names or numbers, as in the image.")
    ] = None,
    cpus: Annotated[
        str | None, typer.Option(metavar="NUMBER", help="CPU limit, such as 2 or 0.5; 0.01 to 240.")
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Memory limit, such as 256M or 2G, from 6M; units b k m g t, powers of 1024."
        ),
    ] = None,
    network: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help='A network of /etc/cni/net.d, or "bridge", which needs no configuration; "none": loopback only.',
        ),
    ] = "none",
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Name of the sandbox: 1 to 76 letters, digits, _, . and -; random by default."
        ),
    ] = None,
    _rm: Annotated[bool, typer.Option("--rm", help="Accepted for compatibility: nothing is ever kept.")] = False,
    config: ConfigFile = None,
    debug: Annotated[bool, typer.Option("--debug", help="Print the plan on stderr: VM, spec, mounts.")] = False,
) -> int:
    """Run a command in a container in a VM, and return its exit code."""
    from kata.cli import request
    from kata.cli.run import run as run_request

    invocation: KataInvocation = context.obj
    invocation.debug |= debug
    words = ([] if image_ is None else [image_]) + (command or [])
    image_path, words_to_run = request.split_words(words, rootfs)
    return run_request(
        request.RunRequest(
            rootfs=rootfs,
            image=image_path,
            architecture=None if platform is None else architecture.of_platform(platform),
            command=words_to_run,
            name=None if name is None else request.parse_name(name),
            env=request.parse_env(env or (), os.environ),
            volumes=request.parse_volumes(volume or ()),
            workdir=None if workdir is None else request.parse_workdir(workdir),
            user=user,
            cpus=0.0 if cpus is None else request.parse_cpus(cpus),
            memory=0 if memory is None else request.parse_memory(memory),
            network=None if network == "none" else network,
            interactive=interactive,
            tty=tty,
            config=config,
            debug=invocation.debug,
        )
    )


@app.command()
def gc() -> int:
    """Release what sandboxes have left behind whose process is gone, for example after a kill -9 or a reboot."""
    from kata.cli import gc as collector

    code = ExitCode.OK
    for released in collector.run():
        print(f"{released.sandbox_id}: {'; '.join(released.held) or 'state directory'}")
        for problem in released.problems:
            say(f"sandbox {released.sandbox_id}: cannot release {problem}")
            code = ExitCode.FAILED
    for name in layers.cache_of(None).sweep():
        print(f"layer cache: {name}")
    return code


@app.command()
def inspect(
    sandbox: SandboxName,
) -> int:
    """Print what is known of a sandbox as JSON: containers, VM, devices, start, and why it has ended."""
    from kata.cli import sandboxes
    from kata.cli.root import require_root

    require_root("kata inspect")
    print(json.dumps(sandboxes.inspect(sandbox), indent=2))
    return ExitCode.OK


@app.command()
def timings(
    sandbox: SandboxName,
    as_json: AsJson = False,
    as_spans: Annotated[
        bool, typer.Option("--spans", help="Print a request of OpenTelemetry's protocol (OTLP, JSON) instead of text.")
    ] = False,
) -> int:
    """Show where a running sandbox's start time went, with a row per phase."""
    from dataclasses import asdict

    from rich.console import Console

    from kata.cli import timings as of_sandbox
    from kata.cli.naming import resolve_sandbox
    from kata.cli.root import require_root
    from kata.runtime.ledger.names import split

    require_root("kata timings")
    name = resolve_sandbox(sandbox).name
    start = of_sandbox.load(name)
    if as_spans:
        print(json.dumps(of_sandbox.as_spans(split(name)[0], start)))
    elif as_json:
        print(json.dumps([asdict(phase) for phase in start.phases], indent=2))
    else:
        Console().print(of_sandbox.as_table(start.phases))
    return ExitCode.OK


@app.command()
def bundle(
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="The archive, .tar.gz or .tar.zst.", show_default="kata-bundle-…"
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what it would contain, and exit.")] = False,
    config: ConfigFile = None,
) -> int:
    """Collect what a bug report needs in one archive, without secrets."""
    from kata.cli import bundle as report

    report.run(output, config, dry_run=dry_run)
    return ExitCode.OK


# Commands whose functions are in modules of their own.
app.command("list")(ps.command)
app.command("ps")(ps.command)
app.command("stats")(stats.command)
app.command("top")(top.command)
app.command("metrics")(metrics.command)
app.command("events")(events.command)
app.command("check")(check.command)
app.command("env")(env.command)
app.command("version")(version.command)
app.command("setup")(setup.setup)
app.command("unset")(setup.unset)
app.add_typer(configuration.app, name="config")
for _module in (exec_, cp, operate):
    _module.register(app)


def invoke(arguments: list[str], program: typer.Typer = app, name: str = "kata") -> int:
    """Run one command line and return its exit code; errors have been printed on stderr.

    Args:
        arguments: without the program's name.
        program: whose command line it is.
        name: of the program.
    """
    return run_command_line(program, name, arguments, KataInvocation(), said_by="kata")


def main() -> None:
    """Run the console script `kata`."""
    _run()


def kata_runtime() -> None:
    """Run the console script `kata-runtime`, Kata's name for `kata`."""
    from kata.cli import kata_runtime as under_that_name

    occupy_standard_streams()
    sys.exit(invoke(sys.argv[1:], under_that_name.kata_runtime, under_that_name.PROGRAM))


def osbuilder() -> None:
    """Run the console script `kata-osbuilder`."""
    from kata.cli import osbuilder as builder

    occupy_standard_streams()
    sys.exit(invoke(sys.argv[1:], builder.app, builder.PROGRAM))


def log_parser() -> None:
    """Run the console script `kata-log-parser`, Kata's name for `kata logs parse`."""
    _run("logs", "parse")


def collect_data() -> None:
    """Run the console script `kata-collect-data`, Kata's name for `kata bundle`."""
    _run("bundle")


def _run(*command: str) -> NoReturn:
    occupy_standard_streams()
    sys.exit(invoke(_as_ours(list(command), sys.argv[1:])))


def _as_ours(command: list[str], arguments: list[str]) -> list[str]:
    """Return our command line for a program of Kata's that is `command` here: some options come before that."""
    if command and arguments[:1] in (["-v"], ["--version"]):
        return ["--version"]
    if command == ["bundle"] and arguments[:1] == ["-d"]:
        return ["--debug", *command, *arguments[1:]]
    return [*command, *arguments]
