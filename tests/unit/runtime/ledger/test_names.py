"""Names of state directories: one for each namespace, short enough for sockets, and found by the id alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from kata.errors import InvalidArgument
from kata.oci.ids import MAX_ID
from kata.runtime.ledger.names import find, split, state_name, validate_name

LONG = "n" * MAX_ID


def test_an_id_exists_once_in_each_namespace() -> None:
    names = {state_name("box", namespace) for namespace in ("default", "k8s.io", LONG, LONG[:-1])}
    assert len(names) == 4
    assert {"box@default", "box@k8s.io"} < names
    assert {split(name)[0] for name in names} == {"box"}
    assert {validate_name(name) for name in names} == names


@pytest.mark.parametrize("namespace", ["default", "k8s.io", LONG])
def test_a_socket_beneath_has_room(namespace: str) -> None:
    assert len(f"/run/kata/{state_name('a' * MAX_ID, namespace)}/shim-monitor.sock") < 108


@pytest.mark.parametrize(("sandbox_id", "namespace"), [("..", "n"), ("a", ".."), ("a", ""), ("a@b", "n"), ("", "n")])
def test_what_is_no_name(sandbox_id: str, namespace: str) -> None:
    with pytest.raises(InvalidArgument):
        state_name(sandbox_id, namespace)


@pytest.mark.parametrize("name", ["start-slot@", "@n", "a@b@c", "..", "a/b"])
def test_what_names_no_state_directory(name: str) -> None:
    with pytest.raises(InvalidArgument):
        validate_name(name)


def test_found_by_the_id(tmp_path: Path) -> None:
    for name in ("box@default", "box@moby", "own", "own@moby", "pod@k8s.io"):
        (tmp_path / name).mkdir()
    root = str(tmp_path)
    assert find("pod", root) == "pod@k8s.io"
    assert find("box@moby", root) == "box@moby"
    assert find("own", root) == "own", "of `kata run`, which has no namespace"
    assert find("none", root) == "none"
    assert find("none", str(tmp_path / "absent")) == "none"
    with pytest.raises(InvalidArgument, match="several sandboxes have the id box") as caught:
        find("box", root)
    assert caught.value.hint == "use box@default or box@moby"


def test_the_first_digits_of_a_random_id_are_enough(tmp_path: Path) -> None:
    ids = ["0a" * 32, "0b" * 32]
    for name in (f"{ids[0]}@moby", ids[1], "0abox"):
        (tmp_path / name).mkdir()
    assert find("0a0a", str(tmp_path)) == f"{ids[0]}@moby"
    assert find(ids[0], str(tmp_path)) == f"{ids[0]}@moby"
    assert find("0b", str(tmp_path)) == ids[1]
    assert find("0abo", str(tmp_path)) == "0abo", "a name is typed whole"
    with pytest.raises(InvalidArgument, match="several"):
        find("0", str(tmp_path))
