"""The shim's command line: Go's flags, and errors that fit on one line."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kata.errors import InvalidArgument
from kata.shim.arguments import parse
from kata.version import VERSION

#: What containerd 1.6 passes to `start`, as recorded.
START = [
    *("-namespace", "default", "-address", "/run/containerd/containerd.sock"),
    *("-publish-binary", "/usr/bin/containerd", "-id", "box", "start"),
]


class TestParse:
    def test_what_containerd_passes(self) -> None:
        arguments = parse(START)
        assert (arguments.action, arguments.id, arguments.namespace) == ("start", "box", "default")
        assert arguments.values["address"] == "/run/containerd/containerd.sock"
        assert arguments.values["publish-binary"] == "/usr/bin/containerd"
        assert not any(arguments.switches.values())

    def test_delete_with_bundle_and_debug(self) -> None:
        arguments = parse(["-namespace", "n", "-id", "i", "-bundle", "/b", "-debug", "delete"])
        assert (arguments.action, arguments.values["bundle"]) == ("delete", "/b")
        assert arguments.switches["debug"]

    @pytest.mark.parametrize("flag", ["-id=x", "--id=x", "--id x", "-id x"])
    def test_every_form_of_a_flag(self, flag: str) -> None:
        assert parse(flag.split()).id == "x"

    @pytest.mark.parametrize(("flag", "on"), [("-debug", True), ("-debug=true", True), ("-debug=false", False)])
    def test_switches(self, flag: str, on: bool) -> None:
        assert parse([flag, "start"]).switches["debug"] is on

    def test_a_value_may_look_like_a_flag(self) -> None:
        assert parse(["-id", "-x"]).id == "-x"

    def test_an_empty_value_is_one(self) -> None:
        assert parse(["-id="]).id == ""

    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            (["-frobnicate"], "unknown flag -frobnicate"),
            (["-id"], "flag -id needs a value"),
            (["stop"], "unknown action 'stop'"),
            (["start", "-id", "x"], "unknown action 'start -id x'"),
            (["-"], "unknown flag -"),
        ],
    )
    def test_what_is_refused(self, argv: list[str], message: str) -> None:
        with pytest.raises(InvalidArgument, match=f"^{message}$"):
            parse(argv)


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from kata.shim.main import main; main()", *argv],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
    )


class TestMain:
    def test_version(self) -> None:
        for flag in ("-v", "--version"):
            assert run(flag).stdout == f"containerd-shim-kata-v2: version {VERSION}\n"

    @pytest.mark.parametrize(
        ("argv", "said"),
        [
            ([], "no action: containerd runs this program with start or delete"),
            (["start"], "start needs -id and -namespace"),
            (["-id", "x", "delete"], "delete needs -id and -namespace"),
            (["-id", "../x", "-namespace", "n", "start"], "invalid id '../x'"),
            (["-id", "../x", "-namespace", "n", "delete"], "invalid id '../x'"),
            (["-nonsense"], "unknown flag -nonsense"),
        ],
    )
    def test_bad_input_is_one_line_and_status_1(self, argv: list[str], said: str) -> None:
        done = run(*argv)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("containerd-shim-kata-v2: ")
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
