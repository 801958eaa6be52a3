"""A shim's process carries neither OpenSSL nor protobuf in Python; what would have used them works without."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
from kata.shim.lean import leave_out_openssl, load_asyncio
{before}
leave_out_openssl()
import kata.shim.early
load_asyncio()
import kata.shim.daemon, kata.sandbox.machine, qemu.qmp, hashlib, hmac, secrets
assert hashlib.sha256(b"abc").hexdigest().startswith("ba7816bf")
assert hmac.new(b"key", b"text", "sha256").hexdigest() and secrets.token_hex(4)
print("libcrypto" in open("/proc/self/maps").read())
"""


def _loads_openssl(before: str) -> str:
    program = _PROGRAM.format(before=before)
    return subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.strip()


def test_the_daemons_modules_work_without_openssl() -> None:
    assert _loads_openssl("") == "False"


def test_a_process_that_has_asyncio_already_is_left_as_it_is() -> None:
    assert _loads_openssl("import asyncio") == "True"


_MESSAGES = """
from kata.shim.lean import leave_out_pure_protobuf
leave_out_pure_protobuf()
import kata.shim.daemon, sys
from google.protobuf.any_pb2 import Any
from google.protobuf.timestamp_pb2 import Timestamp
from kata.protocols import agent_pb2
message = agent_pb2.CreateSandboxRequest(sandbox_id="s", dns=["a"])
holder = Any()
holder.Pack(message)
back = agent_pb2.CreateSandboxRequest()
assert holder.Unpack(back) and back == message and list(back.dns) == ["a"]
stamp = Timestamp()
stamp.FromNanoseconds(5)
assert stamp.ToNanoseconds() == 5 and "sandbox_id" in str(message)
print(hasattr(sys.modules["google.protobuf.internal.python_message"], "GeneratedProtocolMessageType"))
"""


def test_messages_work_without_protobuf_in_python() -> None:
    done = subprocess.run([sys.executable, "-c", _MESSAGES], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"
