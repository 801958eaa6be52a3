from __future__ import annotations

import dataclasses
import re

from kata.osbuilder.packages import Package, PackageSet
from kata.osbuilder.recipe import Recipe, builder_digest

KERNEL = Package("linux-image-6.12.118+deb13-amd64", "6.12.118-1", "k.deb", 1, "00" * 32)
CRUN = Package("crun", "1.8.1-1", "c.deb", 1, "11" * 32)
RECIPE = Recipe(PackageSet(KERNEL, (CRUN,), ()), agent="a", builder="b", tools={"mkfs.erofs": "c"})


def test_the_version_is_fit_for_a_directory() -> None:
    assert re.fullmatch(r"[0-9.]+-[0-9a-f]{12}", RECIPE.version)
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", RECIPE.uuid)


def test_every_input_makes_another_version() -> None:
    newer = dataclasses.replace(CRUN, sha256="22" * 32)
    others = [
        dataclasses.replace(RECIPE, packages=PackageSet(KERNEL, (newer,), ())),
        dataclasses.replace(RECIPE, packages=PackageSet(KERNEL, (), ())),
        dataclasses.replace(RECIPE, agent="x"),
        dataclasses.replace(RECIPE, builder="x"),
        dataclasses.replace(RECIPE, tools={"mkfs.erofs": "x"}),
    ]
    assert len({recipe.version for recipe in (RECIPE, *others)}) == len(others) + 1
    assert len({recipe.uuid for recipe in (RECIPE, *others)}) == len(others) + 1


def test_the_same_inputs_make_the_same_version() -> None:
    assert dataclasses.replace(RECIPE).version == RECIPE.version


def test_the_intermediate_does_not_depend_on_the_agent() -> None:
    assert dataclasses.replace(RECIPE, agent="x").base_key == RECIPE.base_key
    assert dataclasses.replace(RECIPE, builder="x").base_key != RECIPE.base_key


def test_the_builder_knows_its_own_files() -> None:
    assert re.fullmatch(r"[0-9a-f]{64}", builder_digest())
    assert builder_digest() == builder_digest()
