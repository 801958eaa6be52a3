"""The size of a sandbox's VM, as the limits of its containers and the pod's annotations ask for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kata.errors import InvalidArgument
from kata.oci.default import default_spec
from kata.oci.spec import Spec
from kata.runtime.config.settings import Config
from kata.runtime.resources.limits import sandbox_budget
from kata.runtime.resources.sizing import Size, size_class

HOST = Size(8, 65536)


def config(**hypervisor: Any) -> Config:
    base = Config()
    return replace(base, hypervisor=replace(base.hypervisor, default_memory=1000, **hypervisor))


def spec(**changes: Any) -> Spec:
    made: Any = {**default_spec(["true"], rootfs="/r", hostname="box"), **changes}
    return made  # type: ignore[no-any-return]


def limits(**resources: Any) -> Spec:
    return spec(linux={"resources": resources})


def vm_size(given: Spec, config: Config, host: Size) -> Size:
    return sandbox_budget("box", given, config, host).size()


class TestSize:
    @pytest.mark.parametrize(
        ("given", "size"),
        [
            (spec(), Size(1, 1000)),
            (limits(memory={"limit": 256 << 20}), Size(1, 1256)),
            (limits(memory={"limit": (256 << 20) + 1}), Size(1, 1257)),
            (limits(memory={"limit": -1}), Size(1, 1000)),
            (limits(memory={"limit": 2**63 - 4096}), Size(1, 1000)),
            (limits(memory={"limit": 1 << 50}), Size(1, HOST.memory_mib)),
            (limits(cpu={"cpus": "0-2,5"}), Size(5, 1000)),
            (limits(memory={}), Size(1, 1000)),
            (limits(cpu={"quota": 50_000, "period": 100_000}), Size(2, 1000)),
            (limits(cpu={"quota": 250_000, "period": 100_000}), Size(4, 1000)),
            (limits(cpu={"quota": 200_000}), Size(3, 1000)),
            (limits(cpu={"quota": -1, "period": 100_000}), Size(1, 1000)),
            (limits(cpu={"quota": 10**9, "period": 1000}), Size(HOST.vcpus, 1000)),
            ({**spec(), "linux": None}, Size(1, 1000)),
        ],
    )
    def test_limits_come_on_top_of_the_defaults(self, given: Spec, size: Size) -> None:
        assert vm_size(given, config(), HOST) == size

    def test_the_sums_that_cri_writes_on_a_pod(self) -> None:
        annotations = {
            "io.kubernetes.cri.sandbox-memory": str(512 << 20),
            "io.kubernetes.cri.sandbox-cpu-quota": "300000",
            "io.kubernetes.cri.sandbox-cpu-period": "100000",
        }
        assert vm_size(spec(annotations=annotations), config(), HOST) == Size(4, 1512)

    @pytest.mark.parametrize("text", ["much", "", "1e9", "0x10"])
    def test_an_annotation_that_is_no_number(self, text: str) -> None:
        with pytest.raises(
            InvalidArgument, match=r"^annotation io\.kubernetes\.cri\.sandbox-memory: '.*' is not a number$"
        ):
            vm_size(spec(annotations={"io.kubernetes.cri.sandbox-memory": text}), config(), HOST)

    def test_the_maximum_holds(self) -> None:
        assert vm_size(limits(cpu={"quota": 900_000}), config(default_maxvcpus=3), HOST).vcpus == 3


@pytest.mark.parametrize(
    ("wanted", "got"),
    [(128, 128), (129, 160), (512, 512), (576, 640), (2048, 2048), (2049, 2560), (2112, 2560), (4000, 4096)],
)
def test_memory_comes_in_few_sizes(wanted: int, got: int) -> None:
    assert size_class(wanted) == got
