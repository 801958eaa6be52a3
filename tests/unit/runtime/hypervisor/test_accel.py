"""The choice of an accelerator. The trial boot is replaced here: KVM does not run everywhere; `tests/vm` boots."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kata.architecture import ARM64
from kata.errors import FailedPrecondition, InvalidArgument
from kata.runtime.config.settings import HypervisorConfig
from kata.runtime.hypervisor import accel, kvm, trial_boot


class Host:
    """A host whose KVM has no visible obstacle and whose trial boots end as told."""

    def __init__(self, directory: Path) -> None:
        self.cache = directory / "state" / "accel.json"
        self.kernel = directory / "vmlinux"
        self.kernel.write_bytes(b"kernel")
        self.outcome: str | None = None
        self.boots = 0

    async def probe(self, name: str, **_: Any) -> str | None:
        assert name == "kvm"
        self.boots += 1
        return self.outcome

    async def choose(
        self, requested: str = "auto", *, require_kvm: bool = False, pvm_guest: bool = False
    ) -> accel.Accelerator:
        return await accel.choose(
            requested,
            require_kvm=require_kvm,
            vmm=Path("/bin/true"),
            kernel=self.kernel,
            initrd=self.kernel,
            cache=self.cache,
            pvm_guest=pvm_guest,
        )


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host(tmp_path)
    monkeypatch.setattr(kvm, "obstacle", lambda **_: None)
    monkeypatch.setattr(trial_boot, "probe", host.probe)
    return host


async def test_a_working_kvm_is_found_once(host: Host) -> None:
    for _ in range(3):
        assert (await host.choose()).name == "kvm"
    assert host.boots == 1
    assert (await host.choose("kvm", require_kvm=True)).name == "kvm"


async def test_kvm_is_not_tried_with_a_guest_of_another_architecture(host: Host) -> None:
    paths: dict[str, Any] = {
        "vmm": Path("/bin/true"),
        "kernel": host.kernel,
        "initrd": host.kernel,
        "cache": host.cache,
    }
    found = await accel.choose("auto", require_kvm=False, architecture=ARM64, **paths)
    assert found == accel.Accelerator("tcg", "this host's CPU does not run arm64 guests")
    with pytest.raises(FailedPrecondition, match="KVM does not work here: this host's CPU does not run arm64 guests"):
        await accel.choose("auto", require_kvm=True, architecture=ARM64, **paths)
    assert host.boots == 0


async def test_a_kvm_that_boots_nothing_is_not_used(host: Host) -> None:
    host.outcome = "the guest kernel died"
    for _ in range(3):
        assert await host.choose() == accel.Accelerator("tcg", "the guest kernel died")
    assert host.boots == 1


async def test_a_failure_is_not_believed_for_ever(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.outcome = "the host was busy"
    monkeypatch.setattr(accel, "_FAILURE_LIFETIME_S", -1.0)
    await host.choose()
    host.outcome = None
    assert (await host.choose()).name == "kvm"


async def test_another_kernel_is_tried_anew(host: Host) -> None:
    await host.choose()
    host.kernel.write_bytes(b"another kernel")
    await host.choose()
    assert host.boots == 2


async def test_what_can_be_seen_is_neither_tried_nor_remembered(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvm, "obstacle", lambda **_: "/dev/kvm cannot be opened")
    assert await host.choose() == accel.Accelerator("tcg", "/dev/kvm cannot be opened")
    assert host.boots == 0
    assert not host.cache.exists()


async def test_a_kvm_for_pvm_guests_is_tried_if_the_configuration_says_so(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kvm, "obstacle", lambda *, pvm_guest: None if pvm_guest else "only guests made for it (PVM)")
    assert await host.choose() == accel.Accelerator("tcg", "only guests made for it (PVM)")
    assert host.boots == 0
    assert (await host.choose(pvm_guest=True)).name == "kvm"
    assert host.boots == 1, "a boot has to prove it"
    assert accel._arguments(replace(HypervisorConfig(), pvm_guest=True))["pvm_guest"]


@pytest.mark.parametrize(("requested", "require_kvm"), [("kvm", False), ("auto", True), ("kvm", True)])
async def test_insisting_on_a_kvm_that_does_not_work(host: Host, requested: str, require_kvm: bool) -> None:
    host.outcome = "the guest kernel died"
    with pytest.raises(FailedPrecondition, match="KVM does not work here: the guest kernel died") as caught:
        await host.choose(requested, require_kvm=require_kvm)
    assert caught.value.hint


async def test_the_emulator_asked_for_is_taken_unseen(host: Host) -> None:
    assert await host.choose("tcg") == accel.Accelerator("tcg", "configured")
    assert host.boots == 0


async def test_contradiction(host: Host) -> None:
    with pytest.raises(InvalidArgument, match="contradicts require_kvm"):
        await host.choose("tcg", require_kvm=True)


async def test_unknown_request(host: Host) -> None:
    with pytest.raises(InvalidArgument, match="invalid accelerator 'xen' \\(auto, kvm, tcg\\)"):
        await host.choose("xen")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xff",
        b"[]",
        b"null",
        b'{"key": {}}',
        b'{"key": {}, "obstacle": "", "expires": 0}',
    ],
)
async def test_a_broken_cache_is_ignored_and_replaced(host: Host, content: bytes) -> None:
    host.cache.parent.mkdir()
    host.cache.write_bytes(content)
    assert (await host.choose()).name == "kvm"
    assert host.boots == 1
    assert json.loads(host.cache.read_bytes())["obstacle"] == ""


@pytest.mark.parametrize(("field", "value"), [("obstacle", 7), ("obstacle", None), ("expires", "soon")])
async def test_a_cache_with_wrong_types_is_ignored(host: Host, field: str, value: object) -> None:
    host.outcome = "the guest kernel died"
    await host.choose()
    entry = json.loads(host.cache.read_bytes())
    host.cache.write_text(json.dumps(entry | {field: value}))
    await host.choose()
    assert host.boots == 2


async def test_a_cache_that_cannot_be_written_costs_only_time(host: Host) -> None:
    host.cache.parent.write_bytes(b"a file, not a directory")
    assert (await host.choose()).name == "kvm"
    assert (await host.choose()).name == "kvm"
    assert host.boots == 2


async def test_the_cache_leaves_no_temporary_file(host: Host) -> None:
    await host.choose()
    assert [path.name for path in host.cache.parent.iterdir()] == ["accel.json"]
