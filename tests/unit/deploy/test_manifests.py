"""The manifests of deploy/, held against the schemas that Kubernetes publishes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

MANIFESTS = Path(__file__).parents[3] / "deploy"
EXAMPLES = MANIFESTS / "examples"
#: One of long ago and the newest that the package has.
VERSIONS = ("1.29", kubernetes_validate.latest_version())


def documents() -> list[Any]:
    return [
        pytest.param(document, id=f"{path.name}-{document['kind']}")
        for path in sorted([*MANIFESTS.glob("*.yaml"), *EXAMPLES.glob("*.yaml")])
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))
    ]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("document", documents())
def test_a_manifest_is_what_kubernetes_takes(document: Any, version: str) -> None:
    kubernetes_validate.validate(document, version, strict=True)


def pods() -> list[Any]:
    """The specifications of all pods of the examples."""
    found = []
    for param in documents():
        document = param.values[0]
        if document["kind"] in ("Pod", "Deployment", "Job"):
            spec = document["spec"] if document["kind"] == "Pod" else document["spec"]["template"]["spec"]
            found.append(pytest.param(spec, id=f"{document['kind']}-{document['metadata']['name']}"))
    return found


@pytest.mark.parametrize("spec", pods())
def test_an_example_runs_in_a_vm(spec: dict[str, Any]) -> None:
    """Whoever copies one gets what the page says, and no volume that is not there."""
    assert spec["runtimeClassName"] == "kata"
    volumes = {volume["name"] for volume in spec.get("volumes", [])}
    for container in spec["containers"]:
        assert "@" in container["image"] or ":" in container["image"], "an image has a version"
        assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes


def test_there_is_an_example_of_each_kind() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.yaml")}
    assert names == {"agent-sandbox", "deployment", "job", "networkpolicy", "pod", "resources", "volumes"}


def test_a_mistake_would_be_seen() -> None:
    (runtime_class,) = (one.values[0] for one in documents() if one.values[0]["kind"] == "RuntimeClass")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**runtime_class, "handlers": "kata"}, VERSIONS[1], strict=True)
