"""What `kata image inspect` and `kata image diff` show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kata.errors import FailedPrecondition
from kata.logs.visible import visible
from kata.osbuilder import contents
from kata.osbuilder.contents import Item
from kata.osbuilder.store import GuestImage

_MAX_LICENSES_SHOWN = 4
#: Columns that the tables need.
_WIDTH = 132


@dataclass(frozen=True)
class Change:
    """One thing that differs.

    Attributes:
        kind: "package", "file" of the root, or "part" of the image.
        name: of it.
        before, after: version, or size and mode; "" where it is not there.
    """

    kind: str
    name: str
    before: str
    after: str


def files_of(image: GuestImage) -> list[Item]:
    """The files of an image's root.

    Raises:
        FailedPrecondition: the image was built before there was a list of them.
        InvalidArgument: the list is damaged.
    """
    if contents.NAME not in image.manifest["files"]:
        raise FailedPrecondition(f"guest image {image.version} has no list of its files", hint="build it again")
    return contents.parse((image.directory / contents.NAME).read_text())


def document(image: GuestImage, items: Sequence[Item]) -> dict[str, Any]:
    """The manifest and all files, as JSON has them."""
    return {**image.manifest, "contents": [asdict(item) for item in items]}


def show(image: GuestImage, items: Sequence[Item], largest: int) -> None:
    """Print an image for a person."""
    console = Console(highlight=False)
    console.width = max(console.width, _WIDTH)
    manifest = image.manifest
    for name in ("version", "recipe", "architecture", "kernel_release", "date"):
        console.print(f"{name.replace('_', ' '):<16}{manifest[name]}")
    for name, file in manifest["files"].items():
        if "/" not in name:
            console.print(f"{name:<16}{_megabytes(file['size'])}")
    packages = Table("PACKAGE", "VERSION", "LICENSES", box=None, pad_edge=False)
    for package in manifest.get("packages", ()):
        licenses = package.get("licenses", ())
        more = f", and {len(licenses) - _MAX_LICENSES_SHOWN} more" if len(licenses) > _MAX_LICENSES_SHOWN else ""
        words = (package["name"], package["version"], ", ".join(licenses[:_MAX_LICENSES_SHOWN]) + more)
        packages.add_row(*(escape(visible(str(word))) for word in words))
    console.print()
    console.print(packages)
    files = Table("SIZE", "FILE", box=None, pad_edge=False)
    for item in sorted(items, key=lambda item: (-item.size, item.path))[:largest]:
        files.add_row(_megabytes(item.size), escape(visible(f"/{item.path}")))
    console.print()
    console.print(files)
    regular = [item.size for item in items if item.type == "file"]
    console.print(f"\n{len(regular)} files, {_megabytes(sum(regular))}")


def compare(before: GuestImage, after: GuestImage) -> list[Change]:
    """What differs between two images: packages first, then the root's files, then what else the images consist of.

    Raises:
        FailedPrecondition, InvalidArgument: as `files_of`.
    """
    old, new = (
        {one["name"]: one["version"] for one in image.manifest.get("packages", ())} for image in (before, after)
    )
    changes = [
        Change("package", name, old.get(name, ""), new.get(name, ""))
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]
    difference = contents.compare(files_of(before), files_of(after))
    changes += [Change("file", f"/{item.path}", "", _what(item)) for item in difference.added]
    changes += [Change("file", f"/{item.path}", _what(item), "") for item in difference.removed]
    changes += [Change("file", f"/{one.path}", _what(one), _what(other)) for one, other in difference.changed]
    parts, others = before.manifest["files"], after.manifest["files"]
    for name in sorted({*parts, *others}):
        if parts.get(name) != others.get(name) and name != contents.NAME:
            changes.append(Change("part", name, _part(parts.get(name)), _part(others.get(name))))
    return changes


def as_document(changes: Sequence[Change]) -> list[dict[str, str]]:
    """Changes as JSON has them."""
    return [asdict(change) for change in changes]


def as_lines(changes: Sequence[Change]) -> list[str]:
    """Changes for a person: "+" for what has come, "-" for what has gone, "~" for what is another one."""
    lines = []
    for change in changes:
        sign = "~" if change.before and change.after else "+" if change.after else "-"
        values = " -> ".join(value for value in (change.before, change.after) if value)
        lines.append(visible(f"{sign} {change.kind} {change.name}  {values}"))
    return lines


def _what(item: Item) -> str:
    if item.type == "file":
        return f"{item.size} bytes, mode {item.mode:04o}, sha256 {item.digest[:12]}"
    return f"link to {item.link}" if item.type == "link" else f"{item.type}, mode {item.mode:04o}"


def _part(file: dict[str, Any] | None) -> str:
    return f"{file['size']} bytes, sha256 {file['sha256'][:12]}" if file else ""


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"
