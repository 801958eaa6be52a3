"""The bill of materials: what packages and archive carry of others, in CycloneDX's JSON, by CycloneDX's own library.

Python packages are those of the lock file, Debian's those of the guest image's manifest, each with a package URL.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.contact import OrganizationalEntity
from cyclonedx.model.license import DisjunctiveLicense
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from kata.osbuilder.packages import Package
from kata.version import VERSION
from tools.release.lock import Pinned


def make(python: Iterable[Pinned], manifest: Mapping[str, Any], suite: str, date: int) -> str:
    """The document, the same each time.

    Args:
        python: packages of the lock file.
        manifest: of the guest image.
        suite: of Debian, whose packages those of the image are.
        date: of the release, in seconds since 1970.
    """
    subject = Component(
        name="pykata",
        version=VERSION,
        type=ComponentType.APPLICATION,
        bom_ref="pykata",
        purl=PackageURL("pypi", None, "pykata", VERSION),
        licenses=[DisjunctiveLicense(id="Apache-2.0")],
        properties=[Property(name="pykata:guest-image", value=str(manifest["version"]))],
    )
    parts = [*map(_python, python), *(_debian(package, suite) for package in manifest["packages"])]
    bom = Bom(components=parts)
    bom.metadata.component = subject
    bom.metadata.timestamp = datetime.fromtimestamp(date, UTC)
    bom.metadata.supplier = OrganizationalEntity(name="pykata developers")
    bom.register_dependency(subject, parts)
    names = " ".join(str(part.purl) for part in parts)
    bom.serial_number = uuid5(NAMESPACE_URL, f"pykata {VERSION} {manifest['version']} {date} {names}")
    document = json.loads(JsonV1Dot6(bom).output_as_string())
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


def with_packages(manifest: Mapping[str, Any], packages: Iterable[Package]) -> dict[str, Any]:
    """A guest image's manifest with the packages that the container image has besides."""
    named = {(package["name"], package["version"]) for package in manifest["packages"]}
    more = [asdict(package) for package in packages if (package.name, package.version) not in named]
    return {**manifest, "packages": [*manifest["packages"], *more]}


def _python(pinned: Pinned) -> Component:
    purl = PackageURL("pypi", None, pinned.name, pinned.version)
    return Component(
        name=pinned.name,
        version=pinned.version,
        type=ComponentType.LIBRARY,
        bom_ref=str(purl),
        purl=purl,
        # One Python's file has the first digest, another's the second.
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest) for digest in pinned.sha256],
    )


def _debian(package: Mapping[str, Any], suite: str) -> Component:
    qualifiers = {"arch": "amd64", "distro": suite}
    purl = PackageURL("deb", "debian", package["name"], package["version"], qualifiers)
    return Component(
        name=package["name"],
        version=package["version"],
        type=ComponentType.LIBRARY,
        bom_ref=str(purl),
        purl=purl,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=package["sha256"])],
        licenses=[DisjunctiveLicense(name=name) for name in sorted(set(package.get("licenses", [])))],
    )
