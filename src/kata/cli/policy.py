"""`kata policy`: check a policy, make one for a pod, give one to a sandbox."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from kata.cli import given_file
from kata.cli.options import SANDBOX_HELP, complete_sandbox
from kata.cli.render import ExitCode, warn
from kata.errors import InvalidArgument, PermissionDenied

app = typer.Typer(help="Check, make and set policies for what a sandbox's agent does.", no_args_is_help=True)

#: Bytes of a file that is read.
_MAX_FILE = 4 << 20

PolicyFile = Annotated[Path, typer.Argument(metavar="POLICY", help="A policy in TOML; - for stdin.")]


@app.command()
def check(
    policy: PolicyFile,
    request: Annotated[
        Path | None,
        typer.Argument(
            metavar="REQUEST",
            help='A request in JSON, {"ExecProcessRequest": {...}}, for which the policy is asked.',
            show_default=False,
        ),
    ] = None,
) -> int:
    """Check a policy; with a request, whether it allows that: 0, or 1 with the reason."""  # noqa: DOC501
    from kata.cli.policy_generate import NEEDED
    from kata.policy import document

    parsed = document.parse(_read(policy))
    if missing := [name for name in NEEDED if name not in parsed.allowed]:
        warn(f"no sandbox works without {', '.join(missing)}")
    if request is None:
        rules = sum(map(len, parsed.rules.values()))
        print(f"{len(parsed.allowed)} of {len(document.ENDPOINTS)} endpoints are allowed, with {rules} rules")
        return ExitCode.OK
    endpoint, message = _request(_read(request), str(request))
    if told := parsed.blocked(endpoint, message):
        raise PermissionDenied(told)
    print(f"{endpoint} is allowed")
    return ExitCode.OK


@app.command()
def generate(
    pod: Annotated[
        Path, typer.Argument(metavar="POD.yaml", help="A pod, or what makes pods, such as a Deployment; - for stdin.")
    ],
    image: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=ARCHIVE",
            help="The archive of an image that the pod names, for what it runs by default. May be repeated.",
        ),
    ] = None,
    exec_: Annotated[
        list[str] | None,
        typer.Option(
            "--exec",
            metavar="COMMAND",
            help="Allow to execute a command, with just these arguments. May be repeated. Probes are allowed anyway.",
        ),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Allow a variable, whatever its value. May be repeated."),
    ] = None,
    logs: Annotated[bool, typer.Option("--logs/--no-logs", help="Whether output may be read.")] = True,
    port_forward: Annotated[bool, typer.Option("--port-forward", help="Allow to forward ports.")] = False,
    pause: Annotated[
        str, typer.Option(metavar="COMMAND", help="What containerd's sandbox_image runs for the pod itself.")
    ] = "/pause",
    base64: Annotated[bool, typer.Option("--base64", help="Print it as the annotation has it.")] = False,
) -> int:
    """Print a policy that lets a pod run as its manifest says, and nothing else be done in it."""  # noqa: DOC501
    import tomli_w
    import yaml

    from kata.cli.policy_generate import Wishes
    from kata.cli.policy_generate import generate as made_for

    try:
        documents = list(yaml.safe_load_all(_read(pod)))
    except (yaml.YAMLError, RecursionError) as error:
        raise InvalidArgument(f"{pod} is not YAML: {' '.join(str(error).split())[:300]}") from error
    execs = [_words(command, "--exec") for command in exec_ or ()]
    wishes = Wishes(execs, env or (), logs, port_forward, _words(pause, "--pause"))
    found = made_for(documents, dict(map(_image, image or ())), wishes)
    for warning in found.warnings:
        warn(warning)
    text = tomli_w.dumps(found.document)
    if base64:
        import base64 as encoder

        print(encoder.b64encode(text.encode()).decode())
    else:
        print(text, end="")
    return ExitCode.OK


@app.command("set")
def set_(
    policy: PolicyFile,
    sandbox_id: Annotated[
        str, typer.Option("--sandbox-id", metavar="ID", help=SANDBOX_HELP, autocompletion=complete_sandbox)
    ],
) -> int:
    """Give a policy to a running sandbox that has none; it cannot be changed or taken back."""
    from kata.cli.management import call
    from kata.policy import document

    text = _read(policy)
    document.parse(text)
    call(sandbox_id, "PUT", "/policy", body=text.encode())
    return ExitCode.OK


def _read(file: Path) -> str:
    try:
        return given_file.read(file, _MAX_FILE).decode()
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{file} is not text in UTF-8") from error


def _request(text: str, name: str) -> tuple[str, Any]:
    """Endpoint and message of a request in JSON.

    Raises:
        InvalidArgument: it is none.
    """
    import json

    from google.protobuf import json_format

    from kata.policy import document
    from kata.protocols import agent_pb2

    try:
        written = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{name} is not JSON: {error}") from error
    if not isinstance(written, dict) or len(written) != 1:
        raise InvalidArgument(
            f"{name} is no request", hint='it is like {"ExecProcessRequest": {"container_id": "web"}}'
        )
    ((endpoint, fields),) = written.items()
    if endpoint not in document.ENDPOINTS:
        raise InvalidArgument(f"{name}: there is no endpoint {endpoint[:100]!r}")
    if document.ENDPOINTS[endpoint] is None:
        return endpoint, None
    try:
        return endpoint, json_format.ParseDict(fields, getattr(agent_pb2, endpoint)())
    except (json_format.ParseError, AttributeError, TypeError, ValueError, RecursionError) as error:
        raise InvalidArgument(f"{name}: {' '.join(str(error).split())[:300]}") from error


def _words(command: str, option: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise InvalidArgument(f"{option} {command[:100]!r}: {str(error).lower()}") from error
    if not words:
        raise InvalidArgument(f"{option} names no command")
    return words


def _image(option: str) -> tuple[str, Any]:
    """Name and configuration of an image.

    Raises:
        InvalidArgument: the option is not like NAME=ARCHIVE, or there is no image in the archive.
    """
    from kata.runtime.images.archive import open_archive

    name, separator, path = option.rpartition("=")
    if not separator or not name:
        raise InvalidArgument(f"--image {option[:100]!r} is not like NAME=ARCHIVE")
    with open_archive(Path(path)) as opened:
        return name, opened.config
