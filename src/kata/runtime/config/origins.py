"""Where each setting's value is from: default, installation, environment, a line of a file, an annotation of a pod."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from kata import installed
from kata.runtime.config.annotations import apply_annotations
from kata.runtime.config.loader import Loaded
from kata.runtime.config.settings import ANNOTATION_PREFIX, SECTIONS, Section, Setting


class From(StrEnum):
    """What a value is from."""

    DEFAULT = "default"
    INSTALLATION = "installation"
    ENVIRONMENT = "environment"
    FILE = "file"
    ANNOTATION = "annotation"


@dataclass(frozen=True)
class Value:
    """A setting that holds.

    Attributes:
        section, key: of the setting, as TOML writes them.
        toml: the value in TOML.
        value: the same, typed.
        origin: what it is from.
        where: the file and its line as `FILE:LINE`, the variable, the annotation, or the directory of the images that
            came along; "" for a default.
    """

    section: str
    key: str
    toml: str
    value: object
    origin: From
    where: str


def values(loaded: Loaded, annotations: Mapping[str, str] | None = None) -> list[Value]:
    """All settings in the order of the reference, as a pod with these annotations gets them.

    Args:
        loaded: the configuration. Its files are read once more, for their lines.
        annotations: of a pod; those that are not about the configuration are ignored.

    Raises:
        OSError: a file cannot be read any more.
        KataError: an annotation is not allowed, or wrong.
    """
    annotations = annotations or {}
    config = apply_annotations(loaded.config, annotations)
    files = [(str(source), lines_of(Path(source).read_text(encoding="utf-8"))) for source in loaded.sources]
    return [
        _value(section, setting, getattr(getattr(config, section.attribute), setting.key), annotations, files)
        for section in SECTIONS
        for setting in section.settings.values()
    ]


def _value(
    section: Section,
    setting: Setting,
    value: object,
    annotations: Mapping[str, str],
    files: list[tuple[str, dict[tuple[str, ...], int]]],
) -> Value:
    annotation = f"{ANNOTATION_PREFIX}{section.attribute}.{setting.annotation}"
    path = (*section.name.split("."), setting.key)
    lines = [f"{file}:{lines[path]}" for file, lines in files if path in lines]
    if setting.annotation is not None and annotation in annotations:
        origin, where = From.ANNOTATION, annotation
    elif lines:
        origin, where = From.FILE, lines[-1]  # the last file wins
    elif str(installed.IMAGES) in setting.kind.toml(value):
        origin, where = From.INSTALLATION, str(installed.IMAGES)
    elif value != setting.default:
        origin, where = From.ENVIRONMENT, "KATA_IMAGES"  # the one variable that changes settings
    else:
        origin, where = From.DEFAULT, ""
    return Value(section.name, setting.key, setting.kind.toml(value), value, origin, where)


def lines_of(text: str) -> dict[tuple[str, ...], int]:
    """The line, from 1, on which each key of a valid TOML document begins, by the path of its sections and itself."""
    found: dict[tuple[str, ...], int] = {}
    section: tuple[str, ...] = ()
    statement, begin = "", 1
    for number, line in enumerate(text.split("\n"), 1):
        begin = begin if statement else number
        statement += line + "\n"
        try:
            document = tomllib.loads(statement)
        except tomllib.TOMLDecodeError:
            continue  # a value that goes on in the next line
        if statement.lstrip().startswith("["):
            section = next(_paths(document), ())
        else:
            found.update(dict.fromkeys((section + path for path in _paths(document)), begin))
        statement = ""
    return found


def _paths(document: Mapping[str, object]) -> Iterator[tuple[str, ...]]:
    """The paths of all values of a document, tables with nothing in them included."""
    for key, value in document.items():
        if isinstance(value, dict) and value:
            yield from ((key, *path) for path in _paths(value))
        else:
            yield (key,)
