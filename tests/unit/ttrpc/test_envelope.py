"""Request and Response: golden bytes, google.protobuf as an oracle, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given, settings
from hypothesis import strategies as st

from kata.ttrpc.envelope import (
    MAX_FIELDS,
    Request,
    Response,
    Status,
    decode_request,
    decode_response,
    request_parts,
    response_parts,
)
from kata.ttrpc.wire import MalformedMessage

Field = descriptor_pb2.FieldDescriptorProto


def _oracle() -> tuple[Any, Any]:
    """The two messages as google.protobuf knows them, in a pool of their own."""
    file = descriptor_pb2.FileDescriptorProto(name="oracle.proto", package="oracle", syntax="proto3")
    file.dependency.append("google/protobuf/any.proto")
    tables: dict[str, list[tuple[str, int, Any, bool]]] = {
        "KeyValue": [("key", 1, Field.TYPE_STRING, False), ("value", 2, Field.TYPE_STRING, False)],
        "Request": [
            ("service", 1, Field.TYPE_STRING, False),
            ("method", 2, Field.TYPE_STRING, False),
            ("payload", 3, Field.TYPE_BYTES, False),
            ("timeout_nano", 4, Field.TYPE_INT64, False),
            ("metadata", 5, ".oracle.KeyValue", True),
        ],
        "Status": [
            ("code", 1, Field.TYPE_INT32, False),
            ("message", 2, Field.TYPE_STRING, False),
            ("details", 3, ".google.protobuf.Any", True),
        ],
        "Response": [("status", 1, ".oracle.Status", False), ("payload", 2, Field.TYPE_BYTES, False)],
    }
    for name, fields in tables.items():
        message = file.message_type.add(name=name)
        for field, number, kind, repeated in fields:
            label = Field.LABEL_REPEATED if repeated else Field.LABEL_OPTIONAL
            if isinstance(kind, str):
                message.field.add(name=field, number=number, type=Field.TYPE_MESSAGE, type_name=kind, label=label)
            else:
                message.field.add(name=field, number=number, type=kind, label=label)
    pool = descriptor_pool.DescriptorPool()
    any_file = descriptor_pb2.FileDescriptorProto()
    any_pb2.DESCRIPTOR.CopyToProto(any_file)
    pool.Add(any_file)
    pool.Add(file)
    return tuple(  # type: ignore[return-value]
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"oracle.{name}"))
        for name in ("Request", "Response")
    )


OracleRequest, OracleResponse = _oracle()

REQUESTS = st.builds(
    Request,
    st.text(),
    st.text(),
    st.binary(),
    st.integers(-(2**63), 2**63 - 1),
    st.lists(st.tuples(st.text(), st.text()), max_size=4).map(tuple),
)
ANY = st.builds(lambda url, value: any_pb2.Any(type_url=url, value=value).SerializeToString(), st.text(), st.binary())
RESPONSES = st.builds(
    Response,
    st.builds(Status, st.integers(-(2**31), 2**31 - 1), st.text(), st.lists(ANY, max_size=3).map(tuple)),
    st.binary(),
    st.just(b""),
)


def as_request(message: Any) -> Request:
    pairs = tuple((pair.key, pair.value) for pair in message.metadata)
    return Request(message.service, message.method, message.payload, message.timeout_nano, pairs)


def as_response(message: Any) -> Response:
    details = tuple(detail.SerializeToString() for detail in message.status.details)
    return Response(Status(message.status.code, message.status.message, details), message.payload)


def test_request_golden_bytes() -> None:
    request = Request("a.B", "C", b"\x08\x01", 300, (("k", "v"),))
    wire = bytes.fromhex("0a03612e42 120143 1a020801 20ac02 2a060a016b120176")
    assert b"".join(request_parts(request)) == wire
    assert decode_request(wire) == request


def test_response_golden_bytes() -> None:
    response = Response(Status(5, "no"), b"\x01")
    wire = bytes.fromhex("0a0608051202 6e6f 120101")
    assert b"".join(response_parts(response)) == wire
    assert decode_response(wire) == response


@pytest.mark.parametrize("payload", [b"", b"ab"])
def test_the_tail_follows_the_parts(payload: bytes) -> None:
    response = Response(Status(), payload, b"c" * 300)
    whole = Response(Status(), payload + b"c" * 300)
    assert b"".join(response_parts(response)) + response.tail == b"".join(response_parts(whole))
    assert decode_response(b"".join(response_parts(whole))) == whole


def test_ok_response_carries_an_empty_status_for_old_clients() -> None:
    assert b"".join(response_parts(Response())) == bytes.fromhex("0a00")


def test_empty_messages_are_defaults() -> None:
    assert decode_request(b"") == Request("", "")
    assert decode_response(b"") == Response(Status(0, ""), b"")


@given(REQUESTS)
def test_request_is_what_protobuf_reads_and_writes(request_: Request) -> None:
    wire = b"".join(request_parts(request_))
    message = OracleRequest.FromString(wire)
    assert as_request(message) == request_
    assert decode_request(message.SerializeToString()) == request_


@given(RESPONSES)
def test_response_is_what_protobuf_reads_and_writes(response: Response) -> None:
    wire = b"".join(response_parts(response))
    message = OracleResponse.FromString(wire)
    assert as_response(message) == response
    assert decode_response(message.SerializeToString()) == response


FIELDS = st.one_of(
    st.binary(max_size=12),
    REQUESTS.map(lambda r: b"".join(request_parts(r))),
    RESPONSES.map(lambda r: b"".join(response_parts(r))),
)


@settings(max_examples=300)
@given(st.lists(FIELDS, max_size=3).map(b"".join))
def test_what_is_accepted_means_the_same_to_protobuf(wire: bytes) -> None:
    try:
        request = decode_request(wire)
    except MalformedMessage:
        pass
    else:
        assert as_request(OracleRequest.FromString(wire)) == request
    try:
        response = decode_response(wire)
    except MalformedMessage:
        pass
    else:
        oracle = OracleResponse.FromString(wire)
        assert (oracle.status.code, oracle.status.message) == response.status[:2]
        assert oracle.payload == response.payload


def test_last_scalar_wins_and_nested_messages_merge() -> None:
    assert decode_request(bytes.fromhex("0a0161 0a0162")).service == "b"
    assert decode_response(bytes.fromhex("0a020805 0a0312016e")).status == Status(5, "n")


def test_unknown_fields_are_passed_over() -> None:
    extra = bytes.fromhex("78 057a 01 ff7d 0102030479 0102030405060708")
    assert decode_request(extra + bytes.fromhex("0a0161") + extra).service == "a"


@pytest.mark.parametrize(
    ("wire", "text"),
    [
        ("0a", "ends inside a varint"),
        ("0a05 6162", "longer than its message"),
        ("0a ffffffffffffffffff01 61", "longer than its message"),
        ("20 ffffffffffffffffffff01", "longer than 10 bytes"),
        ("0a02 c328", "not UTF-8"),
        ("2a03 0a02 61", "longer than its message"),
        ("02 00", "out of range"),
        ("0b 0c", "wire type 3"),
        ("0c", "wire type 4"),
        ("0f", "wire type 7"),
        ("7d 0102", "longer than its message"),
    ],
)
def test_malformed_requests_are_refused(wire: str, text: str) -> None:
    with pytest.raises(MalformedMessage, match=text):
        decode_request(bytes.fromhex(wire))


def test_malformed_status_is_refused() -> None:
    with pytest.raises(MalformedMessage):
        decode_response(bytes.fromhex("0a03 1205 61"))


@pytest.mark.parametrize("field", ["2a00", "7800", "7a00"])
def test_number_of_fields_is_bounded(field: str) -> None:
    decode_request(bytes.fromhex(field) * MAX_FIELDS)
    with pytest.raises(MalformedMessage, match="too many fields"):
        decode_request(bytes.fromhex(field) * (MAX_FIELDS + 1))


def test_number_of_status_details_is_bounded() -> None:
    with pytest.raises(MalformedMessage, match="too many fields"):
        decode_response(b"\x0a\xa0\x1f" + bytes.fromhex("1a00") * 2000)


def test_text_that_is_no_unicode_is_sent_with_a_replacement() -> None:
    wire = b"".join(response_parts(Response(Status(5, "no file \udcff"))))
    assert decode_response(wire).status.message == "no file ?"
