"""What makes a guest's kernel check each block of its root image that it reads (dm-verity).

The parameters are Kata's `kernel_verity_params`: of the configuration, or of the file beside the image. Pure but for
reading that file. The kernel, or the initrd where device mapper is a module, makes the device of them: both take the
same words.

References: Documentation/admin-guide/device-mapper/dm-init.rst and verity.rst of the Linux kernel.
"""

from __future__ import annotations

import re
from pathlib import Path

from kata.errors import FailedPrecondition

#: Of the file beside an image, which `kata.osbuilder.verity` writes.
SUFFIX = ".verity"
_MAX_SIZE = 1024
_SECTOR = 512
_SIZES = ("512", "1024", "2048", "4096")
_WORDS = re.compile(
    r"root_hash=(?P<root>[0-9a-f]{64}),salt=(?P<salt>(?:[0-9a-f]{2}){0,64}),data_blocks=(?P<blocks>[1-9][0-9]{0,11}),"
    rf"data_block_size=(?P<data>{'|'.join(_SIZES)}),hash_block_size=(?P<hash>{'|'.join(_SIZES)})"
)
#: The disk of the root, with the tree of hashes behind its data.
_DISK = "/dev/vda"


def beside(image: Path) -> str:
    """The parameters in the file beside an image; "" if there is none.

    Raises:
        FailedPrecondition: it cannot be read.
    """
    try:
        with open(f"{image}{SUFFIX}", "rb", buffering=0) as file:
            return (file.read(_MAX_SIZE) or b"").decode(errors="replace").strip()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise FailedPrecondition(f"cannot read {image}{SUFFIX}: {(error.strerror or '').lower()}") from None


def kernel_param(parameters: str) -> str:
    """The parameter for the kernel's command line.

    A damaged block ends the guest: what was read before may be used already, what comes next is not to be trusted.

    Raises:
        FailedPrecondition: the parameters are not understood. A root that should be checked is never used unchecked.
    """
    found = _WORDS.fullmatch(parameters)
    if found is None:
        raise FailedPrecondition(
            f"parameters of dm-verity are not understood: {parameters[:80]!r}",
            hint="root_hash=…,salt=…,data_blocks=…,data_block_size=…,hash_block_size=…",
        )
    blocks, data_size, hash_size = int(found["blocks"]), int(found["data"]), int(found["hash"])
    size = blocks * data_size
    start = -(-size // hash_size)
    table = (
        f"verity 1 {_DISK} {_DISK} {data_size} {hash_size} {blocks} {start} sha256 {found['root']} "
        f"{found['salt'] or '-'} 1 panic_on_corruption"
    )
    return f'dm-mod.create="root,,,ro,0 {size // _SECTOR} {table}"'
