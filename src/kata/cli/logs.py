"""`kata logs parse`: logs of all components as one, in the order of time; Kata's `kata-log-parser`."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from kata.cli import logs_show
from kata.cli.default_group import ShowGroup
from kata.cli.output import written
from kata.cli.render import ExitCode, say, warn
from kata.errors import InvalidArgument, NotFound
from kata.logs.entry import Entry, Kind, missing_fields
from kata.logs.formats import FORMATS
from kata.logs.read import merge, read_entries

app = typer.Typer(cls=ShowGroup, help="Read the logs of a sandbox, or of files.", no_args_is_help=True)
app.command("show")(logs_show.command)

#: The name of standard input, and what it is called in messages.
_STDIN = "-"
#: Complaints that are printed one by one; the rest is counted.
_MAX_SHOWN = 20
_MAX_EXCERPT = 200


@dataclass(frozen=True)
class Checks:
    """What counts as an error.

    Attributes:
        ignore_missing: a record may lack time, level, pid, source or name.
        strict: an agent's record that cannot be read is an error, too.
    """

    ignore_missing: bool
    strict: bool


def complaints(entries: Sequence[Entry], checks: Checks) -> Iterator[tuple[Entry, str, bool]]:
    """Yield what is wrong: the entry, one line about it, and whether it is an error or only a warning."""
    for entry in entries:
        if entry.kind is Kind.GARBLED:
            yield entry, entry.problem, checks.strict
        elif entry.problem:
            yield entry, entry.problem, True
        elif not checks.ignore_missing and (missing := missing_fields(entry)):
            yield entry, f"no {', '.join(missing)}", True


@app.command()
def parse(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FILE...", help="Log files; - is standard input.", show_default=False),
    ] = None,
    check_only: Annotated[bool, typer.Option("--check-only", help="Check, and print only what is wrong.")] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", help="Print how many records each file has; with --output-file or --check-only."),
    ] = False,
    error_if_file_empty: Annotated[
        bool, typer.Option("--error-if-file-empty", help="Fail if one of the files is empty.")
    ] = False,
    error_if_no_records: Annotated[
        bool, typer.Option("--error-if-no-records", help="Fail if all files are empty.")
    ] = False,
    ignore_missing_fields: Annotated[
        bool,
        typer.Option("--ignore-missing-fields", help="Accept records without time, level, pid, source or name."),
    ] = False,
    list_output_formats: Annotated[
        bool, typer.Option("--list-output-formats", help="Print the names of the formats, and exit.")
    ] = False,
    no_agent_unpack: Annotated[
        bool, typer.Option("--no-agent-unpack", help="Leave agents' records in the shim's records.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors only, no warnings.")] = False,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Fail for an agent's record that cannot be read, as the kernel wrote into it."),
    ] = False,
    output_format: Annotated[
        str, typer.Option("--output-format", metavar="FORMAT", help="See --list-output-formats.")
    ] = "text",
    output_file: Annotated[
        Path | None, typer.Option("--output-file", metavar="FILE", help="Write there.", show_default=False)
    ] = None,
) -> int:
    """Merge logs, sort them by time and check them; exit with 1 if a line is broken or a record lacks a field."""
    if list_output_formats:
        print("\n".join(sorted(FORMATS)))
        return ExitCode.OK
    _check_arguments(files, output_format, debug=debug, has_room=check_only or output_file is not None)
    found = [_read(file, unpack=not no_agent_unpack) for file in files or ()]
    empty = [file for file, entries in zip(files or (), found, strict=True) if not entries]
    if error_if_file_empty and empty:
        say(f"{empty[0]} is empty")
        return ExitCode.FAILED
    if error_if_no_records and len(empty) == len(found):
        say("there are no records: all files are empty")
        return ExitCode.FAILED
    entries = merge(found)
    if not check_only:
        with written(output_file) as out:
            FORMATS[output_format](entries, out)
    if debug:
        for name, count in Counter(entry.file for entry in entries).items():
            say(f"{name}: {count} lines")
    checks = Checks(ignore_missing=ignore_missing_fields, strict=strict)
    return _tell(entries, list(complaints(entries, checks)), one_by_one=check_only, quiet=quiet)


def _check_arguments(files: list[Path] | None, output_format: str, *, debug: bool, has_room: bool) -> None:
    """Refuse what cannot be done.

    Raises:
        InvalidArgument: there is such an argument.
    """
    if debug and not has_room:
        raise InvalidArgument("--debug needs --output-file or --check-only")
    if output_format not in FORMATS:
        raise InvalidArgument(f"unknown output format {output_format!a} ({', '.join(sorted(FORMATS))})")
    if not files:
        raise InvalidArgument("no log file is named", hint="kata logs parse FILE..., or - for standard input")


def _read(file: Path, *, unpack: bool) -> list[Entry]:
    """Read one file.

    Raises:
        NotFound: it cannot be read.
    """
    try:
        if str(file) == _STDIN:
            return list(read_entries(sys.stdin.buffer, _STDIN, unpack=unpack))
        with file.open("rb") as stream:
            return list(read_entries(stream, os.path.abspath(file), unpack=unpack))
    except OSError as error:
        raise NotFound(f"cannot read {file}: {(error.strerror or str(error)).lower()}") from error


def _tell(entries: list[Entry], found: list[tuple[Entry, str, bool]], *, one_by_one: bool, quiet: bool) -> int:
    """Print what is wrong, and return the exit code."""
    errors = sum(1 for *_, error in found if error)
    if one_by_one:
        shown = [(entry, text) for entry, text, error in found if error or not quiet]
        for entry, text in shown[:_MAX_SHOWN]:
            say(f"{entry.file}, line {entry.line}: {text}: {entry.msg[:_MAX_EXCERPT]}")
        if len(shown) > _MAX_SHOWN:
            say(f"and {len(shown) - _MAX_SHOWN} more")
    if errors:
        say(
            f"{errors} of {len(entries)} lines are broken, or lack a field",
            hint=None
            if one_by_one
            else "--check-only lists them; --ignore-missing-fields accepts records without them",
        )
    if len(found) > errors and not quiet:
        warn(f"agents' records that cannot be read: {len(found) - errors}")
    return ExitCode.FAILED if errors else ExitCode.OK
