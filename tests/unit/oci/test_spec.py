"""Bundles: what is accepted, and how what is not is refused."""

from __future__ import annotations

import contextlib
import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata.errors import InvalidArgument, NotFound
from kata.oci import convert, spec

_DATA = Path(__file__).with_name("data")
_REAL = sorted(_DATA.glob("*.json"))
real_specs = pytest.mark.parametrize("path", _REAL, ids=lambda path: path.stem)


def _minimal() -> dict[str, Any]:
    return {"ociVersion": "1.0.2", "process": {"args": ["true"], "cwd": "/"}, "root": {"path": "rootfs"}}


def _bundle(directory: Path, content: object) -> Path:
    (directory / "config.json").write_text(json.dumps(content))
    return directory


@real_specs
def test_real_specs_are_taken_as_they_are(path: Path) -> None:
    text = path.read_bytes()
    assert spec.parse_spec(text) == json.loads(text)


@pytest.mark.parametrize(
    "version", ["1.0.0", "1.0.0-rc5", "1.0.2-dev", "1.0", "1.1.0", "1.2.1", "1.3.0+dev", "1.10.0", "1.99.0"]
)
def test_every_first_version_is_taken(version: str) -> None:
    assert spec.parse_spec(json.dumps({**_minimal(), "ociVersion": version}))["ociVersion"] == version


def test_bundle(tmp_path: Path) -> None:
    bundle = spec.load_bundle(_bundle(tmp_path, _minimal()))
    assert bundle.path == tmp_path
    assert bundle.rootfs == tmp_path / "rootfs"
    assert bundle.spec["process"]["args"] == ["true"]


def test_relative_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(_bundle(tmp_path, _minimal()))
    assert spec.load_bundle(Path(".")).rootfs == tmp_path / "rootfs"


def test_absolute_root_may_be_anywhere(tmp_path: Path) -> None:
    content = _minimal()
    content["root"]["path"] = "/var/lib/containers/storage/overlay/x/merged"
    assert spec.load_bundle(_bundle(tmp_path, content)).rootfs == Path(content["root"]["path"])


@pytest.mark.parametrize("root", ["..", "../other", "rootfs/../../x"])
def test_relative_root_stays_in_the_bundle(tmp_path: Path, root: str) -> None:
    content = _minimal()
    content["root"]["path"] = root
    with pytest.raises(InvalidArgument, match="leads out of the bundle"):
        spec.load_bundle(_bundle(tmp_path, content))


def test_relative_root_must_not_be_a_link_out_of_the_bundle(tmp_path: Path) -> None:
    (tmp_path / "rootfs").symlink_to("/etc")
    with pytest.raises(InvalidArgument, match="leads out of the bundle"):
        spec.load_bundle(_bundle(tmp_path, _minimal()))


def test_missing_bundle(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"nowhere/config\.json does not exist"):
        spec.load_bundle(tmp_path / "nowhere")
    with pytest.raises(NotFound):
        spec.load_bundle(tmp_path)


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _directory(path: Path) -> None:
    path.mkdir()


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _loop(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize("make", [_fifo, _directory, _device, _loop])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "config.json")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(InvalidArgument, match=r"config\.json: (not a regular file|cannot open: too many)"):
        spec.load_bundle(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_too_large(tmp_path: Path) -> None:
    with open(tmp_path / "config.json", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InvalidArgument, match="larger than 10 MiB"):
        spec.load_bundle(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"\xff\xfe{",
        b"{} {}",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b"[" * 1_000_000,
        b'{"ociVersion": ' + b"1" * 10_000 + b"}",
    ],
    ids=["empty", "cut", "encoding", "two", "nan", "infinity", "deep", "digits"],
)
def test_not_json(text: bytes) -> None:
    with pytest.raises(InvalidArgument, match=r"the document is (not JSON|nested too deeply)"):
        spec.parse_spec(text)


