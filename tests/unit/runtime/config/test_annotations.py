"""What pods may and may not change."""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path

import pytest

from kata.errors import InvalidArgument, PermissionDenied, Unimplemented
from kata.runtime.config.annotations import apply_annotations
from kata.runtime.config.settings import Config

PREFIX = "io.katacontainers.config."


def allowing(*patterns: str, **hypervisor: object) -> Config:
    base = Config()
    return replace(base, hypervisor=replace(base.hypervisor, enable_annotations=patterns, **hypervisor))  # type: ignore[arg-type]


def applied(config: Config, name: str, value: str) -> Config:
    return apply_annotations(config, {PREFIX + name: value})


def test_everything_is_denied_by_default() -> None:
    for name in ("hypervisor.default_memory", "agent.kernel_modules", "runtime.disable_guest_seccomp"):
        with pytest.raises(PermissionDenied) as caught:
            applied(Config(), name, "1")
        assert name in caught.value.message
        assert "enable_annotations" in str(caught.value.hint)


def test_allowed_ones_are_applied_and_the_original_stays() -> None:
    config = allowing(".*")
    result = apply_annotations(
        config,
        {
            PREFIX + "hypervisor.default_memory": "4096",
            PREFIX + "hypervisor.default_vcpus": "1.5",
            PREFIX + "hypervisor.default_max_vcpus": "7",
            PREFIX + "agent.kernel_modules": "e1000e EEE=1; i915 ;",
            PREFIX + "agent.container_pipe_size": "65536",
            PREFIX + "runtime.disable_guest_seccomp": "T",
            "io.kubernetes.cri.sandbox-id": "abc",
            "io.katacontainers.config_path": "/etc/shadow",
            "io.katacontainers.pkg.oci.container_type": "pod_sandbox",
        },
    )
    assert result.hypervisor.default_memory == 4096
    assert result.hypervisor.default_vcpus == 2
    assert result.hypervisor.default_maxvcpus == 7
    assert result.agent.kernel_modules == ("e1000e EEE=1", "i915")
    assert result.agent.container_pipe_size == 65536
    assert result.runtime.disable_guest_seccomp
    assert config == allowing(".*")


def test_a_pattern_must_match_the_whole_name() -> None:
    with pytest.raises(PermissionDenied):
        applied(allowing("default", "memory", "kernel"), "hypervisor.default_memory", "512")
    assert applied(allowing("default_.*"), "hypervisor.default_memory", "512").hypervisor.default_memory == 512


