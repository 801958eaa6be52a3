"""What is asked of an API server: over TLS, of a fake one, which checks the requests' form."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kata.deploy import cluster as clusters
from kata.deploy.cluster import LABEL, Cluster
from kata.errors import DeadlineExceeded, FailedPrecondition, NotFound, PermissionDenied, Unavailable
from tests.support.fakecluster import NODE, FakeCluster, fake_cluster


@pytest.fixture
def fake(served: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    monkeypatch.setattr(clusters, "_RETRY_EVERY_S", 0.01)
    monkeypatch.setattr(clusters, "_POLL_S", 0.01)
    served.daemonset, served.gone_after = "there", 2
    served.answers_to_come.clear()
    return served


@pytest.fixture
def cluster(fake: FakeCluster) -> Cluster:
    return Cluster(fake.url, fake.account, retry_for=5)


def test_a_node_gets_its_label_and_loses_it(cluster: Cluster, fake: FakeCluster) -> None:
    cluster.label(NODE, "true")
    assert fake.labels == {"kubernetes.io/os": "linux", LABEL: "true"}
    cluster.label(NODE, None)
    cluster.label(NODE, None)
    assert fake.labels == {"kubernetes.io/os": "linux"}


def test_a_server_with_a_problem_of_its_own_is_asked_again(cluster: Cluster, fake: FakeCluster) -> None:
    fake.answers_to_come[:] = [503, 429, 500]
    cluster.label(NODE, "true")
    assert fake.labels[LABEL] == "true"
    fake.answers_to_come[:] = [500] * 3
    with pytest.raises(Unavailable, match="refused with 500"):
        replace(cluster, retry_for=0).label(NODE, "true")


@pytest.mark.parametrize(
    ("status", "kind", "hint"),
    [(403, PermissionDenied, "RBAC"), (401, PermissionDenied, "RBAC"), (422, FailedPrecondition, "")],
)
def test_a_refusal_says_what_was_refused(
    cluster: Cluster, fake: FakeCluster, status: int, kind: type[Exception], hint: str
) -> None:
    fake.answers_to_come[:] = [status]
    with pytest.raises(kind, match=f"PATCH /api/v1/nodes/{NODE}: refused with {status}") as caught:
        cluster.label(NODE, "true")
    assert hint in str(getattr(caught.value, "hint", "") or "")


def test_a_node_that_is_not_there(cluster: Cluster) -> None:
    with pytest.raises(NotFound, match="no-such-node"):
        cluster.label("no-such-node", "true")


def test_no_server_is_there(cluster: Cluster) -> None:
    with pytest.raises(Unavailable, match=r"no answer from the API server at https://127\.0\.0\.1:1"):
        replace(cluster, url="https://127.0.0.1:1", retry_for=0).label(NODE, "true")


def test_another_server_gets_no_token(cluster: Cluster, fake: FakeCluster, tmp_path: Path) -> None:
    """Whose certificate the service account's authority has not signed."""
    with fake_cluster(tmp_path) as other:
        with pytest.raises(FailedPrecondition, match="is not the API server of this service account"):
            replace(cluster, url=other.url).label(NODE, "true")
        assert other.requests == []


def test_a_pod_without_a_service_account(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="no service account"):
        replace(cluster, account=tmp_path).label(NODE, "true")


def test_whether_a_daemonset_is_going(cluster: Cluster, fake: FakeCluster) -> None:
    assert not cluster.is_going("kata-system", "kata-deploy")
    fake.daemonset = "going"
    assert cluster.is_going("kata-system", "kata-deploy")
    fake.daemonset = ""
    assert cluster.is_going("kata-system", "kata-deploy")


def test_a_daemonset_is_removed_in_the_foreground(cluster: Cluster, fake: FakeCluster) -> None:
    cluster.remove("kata-system", "kata-deploy", 10)
    assert fake.daemonset == ""
    cluster.remove("kata-system", "kata-deploy", 10)
    fake.daemonset, fake.gone_after = "there", 10**6
    with pytest.raises(DeadlineExceeded, match="kata-system/kata-deploy have not ended within"):
        cluster.remove("kata-system", "kata-deploy", 0.1)


def test_outside_of_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(FailedPrecondition, match="this is no pod"):
        Cluster.of_this_pod()
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    for host, url in (("10.96.0.1", "https://10.96.0.1:443"), ("fd00::1", "https://[fd00::1]:443")):
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
        assert Cluster.of_this_pod().url == url
