"""What a sandbox answers over its own socket is what the protocol says."""

from __future__ import annotations

from kata.protocols import management_pb2
from kata.runtime.sandbox.management import SERVICES


def test_the_services_are_those_of_the_protocol() -> None:
    services = management_pb2.DESCRIPTOR.services_by_name.values()
    assert {one.full_name: tuple(method.name for method in one.methods) for one in services} == SERVICES
