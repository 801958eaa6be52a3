"""`kata cp`: what its arguments mean."""

from __future__ import annotations

from typing import Any

import pytest

from kata.cli.copying import Place, Plan, parse_place, plan_copy
from kata.errors import FailedPrecondition, InvalidArgument, NotFound


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("-", Place("-")),
        ("file", Place("file")),
        ("/a:b", Place("/a:b")),
        ("./a:b", Place("./a:b")),
        ("../a:b", Place("../a:b")),
        ("box:/etc", Place("/etc", "box")),
        ("box@k8s.io:/etc", Place("/etc", "box@k8s.io")),
        ("box:etc/passwd", Place("etc/passwd", "box")),
        ("box:/a:b", Place("/a:b", "box")),
        ("box:app:/etc", Place("/etc", "box", "app")),
        ("box:app:etc", Place("etc", "box", "app")),
    ],
)
def test_places(text: str, place: Place) -> None:
    assert parse_place(text) == place


@pytest.mark.parametrize("text", ["box:", ":/etc", "box:app:", "a\0b", "box:/\udc80"])
def test_what_is_no_place(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_place(text)


#: Rows of docker's reference, "docker container cp": source, its kind, destination, what is there.
@pytest.mark.parametrize(
    ("source", "kind", "target", "there", "plan"),
    [
        ("/a/file", "file", "/b", "directory", Plan("/b", "file")),
        ("/a/file", "file", "/b/", "directory", Plan("/b/", "file")),
        ("/a/file", "file", "/b/new", "", Plan("/b", "new")),
        ("/a/file", "file", "/b/old", "file", Plan("/b", "old")),
        ("/a/file", "file", "/b/new/", "", NotFound),
        ("/a/file", "file", "/b/old/", "file", NotFound),
        ("/a/file", "file", "new", "", Plan(".", "new")),
        ("/a/link", "link", "/b", "directory", Plan("/b", "link")),
        ("/a/dir", "directory", "/b", "directory", Plan("/b", "dir")),
        ("/a/dir/", "directory", "/b", "directory", Plan("/b", "dir")),
        ("/a/dir/.", "directory", "/b", "directory", Plan("/b", "")),
        ("/", "directory", "/b", "directory", Plan("/b", "")),
        ("/a/dir", "directory", "/b/new", "", Plan("/b", "new")),
        ("/a/dir/.", "directory", "/b/new/", "", Plan("/b", "new")),
        ("/a/dir", "directory", "/b/old", "file", FailedPrecondition),
        ("/a/none", "", "/b", "directory", NotFound),
    ],
)
def test_where_it_goes(source: str, kind: str, target: str, there: str, plan: Any) -> None:
    if isinstance(plan, Plan):
        assert plan_copy(Place(source), kind, Place(target), there) == plan
    else:
        with pytest.raises(plan):
            plan_copy(Place(source), kind, Place(target), there)