def test_one_pod_cannot_allow_itself_more() -> None:
    for short in ("enable_annotations", "valid_hypervisor_paths", "valid_guest_paths", "accelerator", "require_kvm"):
        with pytest.raises(PermissionDenied) as caught:
            applied(allowing(".*"), f"hypervisor.{short}", "x")
        assert "configuration file only" in caught.value.message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hypervisor.default_memory", ""),
        ("hypervisor.default_memory", "0"),
        ("hypervisor.default_memory", "-1"),
        ("hypervisor.default_memory", "9" * 5000),
        ("hypervisor.default_memory", "1_000"),
        ("hypervisor.default_memory", " 512"),
        ("hypervisor.default_memory", "512\n"),
        ("hypervisor.default_memory", "٥١٢"),
        ("hypervisor.default_vcpus", "1e3"),
        ("hypervisor.default_vcpus", "nan"),
        ("hypervisor.shared_fs", "none"),
        ("hypervisor.cpu_features", "x -device vfio-pci"),
        ("hypervisor.cpu_features", "x,,id=a"),
        ("hypervisor.kernel_params", "a\x00b"),
        ("hypervisor.kernel", "relative"),
        ("hypervisor.kernel", "/var/lib/kata/images/current/../../secret"),
        ("runtime.disable_guest_seccomp", "yes"),
        ("agent.kernel_modules", "../../evil"),
        ("agent.kernel_modules", "-r overlay"),
        ("agent.kernel_modules", ";".join(["a"] * 300)),
    ],
)
def test_wrong_values_are_errors(name: str, value: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        applied(allowing(".*"), name, value)
    assert f"annotation {PREFIX}{name} = " in caught.value.message
    assert ": expected " in caught.value.message
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 400


def test_a_policy_is_in_base64() -> None:
    text = "[endpoints]\nallowed = []\n"
    value = base64.b64encode(text.encode()).decode()
    assert applied(allowing("policy"), "agent.policy", value).agent.policy == text
    for wrong in ("[endpoints]", "/w==", base64.b64encode(b"\x00").decode(), "=" * 5):
        with pytest.raises(InvalidArgument):
            applied(allowing("policy"), "agent.policy", wrong)


def test_unknown_and_unsupported_names_are_told_apart() -> None:
    with pytest.raises(InvalidArgument) as caught:
        applied(allowing(".*"), "hypervisor.default_memroy", "512")
    assert "did you mean default_memory?" in caught.value.message
    with pytest.raises(Unimplemented):
        applied(allowing(".*"), "hypervisor.enable_iommu_platform", "true")


class TestPaths:
    @pytest.fixture
    def tmp_path(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """Not named after the test: a message cuts a long value off."""
        return tmp_path_factory.mktemp("p")

    @pytest.fixture
    def images(self, tmp_path: Path) -> Path:
        """images/v1/vmlinux, images/current -> v1, a link out of it, and a file that is nobody's business."""
        (tmp_path / "images/v1/sub").mkdir(parents=True)
        (tmp_path / "images/v1/vmlinux").touch()
        (tmp_path / "images/v1/sub/vmlinux").touch()
        (tmp_path / "images/current").symlink_to("v1")
        (tmp_path / "secret").touch()
        (tmp_path / "images/v1/link").symlink_to(tmp_path / "secret")
        return tmp_path / "images"

    def kernel(self, path: Path, *globs: Path) -> Path:
        config = allowing("kernel", valid_guest_paths=globs)
        return applied(config, "hypervisor.kernel", str(path)).hypervisor.kernel

    def test_the_resolved_path_is_used(self, images: Path) -> None:
        assert self.kernel(images / "current/vmlinux", images / "*/*") == images / "v1/vmlinux"

    def test_a_wildcard_does_not_match_a_slash(self, images: Path) -> None:
        with pytest.raises(PermissionDenied):
            self.kernel(images / "v1/sub/vmlinux", images / "*/*")

    def test_a_link_out_of_the_globs_is_denied(self, images: Path) -> None:
        with pytest.raises(PermissionDenied) as caught:
            self.kernel(images / "v1/link", images / "*/*")
        assert "valid_guest_paths" in caught.value.message
        assert "secret" not in f"{caught.value.message} {caught.value.hint}"

    def test_links_that_the_administrator_wrote_are_followed(self, images: Path, tmp_path: Path) -> None:
        (tmp_path / "alias").symlink_to(images)
        assert self.kernel(images / "v1/vmlinux", tmp_path / "alias/*/vmlinux") == images / "v1/vmlinux"
        assert self.kernel(images / "v1/link", images / "v1/link") == tmp_path / "secret"

    def test_other_files_look_the_same_whether_they_exist_or_not(self, images: Path, tmp_path: Path) -> None:
        messages = set()
        for name in ("secret", "absent"):
            with pytest.raises(PermissionDenied) as caught:
                self.kernel(tmp_path / name, images / "*/*")
            messages.add(f"{caught.value.message} {caught.value.hint}".replace(name, ""))
        assert len(messages) == 1

    def test_an_allowed_path_must_be_a_file(self, images: Path) -> None:
        for name in ("absent", "sub"):
            with pytest.raises(InvalidArgument) as caught:
                self.kernel(images / "v1" / name, images / "*/*")
            assert "no such file" in caught.value.message

    def test_no_globs_allow_nothing(self, images: Path) -> None:
        with pytest.raises(PermissionDenied):
            self.kernel(images / "v1/vmlinux")
