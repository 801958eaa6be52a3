from __future__ import annotations

from kata.osbuilder import recipe
from kata.osbuilder.recipe import INITRD, Form
from kata.osbuilder.root_image import disk, modules_of_initrd


def test_the_initrd_has_what_mounts_its_root_whatever_the_recipe_names() -> None:
    assert modules_of_initrd(Form()) == ("virtio_pci", "virtio_blk", "crc32c_generic", "erofs", "virtio_console")
    assert {"ext4", "dm-mod", "dm-verity"} <= set(modules_of_initrd(Form("ext4", verity=True)))
    assert "xfs" in modules_of_initrd(Form("xfs"))
    assert modules_of_initrd(Form(INITRD)) == ()
    # So the usual image has the same modules as ever.
    assert set(modules_of_initrd(Form())) <= set(recipe.load("minimal").modules)


def test_a_file_system_in_a_partition_is_mounted_from_there() -> None:
    assert disk(Form()) == "/dev/vda"
    assert disk(Form(partitioned=True)) == "/dev/vda1"
