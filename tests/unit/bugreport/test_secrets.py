"""What is taken out of a report: every secret here is the word SECRETVALUE, or a token made up for this."""

from __future__ import annotations

import json
import time
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kata.bugreport.secrets import REMOVED, is_secret_name, redact, redact_toml
from kata.runtime.config.settings import SECTIONS

SECRET = "hunter2-SECRETVALUE"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl"
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nAAAA\n-----END RSA PRIVATE KEY-----"

ENV = {"name": "DB_PASSWORD", "value": f"a {SECRET}"}
LOGGED = json.dumps({"msg": "create", "env": ["PATH=/bin", f"API_TOKEN={SECRET} and more"], "config": {"env": [ENV]}})


@pytest.mark.parametrize(
    "text",
    [
        f"DB_PASSWORD={SECRET}",
        f"export AWS_SECRET_ACCESS_KEY={SECRET}",
        f"MYSQL_PWD={SECRET} next=1",
        f"DB_PASS='{SECRET} x' next",
        f'"env": ["API_TOKEN={SECRET} with spaces", "HOME=/"]',
        f'"DOCKER_AUTH_CONFIG={{\\"auths\\":{{\\"r\\":{{\\"auth\\":\\"{SECRET}\\"}}}}}}"',
        f'{{"name": "DB_PASSWORD", "value": "{SECRET}"}}',
        f"Envs:[]*KeyValue{{&KeyValue{{Key:DB_PASSWORD,Value:{SECRET},}},}}",
        f'"example.com/api-key": "{SECRET}"',
        f"example.com/token: {SECRET} of several words",
        f'"kubectl.kubernetes.io/last-applied-configuration": "{{\\"x\\":\\"{SECRET}\\"}}\\n"',
        f'"identitytoken":"{SECRET}"',
        f'"auths": {{"https://r": {{"x": "{SECRET}"}}}}, "a": 1',
        f"clientSecret: {SECRET}",
        f"client-key-data: {SECRET}",
        f"Authorization: Basic {SECRET}",
        f'"X-Registry-Auth": ["{SECRET}"]',
        f"curl -H 'Authorization: Bearer {SECRET}'",
        f"Bearer {SECRET}",
        f"https://user:{SECRET}@registry.example.com/v2/",
        f"proxy=http://{SECRET}@proxy:3128",
        f"https://s3/x?X-Amz-Signature={SECRET}&y=1",
        f"https://blob/x?sv=1&sig={SECRET}&y=1",
        f"tool --password {SECRET} --verbose",
        f"tool --password={SECRET}",
        f'["tool", "--token", "{SECRET}"]',
        f"password = {SECRET}",
        f'"env": ["TOKEN=[]{SECRET}"]',
        f'"env": ["TOKEN=Basic a {SECRET}"]',
        f'"env": ["TOKEN=\'a\'{SECRET}"]',
        f"TOKEN=[]{SECRET} x",
        f"TOKEN='a'{SECRET} x",
        f'password = "{SECRET}',
        f'level=info msg="login" error="denied: password={SECRET}" x=1',
        LOGGED,
        f"time=x msg={json.dumps(LOGGED)}",
        f"time=x msg={json.dumps(json.dumps(LOGGED))}",
    ],
)
def test_secrets_are_removed(text: str) -> None:
    redacted, count = redact(text)
    assert "SECRETVALUE" not in redacted
    assert count == redacted.count(REMOVED) >= 1


@pytest.mark.parametrize(
    "text",
    [JWT, f"x{{{JWT}}}", PEM, PEM.replace("\n", "\\n"), "ghp_" + "a1" * 18, "AKIA" + "ABCD" * 4, "glpat-" + "a" * 20],
)
def test_tokens_are_known_by_their_form(text: str) -> None:
    redacted, count = redact(f"before {text} after")
    assert redacted.startswith("before ")
    assert redacted.endswith(" after")
    assert text[:-4] not in redacted
    assert (count, "MIIEow" in redacted) == (1, False)


def test_a_key_without_an_end_is_removed_to_the_end() -> None:
    assert redact("a\n" + PEM[:50]) == (f"a\n{REMOVED}", 1)


