"""Which kernel modules the initrd loads, and what those of a recipe depend on.

Pure: lists of names and the text of `modules.dep` in, paths out. Names may be shell patterns; `-` and `_` are the same,
as for modprobe.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from kata.errors import NotFound

# What the initrd needs to reach the root disk, and the agent's channel because everything needs that one. Between them
# is what mounts the disk.
_DISK, _CHANNEL = ("virtio_pci", "virtio_blk"), ("virtio_console",)

# Pulled in by nothing here, however the patterns above grow: IPVS is half a megabyte that only a node uses.
_UNWANTED = ("xt_ipvs", "xt_nfacct")


@dataclass(frozen=True, slots=True)
class ModuleTree:
    """What `depmod` found out about a kernel.

    Attributes:
        dependencies: path of each module below /lib/modules/<release> to the paths of all it needs, as in modules.dep;
            what a compression adds to the names of files is part of the paths.
        builtin: names of what is not a module but part of the kernel.
    """

    dependencies: dict[str, tuple[str, ...]]
    builtin: frozenset[str]

    @classmethod
    def parse(cls, modules_dep: str, modules_builtin: str) -> ModuleTree:
        """Parse the texts of modules.dep and modules.builtin (modules.dep(5))."""
        dependencies = {}
        for line in modules_dep.splitlines():
            path, _, needs = line.partition(":")
            dependencies[path] = tuple(needs.split())
        return cls(dependencies, frozenset(_name(line) for line in modules_builtin.splitlines()))

    def lacking(self, wanted: Iterable[str]) -> list[str]:
        """The wanted names and patterns for which there is neither a module nor a part of the kernel."""
        known = self.builtin.union(map(_name, self.dependencies))
        return [pattern for pattern in wanted if not fnmatch.filter(known, pattern.replace("-", "_"))]

    def load_order(self, wanted: Iterable[str]) -> list[str]:
        """Paths of the wanted modules and all they depend on, each after what it needs, without repetition.

        Raises:
            NotFound: neither a module nor part of the kernel has that name, or one that matches a pattern.
        """
        by_name = {_name(path): path for path in self.dependencies}
        order: dict[str, None] = {}
        for pattern in wanted:
            pattern = pattern.replace("-", "_")
            names = sorted(fnmatch.filter(by_name, pattern)) if set(pattern) & set("*?[") else [pattern]
            if not names and not fnmatch.filter(self.builtin, pattern):
                raise NotFound(f"the kernel has no module that matches {pattern}")
            for name in names:
                if name in _UNWANTED:
                    continue
                if name in by_name:
                    path = by_name[name]
                    # modules.dep names the closure, what must be loaded first last.
                    order.update(dict.fromkeys((*reversed(self.dependencies[path]), path)))
                elif name not in self.builtin:
                    near = difflib.get_close_matches(name, by_name, n=1)
                    raise NotFound(
                        f"the kernel has no module {name}", hint=f"did you mean {near[0]}?" if near else None
                    )
        return list(order)


def of_initrd(file_system: Iterable[str]) -> tuple[str, ...]:
    """The modules of an initrd, in order.

    Args:
        file_system: those that mount the root disk.
    """
    return (*_DISK, *file_system, *_CHANNEL)


def _name(path: str) -> str:
    return PurePosixPath(path).name.partition(".")[0].replace("-", "_")
