"""`kata config`: which settings hold and why, whether a file is right, and which files are looked for."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from kata.cli.options import AsJson, ConfigFile
from kata.cli.render import ExitCode, printable, warn
from kata.errors import InvalidArgument, NotFound
from kata.runtime.config.loader import SYSTEM_PATHS, load
from kata.runtime.config.settings import ANNOTATION_PREFIX, SECTIONS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kata.runtime.config.origins import Value

app = typer.Typer(help="Show, check and find the configuration.", no_args_is_help=True)

#: Bytes of a file with annotations.
_MAX_FILE = 1 << 20
#: Where a comment with the origin begins, if the value leaves room.
_COMMENT_COLUMN = 48


@app.command()
def show(
    config: ConfigFile = None,
    annotations: Annotated[
        list[str] | None,
        typer.Option(
            "-a",
            "--annotations",
            metavar="FILE|KEY=VALUE",
            help="Show what a pod with these annotations gets: its manifest, an OCI config.json, or a single "
            "annotation. May be repeated.",
        ),
    ] = None,
    changed: Annotated[bool, typer.Option("--changed", help="Leave out settings that have their default.")] = False,
    as_json: AsJson = False,
) -> int:
    """Print the settings that hold, as TOML, each with where its value is from."""
    from kata.runtime.config.origins import From, values

    loaded = load(config)
    for warning in loaded.warnings:
        warn(warning)
    found = values(loaded, _annotations(annotations or ()))
    if changed:
        found = [value for value in found if value.origin is not From.DEFAULT]
    print(json.dumps([_as_json(value) for value in found], indent=2) if as_json else _as_toml(found))
    return ExitCode.OK


@app.command()
def check(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="Instead of the file that is in use.", show_default=False)
    ] = None,
    strict: Annotated[bool, typer.Option("-s", "--strict", help="Fail for warnings, too.")] = False,
) -> int:
    """Check a configuration with its drop-in files; exit with 1 if a value is wrong."""
    loaded = load(file)
    for warning in loaded.warnings:
        warn(warning)
    for source in loaded.sources:
        print(printable(str(source)))
    if not loaded.sources:
        print("no configuration file: the built-in defaults apply")
    return ExitCode.FAILED if strict and loaded.warnings else ExitCode.OK


@app.command()
def paths(config: ConfigFile = None, as_json: AsJson = False) -> int:
    """Print which files are looked for, in the order in which they are, and which of them are used."""
    used = load(config).sources
    rows = list(_candidates(config, os.environ, used))
    if as_json:
        print(json.dumps([{"path": path, "state": state, "named_by": by} for path, state, by in rows], indent=2))
    else:
        for path, state, by in rows:
            print(f"{state:<8}  {printable(path)}{f'  ({by})' if by else ''}")
    return ExitCode.OK


def _candidates(
    config: Path | None, environ: Mapping[str, str], used: Sequence[Path]
) -> Iterator[tuple[str, str, str]]:
    """Path, state (used, unused or missing) and what names it, for all files that may be read."""
    named = [(config, "--config"), (environ.get("KATA_CONF_FILE"), "KATA_CONF_FILE")]
    candidates = [(Path(path), by) for path, by in named if path] + [(path, "") for path in SYSTEM_PATHS]
    waiting = list(used)
    for path, by in candidates:
        if waiting and path.resolve() == waiting[0] and not any(path == seen for seen in used[: -len(waiting)]):
            link = f"to {waiting[0]}" if path != waiting[0] else ""
            yield str(path), "used", ", ".join(filter(None, (by, link)))
            yield from ((str(drop_in), "used", "drop-in") for drop_in in waiting[1:])
            waiting = []
        else:
            yield str(path), "unused" if os.path.lexists(path) else "missing", by


def _annotations(words: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in words:
        key, separator, value = word.partition("=")
        if separator and not os.path.exists(word):
            # The prefix of all of them may be left out.
            key = key if key.startswith(ANNOTATION_PREFIX) else ANNOTATION_PREFIX + key
            found[key] = value
            _require_section(key.removeprefix(ANNOTATION_PREFIX))
        else:
            found.update(_read_annotations(Path(word)))
    return found


def _require_section(name: str) -> None:
    """Check that an annotation is one that may change a setting: others, of which a pod may have any, do nothing.

    Raises:
        InvalidArgument: it is not.
    """
    if name.partition(".")[0] in {section.attribute for section in SECTIONS}:
        return
    meant = [f"{one.attribute}.{name}" for one in SECTIONS if name in {row.annotation for row in one.settings.values()}]
    raise InvalidArgument(
        f"annotation {name[:100]!a} changes no setting",
        hint=f"write {' or '.join(meant)}" if meant else f"those that do begin with {ANNOTATION_PREFIX}",
    )


def _read_annotations(path: Path) -> dict[str, str]:
    """The annotations of a manifest in YAML or JSON, or of an OCI config.json.

    Raises:
        NotFound: there is no such file.
        InvalidArgument: it cannot be read, or has no annotations.
    """
    import yaml

    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE + 1)
    except FileNotFoundError as error:
        raise NotFound(
            f"annotations {path}: no such file", hint="name a file, or an annotation as KEY=VALUE"
        ) from error
    except OSError as error:
        raise InvalidArgument(f"cannot read annotations {path}: {(error.strerror or str(error)).lower()}") from error
    if len(content) > _MAX_FILE:
        raise InvalidArgument(f"annotations {path}: the file is larger than {_MAX_FILE} bytes")
    try:
        documents = list(yaml.safe_load_all(content))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InvalidArgument(f"annotations {path}: not YAML or JSON: {printable(str(error))[:200]}") from error
    found: dict[str, str] | None = next(filter(None, map(_annotations_of, documents)), None)
    if found is None:
        raise InvalidArgument(
            f"annotations {path}: no annotations in it",
            hint="it has to be a manifest with metadata.annotations, or an OCI config.json",
        )
    if not all(isinstance(key, str) and isinstance(value, str) for key, value in found.items()):
        raise InvalidArgument(f"annotations {path}: not all values are strings", hint="put numbers into quotes")
    return found


def _annotations_of(document: Any) -> Any:
    """Those of a pod, of a pod's template in a workload, or of an OCI specification; None without any."""
    if not isinstance(document, dict):
        return None
    spec = document.get("spec")
    template = spec.get("template") if isinstance(spec, dict) else None
    metadata = template.get("metadata") if isinstance(template, dict) else document.get("metadata")
    holder = metadata if isinstance(metadata, dict) else document
    found = holder.get("annotations")
    return found if isinstance(found, dict) else None


def _as_json(value: Value) -> dict[str, Any]:
    import tomllib

    plain = tomllib.loads(f"value = {value.toml}")["value"]
    return {
        "section": value.section,
        "key": value.key,
        "value": plain,
        "origin": str(value.origin),
        "where": value.where,
    }


def _as_toml(found: Sequence[Value]) -> str:
    lines: list[str] = []
    section = ""
    for value in found:
        if value.section != section:
            section = value.section
            lines += [*([""] if lines else []), f"[{section}]"]
        setting = f"{value.key} = {value.toml}"
        lines.append(f"{setting:<{_COMMENT_COLUMN}}  # {printable(value.where) or value.origin}")
    return "\n".join(lines) or "# every setting has its default"
