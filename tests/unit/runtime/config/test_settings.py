"""The table itself: what it promises to those who derive something from it."""

from __future__ import annotations

import dataclasses

import pytest

from kata.runtime.config import known
from kata.runtime.config.settings import SECTIONS, Config, HypervisorConfig


def test_every_default_is_what_its_own_kind_accepts() -> None:
    import tomllib

    for section in SECTIONS:
        for setting in section.settings.values():
            written = tomllib.loads(f"value = {setting.kind.toml(setting.default)}")["value"]
            assert setting.kind.check(written) == setting.default, setting.key


def test_the_types_of_the_defaults_are_the_declared_ones() -> None:
    for section in SECTIONS:
        for f in dataclasses.fields(getattr(Config(), section.attribute)):
            assert str(f.type).startswith(type(f.default).__name__.replace("PosixPath", "Path")), f.name


def test_paths_from_annotations_always_have_their_globs() -> None:
    for section in SECTIONS:
        for setting in section.settings.values():
            if setting.kind.name == "path" and setting.annotation:
                assert setting.valid in section.settings


def test_a_setting_is_not_also_listed_as_without_effect() -> None:
    for section in SECTIONS:
        annotations = {setting.annotation for setting in section.settings.values()}
        assert not known.KEYS[section.name] & set(section.settings)
        assert not known.ANNOTATIONS[section.attribute] & annotations


def test_the_configuration_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().hypervisor.default_memory = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("default", "most", "host", "vcpus", "max_vcpus"),
    [(1, 0, 4, 1, 4), (0, 0, 4, 1, 4), (-1, 0, 4, 4, 4), (8, 0, 4, 4, 4), (4, 2, 8, 2, 2), (-1, 0, 500, 240, 240)],
)
def test_vcpus_fit_the_host(default: int, most: int, host: int, vcpus: int, max_vcpus: int) -> None:
    config = HypervisorConfig(default_vcpus=default, default_maxvcpus=most)
    assert (config.vcpus(host), config.max_vcpus(host)) == (vcpus, max_vcpus)
