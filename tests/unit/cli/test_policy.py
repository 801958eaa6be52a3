"""`kata policy`: what is generated from manifests lets their pods run and nothing else, and is checked."""

from __future__ import annotations

import base64
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from kata.cli.main import invoke
from kata.cli.policy_generate import NEEDED, Wishes, generate
from kata.errors import InvalidArgument
from kata.policy import document
from kata.protocols import agent_pb2 as pb
from kata.runtime.images.model import ImageConfig
from tests.support.images import busybox_rootfs, write_oci_archive

IMAGE = "docker.io/library/web:1"
CREATE, EXEC, READ = "CreateContainerRequest", "ExecProcessRequest", "ReadStreamRequest"
POD: dict[str, Any] = {
    "kind": "Pod",
    "spec": {
        "initContainers": [{"name": "prepare", "image": IMAGE, "command": ["touch"], "args": ["/data/x"]}],
        "containers": [
            {
                "name": "web",
                "image": IMAGE,
                "env": [{"name": "COLOR", "value": "blue"}, {"name": "KEY", "valueFrom": {"secretKeyRef": {}}}],
                "volumeMounts": [{"name": "data", "mountPath": "/data/"}],
                "livenessProbe": {"exec": {"command": ["cat", "/tmp/healthy"]}},
                "lifecycle": {"preStop": {"exec": {"command": ["sync"]}}},
            }
        ],
    },
}
CONFIG = ImageConfig(entrypoint=("/web",), cmd=("--port", "80"), env=("PATH=/bin", "MODE=fast"))


def creation(name: str, *arguments: str, env: tuple[str, ...] = (), mounts: tuple[str, ...] = ()) -> Any:
    annotations = {"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.container-name": name}
    oci = {
        "Annotations": annotations,
        "Process": {"Args": arguments, "Env": env},
        "Mounts": [{"destination": destination} for destination in mounts],
    }
    return pb.CreateContainerRequest(container_id="c", OCI=oci)


def policy(pod: Any = POD, **wishes: Any) -> document.Policy:
    import tomli_w

    return document.parse(tomli_w.dumps(generate([pod], {IMAGE: CONFIG}, Wishes(**wishes)).document))


def changed(**fields: Any) -> dict[str, Any]:
    container = {**POD["spec"]["containers"][0], **fields}
    return {"spec": {"containers": [container]}}


def test_what_the_manifest_and_the_image_say_is_allowed_and_nothing_else() -> None:
    made = policy()
    env = ("PATH=/bin", "MODE=fast", "COLOR=blue", "KEY=anything", "HOSTNAME=x", "KUBERNETES_SERVICE_HOST=10.0.0.1")
    mounts = ("/proc", "/data", "/etc/hosts", "/dev/termination-log")
    right = creation("web", "/web", "--port", "80", env=env, mounts=mounts)
    assert made.blocked(CREATE, right) == ""
    assert made.blocked(CREATE, creation("prepare", "touch", "/data/x", env=("PATH=/bin",))) == ""
    for wrong in (
        creation("web", "/web", "--port", "81"),
        creation("other", "/web", "--port", "80"),
        creation("prepare", "/web", "--port", "80"),
        creation("web", "/web", "--port", "80", env=("COLOR=red",)),
        creation("web", "/web", "--port", "80", env=("LD_PRELOAD=/x",)),
        creation("web", "/web", "--port", "80", env=("REDIS_PORT=1",)),
        creation("web", "/web", "--port", "80", mounts=("/etc",)),
    ):
        assert made.blocked(CREATE, wrong), wrong
    assert set(NEEDED) <= made.allowed


def test_the_pods_own_container_is_allowed() -> None:
    made = policy()
    request = creation("", "/pause", env=("PATH=/bin",))
    assert made.blocked(CREATE, request)
    request.OCI.Annotations["io.kubernetes.cri.container-type"] = "sandbox"
    assert made.blocked(CREATE, request) == ""


def test_commands_of_probes_and_those_that_are_asked_for_may_be_executed() -> None:
    made = policy(execs=[["date", "-u"]])
    for arguments, right in (
        (["cat", "/tmp/healthy"], True),
        (["sync"], True),
        (["date", "-u"], True),
        (["date"], False),
        (["sh"], False),
    ):
        request = pb.ExecProcessRequest(container_id="c", process={"Args": arguments})
        assert (made.blocked(EXEC, request) == "") == right, arguments
    bare = policy(changed(livenessProbe=None, lifecycle=None))
    assert EXEC not in bare.allowed


def test_logs_and_ports() -> None:
    assert READ in policy().allowed
    assert READ not in policy(logs=False).allowed
    assert "kata.Forward.Connect" not in policy().allowed
    assert "kata.Forward.Connect" in policy(forward=True).allowed


def test_variables_with_any_value() -> None:
    request = creation("web", "/web", "--port", "80", env=("REDIS_PORT=1",))
    assert policy(variables=["REDIS_PORT"]).blocked(CREATE, request) == ""


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"image": "another"}, ["container web: what it runs is not known, and may be anything"]),
        ({"args": ["$(COLOR)"]}, ["container web: what it runs is not known, and may be anything"]),
        (
            {"envFrom": [{"secretRef": {"name": "s"}}]},
            ["container web: the names of envFrom are not known, and it may have any variables"],
        ),
        ({"args": ["--port", "81"]}, []),
    ],
)
def test_what_cannot_be_told_is_said(fields: dict[str, Any], said: list[str]) -> None:
    assert generate([changed(**fields)], {IMAGE: CONFIG}, Wishes()).warnings == said


