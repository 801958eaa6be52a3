from __future__ import annotations

from pathlib import Path

import pytest

from kata.errors import FailedPrecondition
from kata.osbuilder.verity import SUFFIX, Sealed
from kata.runtime.launch import verity

ROOT = "ab" * 32


def test_the_kernel_is_told_what_the_builder_has_written() -> None:
    assert SUFFIX == verity.SUFFIX
    table = f"verity 1 /dev/vda /dev/vda 4096 4096 100 100 sha256 {ROOT} 00ff 1 panic_on_corruption"
    assert verity.kernel_param(Sealed(ROOT, "00ff", 100).text) == f'dm-mod.create="root,,,ro,0 800 {table}"'


def test_other_block_sizes_and_no_salt() -> None:
    text = f"root_hash={ROOT},salt=,data_blocks=5,data_block_size=1024,hash_block_size=4096"
    assert f"0 10 verity 1 /dev/vda /dev/vda 1024 4096 5 2 sha256 {ROOT} - 1" in verity.kernel_param(text)


@pytest.mark.parametrize(
    "text",
    [
        "x",
        f"root_hash={ROOT}",
        f"root_hash={ROOT[:-1]},salt=,data_blocks=5,data_block_size=4096,hash_block_size=4096",
        f"root_hash={ROOT},salt=,data_blocks=0,data_block_size=4096,hash_block_size=4096",
        f"root_hash={ROOT},salt=,data_blocks=5,data_block_size=4097,hash_block_size=4096",
        f'root_hash={ROOT},salt=,data_blocks=5,data_block_size=4096,hash_block_size=4096" init=/bin/sh',
    ],
)
def test_what_is_not_understood_is_never_passed_over(text: str) -> None:
    with pytest.raises(FailedPrecondition, match="not understood"):
        verity.kernel_param(text)


def test_the_file_beside_an_image_is_read(tmp_path: Path) -> None:
    image = tmp_path / "root.erofs"
    assert verity.beside(image) == ""
    (tmp_path / "root.erofs.verity").write_text(f"{Sealed(ROOT, '', 5).text}\n")
    assert verity.beside(image) == Sealed(ROOT, "", 5).text
    (tmp_path / "root.erofs.verity").write_bytes(b"\xff" * 5000)
    with pytest.raises(FailedPrecondition):
        verity.kernel_param(verity.beside(image))
    (tmp_path / "root.erofs.verity").unlink()
    (tmp_path / "root.erofs.verity").mkdir()
    with pytest.raises(FailedPrecondition, match="cannot read"):
        verity.beside(image)
