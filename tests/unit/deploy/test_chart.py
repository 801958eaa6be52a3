"""The chart, rendered and linted by Helm itself, without a cluster; and the kustomize base, which is made from it."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from typer.main import get_command

from kata.deploy.cluster import LABEL
from kata.deploy.main import READY, app
from kata.engines.containerd import HANDLER
from kata.version import VERSION

helm_python = pytest.importorskip("helm_python", reason="needs Helm's library: pip install --editable '.[charts]'")
from tools import manifests  # noqa: E402 - it imports that

#: One of long ago and the newest that the package has.
KUBERNETES = ("1.29", kubernetes_validate.latest_version())
#: What users choose, so that each branch of each template is rendered.
CHOICES: dict[str, dict[str, Any]] = {
    "default": {},
    "job": {"mode": "job", "nodes": ["worker-1", "worker-2.example.org"], "containerd": {"restart": True}},
    "all": {
        "containerd": {"restart": True, "config": "/srv/containerd/config.toml", "service": "containerd@2"},
        "image": {
            "repository": "registry.example.org:5000/kata",
            "digest": f"sha256:{'a' * 64}",
            "pullSecrets": ["mine"],
        },
        "monitor": {"enabled": True, "port": 9000},
        "nodeSelector": {"pool": "vm"},
        "prefix": "/srv/kata",
        "runtimeClass": {"names": ["kata", "kata-qemu"]},
        "tolerations": [{"key": "vm", "operator": "Equal", "value": "1", "effect": "NoSchedule"}],
    },
    "least": {"removal": "keep", "runtimeClass": {"names": []}, "verification": {"enabled": False}, "tolerations": []},
    "no-overhead": {"runtimeClass": {"overhead": None}},
}
PERFORMANCE = Path(__file__).parents[3] / "docs/performance.md"


@cache
def documents(choice: str) -> list[dict[str, Any]]:
    texts = (text for name, text in manifests.render(CHOICES[choice]).items() if name.endswith(".yaml"))
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


def one(found: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    (document,) = (each for each in found if each["kind"] == kind and each["metadata"]["name"] == name)
    return document


def pods(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The specifications of all pods that come of them."""
    specs = [document["spec"] for document in found if document["kind"] == "Pod"]
    return specs + [
        document["spec"]["template"]["spec"] for document in found if "template" in document.get("spec", {})
    ]


@pytest.mark.parametrize("choice", CHOICES)
def test_it_is_what_kubernetes_takes(choice: str) -> None:
    found = documents(choice)
    assert found
    for document in found:
        for version in KUBERNETES:
            kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("choice", CHOICES)
def test_helm_has_nothing_to_say(choice: str) -> None:
    said = helm_python.lint(str(manifests.CHART), CHOICES[choice], strict=True)
    assert said["errors"] == []
    # The only one: a chart may have an icon.
    assert [message["error"] for message in said["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"mode": "job"}, "mode job needs the names of nodes"),
        ({"nodes": ["worker-1"]}, "nodes are for mode job"),
        ({"image": {"tag": "1", "digest": f"sha256:{'a' * 64}"}}, "image.tag and image.digest contradict each other"),
        ({"distribution": "k3s"}, "distribution k3s is not supported yet"),
        ({"runtimeClass": {"names": []}}, "verification.enabled needs a RuntimeClass"),
        ({"runtimeClass": {"overhead": {"memory": None}}}, "overhead without memory"),
        ({"mode": "both"}, "at '/mode': value must be one of"),
        ({"prefix": "/opt"}, "at '/prefix'"),
        ({"prefix": "/opt/../etc"}, "at '/prefix'"),
        ({"containerd": {"config": "config.toml"}}, "at '/containerd/config'"),
        ({"containerd": {"restart": "no"}}, "at '/containerd/restart': got string, want boolean"),
        ({"runtimeClass": {"names": ["kata", "kata"]}}, "at '/runtimeClass/names'"),
        ({"timeoutSeconds": 30}, "at '/timeoutSeconds'"),
        ({"monitor": {"port": 70000}}, "at '/monitor/port'"),
        ({"moniter": {"enabled": True}}, "additional properties 'moniter' not allowed"),
    ],
)
def test_values_that_contradict_each_other(values: dict[str, Any], words: str) -> None:
    with pytest.raises(helm_python.HelmError) as caught:
        manifests.render(values)
    assert words in str(caught.value)


@pytest.mark.parametrize("choice", ["default", "job", "all"])
def test_what_the_pods_run_is_there(choice: str) -> None:
    """Each of their command lines is one that `kata-deploy` takes."""
    commands = get_command(app).commands  # type: ignore[attr-defined]
    seen = set()
    for spec in pods(documents(choice)):
        for container in spec["containers"]:
            if "command" in container:
                assert container["command"] == ["/opt/kata/bin/kata-monitor"]
                continue
            name, *arguments = container["args"]
            commands[name].make_context(name, list(arguments))
            seen.add(name)
    assert seen == {"install", "verify", "cleanup" if choice == "job" else "end"}


