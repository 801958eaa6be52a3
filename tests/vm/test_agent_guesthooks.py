"""Hooks of the guest image, run by the real crun around a container's life."""

from __future__ import annotations

import pytest

from tests.vm.guest import SHARED, Guest, container_spec, make_rootfs, missing

pytestmark = [pytest.mark.vm, pytest.mark.timeout(120)]

KINDS = ("prestart", "poststart", "poststop")


async def test_they_run_around_a_containers_life() -> None:
    if lack := missing():
        pytest.skip(f"needs {lack}")
    with Guest() as guest:
        for kind in KINDS:
            hook = guest.share / "hooks" / kind / "note"
            hook.parent.mkdir(parents=True)
            # Where the host sees it.
            hook.write_text(f"#!/bin/sh\n/bin/busybox cat >{SHARED}/told-$1\n")
            hook.chmod(0o755)
        rootfs = make_rootfs(guest.share, "base")
        async with guest.connect() as agent:
            await agent.create_sandbox(sandbox_id="hooked", guest_hook_path=f"{SHARED}/hooks")
            await agent.create("c1", container_spec(rootfs, "sleep", "100"))
            told = {kind: guest.share / f"told-{kind}" for kind in KINDS}
            assert '"id": "c1"' in told["prestart"].read_text().replace('":"', '": "')
            assert not told["poststart"].exists()
            await agent.start("c1")
            assert told["poststart"].exists()
            await agent.signal("c1", 9)
            await agent.wait("c1")
            assert not told["poststop"].exists()
            await agent.remove("c1")
            assert told["poststop"].exists()
