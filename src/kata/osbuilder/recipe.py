"""What a guest is made of, as a person writes it down: a small TOML file that may extend another one.

    extends = "default"
    packages = ["strace"]

A recipe only ever adds to what it extends. Nothing here touches a package; reading one needs its own files only.
Reference: docs/guide/guest-images.md, "Recipes".
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import stat
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath
from typing import Any

from kata.agent import config as agent_config
from kata.errors import InvalidArgument, NotFound

DEFAULT = "default"
#: Below the guest's root.
HOOKS = "usr/share/oci/hooks"

#: A format: no disk, the initrd is the whole root.
INITRD = "initrd"
FORMATS = ("erofs", "ext4", "xfs", INITRD)

_SUFFIX = ".toml"
_MAX_FREE_MIB = 1 << 20
#: What ext4 and xfs take.
_LABEL = re.compile(r"[A-Za-z0-9_.-]{1,12}")
_MAX_CHAIN = 8
_MAX_RECIPE = 1 << 20
_MAX_FILE = 256 << 20

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")
#: Debian Policy, 5.6.1.
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+")
_MODULE = re.compile(r"[A-Za-z0-9_*?\[\]-]{1,64}")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_HOOK_KINDS = ("prestart", "poststart", "poststop")
#: What the guest mounts something over: nobody would ever see a file there.
_COVERED = ("dev", "proc", "run", "sys", "tmp")


@dataclass(frozen=True, slots=True)
class File:
    """A file of the root.

    Attributes:
        path: below the root, e.g. "etc/motd".
        content: its bytes.
        mode: permission bits.
    """

    path: str
    content: bytes = field(repr=False)
    mode: int = 0o644


@dataclass(frozen=True, slots=True)
class User:
    """A user, with a group of the same name and number.

    Attributes:
        name: of both.
        id: of both, 1 to 65533.
        home: absolute path.
        shell: absolute path.
    """

    name: str
    id: int
    home: str = "/nonexistent"
    shell: str = "/usr/sbin/nologin"


@dataclass(frozen=True, slots=True)
class Form:
    """How the root is stored.

    Attributes:
        format: a file system, "erofs", "ext4" or "xfs", on a disk; or INITRD, for an initrd that is the whole root.
        free_mib: MiB to leave free in ext4 and xfs.
        label: of ext4 and xfs.
        verity: whether the kernel checks each block that it reads (dm-verity).
        partitioned: whether the file system is in a partition, in Kata's layout (`kata.osbuilder.partitions`).

    Raises:
        InvalidArgument: one of them cannot be, or not with another.
    """

    format: str = "erofs"
    free_mib: int = 0
    label: str = "kata-root"
    verity: bool = False
    partitioned: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.free_mib <= _MAX_FREE_MIB:
            raise InvalidArgument(f"{self.free_mib} MiB cannot be left free (0 to {_MAX_FREE_MIB})")
        if not _LABEL.fullmatch(self.label):
            raise InvalidArgument(f"invalid label {self.label[:64]!r} (1 to 12 letters, digits, '_', '.' and '-')")
        if self.format not in FORMATS:
            raise InvalidArgument(
                f"unknown format {self.format[:64]!r} of an image ({', '.join(FORMATS)})",
                hint=suggestion(self.format, FORMATS),
            )
        if self.verity and self.format == INITRD:
            raise InvalidArgument("an initrd has no disk that dm-verity could check", hint="use erofs or ext4")
        if self.verity and self.format == "xfs":
            raise InvalidArgument("dm-verity is for erofs and ext4: xfs images are not the same twice")
        if self.partitioned and self.format == INITRD:
            raise InvalidArgument("an initrd has no disk that could have partitions")
        if self.partitioned and self.verity:
            raise InvalidArgument("dm-verity is for images without a partition table")


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe with all that it extends.

    Attributes:
        name: of the last file, without its suffix.
        description: one line.
        packages: names of Debian packages besides what the agent needs.
        modules: names and patterns of kernel modules, as modprobe finds them.
        files: for the root, hooks among them.
        users: besides root and nobody.
        agent: settings of the agent, as on the kernel command line: name without "agent." to value.
        form: how it is stored.
    """

    name: str
    description: str = ""
    packages: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    files: tuple[File, ...] = ()
    users: tuple[User, ...] = ()
    agent: tuple[tuple[str, str], ...] = ()
    form: Form = Form()

    @property
    def digest(self) -> str:
        """SHA-256 of all that shapes the image; name and description do not."""
        value = {
            "packages": sorted(self.packages),
            "modules": sorted(self.modules),
            "files": [(one.path, hashlib.sha256(one.content).hexdigest(), one.mode) for one in self.files],
            "users": [(one.name, one.id, one.home, one.shell) for one in self.users],
            "agent": self.agent,
            "form": asdict(self.form),
        }
        return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def names() -> list[str]:
    """The recipes that come with this package."""
    return sorted(one.name.removesuffix(_SUFFIX) for one in _shipped().iterdir() if one.name.endswith(_SUFFIX))


