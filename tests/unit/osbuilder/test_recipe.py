from __future__ import annotations

from pathlib import Path

import pytest

from kata.errors import InvalidArgument, KataError, NotFound
from kata.osbuilder import recipe, rootfs
from kata.osbuilder.recipe import File, Recipe, User


def write(directory: Path, text: str, name: str = "mine.toml") -> str:
    (directory / name).write_text(text)
    return str(directory / name)


@pytest.mark.parametrize("name", recipe.names())
def test_every_recipe_that_comes_along_is_read_and_said_in_a_line(name: str) -> None:
    found = recipe.load(name)
    assert found.name == name
    assert found.description
    assert {"9p", "virtiofs", "overlay"} <= set(found.modules)


def test_a_recipe_adds_to_what_it_extends(tmp_path: Path) -> None:
    (tmp_path / "hook").write_text("#!/bin/sh\n")
    (tmp_path / "tree/deep").mkdir(parents=True)
    (tmp_path / "tree/deep/run").write_text("x")
    (tmp_path / "tree/deep/run").chmod(0o700)
    base = 'extends = "minimal"\npackages = ["strace"]\n[agent]\nlog = "debug"\n[[files]]\npath="/etc/a"\ncontent="1"'
    write(tmp_path, base, "base.toml")
    text = """
        extends = "base.toml"
        description = "mine"
        packages = ["strace", "gdb"]
        modules = ["nvme"]
        files = [
            {path = "/etc/a", content = "2", mode = "600"},
            {path = "/opt/tree", source = "tree"},
        ]
        users = [{name = "app", id = 1000, shell = "/bin/sh"}]
        agent = {debug_console = true}
        hooks = {prestart = ["hook"]}
    """
    found = recipe.load(write(tmp_path, text))
    assert (found.name, found.description, found.packages) == ("mine", "mine", ("strace", "gdb"))
    assert found.modules == (*recipe.load("minimal").modules, "nvme")
    assert found.files == (
        File("etc/a", b"2", 0o600),
        File("opt/tree/deep/run", b"x", 0o755),
        File("usr/share/oci/hooks/prestart/hook", b"#!/bin/sh\n", 0o755),
    )
    assert found.users == (User("app", 1000, shell="/bin/sh"),)
    assert found.agent == (("log", "debug"), ("debug_console", "true"))


def test_the_digest_is_that_of_the_content(tmp_path: Path) -> None:
    one = recipe.load(write(tmp_path, 'extends="default"\ndescription="x"'))
    assert one.digest == recipe.load("default").digest
    assert recipe.load("debug").digest != one.digest


@pytest.mark.parametrize(
    ("text", "error", "says", "hint"),
    [
        ("packges = []", InvalidArgument, "unknown key 'packges'", "did you mean packages?"),
        ("agent = {debug_konsole = true}", InvalidArgument, "unknown key 'agent.debug_konsole'", "debug_console"),
        ('agent = {log = "loud"}', InvalidArgument, "invalid value 'loud'", None),
        ('agent = {log = "a b"}', InvalidArgument, "not a word", None),
        ('extends = "defualt"', NotFound, "no recipe 'defualt'", "did you mean default?"),
        (r'modules = {"a\nb" = 3}', InvalidArgument, r"'modules.a\nb': not a list", None),
        (r'extends = "a\nb"', NotFound, r"no recipe 'a\nb'", None),
        ('extends = "../other.toml"', NotFound, "cannot read recipe", None),
        ('extends = "mine.toml"', InvalidArgument, "extends itself", None),
        ("extends = 3", InvalidArgument, "not the name of a recipe", None),
        ('packages = ["Foo_"]', InvalidArgument, "invalid name 'Foo_'", None),
        ('packages = "strace"', InvalidArgument, "not a list", None),
        ('packages = ["--option"]', InvalidArgument, "invalid name '--option'", None),
        ('modules = ["a/b"]', InvalidArgument, "invalid name 'a/b'", None),
        ("packages = [", InvalidArgument, "mine.toml", None),
        ('files = [{path = "etc/x", content = ""}]', InvalidArgument, "not an absolute path", None),
        ('files = [{path = "/etc/../x", content = ""}]', InvalidArgument, "without '..'", None),
        ('files = [{path = "/run/x", content = ""}]', InvalidArgument, "would be covered", None),
        ('files = [{path = "/etc/x"}]', InvalidArgument, "both source and content, or none", None),
        ('files = [{path = "/etc/x", source = "nothing"}]', NotFound, "nothing: no such file", None),
        ('files = [{path = "/etc/x", content = "", mode = "999"}]', InvalidArgument, "octal", None),
        ('files = [{path = "/etc/x", kontent = ""}]', InvalidArgument, "files.kontent", "did you mean content?"),
        ('hooks = {preboot = ["x"]}', InvalidArgument, "hooks.preboot", None),
        ('users = [{name = "root", id = 1}]', InvalidArgument, "invalid name 'root'", None),
        ('users = [{name = "app"}]', InvalidArgument, "no number", None),
        ('users = [{name = "app", id = 1, home = "a:b"}]', InvalidArgument, "not an absolute path", None),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, error: type[KataError], says: str, hint: str | None) -> None:
    with pytest.raises(error) as caught:
        recipe.load(write(tmp_path, text))
    assert says in caught.value.message
    assert "\n" not in caught.value.message
    assert hint is None or hint in (caught.value.hint or "")


def test_a_name_that_nobody_knows_has_a_suggestion() -> None:
    with pytest.raises(NotFound, match=r"default, gpu-ready, minimal") as caught:
        recipe.load("debgu")
    assert caught.value.hint == "did you mean debug?"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root/etc").mkdir(parents=True)
    for name in ("passwd", "group"):
        (tmp_path / "root/etc" / name).write_text("root:x:0:\n")
    return tmp_path / "root"


def test_a_recipe_is_put_into_a_root(root: Path) -> None:
    found = Recipe("mine", files=(File("opt/x/y", b"1", 0o755),), users=(User("app", 7),), agent=(("log", "debug"),))
    rootfs.add(root, found)
    assert (root / "opt/x/y").read_bytes() == b"1"
    assert (root / "opt/x/y").stat().st_mode & 0o777 == 0o755
    assert (root / "etc/passwd").read_text().splitlines()[1] == "app:x:7:7::/nonexistent:/usr/sbin/nologin"
    assert (root / "etc/group").read_text().splitlines()[1] == "app:x:7:"
    assert (root / "etc/kata-agent.parameters").read_text() == "agent.log=debug\n"


@pytest.mark.parametrize(
    ("files", "users", "says"),
    [
        ((File("link/x", b""),), (), "a directory of /link/x is a symbolic link"),
        ((File("etc", b""),), (), "/etc: "),
        ((File("etc/passwd/x", b""),), (), "/etc/passwd/x: "),
        ((), (User("app", 1), User("other", 1)), "user other with number 1: /etc/passwd has app with 1"),
    ],
)
def test_nothing_leads_out_of_the_root_or_is_in_anothers_way(
    root: Path, tmp_path: Path, files: tuple[File, ...], users: tuple[User, ...], says: str
) -> None:
    (tmp_path / "outside").mkdir()
    (root / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(InvalidArgument, match=says):
        rootfs.add(root, Recipe("mine", files=files, users=users))
    assert not list((tmp_path / "outside").iterdir())