@pytest.mark.parametrize(
    ("written", "read"),
    [(b"a\xffb", "a\ufffdb"), (b"\\ud800", "\ufffd"), (b"\\ud83d\\ude00", "\U0001f600"), (b"\xc3\xa9", "\xe9")],
)
def test_what_is_not_unicode_is_replaced_as_other_engines_do(written: bytes, read: str) -> None:
    text = json.dumps(_at("process.env", ["X=MARK"])).encode().replace(b"MARK", written)
    assert spec.parse_spec(text)["process"]["env"] == [f"X={read}"]


def _at(path: str, value: object) -> dict[str, Any]:
    """A minimal spec with one more value."""
    content = _minimal()
    *parents, last = path.split(".")
    target = content
    for name in parents:
        target = target.setdefault(name, {})
    target[last] = value
    return content


_RULE = {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "r"}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("ociVersion", "2.0.0", "ociVersion 2.0.0 is not supported; every 1.x is"),
        ("ociVersion", "0.9.0", "ociVersion 0.9.0 is not supported; every 1.x is"),
        ("ociVersion", "10.0.0", "ociVersion 10.0.0 is not supported; every 1.x is"),
        ("ociVersion", None, "ociVersion is missing"),
        ("ociVersion", "", "ociVersion: expected a version such as 1.2.1, got ''"),
        ("ociVersion", "1", "ociVersion: expected a version such as 1.2.1, got '1'"),
        ("ociVersion", "1.x", "ociVersion: expected a version such as 1.2.1, got '1.x'"),
        ("ociVersion", "1.2.1\n1.0", r"ociVersion: expected a version such as 1.2.1, got '1.2.1\n1.0'"),
        ("ociVersion", "1." * 30, f"ociVersion: expected a version such as 1.2.1, got '{'1.' * 20}'"),
        ("ociVersion", 1.2, "ociVersion: expected a string, got 1.2"),
        ("process", None, "process is missing"),
        ("process", [], "process: expected an object, got list"),
        ("process.args", [], "process.args is missing or empty"),
        ("process.args", None, "process.args is missing or empty"),
        ("process.args", "sh -c true", "process.args: expected a list, got 'sh -c true'"),
        ("process.args", ["sh", 1], "process.args[1]: expected a string, got 1"),
        ("process.args", ["a\0b"], r"process.args[0]: expected a string without NUL, got 'a\x00b'"),
        ("process.cwd", "tmp", "process.cwd: expected an absolute path, got 'tmp'"),
        ("process.cwd", None, "process.cwd: expected an absolute path, got None"),
        ("process.terminal", 1, "process.terminal: expected true or false, got 1"),
        ("process.user.uid", -1, "process.user.uid: expected an integer from 0 to 4294967295, got -1"),
        ("process.user.uid", 1 << 32, "process.user.uid: expected an integer from 0 to 4294967295, got 4294967296"),
        ("process.user.uid", True, "process.user.uid: expected an integer from 0 to 4294967295, got True"),
        ("process.user.gid", 1.5, "process.user.gid: expected an integer from 0 to 4294967295, got 1.5"),
        ("process.rlimits", [{"type": "RLIMIT_CORE", "soft": 0}], "process.rlimits[0].hard is missing"),
        ("hostname", "h" * 65, "hostname is 65 bytes long; the maximum is 64"),
        ("hostname", "ü" * 33, "hostname is 66 bytes long; the maximum is 64"),
        ("domainname", "d" * 70, "domainname is 70 bytes long; the maximum is 64"),
        ("root", None, "root is missing"),
        ("root.path", "", "root.path is empty"),
        ("mounts", [{"destination": "data"}], "mounts[0]: expected an absolute path without '..', got 'data'"),
        ("mounts", [{"destination": "/a/../b"}], "mounts[0]: expected an absolute path without '..', got '/a/../b'"),
        ("mounts", [{"source": "/a"}], "mounts[0].destination is missing"),
        ("annotations", {"a": 1}, "annotations['a']: expected a string, got 1"),
        ("linux", "yes", "linux: expected an object, got 'yes'"),
        (
            "linux.namespaces",
            [{"type": "pid"}, {"type": "pid", "path": "/p"}],
            "linux.namespaces: duplicate type: pid, pid",
        ),
        ("linux.cgroupsPath", "/a/../../b", "linux.cgroupsPath: '/a/../../b' contains '..'"),
        (
            "linux.devices",
            [{"path": "null", "type": "c"}],
            "linux.devices[0]: expected an absolute path without '..', got 'null'",
        ),
        (
            "linux.devices",
            [{"path": "/dev/x", "type": "x"}],
            "linux.devices[0].type: expected one of c, b, u, p, got 'x'",
        ),
        (
            "linux.resources.devices",
            [_RULE, {"type": "c"}],
            "linux.resources.devices[1].allow is missing",
        ),
        (
            "linux.resources.memory.limit",
            "1G",
            "linux.resources.memory.limit: expected an integer from -9223372036854775808 to 9223372036854775807, got",
        ),
        ("linux.seccomp", {"syscalls": []}, "linux.seccomp.defaultAction is missing"),
        ("linux.maskedPaths", ["/proc/../etc"], "linux.maskedPaths[0]: expected an absolute path without '..', got"),
    ],
)
def test_errors_name_what_is_wrong(path: str, value: object, message: str) -> None:
    with pytest.raises(InvalidArgument) as error:
        spec.parse_spec(json.dumps(_at(path, value)))
    assert error.value.message.startswith(message)
    assert "\n" not in error.value.message


