from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from kata.architecture import ARM64
from kata.osbuilder.inputs import Inputs, builder_digest
from kata.osbuilder.kernel import CustomKernel
from kata.osbuilder.packages import Package, PackageSet
from kata.osbuilder.recipe import Recipe
from kata.version import VERSION

KERNEL = Package("linux-image-6.12.118+deb13-amd64", "6.12.118-1", "k.deb", 1, "00" * 32)
CRUN = Package("crun", "1.8.1-1", "c.deb", 1, "11" * 32)
INPUTS = Inputs(PackageSet(KERNEL, (CRUN,), ()), Recipe("default"), agent="a", builder="b")
OWN = CustomKernel(Path("/nonexistent"), "6.12.118-kata1-x", "6.12.118-kata1", 7)


def test_the_version_is_fit_for_a_directory() -> None:
    assert re.fullmatch(r"[0-9.]+-[0-9a-f]{12}", INPUTS.version)
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", INPUTS.uuid)


def test_every_input_makes_another_version() -> None:
    newer = dataclasses.replace(CRUN, sha256="22" * 32)
    others = [
        dataclasses.replace(INPUTS, packages=PackageSet(KERNEL, (newer,), ())),
        dataclasses.replace(INPUTS, packages=PackageSet(KERNEL, (), ())),
        dataclasses.replace(INPUTS, recipe=Recipe("default", modules=("loop",))),
        dataclasses.replace(INPUTS, agent="x"),
        dataclasses.replace(INPUTS, builder="x"),
        dataclasses.replace(INPUTS, packages=PackageSet(KERNEL, (CRUN,), (), tools=(newer,))),
        dataclasses.replace(INPUTS, kernel=OWN),
        dataclasses.replace(INPUTS, kernel=dataclasses.replace(OWN, version="6.12.118-kata1-y")),
    ]
    assert len({inputs.version for inputs in (INPUTS, *others)}) == len(others) + 1
    assert len({inputs.uuid for inputs in (INPUTS, *others)}) == len(others) + 1


def test_another_recipe_is_part_of_the_version() -> None:
    debug = dataclasses.replace(INPUTS, recipe=Recipe("debug"))
    assert debug.key == INPUTS.key
    assert re.fullmatch(r"[0-9.]+-debug-[0-9a-f]{12}", debug.version)


def test_the_same_inputs_make_the_same_version() -> None:
    assert dataclasses.replace(INPUTS).version == INPUTS.version


def test_the_intermediate_does_not_depend_on_the_agent() -> None:
    assert dataclasses.replace(INPUTS, agent="x").base_key == INPUTS.base_key
    assert dataclasses.replace(INPUTS, builder="x").base_key != INPUTS.base_key


def test_the_builder_knows_its_own_files() -> None:
    assert re.fullmatch(r"[0-9a-f]{64}", builder_digest())
    assert builder_digest() == builder_digest()


def test_the_release_is_that_of_the_kernel_in_the_image() -> None:
    assert INPUTS.release == "6.12.118+deb13-amd64"
    assert dataclasses.replace(INPUTS, kernel=OWN).release == "6.12.118-kata1"


def test_the_version_names_another_architecture() -> None:
    foreign = dataclasses.replace(INPUTS, architecture=ARM64)
    assert foreign.version == f"{VERSION}-arm64-{foreign.key[:12]}"
    debug = dataclasses.replace(foreign, recipe=Recipe("debug"))
    assert debug.version.startswith(f"{VERSION}-arm64-debug-")
