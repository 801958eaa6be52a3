"""The plan of a sandbox's VM: a function of spec, configuration and host alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kata.architecture import ARM64
from kata.errors import InvalidArgument, ResourceExhausted
from kata.oci.default import default_spec
from kata.oci.spec import Spec
from kata.osbuilder.verity import Sealed
from kata.runtime.config.settings import Config
from kata.runtime.hypervisor.base import SHARE_VIRTIO_FS
from kata.runtime.launch.host import Host, free_huge_pages, look_at_host, tsc_mhz
from kata.runtime.launch.vm_plan import agent_params, as_template, empty_disks, plan_vm, with_layers
from kata.runtime.ledger.processes import MARKER
from kata.runtime.resources.sizing import Size

BOX = Path("/run/kata/box")
HOST = Host(
    size=Size(8, 65536),
    accelerator="tcg",
    tsc_mhz=2596,
    kernel=Path("/images/one/vmlinux"),
    initrd=Path("/images/one/initrd"),
    image=Path("/images/one/rootfs"),
    programs=Path("/images/one/host"),
)


def config(**hypervisor: Any) -> Config:
    base = Config()
    return replace(base, hypervisor=replace(base.hypervisor, default_memory=1000, **hypervisor))


def spec(**changes: Any) -> Spec:
    made: Any = {**default_spec(["true"], rootfs="/r", hostname="box"), **changes}
    return made  # type: ignore[no-any-return]


def test_what_marks_it_and_where_it_lives() -> None:
    plan = plan_vm("box", BOX, spec(), config(kernel_params="extra=1 more"), HOST)
    assert dict(plan.environment)[MARKER] == str(BOX)
    assert (plan.run_dir, plan.share_dir, plan.root_dir) == (BOX, BOX / "shared", BOX / "root")
    assert plan_vm("box", BOX, spec(), config(shared_fs="virtio-fs"), HOST).root_dir is None
    assert plan.kernel_params[-2:] == ("extra=1", "more"), "the administrator's come last and win"


@pytest.mark.parametrize(
    ("setting", "namespace", "domain"),
    [("", "shop", ""), ("blue", "shop", "blue"), ("{namespace}", "shop", "shop"), ("{namespace}", None, "")],
)
def test_whom_it_shares_a_template_with(setting: str, namespace: str | None, domain: str) -> None:
    made = replace(config(), factory=replace(Config().factory, template_domain=setting))
    annotations = {"io.kubernetes.cri.sandbox-namespace": namespace} if namespace else {}
    plan = plan_vm("box", BOX, spec(annotations=annotations), made, HOST)
    assert (plan.template_domain, as_template(plan).template_domain) == (domain, domain)


def test_it_is_made_for_the_host_that_it_is_given() -> None:
    plan = plan_vm("box", BOX, spec(), config(), HOST)
    assert (plan.accelerator, plan.kernel, plan.initrd, plan.image) == ("tcg", HOST.kernel, HOST.initrd, HOST.image)
    assert (plan.max_vcpus, plan.max_memory_mib) == (8, 65536)
    assert (plan.programs, plan.virtiofsd) == (Path("/images/one/host"), None)
    small = replace(HOST, size=Size(2, 4096), accelerator="kvm")
    assert plan_vm("box", BOX, spec(), config(), small).max_vcpus == 2
    by_virtiofs = config(shared_fs=SHARE_VIRTIO_FS, virtio_fs_daemon="/usr/libexec/virtiofsd")
    assert plan_vm("box", BOX, spec(), by_virtiofs, HOST).virtiofsd == Path("/usr/libexec/virtiofsd")


def test_memory_in_huge_pages() -> None:
    on_huge_pages = config(enable_hugepages=True)
    assert not on_huge_pages.uses_templates
    plan = plan_vm("box", BOX, spec(), on_huge_pages, replace(HOST, free_huge_pages=500))
    assert (plan.huge_pages, plan.memory_mib) == (True, 1000), "as it was asked for, not as a template has it"
    odd = config(enable_hugepages=True)
    odd = replace(odd, hypervisor=replace(odd.hypervisor, default_memory=999))
    assert plan_vm("box", BOX, spec(), odd, replace(HOST, free_huge_pages=500)).memory_mib == 1000
    with pytest.raises(ResourceExhausted, match="needs 500 huge pages of 2 MiB; 499 of this host's are free") as caught:
        plan_vm("box", BOX, spec(), on_huge_pages, replace(HOST, free_huge_pages=499))
    assert "vm.nr_hugepages" in (caught.value.hint or "")


def test_the_hosts_pool_of_huge_pages(tmp_path: Path) -> None:
    assert free_huge_pages(tmp_path) == 0, "a kernel without them"
    for name, count in (("free_hugepages", 100), ("resv_hugepages", 30)):
        (tmp_path / name).write_text(f"{count}\n")
    assert free_huge_pages(tmp_path) == 70, "what others have reserved cannot be had"


def test_a_machine_without_acpi_keeps_its_size_and_plugs_into_root_ports() -> None:
    plan = plan_vm("box", BOX, spec(), config(machine_type="virt"), HOST)
    assert plan.architecture is ARM64
    assert (plan.max_vcpus, plan.max_memory_mib, plan.root_ports) == (0, 0, 18)
    assert not [param for param in plan.kernel_params if param.startswith("tsc")]
    with pytest.raises(InvalidArgument, match="a VM for linux/arm64 has no IOMMU") as caught:
        plan_vm("box", BOX, spec(), config(machine_type="virt", enable_iommu=True), HOST)
    assert caught.value.hint


def test_the_image_is_pinned(tmp_path: Path) -> None:
    """What is `current` may change while the VM runs."""
    (tmp_path / "one").mkdir()
    (tmp_path / "one/vmlinux").touch()
    (tmp_path / "current").symlink_to("one")
    host = look_at_host(config(kernel=tmp_path / "current/vmlinux").hypervisor, "tcg")
    assert host.kernel == tmp_path / "one/vmlinux"
    assert host.size.vcpus > 0
    assert host.size.memory_mib > 0


def test_what_checks_the_root_is_read_beside_it_unless_the_configuration_says_it(tmp_path: Path) -> None:
    image = tmp_path / "root.erofs"
    sealed = [Sealed(digit * 64, "", 8).text for digit in "ab"]
    Path(f"{image}.verity").write_text(f"{sealed[0]}\n")
    hypervisor = replace(Config().hypervisor, image=image)
    assert look_at_host(hypervisor, "tcg").verity == sealed[0]
    assert look_at_host(replace(hypervisor, kernel_verity_params=sealed[1]), "tcg").verity == sealed[1]
    assert look_at_host(replace(hypervisor, image=None), "tcg").verity == ""
    plan = plan_vm("box", BOX, spec(), Config(), replace(HOST, verity=sealed[0]))
    assert any(param.startswith('dm-mod.create="root,,,ro,0 64 verity') for param in plan.kernel_params)
    plan = plan_vm("box", BOX, spec(), Config(), replace(HOST, image=None))
    assert plan.image is None
    assert not any("verity" in param for param in plan.kernel_params)


def test_an_emulated_guest_is_told_how_fast_its_clock_is() -> None:
    assert "tsc_early_khz=2596000" in plan_vm("box", BOX, spec(), config(), HOST).kernel_params
    for other in (replace(HOST, tsc_mhz=0), replace(HOST, accelerator="kvm")):
        params = plan_vm("box", BOX, spec(), config(), other).kernel_params
        assert not [param for param in params if param.startswith("tsc")]


@pytest.mark.parametrize(
    ("text", "mhz"),
    [("processor\t: 0\nbogomips\t: 5192.31\n\nprocessor\t: 1\nbogomips\t: 1.00\n", 2596), ("BogoMIPS\t: 48.00\n", 0)],
)
def test_the_frequency_is_what_the_hosts_kernel_has_measured(tmp_path: Path, text: str, mhz: int) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert tsc_mhz(tmp_path / "cpuinfo") == mhz
    assert tsc_mhz(tmp_path / "missing") == 0


def test_the_agent_is_told_what_to_serve_on() -> None:
    assert agent_params(Config(), "kvm") == ("agent.server_addr=virtio-serial://kata.rpc",)
    assert "agent.emulated" in agent_params(Config(), "tcg")
    loud = replace(Config(), agent=replace(Config().agent, enable_debug=True, container_pipe_size=4096))
    assert {"agent.log=debug", "agent.container_pipe_size=4096"} <= set(agent_params(loud, "kvm"))


def test_without_templates_memory_is_what_was_asked_for() -> None:
    cold = replace(Config(), factory=replace(Config().factory, enable_template=False))
    limited = spec(linux={"resources": {"memory": {"limit": 64 << 20}}})
    assert plan_vm("box", BOX, limited, cold, HOST).memory_mib == 2048 + 64
    assert plan_vm("box", BOX, limited, Config(), HOST).memory_mib == 2560


def test_the_vmm_is_in_the_pods_network_and_a_templates_in_none() -> None:
    joined = spec(linux={"namespaces": [{"type": "pid", "path": "/x"}, {"type": "network", "path": "/run/netns/pod"}]})
    plan = plan_vm("box", BOX, joined, config(), HOST)
    assert plan.network == "/run/netns/pod"
    assert as_template(plan).network == ""
    anew = spec(linux={"namespaces": [{"type": "network"}]})
    assert [plan_vm("box", BOX, one, config(), HOST).network for one in (anew, spec(), Spec())] == ["", "", ""]


def test_disks_for_layers_are_there_before_they_are_filled() -> None:
    plain = config()
    assert plan_vm("box", BOX, spec(), plain, HOST).empty_disks == ()
    layered = plan_vm("box", BOX, spec(), with_layers(plain), HOST)
    assert sorted(layered.empty_disks) == [False, True, True, True, True], "one that is written to"
    assert as_template(layered).empty_disks == layered.empty_disks
    memory = replace(plain, runtime=replace(plain.runtime, rootfs_upper="memory"))
    assert empty_disks(with_layers(memory)) == layered.empty_disks, "they share a template"


def test_where_disks_cannot_be_filled_there_are_none() -> None:
    for other in (config(disable_block_device_use=True), config(block_device_driver="virtio-scsi")):
        assert empty_disks(with_layers(other)) == ()
