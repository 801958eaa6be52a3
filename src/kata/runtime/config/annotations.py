"""Settings from a pod's annotations, `io.katacontainers.config.{hypervisor,runtime,agent,factory}.*`.

A pod's author is not the host's administrator. A setting can be changed only if `enable_annotations` allows it, and a
path must match the administrator's list; what cannot be done is refused instead of ignored. Other annotations are
ignored.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from kata.errors import InvalidArgument, PermissionDenied, Unimplemented
from kata.runtime.config import known
from kata.runtime.config.loader import shown, suggestion
from kata.runtime.config.settings import ANNOTATION_PREFIX, SECTIONS, Config, Section, Setting


def apply_annotations(config: Config, annotations: Mapping[str, str]) -> Config:
    """`config` with the settings of a pod's annotations. Looks at the host: whether a path exists, and what it is.

    Args:
        config: the administrator's.
        annotations: all of the pod's.

    Raises:
        PermissionDenied: `enable_annotations` does not allow one, or a path matches none of the listed globs.
        InvalidArgument: there is no such setting, or the value is wrong.
        Unimplemented: an annotation of Kata has no effect here.
    """
    sections = {section.attribute: section for section in SECTIONS}
    allowed = config.hypervisor.enable_annotations
    result = config
    # Sorted, so that of several errors always the same is reported.
    for name in sorted(annotations):
        attribute, _, short = name.removeprefix(ANNOTATION_PREFIX).partition(".")
        if not name.startswith(ANNOTATION_PREFIX) or attribute not in sections:
            continue
        section = sections[attribute]
        setting = _setting(section, short, name)
        if not any(re.fullmatch(pattern, short) for pattern in allowed):
            raise PermissionDenied(
                f"annotation {name[:200]} is not allowed",
                hint=f'add "{re.escape(short)}" to enable_annotations in [hypervisor.qemu] of the configuration',
            )
        value = _value(config, setting, name, annotations[name])
        result = replace(result, **{attribute: replace(getattr(result, attribute), **{setting.key: value})})
    return result


def _setting(section: Section, short: str, name: str) -> Setting:
    by_annotation = {row.annotation: row for row in section.settings.values() if row.annotation is not None}
    if short in by_annotation:
        return by_annotation[short]
    name = name[:200]
    if short in known.ANNOTATIONS[section.attribute]:
        raise Unimplemented(f"annotation {name} of Kata has no effect here", hint="remove the annotation")
    if short in section.settings:
        raise PermissionDenied(
            f"annotation {name}: {short} can be set in the configuration file only",
            hint=f"set {short} in [{section.name}] of the configuration and remove the annotation",
        )
    raise InvalidArgument(f"annotation {name}: no such setting{suggestion(short, tuple(by_annotation))}")


def _value(config: Config, setting: Setting, name: str, text: str) -> object:
    try:
        value = setting.kind.parse(text)
    except ValueError as error:
        raise InvalidArgument(f"annotation {name} = {shown(text)}: expected {setting.kind.expected}") from error
    if setting.valid is None:
        return value
    assert isinstance(value, Path)
    real = Path(os.path.realpath(value))
    # Before looking at the file: a pod's author must not learn what exists on the host.
    if not any(_matches(real, glob) for glob in getattr(config.hypervisor, setting.valid)):
        raise PermissionDenied(
            f"annotation {name} = {shown(text)}: the path matches nothing in {setting.valid}",
            hint=f"add the path or a glob for it to {setting.valid} in [hypervisor.qemu] of the configuration",
        )
    if not real.is_file():
        raise InvalidArgument(f"annotation {name} = {shown(text)}: no such file")
    # The path that was checked: a link that changes later makes no difference.
    return real


def _matches(real: Path, glob: Path) -> bool:
    """Whether a resolved path matches a glob, component by component: `*` does not match a slash.

    Symbolic links are followed in the part of the glob that the administrator spelled out, not in what a wildcard
    finds.
    """
    parts = glob.parts
    plain = next((i for i, part in enumerate(parts) if set(part) & set("*?[")), len(parts))
    prefix = os.path.realpath(os.path.join(*parts[:plain]))
    wild = parts[plain:]
    if not wild:
        return str(real) == prefix
    return (
        len(real.parts) == len(Path(prefix).parts) + len(wild)
        and real.is_relative_to(prefix)
        and real.relative_to(prefix).match(str(Path(*wild)))
    )
