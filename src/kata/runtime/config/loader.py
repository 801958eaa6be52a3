"""Find, read and check the configuration: TOML files in, one frozen `Config` out.

The file is the first of: the path that the caller names (containerd's ConfigPath), the environment's KATA_CONF_FILE,
/etc/kata-containers/configuration.toml, /usr/share/defaults/kata-containers/configuration.toml. Without any, the
built-in defaults apply. `config.d/*.toml` beside the file (symbolic links resolved) override it in the order of their
names, key by key. This is Kata's lookup, but for the annotation io.katacontainers.config_path: a pod must not choose a
file of the host.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from kata import installed
from kata.architecture import HOST, Architecture
from kata.errors import InvalidArgument, KataError, NotFound, PermissionDenied
from kata.runtime.config import known
from kata.runtime.config.settings import IMAGES, SECTIONS, Config, HypervisorConfig, Section

SYSTEM_PATHS = (
    Path("/etc/kata-containers/configuration.toml"),
    Path("/usr/share/defaults/kata-containers/configuration.toml"),
)
MAX_SIZE = 1024 * 1024


@dataclass(frozen=True)
class Loaded:
    """A configuration and its sources.

    Attributes:
        config: the settings.
        sources: real paths of the files, of which the last wins; empty for built-in defaults or a body.
        warnings: one sentence each about names that have no effect.
    """

    config: Config
    sources: tuple[Path, ...]
    warnings: tuple[str, ...]


def load(
    path: Path | None = None,
    *,
    body: bytes | None = None,
    environ: Mapping[str, str] = os.environ,
    system_paths: tuple[Path, ...] = SYSTEM_PATHS,
) -> Loaded:
    """Read the configuration.

    Args:
        path: the file, whatever the environment says.
        body: the content (containerd's ConfigBody), used if there is no path; it has no drop-ins.
        environ: KATA_CONF_FILE names the file, KATA_IMAGES the directory of guest images.
        system_paths: files to look for otherwise.

    Raises:
        NotFound, PermissionDenied: the file cannot be read.
        InvalidArgument: it is not a file, not TOML, or has a wrong value; the message names file, section, key, value
            and what is expected.
    """
    config = _defaults(environ)
    warnings: list[str] = []
    sources: tuple[Path, ...] = ()
    if path is None and body is not None:
        config = _overlay(config, body, "config body", warnings)
    else:
        sources = _find(path, environ, system_paths)
        for source in sources:
            config = _overlay(config, _read(source), str(source), warnings)
    default = _defaults(environ).hypervisor
    if config.hypervisor.initrd != default.initrd and config.hypervisor.image == default.image:
        # As in Kata: an initrd that is set without an image is the whole root.
        config = replace(config, hypervisor=replace(config.hypervisor, image=None))
    if config.hypervisor.require_kvm and config.hypervisor.accelerator == "tcg":
        raise InvalidArgument(
            f'{sources[-1] if sources else "config body"}: [hypervisor.qemu] accelerator = "tcg" contradicts '
            "require_kvm = true",
            hint='set accelerator to "auto" or "kvm", or require_kvm to false',
        )
    return Loaded(config, sources, tuple(warnings))


def for_architecture(config: Config, architecture: Architecture, environ: Mapping[str, str] = os.environ) -> Config:
    """The configuration of VMs of another architecture than it is for: QEMU and guest image are the usual ones of that.

    Args:
        config: as it was loaded.
        architecture: of the guest.
        environ: KATA_IMAGES names the directory of guest images.
    """
    if architecture is config.hypervisor.architecture:
        return config
    images = Path(os.path.realpath(environ.get("KATA_IMAGES") or IMAGES))
    moved = replace(
        _of_image(config.hypervisor, images / architecture.current),
        path=architecture.qemu,
        machine_type=architecture.machine_type,
        kernel_verity_params="",
        cpu_features="",
        # What a host gives to guests is made for its own architecture.
        hot_plug_vfio="no-port",
        cold_plug_vfio="no-port",
    )
    return replace(config, hypervisor=moved)


def _defaults(environ: Mapping[str, str]) -> Config:
    """The built-in defaults, with the guest image beneath KATA_IMAGES, or of the installation where none was built."""
    config = Config()
    root = environ.get("KATA_IMAGES") or _installed()
    assert config.hypervisor.image
    if not root:
        image = _root_of(config.hypervisor.image)
        if image == config.hypervisor.image:
            return config
        return replace(config, hypervisor=replace(config.hypervisor, image=image))
    images = Path(os.path.realpath(root))
    built = () if environ.get("KATA_IMAGES") else config.hypervisor.valid_guest_paths
    moved = replace(_of_image(config.hypervisor, images / HOST.current), valid_guest_paths=(images / "*/*", *built))
    return replace(config, hypervisor=moved)


def _of_image(hypervisor: HypervisorConfig, directory: Path) -> HypervisorConfig:
    """The settings with the files of a guest image, under the names that they have by default."""
    usual = HypervisorConfig()
    assert usual.image
    return replace(
        hypervisor,
        kernel=directory / usual.kernel.name,
        initrd=directory / usual.initrd.name,
        image=_root_of(directory / usual.image.name),
        host_programs=directory / usual.host_programs.name,
    )


def _installed() -> Path | None:
    """The directory of the image that came with the installation, if there is one and this host has no other."""
    if os.path.lexists(IMAGES / "current") or not os.path.lexists(installed.IMAGES / "current"):
        return None
    return installed.IMAGES


def _root_of(image: Path) -> Path | None:
    """The root of an image of `kata image build`, whose name says its file system; None if its initrd is all there is.

    Args:
        image: of the usual file system, which is the one if there is no image at all: whoever opens it tells.
    """
    for suffix in (image.suffix, ".ext4", ".xfs"):
        path = image.with_suffix(suffix)
        if os.path.exists(path):
            return path
    return None if os.path.exists(image.with_name("initrd")) else image


def _find(path: Path | None, environ: Mapping[str, str], system_paths: tuple[Path, ...]) -> tuple[Path, ...]:
    """The real paths to read, in order.

    Raises:
        NotFound: a file that was named, or that a link names, does not exist.
        PermissionDenied: a file, or the directory of drop-ins, is not accessible.
        InvalidArgument: a path cannot be resolved for another reason, e.g. a loop of links.
    """
    if path is None and environ.get("KATA_CONF_FILE"):
        path = Path(environ["KATA_CONF_FILE"])
    if path is None:
        # lexists: a dangling link is an error to report, not a missing file.
        path = next((candidate for candidate in system_paths if os.path.lexists(candidate)), None)
    if path is None:
        return ()
    main = _real(path)
    return (main, *map(_real, _drop_ins(main.parent / "config.d")))


def _drop_ins(directory: Path) -> list[Path]:
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith(".toml") and name[0] != ".")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _unreadable(directory, error) from error
    return [directory / name for name in names]


def _real(path: Path) -> Path:
    try:
        return Path(os.path.realpath(path, strict=True))
    except OSError as error:
        raise _unreadable(path, error) from error


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb", opener=_open) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InvalidArgument(f"configuration {path} is not a regular file")
            content = file.read(MAX_SIZE + 1)
    except OSError as error:
        raise _unreadable(path, error) from error
    if len(content) > MAX_SIZE:
        raise InvalidArgument(f"configuration {path} is larger than {MAX_SIZE} bytes")
    return content


def _open(path: str, flags: int) -> int:
    # O_NONBLOCK: opening a FIFO would wait for a writer.
    return os.open(path, flags | os.O_NONBLOCK)


def _unreadable(path: Path, error: OSError) -> KataError:
    kind = {PermissionError: PermissionDenied, FileNotFoundError: NotFound}.get(type(error), InvalidArgument)
    reason = (error.strerror or str(error)).lower()
    return kind(
        f"cannot read configuration {path}: {reason}",
        hint="name another file with KATA_CONF_FILE, or write one with: python3 -m kata.runtime.config default",
    )


def _overlay(config: Config, content: bytes, origin: str, warnings: list[str]) -> Config:
    """`config` with the settings of one file; what is unknown in it is added to `warnings`.

    Raises:
        InvalidArgument: it is not TOML, or a value is not of its setting's kind.
    """
    tables = _sections(_parse(content, origin), origin)
    for section in SECTIONS:
        table = tables.pop(section.name, {})
        changes = {}
        for key, value in table.items():
            setting = section.settings.get(key)
            if setting is None:
                warnings.append(f"{origin}: [{section.name}] {named(key)}: {_about_key(section, key)}")
                continue
            try:
                changes[key] = setting.kind.check(value)
            except ValueError as error:
                raise InvalidArgument(
                    f"{origin}: [{section.name}] {key} = {shown(value)}: expected {setting.kind.expected}"
                ) from error
        config = replace(config, **{section.attribute: replace(getattr(config, section.attribute), **changes)})
    warnings.extend(f"{origin}: [{named(name)}]: {_about_section(name)}" for name in tables)
    return config


def _parse(content: bytes, origin: str) -> dict[str, object]:
    import tomllib

    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line, column = _position(content[: error.start].decode(errors="replace"))
        raise InvalidArgument(f"{origin}: line {line}, column {column}: not UTF-8 text") from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        reason, _, place = str(error).rpartition(" (at ")
        place = place.rstrip(")")
        if place == "end of document":
            place = "line {}, column {}".format(*_position(text))
        reason = reason[:1].lower() + reason[1:]
        raise InvalidArgument(f"{origin}: {place}: broken TOML: {reason}") from error
    except RecursionError as error:
        raise InvalidArgument(f"{origin}: broken TOML: nested too deeply") from error
    except ValueError as error:  # Python refuses integers of thousands of digits
        raise InvalidArgument(f"{origin}: broken TOML: a number has too many digits") from error


def _position(text: str) -> tuple[int, int]:
    """Line and column, from 1, of the position after `text`."""
    return text.count("\n") + 1, len(text) - (text.rfind("\n") + 1) + 1


def _sections(document: dict[str, object], origin: str) -> dict[str, dict[str, object]]:
    """The tables of a document by section name; [hypervisor.*] and [agent.*] are one level deeper.

    Raises:
        InvalidArgument: a key is outside of all sections.
    """
    found: dict[str, dict[str, object]] = {}
    for top, value in document.items():
        if not isinstance(value, dict):
            raise InvalidArgument(
                f"{origin}: {named(top)} = {shown(value)}: expected a section",
                hint=f"write [{named(top)}] on a line of its own, or move the key into a section",
            )
        if top not in ("hypervisor", "agent"):
            found[top] = value
            continue
        for name, table in value.items():
            if not isinstance(table, dict):
                raise InvalidArgument(
                    f"{origin}: [{top}] {named(name)} = {shown(table)}: expected a section",
                    hint=f"keys go into [{_nearest(f'{top}.', _NAMES) or f'{top}.NAME'}]",
                )
            found[f"{top}.{name}"] = table
    return found


_NAMES = tuple(section.name for section in SECTIONS)
_NO_EFFECT = "known to Kata, has no effect here"


def _about_key(section: Section, key: str) -> str:
    if key in known.KEYS[section.name]:
        return _NO_EFFECT
    for other in SECTIONS:
        if other is not section and key in other.settings:
            return f"unknown key, it belongs to [{other.name}]"
    return "unknown key" + suggestion(key, tuple(section.settings))


def _about_section(name: str) -> str:
    if name in known.SECTIONS:
        return _NO_EFFECT
    return "unknown section" + suggestion(name, _NAMES, "[{}]")


def suggestion(name: str, names: tuple[str, ...], form: str = "{}") -> str:
    """The end of a sentence about an unknown name: the nearest known one, if any is near."""
    nearest = _nearest(name, names)
    return f", did you mean {form.format(nearest)}?" if nearest else ""


def _nearest(name: str, names: tuple[str, ...]) -> str | None:
    import difflib

    return next(iter(difflib.get_close_matches(name, names, n=1)), None)


def named(key: str) -> str:
    """A key for a message: as it is if that is one line of a bounded length."""
    return key if key.isprintable() and len(key) <= 80 else shown(key)


def shown(value: object) -> str:
    """A value for an error message: one line of bounded length."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and abs(value) >= 10**40:
        return "a very large integer"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
