"""The command line `kata`: arguments to requests, results to text and exit codes. Each command has its own module.

Commands import what they need when they run, so that `kata --version` is fast.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

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
from kata.cli.render import ExitCode, report, say, signalled
from kata.errors import KataError, ResourceExhausted
from kata.version import VERSION

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
_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)

# Not every version of typer exports UsageError, but all export its subclass.
USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]


@dataclass
class Invocation:
    """What one command line says about all of it.

    Attributes:
        command: its first word.
        debug: whether errors are printed with a traceback; `kata run` prints its plan, too.
        log: where errors are logged as well; None: nowhere.
        exec_in_guest: whether `exec` without a container is about the guest itself.
    """

    command: str = ""
    debug: bool = False
    log: logging.Logger | None = None
    exec_in_guest: bool = False


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"kata {VERSION}")
        raise typer.Exit


@app.callback()
def _kata(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
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

    invocation: Invocation = context.obj
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
    invocation = Invocation()
    code = _invoke(arguments, program, name, invocation)
    if code is None:
        return ExitCode.RUN_FAILED if invocation.command in _RUNNING else ExitCode.FAILED
    return code


def _invoke(arguments: list[str], program: typer.Typer, name: str, invocation: Invocation) -> int | None:
    """As `invoke`; None if the program has failed itself."""
    try:
        code = program(args=arguments, prog_name=name, standalone_mode=False, obj=invocation)
        sys.stdout.flush()
        return int(code or 0)
    except USAGE_ERROR as error:
        report_usage(error, "kata")
        return None if invocation.command in _RUNNING else ExitCode.USAGE
    except KeyboardInterrupt:
        return signalled(2)
    except SystemExit as end:
        # typer makes one of a completed command line, whose status shells go by, and of a pipe that nobody reads.
        return int(end.code or 0) if _completion_variable(name) in os.environ else leave_broken_pipe()
    except BrokenPipeError:
        return leave_broken_pipe()
    except Exception as error:
        report(_of_output(error), debug=invocation.debug)
        if invocation.log:
            invocation.log.error("%s", error, exc_info=None if isinstance(error, KataError) else error)
        return None


def _completion_variable(name: str) -> str:
    """By which typer's scripts ask a program for completions."""
    return f"_{name}_COMPLETE".replace("-", "_").upper()


def _of_output(error: Exception) -> Exception:
    """The error, or a better one if standard output cannot be written: it alone has no name in an error."""
    if not isinstance(error, OSError) or error.filename is not None or error.errno not in _CANNOT_WRITE:
        return error
    # What Python still has of the output would fail again when it exits.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    what = (error.strerror or str(error)).lower()
    return ResourceExhausted(f"cannot write standard output: {what}", hint="write elsewhere, or make room")


def report_usage(error: Any, program: str) -> None:
    """Print a command line error in the form of all others. Without arguments the message is the help."""
    where = error.ctx.command_path if error.ctx is not None else program
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message(), file=sys.stderr)
        return
    # Newer versions of typer let pydantic check values, whose word for it means nothing to a user.
    message = error.format_message().rstrip(".").replace("Value error, ", "")
    say(message[:1].lower() + message[1:], hint=f"{where} --help", program=program)


def occupy_standard_streams() -> None:
    """Open /dev/null in the place of standard streams that are closed."""
    # A descriptor opened later must never become standard input, output or error where those are closed.
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w"))  # noqa: SIM115 - for as long as the process lives


def leave_broken_pipe() -> int:
    """Return the exit code for output whose reader has exited."""
    # The interpreter would report that again when it flushes at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return signalled(13)


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