def load(recipe: str) -> Recipe:
    """Read a recipe.

    Args:
        recipe: a name, or the path of a file, which has a "/" in it or ends in ".toml".

    Raises:
        NotFound: there is no such recipe, or a file that it names does not exist.
        InvalidArgument: something in it is not understood, or it extends itself.
    """
    return _load(recipe, Path(), ())


def _load(recipe: str, beside: Path, below: tuple[str, ...]) -> Recipe:
    if "/" in recipe or recipe.endswith(_SUFFIX):
        path = beside / recipe
        where, name, directory = str(path), path.name.removesuffix(_SUFFIX), path.parent
        source: Traversable = path
    else:
        where, name, directory = recipe, recipe, None
        source = _shipped() / f"{recipe}{_SUFFIX}"
        if recipe not in names():
            hint = suggestion(recipe, names())
            raise NotFound(f"there is no recipe {recipe[:64]!r} ({', '.join(names())})", hint=hint)
    if not _NAME.fullmatch(name):
        raise InvalidArgument(f"invalid name {name[:64]!r} of a recipe (1 to 31 lower-case letters, digits and '-')")
    if where in below:
        raise InvalidArgument(f"recipe {below[0]} extends itself: {' > '.join((*below, where))}")
    if len(below) >= _MAX_CHAIN:
        raise InvalidArgument(f"recipe {below[0]} is more than {_MAX_CHAIN} recipes deep")
    table = _read(source, where)
    extends = table.pop("extends", "")
    if not isinstance(extends, str):
        raise InvalidArgument(f"recipe {where}: extends is not the name of a recipe")
    base = _load(extends, directory or Path(), (*below, where)) if extends else Recipe(name)
    try:
        return _Reader(where, directory).add(replace(base, name=name, description=""), table)
    except OSError as error:
        raise NotFound(f"recipe {where}: {error.filename}: {(error.strerror or '').lower()}") from None


def _read(source: Traversable, where: str) -> dict[str, Any]:
    try:
        with source.open("rb") as file:
            text = file.read(_MAX_RECIPE + 1)
        if len(text) > _MAX_RECIPE:
            raise InvalidArgument(f"recipe {where} has more than {_MAX_RECIPE >> 20} MiB")
        return tomllib.loads(text.decode())
    except OSError as error:
        raise NotFound(f"cannot read recipe {where}: {(error.strerror or str(error)).lower()}") from None
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"recipe {where}: {error}") from None


