"""A policy: which requests an agent takes, read from TOML, and its answer to one request.

    [endpoints]
    allowed = ["CreateSandboxRequest", "ExecProcessRequest", …]     as in Kata's agent; without it, all are

    [[rules]]                                                       of an endpoint with rules, one has to hold
    name = "date"
    endpoint = "ExecProcessRequest"
    [rules.fields]
    container_id = "web"
    "process.Args" = ["date"]

An endpoint is named by its request, as in Kata: of `ReadStdout` and `ReadStderr` it is ReadStreamRequest. Calls of this
project's own that are not about what containers do (health, waiting for output, traces, warming up) are always taken.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor

from kata.errors import InvalidArgument
from kata.policy import condition
from kata.policy.field import MESSAGE, Shape
from kata.protocols import agent_pb2, forward, processes

#: Bytes of a policy: what fits into an annotation with others.
MAX_SIZE = 128 << 10
MAX_RULES = 1000

_SERVICE = agent_pb2.DESCRIPTOR.services_by_name["AgentService"]
#: Set once, and never under a policy: it has no endpoint.
SET_POLICY = "SetPolicyRequest"
#: This project's own calls that a policy decides about, by service and name.
OWN_CALLS = {
    (forward.SERVICE, forward.CONNECT): "kata.Forward.Connect",
    (processes.SERVICE, processes.LIST): "kata.Processes.List",
}
#: The request's type of each endpoint; None for calls whose requests are no messages.
ENDPOINTS: dict[str, Descriptor | None] = {
    **{
        method.input_type.name: method.input_type for method in _SERVICE.methods if method.input_type.name != SET_POLICY
    },
    **dict.fromkeys(OWN_CALLS.values()),
}


@dataclass(frozen=True)
class Rule:
    """One way in which a request is allowed.

    Attributes:
        name: for messages.
        fields: what has to hold.
    """

    name: str
    fields: condition.Fields


@dataclass(frozen=True)
class Policy:
    """A policy.

    Attributes:
        allowed: the endpoints that are.
        rules: of endpoints that need one.
    """

    allowed: frozenset[str]
    rules: Mapping[str, tuple[Rule, ...]]

    def blocked(self, endpoint: str, request: Any = None) -> str:
        """Why a request is not allowed, on one line; "" if it is.

        Args:
            endpoint: the request's name.
            request: the message; not looked at if the endpoint has no rules.
        """
        if endpoint not in self.allowed:
            return f"{endpoint} is blocked by policy: it is not among the allowed endpoints"
        told = []
        for rule in self.rules.get(endpoint, ()):
            wrong = rule.fields.wrong(request)
            if not wrong:
                return ""
            told.append(f"rule {rule.name!r}: {wrong}")
        if not told:
            return ""
        more = f" (and {len(told) - 3} more)" if len(told) > 3 else ""
        return f"{endpoint} is blocked by policy: {'; '.join(told[:3])}{more}"


def parse(text: str) -> Policy:
    """Read a policy.

    Raises:
        InvalidArgument: it is none; the message says what is wrong, and where.
    """
    if len(text.encode()) > MAX_SIZE:
        raise InvalidArgument(f"the policy has {len(text.encode())} bytes; the maximum is {MAX_SIZE}")
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # malformed, or an integer of thousands of digits
        raise InvalidArgument(f"the policy is not TOML: {error}") from error
    _only(document, ("endpoints", "rules"), "policy")
    rules = _rules(document.get("rules", []))
    allowed = _allowed(document.get("endpoints", {}))
    for endpoint in rules:
        if endpoint not in allowed:
            raise InvalidArgument(f"policy: there are rules for {endpoint}, and endpoints.allowed does not name it")
    return Policy(allowed, rules)


def _allowed(endpoints: Any) -> frozenset[str]:
    if not isinstance(endpoints, Mapping):
        raise InvalidArgument("policy: [endpoints] is no table")
    _only(endpoints, ("allowed",), "policy: [endpoints]")
    if "allowed" not in endpoints:
        return frozenset(ENDPOINTS)
    names = endpoints["allowed"]
    if not isinstance(names, list):
        raise InvalidArgument("policy: endpoints.allowed is no list of names")
    return frozenset(_endpoint(name, "policy: endpoints.allowed") for name in names)


def _rules(written: Any) -> dict[str, tuple[Rule, ...]]:
    if not isinstance(written, list) or len(written) > MAX_RULES:
        raise InvalidArgument(f"policy: [[rules]] are no list of at most {MAX_RULES} tables")
    found: dict[str, tuple[Rule, ...]] = {}
    for number, one in enumerate(written, start=1):
        where = f"policy: rule {number}"
        if not isinstance(one, Mapping):
            raise InvalidArgument(f"{where} is no table")
        _only(one, ("name", "endpoint", "fields"), where)
        name = one.get("name", str(number))
        if not isinstance(name, str) or not name.isprintable() or len(name) > 100:
            raise InvalidArgument(f"{where}: name is no text of at most 100 characters")
        endpoint = _endpoint(one.get("endpoint"), where)
        message = ENDPOINTS[endpoint]
        if message is None:
            raise InvalidArgument(f"{where}: {endpoint} has no fields to make rules for")
        fields = condition.fields(one.get("fields", {}), Shape(MESSAGE, False, message), where)
        found[endpoint] = (*found.get(endpoint, ()), Rule(name, fields))
    return found


def _endpoint(name: Any, where: str) -> str:
    if isinstance(name, str) and name in ENDPOINTS:
        return name
    close = difflib.get_close_matches(str(name), ENDPOINTS, 1)
    raise InvalidArgument(
        f"{where}: there is no endpoint {condition.shown(name)}",
        hint=f"did you mean {close[0]}?" if close else "an endpoint is named by its request, as ExecProcessRequest",
    )


def _only(table: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in table:
        if key not in known:
            raise InvalidArgument(f"{where}: unknown key {condition.shown(key)}", hint=f"known: {', '.join(known)}")
