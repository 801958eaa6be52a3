"""A shim's process does not carry OpenSSL; what would have used it works without."""

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
