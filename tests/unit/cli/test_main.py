from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from kata.cli import check as checks
from kata.cli import env
from kata.cli.check import Row, Status
from kata.cli.main import _as_ours, invoke
from kata.errors import FailedPrecondition
from kata.runtime.config.settings import Config, HypervisorConfig
from kata.runtime.hypervisor import factory
from kata.runtime.resources.sizing import Size
from kata.runtime.resources.status import Status as Sandbox
from kata.version import VERSION


def outcome(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, list[str]]:
    code = invoke(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err.splitlines()


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(capsys, "--version") == (0, f"kata {VERSION}\n", [])


def test_programs_of_kata_have_its_options() -> None:
    assert _as_ours([], ["-v"]) == ["-v"]
    assert _as_ours(["logs", "parse"], ["--version"]) == _as_ours(["bundle"], ["-v"]) == ["--version"]
    assert _as_ours(["bundle"], ["-d", "-o", "x"]) == ["--debug", "bundle", "-o", "x"]
    assert _as_ours(["logs", "parse"], ["--strict", "f"]) == ["logs", "parse", "--strict", "f"]


def test_version_is_quick_to_import() -> None:
    large = ("asyncio", "google.protobuf", "qemu", "rich")
    script = f"import sys, kata.cli.main; print([m for m in {large} if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert answer.stdout == "[]\n"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["frobnicate"], 2, "kata: no such command 'frobnicate'"),
        (["check", "--frobnicate"], 2, "kata: no such option: --frobnicate"),
        (["check", "nonsense"], 2, "kata: invalid value for 'mode': 'nonsense' is not one of 'all', "),
        (["run"], 125, "kata: no image is given"),
        (["run", "--rootfs"], 125, "kata: option '--rootfs' requires an argument"),
        (["run", "--frobnicate"], 125, "kata: no such option: --frobnicate"),
        (["run", "--memory", "lots", "x"], 125, "kata: --memory 'lots' is not a size"),
        (["run", "--cpus", "lots", "x"], 125, "kata: --cpus 'lots' is not a number"),
        (["run", "--name", "a/b", "x"], 125, "kata: invalid --name 'a/b'"),
        (["env", "--config", "/nonexistent.toml"], 1, "kata: cannot read configuration /nonexistent.toml"),
    ],
)
def test_mistakes(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str) -> None:
    got, output, errors = outcome(capsys, *arguments)
    assert (got, output) == (code, "")
    assert errors[0].lower().startswith(said.lower())
    assert errors[1].startswith("hint: ")
    assert len(errors) == 2


@pytest.mark.parametrize(
    ("arguments", "traced"),
    [
        (["run", "--rootfs", "/nonexistent", "true", "--debug"], False),
        (["run", "--rootfs", "/nonexistent", "--", "true", "--debug"], False),
        (["run", "--debug", "--rootfs", "/nonexistent", "true"], True),
        (["--debug", "run", "--rootfs", "/nonexistent", "true"], True),
    ],
)
def test_debug_is_an_option_of_ours_before_the_command(
    capsys: pytest.CaptureFixture[str], arguments: list[str], traced: bool
) -> None:
    code, _, errors = outcome(capsys, *arguments)
    assert code == 125
    assert ("Traceback (most recent call last):" in errors) == traced


def test_no_command_is_a_call_for_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, output, errors = outcome(capsys)
    assert (code, output) == (2, "")
    assert any(line.strip().startswith("run ") for line in errors)


def test_help_says_that_nothing_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    code, output, _ = outcome(capsys, "run", "--help")
    assert code == 0
    assert "Nothing is ever kept" in output


def test_reader_that_leaves_is_no_error() -> None:
    script = "import sys; from kata.cli.main import main; sys.argv = ['kata', 'env']; main()"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(30) in (1, 141)


