"""An API server that knows one node and one DaemonSet: what the installer asks of it, over TLS, and nothing else."""

from __future__ import annotations

import json
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

NODE = "worker-1"
DAEMONSET = "/apis/apps/v1/namespaces/kata-system/daemonsets/kata-deploy"
TOKEN = "a-token"


@dataclass
class FakeCluster:
    """Its state.

    Attributes:
        url: of the server.
        account: a service account's directory.
        labels: of the node.
        daemonset: whether it is there; "going" while it is being removed.
        answers_to_come: statuses with which the next requests are refused.
        gone_after: how many requests a DaemonSet that is going stays for.
        requests: method, path and type of content of each.
    """

    url: str = ""
    account: Path = Path()
    labels: dict[str, str] = field(default_factory=lambda: {"kubernetes.io/os": "linux"})
    daemonset: str = "there"
    answers_to_come: list[int] = field(default_factory=list)
    gone_after: int = 2
    requests: list[tuple[str, str, str]] = field(default_factory=list)

    def answer(self, method: str, path: str, kind: str, token: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """Status and document for a request."""
        self.requests.append((method, path, kind))
        if token != f"Bearer {TOKEN}":
            return 401, {"message": "Unauthorized"}
        if self.answers_to_come:
            status = self.answers_to_come.pop(0)
            return status, {"message": f"refused with {status}"}
        if path == f"/api/v1/nodes/{NODE}" and method == "PATCH" and kind == "application/merge-patch+json":
            for name, value in json.loads(body)["metadata"]["labels"].items():
                if value is None:
                    self.labels.pop(name, None)
                else:
                    self.labels[name] = value
            return 200, {"metadata": {"labels": self.labels}}
        if path == DAEMONSET and method in ("GET", "DELETE") and self.daemonset:
            if method == "DELETE":
                assert json.loads(body)["propagationPolicy"] == "Foreground"
                self.daemonset = "going"
            elif self.daemonset == "going":
                self.gone_after -= 1
                if self.gone_after <= 0:
                    self.daemonset = ""
            return 200, {"metadata": {"deletionTimestamp": "2026-12-01T00:00:00Z"} if self.daemonset == "going" else {}}
        return 404, {"message": f'"{path}" not found'}


@contextmanager
def fake_cluster(directory: Path) -> Iterator[FakeCluster]:
    """Serve one on the loopback, with a certificate and a token in a directory."""
    cluster = FakeCluster(account=directory)
    certificate, key = directory / "ca.crt", directory / "key"
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", *names]
    subprocess.run(
        [*command, "-days", "2", "-keyout", key, "-out", certificate], check=True, capture_output=True, timeout=60
    )
    (directory / "token").write_text(f"{TOKEN}\n")

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            kind, token = self.headers.get("Content-Type", ""), self.headers.get("Authorization", "")
            status, document = cluster.answer(self.command, self.path, kind, token, self.rfile.read(length))
            content = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PATCH = do_DELETE = _serve

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    cluster.url = f"https://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield cluster
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
