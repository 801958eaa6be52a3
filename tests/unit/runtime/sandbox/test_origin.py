from __future__ import annotations

import pytest

from kata.runtime.sandbox.origin import container_name, origin_of

CRI = {
    "io.kubernetes.cri.container-type": "sandbox",
    "io.kubernetes.cri.sandbox-name": "web",
    "io.kubernetes.cri.sandbox-namespace": "shop",
    "io.kubernetes.cri.sandbox-uid": "u",
}


@pytest.mark.parametrize(
    ("namespace", "annotations", "engine", "by"),
    [
        ("", {}, "kata run", "no namespace"),
        ("default", {}, "containerd", "namespace default"),
        ("moby", {}, "docker", "namespace moby"),
        ("k8s.io", {}, "cri", "namespace k8s.io"),
        ("other", CRI, "cri", "annotation io.kubernetes.cri.container-type"),
        ("default", {"io.container.manager": "cri-o"}, "cri-o", "annotation io.container.manager"),
        ("default", {"io.container.manager": "libpod"}, "podman", "annotation io.container.manager"),
        ("default", {"io.container.manager": "something"}, "containerd", "namespace default"),
    ],
)
def test_engines(namespace: str, annotations: dict[str, str], engine: str, by: str) -> None:
    found = origin_of(namespace, annotations)
    assert (found["engine"], found["engine_by"]) == (engine, by)


def test_pods() -> None:
    assert origin_of("k8s.io", CRI)["pod"] == {"namespace": "shop", "name": "web", "uid": "u"}
    assert origin_of("k8s.io", {})["pod"] is None
    crio = {"io.kubernetes.pod.name": "web", "io.kubernetes.pod.namespace": "shop"}
    assert origin_of("default", crio)["pod"] == {"namespace": "shop", "name": "web", "uid": ""}


def test_names_of_containers() -> None:
    assert container_name({"io.kubernetes.cri.container-name": "nginx"}) == "nginx"
    assert container_name({"nginx": ""}) == ""