def test_errors_of_a_bundle_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument) as error:
        spec.load_bundle(_bundle(tmp_path, _at("process.cwd", "tmp")))
    assert error.value.message == f"{tmp_path}/config.json: process.cwd: expected an absolute path, got 'tmp'"


def test_long_values_are_cut_in_errors() -> None:
    with pytest.raises(InvalidArgument) as error:
        spec.parse_spec(json.dumps(_at("linux.namespaces", [{"type": "x" * 100_000}])))
    assert len(error.value.message) < 250


def test_null_is_absent_as_go_writes_it() -> None:
    content = _at("mounts", None)
    content["process"]["env"] = None
    content["linux"] = {"resources": None, "namespaces": None}
    assert spec.parse_spec(json.dumps(content)) == {**_minimal(), "linux": {}}


def test_unknown_properties_stay() -> None:
    content = _at("linux.newFeature", {"a": [None, 1.5]})
    assert spec.parse_spec(json.dumps(content)) == content


def test_process() -> None:
    assert spec.parse_process('{"args": ["sh"], "cwd": "/", "terminal": true}') == {
        "args": ["sh"],
        "cwd": "/",
        "terminal": True,
    }
    with pytest.raises(InvalidArgument, match=r"^args is missing or empty$"):
        spec.parse_process('{"cwd": "/"}')


def test_resources() -> None:
    assert spec.parse_resources('{"pids": {"limit": 0}}') == {"pids": {"limit": 0}}
    with pytest.raises(InvalidArgument, match=r"^pids\.limit is missing$"):
        spec.parse_resources('{"pids": {}}')
    with pytest.raises(InvalidArgument, match=r"^the document: expected an object, got list$"):
        spec.parse_resources("[]")


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.one_of(_json.map(json.dumps), st.binary(max_size=200)))
def test_any_input_is_taken_or_refused(text: str | bytes) -> None:
    for parse in (spec.parse_spec, spec.parse_process, spec.parse_resources):
        with contextlib.suppress(InvalidArgument):
            parse(text)


def _places(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, entry in items for place in _places(entry, (*path, key)))]


_REAL_SPECS = [json.loads(path.read_text()) for path in _REAL]
_REAL_PLACES = [(content, _places(content)[1:]) for content in _REAL_SPECS]


@given(st.data())
def test_what_is_taken_can_be_carried(data: st.DataObject) -> None:
    """A real spec with one value replaced by anything is refused by name, or goes over the wire without an error."""
    content, places = data.draw(st.sampled_from(_REAL_PLACES))
    *parents, last = data.draw(st.sampled_from(places))
    content = copy.deepcopy(content)
    target: Any = content
    for key in parents:
        target = target[key]
    target[last] = data.draw(_json)
    try:
        parsed = spec.parse_spec(json.dumps(content))
    except InvalidArgument:
        return
    convert.from_proto(convert.to_proto(parsed))