class _Reader:
    """One file's tables, checked."""

    def __init__(self, where: str, directory: Path | None) -> None:
        self._where = where
        self._directory = directory

    def add(self, base: Recipe, table: dict[str, Any]) -> Recipe:
        """The recipe with what a file adds to it.

        Raises:
            InvalidArgument: a key or a value is not understood.
            OSError: a file that it names cannot be read.
        """
        readers: dict[str, Callable[[Any], Any]] = {
            "description": lambda value: self._text("description", value),
            "packages": lambda value: (*base.packages, *self._names("packages", value, _PACKAGE)),
            "modules": lambda value: (*base.modules, *self._modules(value)),
            "files": lambda value: self._files(value),
            "hooks": lambda value: self._hooks(value),
            "users": lambda value: _by(base.users, [self._user(one) for one in self._tables("users", value)], "name"),
            "image": lambda value: self._form(base.form, value),
            "agent": lambda value: tuple({**dict(base.agent), **self._agent(value)}.items()),
        }
        self._check_keys("", table, readers)
        found = {key: readers[key](value) for key, value in table.items()}
        files = [*found.pop("files", ()), *found.pop("hooks", ())]
        if "image" in found:
            found["form"] = found.pop("image")
        for key in ("packages", "modules"):
            if key in found:
                found[key] = tuple(dict.fromkeys(found[key]))
        return replace(base, **found, files=_by(base.files, files, "path"))

    def _wrong(self, key: str, what: str, hint: str | None = None) -> InvalidArgument:
        key = key if key.isprintable() else ascii(key[:64])
        return InvalidArgument(f"recipe {self._where}: {key}: {what}", hint=hint)

    def _check_keys(self, key: str, table: Mapping[str, Any], known: Iterable[str]) -> None:
        known = list(known)
        for name in table:
            if name not in known:
                where = f"{key}.{name}" if key else name
                raise InvalidArgument(
                    f"recipe {self._where}: unknown key {where[:64]!r} ({', '.join(known)})",
                    hint=suggestion(name, known),
                )

    def _text(self, key: str, value: object) -> str:
        if not isinstance(value, str) or not value.isprintable():
            raise self._wrong(key, "not a line of text")
        return value

    def _names(self, key: str, value: object, pattern: re.Pattern[str]) -> list[str]:
        if not isinstance(value, list):
            raise self._wrong(key, "not a list")
        for one in value:
            if not isinstance(one, str) or not pattern.fullmatch(one):
                raise self._wrong(key, f"invalid name {str(one)[:64]!r}")
        return value

    def _modules(self, value: object) -> list[str]:
        """A list, or a table of them by purpose, which makes long ones readable."""
        if not isinstance(value, dict):
            return self._names("modules", value, _MODULE)
        return [name for key, one in value.items() for name in self._names(f"modules.{key}", one, _MODULE)]

    def _tables(self, key: str, value: object) -> list[dict[str, Any]]:
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            raise self._wrong(key, f"not a list of tables ([[{key}]])")
        return value

    def _path(self, key: str, value: object) -> str:
        text = self._text(key, value)
        parts = PurePosixPath(text).parts
        if parts[:1] != ("/",) or len(parts) < 2 or ".." in parts:
            raise self._wrong(key, f"'{text[:64]}' is not an absolute path without '..'")
        if parts[1] in _COVERED:
            raise self._wrong(key, f"{text[:64]} would be covered: the guest mounts something on /{parts[1]}")
        return "/".join(parts[1:])

    def _source(self, key: str, value: object) -> Path:
        if self._directory is None:
            raise self._wrong(key, "a recipe of the package has no files beside it")
        return self._directory / self._text(key, value)

    def _files(self, value: object) -> list[File]:
        found = []
        for table in self._tables("files", value):
            self._check_keys("files", table, ("path", "source", "content", "mode"))
            path = self._path("files.path", table.get("path"))
            if ("source" in table) == ("content" in table):
                raise self._wrong("files", f"/{path} has both source and content, or none of them")
            if "content" in table:
                if not isinstance(table["content"], str):
                    raise self._wrong("files.content", "not text")
                some = [File(path, table["content"].encode())]
            else:
                some = _collect(self._source("files.source", table["source"]), path)
            if "mode" in table:
                mode = self._mode(table["mode"])
                some = [replace(one, mode=mode) for one in some]
            found += some
        return found

    def _mode(self, value: object) -> int:
        if not isinstance(value, str) or not re.fullmatch(r"0?[0-7]{3}", value):
            raise self._wrong("files.mode", f"{str(value)[:64]!r} is not an octal number of three digits in quotes")
        return int(value, 8)

    def _hooks(self, value: object) -> list[File]:
        if not isinstance(value, dict):
            raise self._wrong("hooks", "not a table ([hooks])")
        self._check_keys("hooks", value, _HOOK_KINDS)
        found = []
        for kind, sources in value.items():
            if not isinstance(sources, list):
                raise self._wrong(f"hooks.{kind}", "not a list of files")
            for source in sources:
                path = self._source(f"hooks.{kind}", source)
                found += [replace(one, mode=0o755) for one in _collect(path, f"{HOOKS}/{kind}/{path.name}")]
        return found

    def _user(self, table: dict[str, Any]) -> User:
        self._check_keys("users", table, ("name", "id", "home", "shell"))
        name, number = table.get("name"), table.get("id")
        if not isinstance(name, str) or not _USER.fullmatch(name) or name in ("root", "nobody"):
            raise self._wrong("users.name", f"invalid name {str(name)[:64]!r}")
        if not isinstance(number, int) or isinstance(number, bool) or not 0 < number < 65534:
            raise self._wrong("users.id", f"user {name} has no number of 1 to 65533")
        paths = {key: table[key] for key in ("home", "shell") if key in table}
        for key, path in paths.items():
            if not self._text(f"users.{key}", path).startswith("/") or ":" in path:
                raise self._wrong(f"users.{key}", f"'{path[:64]}' is not an absolute path")
        return User(name, number, **paths)

    def _form(self, base: Form, value: object) -> Form:
        if not isinstance(value, dict):
            raise self._wrong("image", "not a table ([image])")
        self._check_keys("image", value, ("format", "free_mib", "label", "verity", "partitioned"))
        try:
            return form(value, base)
        except InvalidArgument as error:
            raise InvalidArgument(f"recipe {self._where}: image: {error.message}", hint=error.hint) from None

    def _agent(self, value: object) -> dict[str, str]:
        if not isinstance(value, dict):
            raise self._wrong("agent", "not a table ([agent])")
        found = {}
        for name, one in value.items():
            text = str(one).lower() if isinstance(one, bool) else str(one)
            if isinstance(one, (dict, list)) or not text.isprintable() or " " in text:
                raise self._wrong(f"agent.{name}", "not a word, a number, or true or false")
            found[name] = text
        known = [name.removeprefix("agent.") for name in agent_config.PARAMETERS]
        self._check_keys("agent", found, known)
        try:
            agent_config.parse(agent_parameters(found))
        except InvalidArgument as error:
            raise self._wrong("agent", error.message) from None
        return found


