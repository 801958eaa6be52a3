"""A sandbox of this host, as far as a command sees it: it ends within each answer, or says what no sandbox should.

python dying_sandbox.py refuses|half|hostile TEXT
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from pathlib import Path
from typing import Any

from kata.management.protocol import SOCKET
from kata.runtime.ledger.journal import STATE_ROOT, Ledger

HOW, TEXT = sys.argv[1:]
DIRECTORY = Path(STATE_ROOT, "box")


def answers() -> dict[str, Any]:
    container = {"id": TEXT, "name": TEXT, "state": TEXT, "exit_status": TEXT, "execs": [{"state": TEXT}, {}]}
    figures = dict.fromkeys(("cpu_ns", "memory_bytes", "pids", "read_bytes", "written_bytes"), TEXT)
    return {
        "/sandbox": {
            "id": "box",
            "engine": TEXT,
            "state": TEXT,
            "why_ended": TEXT,
            "pid": TEXT,
            "pod": {"name": TEXT, "namespace": TEXT, "uid": TEXT},
            "vm": {"pid": TEXT, "vcpus": TEXT, "memory_mib": TEXT, "accelerator": TEXT, "log_directory": TEXT},
            "containers": [container, {**container, "id": "box"}],
        },
        "/stats": {"time": TEXT, "containers": {TEXT: figures}, "network": {TEXT: {"rx_bytes": TEXT}}, "vm": figures},
        "/process": {"args": [TEXT], "env": TEXT, "user": TEXT, "cwd": TEXT},
        "/agent-url": TEXT,
    }


def answer(connection: socket.socket) -> None:
    with connection:
        request = connection.recv(65536)
        path = request.split(b" ")[1].split(b"?")[0].decode() if request.count(b" ") > 1 else ""
        if HOW == "hostile":
            body = json.dumps(answers().get(path, TEXT)).encode()
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        elif HOW == "half":
            connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 4096\r\n\r\n{"id": "box", "containers": [')


def main() -> None:
    """Hold the ledger, as a sandbox that lives does, and answer until it is killed."""
    DIRECTORY.mkdir(parents=True)
    ledger = Ledger(str(DIRECTORY))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(DIRECTORY / SOCKET))
    (DIRECTORY / "timings.json").write_text(json.dumps({"began": 1.0, "phases": []}))
    (DIRECTORY / "console.log").write_text(f"{TEXT}\n")
    if HOW != "refuses":
        listener.listen(64)
    os.close(os.open(DIRECTORY / "ready", os.O_CREAT))
    while HOW != "refuses":
        threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()
    threading.Event().wait()
    ledger.close()


main()
