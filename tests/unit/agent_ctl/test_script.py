from __future__ import annotations

import pytest

from kata.agent_ctl.catalog import RPCS
from kata.agent_ctl.script import (
    FOR_EVER,
    Attach,
    Call,
    Document,
    File,
    Pair,
    Quit,
    Say,
    Sleep,
    Step,
    listing,
    read_all,
)
from kata.errors import InvalidArgument
from kata.protocols import agent_pb2, health_pb2


def arguments_of(line: str) -> tuple[object, ...]:
    (step,) = read_all([line])
    assert isinstance(step.action, Call)
    return step.action.arguments


def test_every_rpc_of_the_protocol_is_a_command() -> None:
    agent = agent_pb2.DESCRIPTOR.services_by_name["AgentService"]
    health = health_pb2.DESCRIPTOR.services_by_name["Health"]
    names = [method.name for service in (agent, health) for method in service.methods]
    assert sorted(RPCS) == sorted(names)
    assert len(names) == 46
    assert {step.action for step in read_all(names)} == {Call(RPCS[name]) for name in names}
    for name in names:
        assert f"  {name} (" in listing()


@pytest.mark.parametrize("name", ["GetIptables", "getiptables", "GETIPTABLES", "GetIPTables"])
def test_names_in_any_case(name: str) -> None:
    """Kata's tool has GetIptables for the RPC GetIPTables."""
    assert read_all([name]) == [Step(Call(RPCS["GetIPTables"]))]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a=1 b=2", (Pair("a", "1"), Pair("b", "2"))),
        ('baz="hello world" y="a=b"', (Pair("baz", "hello world"), Pair("y", "a=b"))),
        ("a= b='x \"y\"'", (Pair("a", ""), Pair("b", 'x "y"'))),
        ("  a=#1   ", (Pair("a", "#1"),)),
        ("file:///tmp/x", (File("/tmp/x"),)),
        ('json://{"a": {"b": "c d"}} e=f', (Document({"a": {"b": "c d"}}), Pair("e", "f"))),
        ('e=f json://{"a": "\\"json://"}file:///x', (Pair("e", "f"), Document({"a": '"json://'}), File("/x"))),
        ("a='x json://{}'", (Pair("a", "x json://{}"),)),
        ("json:// {} ", (Document({}),)),
        ("a[0].b=c=d", (Pair("a[0].b", "c=d"),)),
    ],
)
def test_arguments(text: str, wanted: tuple[object, ...]) -> None:
    assert arguments_of(f"Check {text}") == wanted


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("Check x", "Check: cannot read the argument 'x'"),
        ("Check =x", "Check: cannot read the argument '=x'"),
        ('Check a="b', "Check: no closing quotation in 'a=\"b'"),
        ("Check json://", "Check: json:// is not followed by JSON: Expecting value"),
        ("Check json://{a}", "Check: json:// is not followed by JSON"),
        ("Check json://" + "[" * 100_000, "Check: json:// is not followed by JSON"),
        ("Check json://[1]", "Check: json:// is not followed by an object"),
        ("CreateContaner", "there is no command 'CreateContaner'"),
        ("ECHO x", "there is no command 'ECHO'"),
        ("repeat", "repeat '' is not a number of times"),
        ("repeat 0", "repeat '0' is not a number of times"),
        ("repeat -2", "repeat '-2' is not a number of times"),
        ("sleep", "sleep: '' is not a duration"),
        ("sleep 1x", "sleep: '1x' is not a duration"),
        ("sleep 5s5", "sleep: '5s5' is not a duration"),
        ("sleep 400000000s", "sleep: 400000000s is longer than a year"),
        ("sleep " + "9" * 5000, "is longer than a year"),
        ("help Frob", "there is no command 'Frob'"),
        ("quit now", "quit takes no arguments, got 'now'"),
    ],
)
def test_mistakes(line: str, said: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        read_all([line])
    assert said in caught.value.message
    assert "\n" not in caught.value.message


def test_a_typo_is_answered_with_what_is_close() -> None:
    with pytest.raises(InvalidArgument) as caught:
        read_all(["CreateContaner"])
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("close: CreateContainer")


def test_built_in_commands() -> None:
    lines = ["# a comment", "", "  ", "echo a  'b'", "sleep 1500ms", "sleep 1m30s", "sleep 2000000000", "attach cid=x"]
    assert read_all([*lines, "quit"]) == [
        Step(Say("a  'b'\n")),
        Step(Sleep(1.5)),
        Step(Sleep(90)),
        Step(Sleep(2)),
        Step(Attach((Pair("cid", "x"),))),
        Step(Quit()),
    ]


def test_repeat_is_about_the_next_command() -> None:
    lines = ["repeat 3", "# not this", "Check", "Check", "repeat -1", "Version"]
    assert [step.times for step in read_all(lines)] == [3, 1, FOR_EVER]


def test_help_shows_the_fields_of_an_rpc() -> None:
    (step,) = read_all(["help updateinterface"])
    assert isinstance(step.action, Say)
    lines = step.action.text.splitlines()
    assert lines[:3] == [
        "UpdateInterface  (AgentService service)",
        "request UpdateInterfaceRequest:",
        "  interface: message Interface",
    ]
    assert "    IPAddresses: repeated message IPAddress" in lines
    assert "    sysctls: map<string, string>" in lines
    assert "    family: enum IPFamily (v4, v6)" in lines
    for name in RPCS:
        (step,) = read_all([f"help {name}"])
        assert isinstance(step.action, Say)
        assert step.action.text.startswith(name)
