"""The manifests of deploy/, held against the schemas that Kubernetes publishes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

MANIFESTS = Path(__file__).parents[3] / "deploy"
#: One of long ago and the newest that the package has.
VERSIONS = ("1.29", kubernetes_validate.latest_version())


def documents() -> list[Any]:
    return [
        pytest.param(document, id=f"{path.name}-{document['kind']}")
        for path in sorted(MANIFESTS.glob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))
    ]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("document", documents())
def test_a_manifest_is_what_kubernetes_takes(document: Any, version: str) -> None:
    kubernetes_validate.validate(document, version, strict=True)


def test_a_mistake_would_be_seen() -> None:
    (runtime_class,) = (one.values[0] for one in documents() if one.values[0]["kind"] == "RuntimeClass")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**runtime_class, "handlers": "kata"}, VERSIONS[1], strict=True)
