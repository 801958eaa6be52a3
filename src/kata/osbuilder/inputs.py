"""The inputs of an image, and the version that is derived from them.

The same inputs give the same version, and the same version the same bytes. Inputs are the packages (by digest), among
them those of the programs that write the image, the recipe, the agent's files, and the builder's own files.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from kata import architecture as architectures
from kata.architecture import HOST, Architecture
from kata.osbuilder import patched_module
from kata.osbuilder.kernel import CustomKernel
from kata.osbuilder.packages import PackageSet
from kata.osbuilder.recipe import DEFAULT, Recipe
from kata.version import VERSION


@dataclass(frozen=True, slots=True)
class Inputs:
    """All inputs of one image.

    Attributes:
        packages: with their digests.
        recipe: what a person has asked for.
        agent: digest of the agent's files.
        builder: digest of the builder's own files.
        other: digest of another root file system's files, which the root has as well; "" without one.
        kernel: instead of the packages'.
        architecture: of the guest.
    """

    packages: PackageSet
    recipe: Recipe
    agent: str
    builder: str
    other: str = ""
    kernel: CustomKernel | None = None
    architecture: Architecture = HOST

    @property
    def base_key(self) -> str:
        """Key of the intermediate, which does not depend on the agent: kernel, initrd and the root's packages."""
        inputs: dict[str, object] = {
            "builder": self.builder,
            "packages": [package.sha256 for package in self.packages.needed],
            "recipe": self.recipe.digest,
            "other": self.other,
        }
        if self.kernel:
            inputs["kernel"] = self.kernel.version
        return _digest(inputs)

    @property
    def key(self) -> str:
        """Key of the whole image."""
        return _digest({"base": self.base_key, "agent": self.agent})

    @property
    def release(self) -> str:
        """As `uname -r` says it in the guest."""
        return self.kernel.release if self.kernel else self.packages.release

    @property
    def version(self) -> str:
        """Version of the image, e.g. "0.1.0-3fd90a7be812": the project's version and a digest of the inputs.

        Unless the recipe is the default, its name comes between them, and so does the architecture if it is not the
        host's.
        """
        name = "" if self.recipe.name == DEFAULT else f"{self.recipe.name}-"
        if self.architecture is not HOST:
            name = f"{self.architecture.name}-{name}"
        return f"{VERSION}-{name}{self.key[:12]}"

    @property
    def uuid(self) -> str:
        """UUID of the root file system."""
        return str(UUID(self.key[:32]))


def builder_digest() -> str:
    """Digest of the builder's files: this package, the patch of the kernel's module, and the table of architectures."""
    total = hashlib.sha256(patched_module.patch())
    here = Path(__file__).parent
    files = sorted(path for path in here.iterdir() if path.suffix in (".py", ".sh", ".txt"))
    for path in (*files, Path(architectures.__file__)):
        content = path.read_bytes()
        total.update(f"\0{path.name}\0{len(content)}\0".encode())
        total.update(content)
    return total.hexdigest()


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
