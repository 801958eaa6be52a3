"""The state's JSON object."""

from __future__ import annotations

from kata.oci.state import OCI_VERSION, make_state


def test_running() -> None:
    assert make_state("c", "running", "/b", pid=42, annotations={"k": "v"}) == {
        "ociVersion": OCI_VERSION,
        "id": "c",
        "status": "running",
        "pid": 42,
        "bundle": "/b",
        "annotations": {"k": "v"},
    }


def test_a_stopped_container_has_no_process() -> None:
    assert make_state("c", "stopped", "/b", pid=42) == {
        "ociVersion": OCI_VERSION,
        "id": "c",
        "status": "stopped",
        "bundle": "/b",
    }


def test_annotations_are_a_copy() -> None:
    annotations = {"k": "v"}
    state = make_state("c", "created", "/b", pid=1, annotations=annotations)
    annotations["k"] = "other"
    assert state["annotations"] == {"k": "v"}