def test_env_is_toml_and_json_of_the_same(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = tmp_path / "configuration.toml"
    config.write_text('[hypervisor.qemu]\naccelerator = "tcg"\nkernel_params = "a=\\"b\\""\n')
    _, text, _ = outcome(capsys, "env", "--config", str(config))
    code, document, _ = outcome(capsys, "env", "--json", "--config", str(config))
    sections = json.loads(document)
    assert code == 0
    for volatile in ("Free", "Available"):
        parsed = tomllib.loads(text)
        parsed["Host"]["Memory"].pop(volatile)
    assert list(tomllib.loads(text)) == list(sections)
    assert list(sections) == [
        "Meta",
        "Runtime",
        "Hypervisor",
        "Kernel",
        "Image",
        "Initrd",
        "Host",
        "Agent",
        "Sandboxes",
    ]
    assert sections["Runtime"]["Version"]["Version"]["Semver"] == VERSION
    assert sections["Runtime"]["Config"]["Path"] == str(config)
    assert sections["Hypervisor"]["Accelerator"] == {"Name": "tcg", "Reason": "configured"}
    assert sections["Kernel"]["Parameters"] == tomllib.loads(text)["Kernel"]["Parameters"] == 'a="b"'
    assert sections["Host"]["Memory"]["Total"] > 0
    assert sections["Host"]["Kernel"]


#: Of `kata-env` in Kata 2.3, without Netmon, which Kata has removed.
_FIELDS = {
    "Kernel": {"Path", "Parameters"},
    "Image": {"Path"},
    "Initrd": {"Path"},
    "Hypervisor": {
        "MachineType", "Version", "Path", "BlockDeviceDriver", "EntropySource", "SharedFS", "VirtioFSDaemon",
        "SocketPath", "Msize9p", "MemorySlots", "PCIeRootPort", "HotplugVFIOOnRootBus", "Debug",
    },
    "Runtime": {
        "Config", "Path", "Experimental", "Version", "Debug", "Trace", "DisableGuestSeccomp", "DisableNewNetNs",
        "SandboxCgroupOnly",
    },
    "Host": {"Kernel", "Architecture", "Distro", "CPU", "Memory", "VMContainerCapable", "SupportVSocks"},
    "Agent": {"Debug", "Trace"},
    "Meta": {"Version"},
}  # fmt: skip


def test_env_has_katas_fields(capsys: pytest.CaptureFixture[str]) -> None:
    _, document, _ = outcome(capsys, "env", "--json")
    sections = json.loads(document)
    for name, fields in _FIELDS.items():
        assert fields <= set(sections[name]), name
    assert set(sections["Runtime"]["Version"]["Version"]) == {"Semver", "Commit", "Major", "Minor", "Patch"}


def test_env_sums_up_what_sandboxes_have() -> None:
    running = [Sandbox("a", Size(1, 2048), ""), Sandbox("b", Size(2, 512), "")]
    assert env._sandboxes(running) == {"Running": 2, "VCPUs": 3, "MemoryMiB": 2560}


def test_check_fails_only_for_what_run_needs() -> None:
    rows = [Row("a", Status.OK, "fine"), Row("b", Status.WARNING, "optional", "install it")]
    assert checks.passed(rows)
    assert not checks.passed([*rows, Row("c", Status.FAILED, "broken")])
    assert checks.document(rows)["ok"] is True
    assert checks.document(rows)["checks"][1] == {
        "name": "b",
        "status": "warning",
        "text": "optional",
        "hint": "install it",
        "detail": (),
    }


def test_check_rows_are_plain_where_nobody_sees_colors() -> None:
    row = Row("guest image", Status.FAILED, "gone", "run: kata image build")
    first, second = checks.as_text(row).splitlines()
    assert first == "failed   guest image       gone"
    assert second.strip() == "run: kata image build"
    assert second.index("run") == first.index("gone")
    assert "\x1b" in checks.as_text(row, color=True)


def test_check_names_what_is_missing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KATA_IMAGES", str(tmp_path / "images"))
    config = tmp_path / "configuration.toml"
    config.write_text('[hypervisor.qemu]\npath = "/nonexistent/qemu"\naccelerator = "tcg"\nfrobnicate = 1\n')
    code, output, _ = outcome(capsys, "check", "--json", "--config", str(config))
    rows = {row["name"]: row for row in json.loads(output)["checks"]}
    assert code == 1
    assert json.loads(output)["ok"] is False
    assert rows["qemu"]["status"] == "failed"
    assert rows["guest image"]["status"] == "failed"
    assert rows["guest image"]["hint"] == "run: kata image build"
    assert rows["configuration"]["status"] == "warning"
    assert "frobnicate" in rows["configuration"]["text"]


def test_check_survives_a_broken_configuration(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = tmp_path / "configuration.toml"
    config.write_text("[")
    code, output, _ = outcome(capsys, "check", "--config", str(config))
    assert code == 1
    assert "broken TOML" in output


def test_check_tells_whether_qemu_gets_a_jail(monkeypatch: pytest.MonkeyPatch) -> None:
    def config(ids: str) -> Config:
        return replace(Config(), hypervisor=HypervisorConfig(jail_uid_range=ids))

    def refuse(_vmm: Path, _ids: range) -> None:
        raise FailedPrecondition("cannot be made: operation not permitted", hint="as root it can be")

    off = checks.jail(config(""))
    assert off.text == "off (jail_uid_range): QEMU runs as root, among the host's files"
    monkeypatch.setattr(factory, "check_jail", lambda _vmm, _ids: None)
    assert checks.jail(config("2000-2999")).text == "QEMU runs as one of 2000-2999, in a root of its own"
    monkeypatch.setattr(factory, "check_jail", refuse)
    refused = checks.jail(config("2000-2999"))
    assert (refused.status, refused.hint) == (Status.FAILED, "as root it can be")