def test_no_pod_has_more_rights_than_it_needs() -> None:
    for choice in CHOICES:
        found = documents(choice)
        for spec in pods(found):
            assert not {"hostPID", "hostNetwork", "hostIPC"} & set(spec)
            for container in spec["containers"]:
                context = container["securityContext"]
                assert not context.get("privileged")
                assert context["capabilities"]["drop"] == ["ALL"]
                # The account's token is only where the API server is asked.
                asks = container.get("args", [""])[0] in ("install", "cleanup", "end")
                assert spec["automountServiceAccountToken"] == asks
        rules = {
            (document["kind"], rule["resources"][0], tuple(rule["verbs"]), tuple(rule.get("resourceNames", ())))
            for document in found
            for rule in document.get("rules", ())
        }
        daemonset = ("Role", "daemonsets", ("get",), ("kata-deploy",))
        removal = ("Role", "daemonsets", ("get", "delete"), ("kata-deploy",))
        more = set() if choice in ("job", "least") else {daemonset, removal}
        assert rules == {("ClusterRole", "nodes", ("patch",), ()), *more}


def test_pods_go_where_the_runtime_is() -> None:
    found = documents("all")
    for name in ("kata", "kata-qemu"):
        runtime = one(found, "RuntimeClass", name)
        assert runtime["handler"] == HANDLER
        assert runtime["scheduling"]["nodeSelector"] == {LABEL: "true"}
    assert one(found, "Pod", "kata-verification")["spec"]["runtimeClassName"] == "kata"
    monitor = one(found, "DaemonSet", "kata-monitor")["spec"]["template"]["spec"]
    assert monitor["nodeSelector"] == {LABEL: "true"}


def test_ready_is_what_the_probe_looks_for() -> None:
    (container,) = one(documents("default"), "DaemonSet", "kata-deploy")["spec"]["template"]["spec"]["containers"]
    assert repr(str(READY)) in container["readinessProbe"]["exec"]["command"][-1]
    assert str(READY.parent) in [mount["mountPath"] for mount in container["volumeMounts"]]


def test_the_overhead_is_what_was_measured() -> None:
    """The most that one idle sandbox takes, with nobody to share the template's pages, and a tenth at most more."""
    (measured,) = re.findall(
        r"^\| memory \| idle sandbox \(1\) \| kata \| (\d+) MiB", PERFORMANCE.read_text(), re.MULTILINE
    )
    (by_hand,) = yaml.safe_load_all((manifests.PROJECT / "deploy/runtimeclass.yaml").read_text())
    for runtime in (one(documents("default"), "RuntimeClass", "kata"), by_hand):
        memory = int(runtime["overhead"]["podFixed"]["memory"].removesuffix("Mi"))
        assert int(measured) <= memory <= int(measured) * 1.1


def test_it_is_of_this_version() -> None:
    chart = yaml.safe_load((manifests.CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == VERSION


def test_values_are_all_in_the_schema_and_the_other_way_round() -> None:
    def keys(document: Any, path: str = "") -> set[str]:
        inside = document.get("properties") if path or "properties" in document else None
        return {path} | {name for key, value in (inside or {}).items() for name in keys(value, f"{path}/{key}")}

    def of_values(document: Any, path: str = "") -> set[str]:
        free = ("/nodeSelector", "/resources", "/monitor/resources")
        inside = document if isinstance(document, dict) and path not in free else {}
        return {path} | {name for key, value in inside.items() for name in of_values(value, f"{path}/{key}")}

    with helm_python.Chart.load(manifests.CHART) as chart:
        schema, values = chart.schema, chart.values
    free = {f"{path}/{part}" for path in ("/resources", "/monitor/resources") for part in ("requests", "limits")}
    assert keys(schema) - free - {"/global"} == of_values(values)


def test_the_kustomize_base_is_made_from_the_chart() -> None:
    made = manifests.base()
    there = {path.name: path.read_text(encoding="utf-8") for path in manifests.BASE.iterdir()}
    assert there == made, "run: python -m tools.manifests"
    found = [document for name in there if name != "kustomization.yaml" for document in yaml.safe_load_all(there[name])]
    hooks = {"Pod", "Job"}
    assert {document["kind"] for document in found} == {
        document["kind"] for document in documents("default") if document["kind"] not in hooks
    } | {"Namespace"}
    for document in found:
        kubernetes_validate.validate(document, KUBERNETES[0], strict=True)
