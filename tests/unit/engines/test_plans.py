"""What engines' configurations become: bytes in, bytes out."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata.engines import containerd, crio, docker
from kata.engines.change import Change, diff, taken_back
from kata.engines.containerd import Containerd
from kata.engines.crio import Crio
from kata.engines.docker import Docker
from kata.errors import FailedPrecondition, InvalidArgument, KataError

#: As Debian's package has it.
DEBIANS = b"""\
version = 2

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni" # ours
      conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.internal.v1.opt"]
    path = "/var/lib/containerd"
"""
DROP_IN = Path("/etc/containerd/conf.d/kata.toml")
KATA = {
    "runtime_type": "io.containerd.kata.v2",
    "privileged_without_host_devices": True,
    "pod_annotations": ["io.katacontainers.*"],
    "container_annotations": ["io.katacontainers.*"],
}
V2, V3 = "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"


def runtimes(content: bytes, plugin: str) -> object:
    return tomllib.loads(content.decode())["plugins"][plugin]["containerd"]["runtimes"]


class TestContainerd:
    @pytest.mark.parametrize(
        ("printed", "version"),
        [
            ("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u1\n", (1, 6)),
            ("containerd github.com/containerd/containerd/v2 2.1.9~ds1 2.1.9\n", (2, 1)),
            ("containerd containerd.io v2.10.0 abc\n", (2, 10)),
        ],
    )
    def test_versions(self, printed: str, version: tuple[int, int]) -> None:
        assert containerd.parse_version(printed) == version

    def test_a_version_that_is_not_understood(self) -> None:
        with pytest.raises(InvalidArgument, match="version"):
            containerd.parse_version("flag provided but not defined\n")

    @pytest.mark.parametrize("version", [(1, 6), (1, 7), (2, 1)])
    def test_it_is_appended_where_no_drop_in_would_be_read(self, version: tuple[int, int]) -> None:
        (change,) = containerd.plan(Containerd(version, config=DEBIANS))
        assert (change.path, change.before) == (containerd.CONFIG, DEBIANS)
        assert change.after.startswith(DEBIANS), "every byte stays, comments too"
        runc = {"runc": {"runtime_type": "io.containerd.runc.v2"}} if version < (2, 0) else {}
        assert runtimes(change.after, V2) == {"kata": KATA, **runc}, "1.x would have lost its default"
        assert taken_back(change, change.after) == DEBIANS

    def test_runc_is_named_only_beside_no_other(self) -> None:
        config = DEBIANS + b'[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.crun]\nruntime_type = "x"\n'
        (change,) = containerd.plan(Containerd((1, 6), config=config))
        assert runtimes(change.after, V2) == {"crun": {"runtime_type": "x"}, "kata": KATA}

    def test_1_x_never_gets_a_drop_in_which_would_replace_the_whole_plugin(self) -> None:
        config = b'imports = ["/etc/containerd/conf.d/*.toml"]\n' + DEBIANS
        (change,) = containerd.plan(Containerd((1, 7), config=config))
        assert change.path == containerd.CONFIG

    @pytest.mark.parametrize(
        ("head", "version", "plugin", "path"),
        [
            (b'version = 2\nimports = ["/etc/containerd/conf.d/*.toml"]\n', 2, V2, DROP_IN),
            (b'version = 3\nimports = ["/x/a.toml", "/srv/more/*"]\n', 3, V3, Path("/srv/more/kata.toml")),
            (b'version = 3\nimports = ["conf.d/*.toml"]\n', 3, V3, DROP_IN),
        ],
    )
    def test_a_drop_in_where_2_imports_some_and_of_the_same_version(
        self, head: bytes, version: int, plugin: str, path: Path
    ) -> None:
        (change,) = containerd.plan(Containerd((2, 1), config=head))
        assert (change.path, change.before) == (path, None)
        assert tomllib.loads(change.after.decode())["version"] == version
        assert runtimes(change.after, plugin) == {"kata": KATA}

    @pytest.mark.parametrize("imports", [b'["/etc/containerd/one.toml"]', b'["/etc/*/x.toml"]', b'["/a/k[0-9]*.toml"]'])
    def test_imports_that_would_not_read_it(self, imports: bytes) -> None:
        (change,) = containerd.plan(Containerd((2, 1), config=b"version = 3\nimports = " + imports + b"\n"))
        assert change.path == containerd.CONFIG
        assert runtimes(change.after, V3) == {"kata": KATA}

    def test_without_a_configuration(self) -> None:
        (only,) = containerd.plan(Containerd((1, 6)))
        assert (only.path, tomllib.loads(only.after.decode())["version"]) == (containerd.CONFIG, 2)
        main, drop_in = containerd.plan(Containerd((2, 1)))
        assert tomllib.loads(main.after.decode()) == {"version": 3, "imports": ["/etc/containerd/conf.d/*.toml"]}
        assert drop_in.path == DROP_IN
        (only,) = containerd.plan(Containerd((2, 2)))
        assert only.path == DROP_IN, "2.2 reads it by itself"

    def test_what_was_done_by_hand_is_left(self) -> None:
        by_hand = DEBIANS + b'[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kata]\nruntime_type = '
        assert containerd.plan(Containerd((1, 6), config=by_hand + b'"io.containerd.kata.v2"\n')) == []
        for path, files in (("config.toml", {}), ("deploy.toml", {Path("/x/deploy.toml"): by_hand + b'"kata-fc"\n'})):
            config = DEBIANS if files else by_hand + b'"kata-fc"\n'
            with pytest.raises(FailedPrecondition, match=f"{path} has a runtime 'kata' already, of type 'kata-fc'"):
                containerd.plan(Containerd((2, 1), config=config, imported=files))

    def test_an_import_that_hides_the_configuration_of_1_x(self) -> None:
        imported = {Path("/etc/containerd/conf.d/nvidia.toml"): b'[plugins."io.containerd.grpc.v1.cri".cni]\nx = 1\n'}
        with pytest.raises(FailedPrecondition, match=r"nvidia\.toml has settings of io\.containerd\.grpc\.v1\.cri"):
            containerd.plan(Containerd((1, 7), config=DEBIANS, imported=imported))
        assert containerd.plan(Containerd((2, 1), config=DEBIANS, imported=imported))

    @pytest.mark.parametrize(
        ("version", "config", "words"),
        [
            ((1, 6), b"version = ", "cannot understand"),
            ((1, 6), b"\xff\xfe", "cannot understand"),
            ((1, 6), b"[plugins.cri]\n", "of version 1; 2 and 3 are understood"),
            ((1, 6), b"version = 3\n", "which containerd 1.6 does not read"),
            ((2, 5), b"version = 4\n", "of version 4"),
            ((1, 6), b'version = 2\nplugins = {"io.containerd.grpc.v1.cri" = {}}\n', "in braces"),
            ((1, 6), b"version = 2\nplugins = 3\n", "nothing can be added"),
        ],
    )
    def test_what_is_not_understood_is_refused(self, version: tuple[int, int], config: bytes, words: str) -> None:
        with pytest.raises(KataError, match=words) as caught:
            containerd.plan(Containerd(version, config=config))
        assert caught.value.hint

    def test_an_empty_file_is_no_old_one(self) -> None:
        (change,) = containerd.plan(Containerd((1, 6), config=b""))
        assert taken_back(change, change.after) == b""

    def test_a_disabled_plugin_is_told(self) -> None:
        assert containerd.cri_is_disabled(Containerd((1, 6), config=b'disabled_plugins = ["cri"]\n'))
        assert not containerd.cri_is_disabled(Containerd((1, 6), config=DEBIANS))


class TestDocker:
    @pytest.mark.parametrize(
        ("config", "after"),
        [
            (None, '{\n  "runtimes": {\n    "kata": {"runtimeType": "io.containerd.kata.v2"}\n  }\n}\n'),
            (b"", '{\n  "runtimes": {\n    "kata": {"runtimeType": "io.containerd.kata.v2"}\n  }\n}\n'),
            (b"{}", '{\n  "runtimes": {\n    "kata": {"runtimeType": "io.containerd.kata.v2"}\n  }\n}'),
            (
                b'{\n\t"debug": true\n}\n',
                '{\n  "runtimes": {\n    "kata": {"runtimeType": "io.containerd.kata.v2"}\n  },\n\t"debug": true\n}\n',
            ),
            (
                b'{"a": {"runtimes": {}}, "runtimes" : {"x": {"path": "/x"}}, "b": "}"}',
                '{"a": {"runtimes": {}}, "runtimes" : {\n    "kata": {"runtimeType": "io.containerd.kata.v2"},'
                '"x": {"path": "/x"}}, "b": "}"}',
            ),
            (b'{"runtimes": {}}', '{"runtimes": {\n    "kata": {"runtimeType": "io.containerd.kata.v2"}\n}}'),
        ],
    )
    def test_it_is_put_in_and_all_else_stays(self, config: bytes | None, after: str) -> None:
        (change,) = docker.plan(Docker(26, config=config))
        assert change.after.decode() == after
        assert taken_back(change, change.after) == config

    @given(st.dictionaries(st.text(), st.recursive(st.none() | st.text(), st.lists)), st.sampled_from([None, 1, "\t"]))
    def test_any_document(self, document: dict[str, object], indent: int | None) -> None:
        document.pop("runtimes", None)
        content = json.dumps(document, indent=indent, ensure_ascii=False).encode()
        (change,) = docker.plan(Docker(23, config=content))
        assert json.loads(change.after) == {**document, "runtimes": {"kata": docker.RUNTIME}}
        content = json.dumps({**document, "runtimes": {"r": {}}}, indent=indent, ensure_ascii=False).encode()
        (change,) = docker.plan(Docker(23, config=content))
        assert json.loads(change.after) == {**document, "runtimes": {"kata": docker.RUNTIME, "r": {}}}

    def test_what_was_done_by_hand_is_left(self) -> None:
        by_hand = b'{"runtimes": {"kata": {"runtimeType": "io.containerd.kata.v2"}}}'
        assert docker.plan(Docker(26, config=by_hand)) == []

    @pytest.mark.parametrize(
        ("version", "config", "words"),
        [
            (20, b"{}", "Docker 20 runs no containerd shims by a name; 23 and later do"),
            (26, b"{,}", "cannot understand /etc/docker/daemon.json"),
            (26, b"[]", "it is no JSON object"),
            (26, b'{"runtimes": 3}', "runtimes is no object"),
            (26, b'{"runtimes": {"kata": {"path": "/usr/bin/kata"}}}', "has a runtime 'kata' already"),
            (26, b'{"runtimes": {"a": 1}, "runtimes": {}}', "a name is there twice"),
        ],
    )
    def test_what_is_refused(self, version: int, config: bytes, words: str) -> None:
        with pytest.raises(KataError, match=words):
            docker.plan(Docker(version, config=config))

    def test_versions(self) -> None:
        assert docker.parse_version("Docker version 26.1.5+dfsg1, build a72d7cd\n") == 26
        with pytest.raises(InvalidArgument, match="version"):
            docker.parse_version("")


class TestCrio:
    def test_a_drop_in(self) -> None:
        (change,) = crio.plan(Crio(Path("/usr/local/bin/shim")))
        assert change.path == Path("/etc/crio/crio.conf.d/50-kata.conf")
        runtime = tomllib.loads(change.after.decode())["crio"]["runtime"]["runtimes"]["kata"]
        assert (runtime["runtime_path"], runtime["runtime_type"]) == ("/usr/local/bin/shim", "vm")

    def test_another_kata_there(self) -> None:
        files = {
            Path("/etc/crio/crio.conf.d/99-kata-deploy"): b'[crio.runtime.runtimes.kata]\nruntime_path = "/opt/x"\n'
        }
        with pytest.raises(FailedPrecondition, match="99-kata-deploy has a runtime 'kata' already: '/opt/x'"):
            crio.plan(Crio(Path("/usr/bin/shim"), files=files))
        assert crio.plan(Crio(Path("/opt/x"), files=files)) == []


class TestTakenBack:
    CHANGE = Change(Path("/c.toml"), b"a = 1\n", 6, b"[k]\nb = 2\n")

    @pytest.mark.parametrize(
        ("now", "becomes"),
        [
            (b"a = 1\n[k]\nb = 2\n", b"a = 1\n"),
            (b"a = 1\n", b"a = 1\n"),
            (None, None),
            (b"a = 7\n# mine\n[k]\nb = 2\n[more]\n", b"a = 7\n# mine\n[more]\n"),
        ],
    )
    def test_what_others_have_changed_elsewhere_stays(self, now: bytes | None, becomes: bytes | None) -> None:
        assert taken_back(self.CHANGE, now) == becomes

    @pytest.mark.parametrize("now", [b"a = 1\n[k]\nb = 3\n", b"x[k]\nb = 2\n", b"[k]\nb = 2\n[k]\nb = 2\n"])
    def test_what_was_edited_is_left_to_people(self, now: bytes) -> None:
        with pytest.raises(FailedPrecondition, match=r"c\.toml was edited since") as caught:
            taken_back(self.CHANGE, now)
        assert "[k] b = 2" in str(caught.value.hint)

    def test_a_new_file_that_was_edited(self) -> None:
        with pytest.raises(FailedPrecondition, match="was edited"):
            taken_back(Change(Path("/c.toml"), None, 0, b"a = 1\n"), b"a = 1\nb = 2\n")


def test_the_difference_is_a_patch() -> None:
    assert diff(b"a\n", b"a\nb\n", Path("/f")) == "--- /f\n+++ /f\n@@ -1 +1,2 @@\n a\n+b\n"
    assert diff(None, b"a", Path("/f")) == "--- /dev/null\n+++ /f\n@@ -0,0 +1 @@\n+a\n\\ No newline at end of file\n"
