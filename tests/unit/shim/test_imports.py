"""A shim's process carries neither OpenSSL nor protobuf in Python; what would have used them works without."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
from kata.shim.imports import leave_out_openssl, load_asyncio
{before}
leave_out_openssl()
import kata.shim.prelaunch
load_asyncio()
import kata.shim.daemon, kata.runtime.launch.bring_up, kata.runtime.hypervisor.qemu.vm, qemu.qmp, hashlib, hmac, secrets
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
from kata.shim.imports import leave_out_pure_protobuf
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


_INSPECT = """
import asyncio, functools, sys
from kata.shim.imports import leave_out_inspect
real = sys.modules.pop("inspect")
leave_out_inspect()
import inspect
class Thing:
    async def method(self): pass
    def plain(self): pass
    def __await__(self): yield
@functools.wraps(Thing.method)
def wrapper(): pass
awaited = Thing().method()
cases = [wrapper, functools.partial(Thing.method), Thing, Thing.method, Thing().method, Thing().plain, Thing()]
cases += [awaited, len, None, print, 5]
for name in ("isawaitable", "iscoroutinefunction", "isfunction", "unwrap"):
    for case in cases:
        assert getattr(inspect, name)(case) == getattr(real, name)(case), (name, case)
awaited.close()
class Heir(Thing):
    name: str
    size: "int" = 1
for case in (Thing, Heir):
    assert inspect.get_annotations(case) == real.get_annotations(case), case
assert sys.modules["inspect"] is inspect, "neither of the two loads it"
assert inspect.signature(Thing.plain).parameters["self"].name == "self"
assert inspect.Parameter is inspect.Parameter, "once"
print(sys.modules["inspect"] is inspect)
"""


def test_what_asyncio_asks_of_inspect_is_answered_alike_and_all_else_loads_it() -> None:
    done = subprocess.run([sys.executable, "-c", _INSPECT], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"


def test_a_shim_loads_no_inspect() -> None:
    program = (
        "from kata.shim.imports import leave_out_inspect; leave_out_inspect()\n"
        "import sys, kata.shim.prelaunch, kata.shim.daemon, qemu.qmp\n"
        "import kata.runtime.launch.bring_up, kata.runtime.hypervisor.qemu.vm\n"
        "import kata.runtime.network.sandbox_network\n"
        "print(type(sys.modules['inspect']).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "_Inspect"