def form(values: Mapping[str, Any], base: Form | None = None) -> Form:
    """A form of values that may be of any kind.

    Args:
        values: of the attributes that differ from those of `base`.
        base: None for the usual one.

    Raises:
        InvalidArgument: a value is not what it has to be.
    """
    for key, value in values.items():
        expected = type(getattr(Form(), key))
        if type(value) is not expected:
            raise InvalidArgument(f"{key} is not of the kind {expected.__name__}")
    return replace(base or Form(), **values)


def agent_parameters(settings: Mapping[str, str]) -> str:
    """Settings of the agent as they stand on a kernel command line."""
    return " ".join(f"agent.{name}={value}" for name, value in settings.items())


def suggestion(name: str, known: Iterable[str]) -> str | None:
    """What somebody may have meant, as a hint."""
    near = difflib.get_close_matches(name.lower(), list(known), n=1)
    return f"did you mean {near[0]}?" if near else None


def _collect(source: Path, path: str) -> list[File]:
    """A file, or all of a directory, under their path in the root.

    Raises:
        InvalidArgument: one is too large, or is neither of them.
        OSError: one cannot be read.
    """
    status = source.stat()
    if stat.S_ISDIR(status.st_mode):
        return [one for child in sorted(source.iterdir()) for one in _collect(child, f"{path}/{child.name}")]
    if not stat.S_ISREG(status.st_mode):
        raise InvalidArgument(f"{source} is neither a file nor a directory")
    if status.st_size > _MAX_FILE:
        raise InvalidArgument(f"{source} has more than {_MAX_FILE >> 20} MiB")
    return [File(path, source.read_bytes(), 0o755 if status.st_mode & 0o111 else 0o644)]


def _by(before: Iterable[Any], after: Iterable[Any], key: str) -> tuple[Any, ...]:
    """Both, sorted; of two with the same key the later one."""
    found = {getattr(one, key): one for one in (*before, *after)}
    return tuple(found[name] for name in sorted(found))


def _shipped() -> Traversable:
    return files(__package__) / "recipes"
