"""The cluster that a module's tests talk to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fakecluster import FakeCluster, fake_cluster


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeCluster]:
    with fake_cluster(tmp_path_factory.mktemp("account")) as fake:
        yield fake
