"""Policies: what is read, what is refused when it is read, and what is said of a request."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kata.errors import InvalidArgument
from kata.policy import condition, document
from kata.policy.field import TEXT, Shape
from kata.protocols import agent_pb2 as pb

EXEC, CREATE = "ExecProcessRequest", "CreateContainerRequest"
DATE = '[[rules]]\nname = "date"\nendpoint = "ExecProcessRequest"\n[rules.fields]\n"process.Args" = ["date"]\n'


def blocked(text: str, endpoint: str, request: Any = None) -> str:
    return document.parse(text).blocked(endpoint, request)


def execution(*arguments: str) -> pb.ExecProcessRequest:
    return pb.ExecProcessRequest(container_id="web", process={"Args": arguments})


def creation(**spec: Any) -> pb.CreateContainerRequest:
    return pb.CreateContainerRequest(container_id="web", OCI=spec)


def about(fields: str, request: pb.CreateContainerRequest) -> str:
    told = blocked(f'[[rules]]\nname = "r"\nendpoint = "{CREATE}"\n[rules.fields]\n{fields}\n', CREATE, request)
    return told.removeprefix(f"{CREATE} is blocked by policy: rule 'r': ")


def test_without_anything_everything_is_allowed() -> None:
    assert [blocked("", endpoint) for endpoint in document.ENDPOINTS] == [""] * len(document.ENDPOINTS)


def test_endpoints() -> None:
    text = '[endpoints]\nallowed = ["CreateContainerRequest", "kata.Forward.Connect"]\n'
    assert blocked(text, CREATE, creation()) == blocked(text, "kata.Forward.Connect") == ""
    told = "ExecProcessRequest is blocked by policy: it is not among the allowed endpoints"
    assert blocked(text, EXEC, execution("date")) == told
    assert blocked("[endpoints]\nallowed = []\n", CREATE, creation())


def test_one_of_an_endpoints_rules_has_to_hold() -> None:
    text = DATE + DATE.replace("date", "id")
    assert blocked(text, EXEC, execution("date")) == blocked(text, EXEC, execution("id")) == ""
    assert blocked(text, CREATE, creation()) == "", "it has no rules"
    told = "ExecProcessRequest is blocked by policy: rule 'date': process.Args is ['sh'], not ['date']; "
    assert blocked(text, EXEC, execution("sh")) == told + "rule 'id': process.Args is ['sh'], not ['id']"


@pytest.mark.parametrize(
    ("fields", "right", "wrong", "told"),
    [
        ('container_id = "web"', creation(), pb.CreateContainerRequest(), "container_id is '', not 'web'"),
        ("sandbox_pidns = false", creation(), pb.CreateContainerRequest(sandbox_pidns=True), "sandbox_pidns is True"),
        (
            '"OCI.Process.User.UID" = { one_of = [0, 5] }',
            creation(Process={"User": {"UID": 5}}),
            creation(Process={"User": {"UID": 6}}),
            "OCI.Process.User.UID is 6, none of the 2 allowed",
        ),
        (
            '"OCI.Root.Path" = { like = "/run/*/rootfs" }',
            creation(Root={"Path": "/run/a/b/rootfs"}),
            creation(Root={"Path": "/run/rootfs"}),
            "OCI.Root.Path is '/run/rootfs', not like '/run/*/rootfs'",
        ),
        (
            '"OCI.Process.Env" = { each = { one_of = ["A=b", { like = "C=*" }] } }',
            creation(Process={"Env": ["C=x", "A=b"]}),
            creation(Process={"Env": ["A=b", "LD_PRELOAD=x"]}),
            "OCI.Process.Env has as number 2 what is 'LD_PRELOAD=x', none of the 2 allowed",
        ),
        (
            '"OCI.Mounts" = { each = { fields = { destination = "/data" } } }',
            creation(Mounts=[{"destination": "/data"}]),
            creation(Mounts=[{"destination": "/data"}, {"destination": "/etc"}]),
            "OCI.Mounts has as number 2 what destination is '/etc', not '/data'",
        ),
        (
            '"OCI.Annotations[io.kubernetes.cri.container-name]" = "web"',
            creation(Annotations={"io.kubernetes.cri.container-name": "web", "other": "x"}),
            creation(Annotations={"other": "web"}),
            "OCI.Annotations[io.kubernetes.cri.container-name] is '', not 'web'",
        ),
        (
            '"OCI.Annotations" = { each = { like = "x*" } }',
            creation(Annotations={"a": "x1"}),
            creation(Annotations={"a": "y"}),
            "OCI.Annotations has as number 1 what is 'y', not like 'x*'",
        ),
        ("storages = { each = { fields = {} } }", creation(), None, ""),
    ],
)
def test_conditions(fields: str, right: Any, wrong: Any, told: str) -> None:
    assert about(fields, right) == ""
    if wrong is not None:
        assert about(fields, wrong).startswith(told)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[endpoints", "the policy is not TOML: "),
        (f"a = {'9' * 5000}", "the policy is not TOML: "),
        ("package agent_policy\n", "the policy is not TOML: "),
        ("[endpoint]\n", "policy: unknown key 'endpoint'"),
        ("endpoints = 5\n", "policy: [endpoints] is no table"),
        ("[endpoints]\nallowed = 5\n", "policy: endpoints.allowed is no list of names"),
        ('[endpoints]\nallowed = ["ExecProces"]\n', "policy: endpoints.allowed: there is no endpoint 'ExecProces'"),
        ('[endpoints]\nallowed = ["SetPolicyRequest"]\n', "policy: endpoints.allowed: there is no endpoint"),
        ("[endpoints]\nallowed = []\n" + DATE, "policy: there are rules for ExecProcessRequest, and endpoints.allowed"),
        ("rules = 5\n", "policy: [[rules]] are no list of at most 1000 tables"),
        ("[[rules]]\n", "policy: rule 1: there is no endpoint None"),
        (DATE.replace('name = "date"', "name = 5"), "policy: rule 1: name is no text"),
        (DATE.replace('["date"]', "5"), "policy: rule 1: process.Args: expected a list of text, not 5"),
        (DATE.replace('["date"]', "[true]"), "policy: rule 1: process.Args: expected a list of text, not [True]"),
        (
            DATE.replace('"process.Args" = ["date"]', "process = 5"),
            "policy: rule 1: process: expected a Process, not 5",
        ),
        (DATE.replace("process.Args", "process.Arg"), "policy: rule 1: Process has no field 'Arg'"),
        (DATE.replace("process.Args", "process.Args.x"), "policy: rule 1: process.Args has no fields"),
        (DATE.replace("process.Args", "process..Args"), "policy: rule 1: invalid path 'process..Args'"),
        (DATE.replace("process.Args", "process."), "policy: rule 1: invalid path 'process.'"),
        (DATE.replace("process.Args", "process.Args[0]"), "policy: rule 1: Args is no map of texts, and has no [0]"),
        (
            DATE.replace('["date"]', '{ like = "x" }'),
            "policy: rule 1: process.Args: like is for texts, and this is a list",
        ),
        (DATE.replace('["date"]', "{ fields = {} }"), "policy: rule 1: process.Args: fields is for messages"),
        (DATE.replace('["date"]', "{ each = 5 }"), "policy: rule 1: process.Args: each: expected a text, not 5"),
        (
            DATE.replace('["date"]', "{ one_of = [] }"),
            "policy: rule 1: process.Args: one_of: expected a list of conditions",
        ),
        (
            DATE.replace('["date"]', '{ matches = "x" }'),
            "policy: rule 1: process.Args: expected a value, or a table with",
        ),
        (
            DATE.replace('["date"]', "{ one_of = [" * 9 + '["date"]' + "] }" * 9),
            "policy: rule 1: process.Args: one_of: one_of: ",
        ),
        (
            '[[rules]]\nendpoint = "CopyFileRequest"\n[rules.fields]\ndata = "x"\n',
            "policy: rule 1: data: bytes cannot be compared",
        ),
        (
            '[[rules]]\nendpoint = "kata.Forward.Connect"\n',
            "policy: rule 1: kata.Forward.Connect has no fields to make rules for",
        ),
        ("#" * (document.MAX_SIZE + 1), "the policy has 131073 bytes; the maximum is 131072"),
    ],
)
def test_what_is_wrong_is_told(text: str, told: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        document.parse(text)
    assert caught.value.message.startswith(told)
    assert caught.value.message.isprintable()


def test_what_a_request_has_is_told_on_one_bounded_line() -> None:
    told = blocked(DATE, EXEC, execution("\x1b[2J\n" + "x" * 1_000_000))
    assert told.isprintable()
    assert len(told) < 500


def like(pattern: str, text: str) -> bool:
    return not condition.parse({"like": pattern}, Shape(TEXT), "here").wrong(text)


@given(st.lists(st.text("ab", max_size=3), max_size=4), st.lists(st.text("ab*", max_size=3), min_size=4, max_size=4))
def test_like_takes_what_it_was_made_of(parts: list[str], between: list[str]) -> None:
    text = "".join(part + filler for part, filler in zip(parts, between, strict=False))
    assert like("*".join([*parts, ""]), text)


@given(st.text("ab*", max_size=6), st.text("ab", max_size=8))
@example("a*a", "a")
@example("*", "")
def test_like_is_what_a_slow_and_simple_one_says(pattern: str, text: str) -> None:
    def slow(pattern: str, text: str) -> bool:
        if not pattern:
            return not text
        if pattern[0] == "*":
            return any(slow(pattern[1:], text[start:]) for start in range(len(text) + 1))
        return text[:1] == pattern[0] and slow(pattern[1:], text[1:])

    assert like(pattern, text) == slow(pattern, text)


def test_no_text_makes_like_slow() -> None:
    begin = time.monotonic()
    assert not like("*a" * 1000 + "*b", "a" * 4_000_000)
    assert time.monotonic() - begin < 20


@given(st.lists(st.text(max_size=20), max_size=5), st.lists(st.text(max_size=20), max_size=5))
def test_a_list_is_equal_or_blocked(wanted: list[str], given_: list[str]) -> None:
    parsed = condition.parse(wanted, Shape(TEXT, True), "here")
    assert (parsed.wrong(given_) == "") == (wanted == given_)
    assert parsed.wrong(given_).isprintable()


_VALUES = st.recursive(
    st.one_of(st.text(max_size=5), st.integers(), st.booleans(), st.none()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["like", "one_of", "each", "fields", "container_id", "OCI.Mounts"]), inner, max_size=2
        ),
    ),
    max_leaves=8,
)


def refusal(read: Callable[[], object]) -> str:
    """What is said of something that may be no policy; "" if it is one."""
    try:
        read()
    except InvalidArgument as error:
        return error.message
    return ""


@given(_VALUES)
def test_whatever_is_written_is_a_condition_or_an_error(written: Any) -> None:
    shape = Shape("message", False, document.ENDPOINTS[CREATE])
    request = creation(Mounts=[{"destination": "/x"}])
    assert refusal(lambda: condition.parse({"fields": written}, shape, "here").wrong(request)).isprintable()


@given(st.text(max_size=200))
def test_any_text_is_a_policy_or_an_error(text: str) -> None:
    refusal(lambda: document.parse(text))