def test_what_makes_pods_is_as_good_as_one() -> None:
    template = {"template": {"spec": POD["spec"]}}
    for document_ in (
        {"kind": "Deployment", "spec": template},
        {"kind": "CronJob", "spec": {"jobTemplate": {"spec": template}}},
    ):
        documents = [{"kind": "ConfigMap", "data": {}}, document_, None]
        assert generate(documents, {}, Wishes()).document["rules"][2]["name"] == "web"


@pytest.mark.parametrize(
    ("documents", "said"),
    [
        ([], "the manifest has no pods"),
        (["text", 5, {"spec": 5}, {"spec": {"template": []}}], "the manifest has no pods"),
        ([POD, POD], "the manifest has 2 pods"),
        ([{"spec": {"containers": 5}}], "containers of the manifest is no list of objects"),
        ([{"spec": {"containers": [5]}}], "containers of the manifest is no list of objects"),
        ([{"spec": {"containers": [{"name": 5}]}}], "name of the manifest is no text"),
        ([{"spec": {"containers": [{"command": "sh"}]}}], "command of the manifest is no list of texts"),
    ],
)
def test_what_is_no_manifest(documents: list[Any], said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        generate(documents, {}, Wishes())


def outcome(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, list[str]]:
    code = invoke(["policy", *words])
    said = capsys.readouterr()
    return code, said.out, said.err.splitlines()


def test_from_a_manifest_to_the_answer_to_a_request(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    busybox_rootfs(tmp_path / "rootfs")
    archive = write_oci_archive(tmp_path / "rootfs", CONFIG, tmp_path / "image.tar", "web:1")
    manifest, made, request = tmp_path / "pod.yaml", tmp_path / "policy.toml", tmp_path / "request.json"
    manifest.write_text(json.dumps(POD))
    words = ("generate", str(manifest), "--image", f"{IMAGE}={archive}", "--exec", "date -u")
    code, out, errors = outcome(capsys, *words)
    assert (code, errors) == (0, [])
    made.write_text(out)
    assert tomllib.loads(base64.b64decode(outcome(capsys, *words, "--base64")[1]).decode()) == tomllib.loads(out)
    assert outcome(capsys, "check", str(made)) == (0, "27 of 44 endpoints are allowed, with 6 rules\n", [])
    for command, told in (
        (["date", "-u"], (0, "ExecProcessRequest is allowed\n", [])),
        (["sh"], (1, "", ["kata: ExecProcessRequest is blocked by policy: rule 'date': process.Args is ['sh'], "])),
    ):
        request.write_text(json.dumps({EXEC: {"container_id": "web", "process": {"Args": command}}}))
        code, out, errors = outcome(capsys, "check", str(made), str(request))
        assert (code, out, [line[: len(told[2][0])] for line in errors if told[2]]) == told


def test_a_policy_under_which_no_sandbox_works_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "policy").write_text(f"[endpoints]\nallowed = {json.dumps([*NEEDED[1:]])}\n")
    code, _, errors = outcome(capsys, "check", str(tmp_path / "policy"))
    assert (code, errors) == (0, [f"kata: warning: no sandbox works without {NEEDED[0]}"])


@pytest.mark.parametrize(
    ("policy_", "request_", "said"),
    [
        ("x", None, "the policy is not TOML: "),
        (None, None, "cannot read "),
        ("", "x", " is not JSON: "),
        ("", "{}", " is no request"),
        ("", '{"Exec": {}}', ": there is no endpoint 'Exec'"),
        ("", '{"ExecProcessRequest": {"x": 5}}', 'has no field named "x"'),
        ("", '{"ExecProcessRequest": 5}', "/request: "),
    ],
)
def test_mistakes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, policy_: str | None, request_: str | None, said: str
) -> None:
    for name, content in (("policy", policy_), ("request", request_)):
        if content is not None:
            (tmp_path / name).write_text(content)
    words = [str(tmp_path / "policy"), *([str(tmp_path / "request")] if request_ is not None else [])]
    code, out, errors = outcome(capsys, "check", *words)
    assert (code, out) == (1, "")
    assert said in errors[0]
    assert len(errors) <= 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--exec", "'"), 'kata: --exec "\'": no closing quotation'),
        (("--exec", ""), "kata: --exec names no command"),
        (("--image", "web"), "kata: --image 'web' is not like NAME=ARCHIVE"),
        (("--image", "web=/nowhere.tar"), "kata: cannot open image /nowhere.tar: no such file"),
    ],
)
def test_mistakes_of_options(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    (tmp_path / "pod").write_text(json.dumps(POD))
    code, out, errors = outcome(capsys, "generate", str(tmp_path / "pod"), *words)
    assert (code, out) == (1, "")
    assert errors[0].startswith(said)


def test_a_manifest_that_is_no_yaml(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "pod").write_text("a: [")
    code, _, errors = outcome(capsys, "generate", str(tmp_path / "pod"))
    assert code == 1
    assert " is not YAML: " in errors[0]