@pytest.mark.parametrize(
    "text",
    [
        'time="2026-11-30T10:00:00Z" level=info msg="starting" name=containerd-shim-v2 pid=12 source=kata.x',
        "PATH=/usr/bin:/bin HOME=/root PWD=/root author=me key=abc monkey=1",
        "template a94a8fe5ccb19ba61c4c0873d391e987982fbbd3 does not work, the VM is booted: io error",
        '{"msg": "listening on vsock://-1:1024", "level": "INFO", "pid": "1"}',
        "https://registry.example.com:5000/v2/library/busybox@sha256:0123",
        "[    0.000000] Command line: console=ttyS0 root=/dev/vda1 systemd.show_status=false panic=1",
        "qemu-system-x86_64: -device virtio-9p-pci,fsdev=x: path not found",
        "password",
        "no password was asked for",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == (text, 0)


def test_what_is_around_it_stays() -> None:
    assert redact(f'level=info msg="got token=\\"{SECRET}\\"" pid=3') == (
        f'level=info msg="got token=\\"{REMOVED}\\"" pid=3',
        1,
    )
    assert (
        redact(f"https://u:{SECRET}@h/p?a=1&token={SECRET}&b=2")[0] == f"https://{REMOVED}@h/p?a=1&token={REMOVED}&b=2"
    )


def test_it_is_enough_to_do_it_once() -> None:
    once, _ = redact(LOGGED)
    assert redact(once) == (once, 0)


@given(st.text(alphabet=st.sampled_from("ab=:\"'\\ \n-{}[],/@?&."), max_size=60), st.sampled_from(["token", "x"]))
def test_any_text_can_be_looked_through(text: str, name: str) -> None:
    redacted, count = redact(f"{name}{text}")
    assert (redacted == f"{name}{text}") == (count == 0)


#: Any text, and one of what has a meaning.
VALUES = st.one_of(
    st.text(alphabet=st.characters(exclude_characters="\n"), max_size=40),
    st.text(alphabet="ab \\\"'[]{}=:,&@?/-", max_size=12),
)


@settings(max_examples=300)
@given(VALUES)
def test_a_value_in_json_is_removed_whatever_it_is(value: str) -> None:
    marked = f"{value}SECRETVALUE{value}"
    for document in ({"password": marked}, {"env": [f"TOKEN={marked}"]}, {"a": {"x-api-key": [marked]}}):
        assert "SECRETVALUE" not in redact(json.dumps(document))[0]
    assert "SECRETVALUE" not in redact(json.dumps({"msg": json.dumps({"password": marked})}))[0]


@pytest.mark.parametrize("text", ["a", "a=", "[{", '\\"', "://", "token=[\n", "token=", "token"])
def test_a_hostile_text_takes_no_time(text: str) -> None:
    begin = time.process_time()
    redact("token=" + text * 200_000)
    redact(text * 200_000)
    assert time.process_time() - begin < 20


CONTAINERD_CONFIG = f"""
version = 2
imports = ["/etc/containerd/conf.d/*.toml"]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "https://u:{SECRET}@registry/pause:3.6"
  [plugins."io.containerd.grpc.v1.cri".registry.configs."r:5000".auth]
    username = "{SECRET}"
    password = '''
{SECRET}
'''
  [plugins."io.containerd.grpc.v1.cri".registry.configs."r:5000".tls]
    insecure_skip_verify = true
  [plugins."io.containerd.grpc.v1.cri".registry.headers]
    X-Custom = ["{SECRET}"]
  [plugins."io.containerd.grpc.v1.cri".registry.auths."https://gcr.io"]
    user = "{SECRET}"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kata]
    runtime_type = "io.containerd.kata.v2"
    pod_annotations = ["io.katacontainers.*"]
"""


def test_tables_of_credentials_are_removed_whole() -> None:
    document, count = redact_toml(tomllib.loads(CONTAINERD_CONFIG))
    assert "SECRETVALUE" not in json.dumps(document)
    assert count == 4
    cri = document["plugins"]["io.containerd.grpc.v1.cri"]
    assert cri["registry"]["configs"]["r:5000"] == {"auth": REMOVED, "tls": {"insecure_skip_verify": True}}
    assert cri["containerd"]["runtimes"]["kata"] == {
        "runtime_type": "io.containerd.kata.v2",
        "pod_annotations": ["io.katacontainers.*"],
    }
    assert document["imports"] == ["/etc/containerd/conf.d/*.toml"]


def test_what_is_empty_or_a_switch_stays() -> None:
    document = {"auth": {}, "token": "", "enable_auth": True, "headers": []}
    assert redact_toml(document) == (document, 0)


def test_no_setting_of_this_project_is_taken_for_a_secret() -> None:
    assert [name for section in SECTIONS for name in section.settings if is_secret_name(name)] == []
