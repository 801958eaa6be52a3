"""What a name on the command line means: ids, and Kubernetes' names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kata.cli import sandboxes
from kata.cli.copying import Place, parse_place
from kata.cli.naming import Named, choose_container, choose_pod, resolve, resolve_sandbox
from kata.errors import InvalidArgument, KataError, NotFound

WEB = "f" * 64


def sandbox(name: str, pod: tuple[str, str] | None, state: str = "running") -> dict[str, Any]:
    told = {"namespace": pod[0], "name": pod[1], "uid": "u"} if pod else None
    return {"id": name, "pod": told, "state": state, "state_directory": f"/run/kata/{name}@k8s.io"}


HOST = [
    sandbox("box", None),
    sandbox("one", ("default", "web")),
    sandbox("two", ("test", "web")),
    sandbox("old", ("test", "again"), "stopped"),
    sandbox("new", ("test", "again")),
    sandbox("left", ("test", "twice")),
    sandbox("right", ("test", "twice")),
    sandbox("gone", ("test", "gone"), "stopped"),
]


@pytest.mark.parametrize(
    ("pod", "found"),
    [(("default", "web"), "one"), (("test", "web"), "two"), (("test", "again"), "new"), (("test", "gone"), "gone")],
)
def test_the_sandbox_of_a_pod(pod: tuple[str, str], found: str) -> None:
    assert choose_pod(HOST, *pod)["id"] == found


@pytest.mark.parametrize(
    ("found", "pod", "kind", "hint"),
    [
        (HOST, ("test", "none"), NotFound, "default/web, test/again, test/gone, test/twice, test/web"),
        (HOST, ("none", "web"), NotFound, "default/web"),
        (HOST[:1], ("test", "web"), NotFound, "kata list"),
        (HOST, ("test", "twice"), InvalidArgument, "left@k8s.io, right@k8s.io"),
    ],
)
def test_no_pod_or_several(found: Any, pod: tuple[str, str], kind: type[KataError], hint: str) -> None:
    with pytest.raises(kind) as caught:
        choose_pod(found, *pod)
    assert hint in (caught.value.hint or "")
    assert "/".join(pod) in caught.value.message


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandboxes, "inspect_all", lambda root: HOST)
    (tmp_path / f"{WEB}@k8s.io").mkdir()
    assert resolve("fff", tmp_path) == Named(tmp_path / f"{WEB}@k8s.io")
    assert resolve("none", tmp_path) == Named(tmp_path / "none")
    assert resolve("test/web", tmp_path) == Named(Path("/run/kata/two@k8s.io"))
    assert resolve("test/web/app", tmp_path) == Named(Path("/run/kata/two@k8s.io"), "app")
    assert resolve_sandbox("test/web", tmp_path) == Path("/run/kata/two@k8s.io")
    with pytest.raises(InvalidArgument) as caught:
        resolve_sandbox("test/web/app", tmp_path)
    assert caught.value.hint == "name its sandbox: test/web"


@pytest.mark.parametrize(
    "name", ["/", "test/", "/web", "../web", "a/b/c/d", "test/web/", "Test/web", "a/\x1b[2J", "a/b\n"]
)
def test_what_is_no_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument) as caught:
        resolve(name, tmp_path)
    assert caught.value.message.isprintable()


def test_places_of_pods() -> None:
    assert parse_place("test/web:/srv") == Place("/srv", "test/web", None)
    assert parse_place("test/web:app:/srv") == Place("/srv", "test/web", "app")
    assert parse_place("test/web/app:srv") == Place("srv", "test/web/app", None)


CONTAINERS = {
    "id": "pod",
    "containers": [
        {"id": "pod", "name": "", "state": "running"},
        {"id": "aa1", "name": "app", "state": "stopped"},
        {"id": "aa2", "name": "app", "state": "running"},
        {"id": "bb1", "name": "aa", "state": "running"},
        {"id": "cc1", "name": "twice", "state": "stopped"},
        {"id": "cc2", "name": "twice", "state": "stopped"},
        {"id": "app2", "name": "aa1", "state": "running"},
    ],
}


@pytest.mark.parametrize(
    ("wanted", "found"), [("app", "aa2"), ("aa", "bb1"), ("aa1", "aa1"), ("app2", "app2"), ("bb", "bb1")]
)
def test_containers_by_name(wanted: str, found: str) -> None:
    assert choose_container(CONTAINERS, wanted) == found


def test_containers_of_one_name() -> None:
    with pytest.raises(InvalidArgument, match="several containers twice"):
        choose_container(CONTAINERS, "twice")
