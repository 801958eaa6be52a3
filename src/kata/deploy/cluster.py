"""What is asked of a cluster's API server: a node's label, and whether a DaemonSet is going.

These are three requests of HTTP, made with Python's own client: Kubernetes' client for Python would bring 30 MB of
generated code and six packages for them.

References: Kubernetes API, PATCH /api/v1/nodes/{name}, GET and DELETE
/apis/apps/v1/namespaces/{namespace}/daemonsets/{name}.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import ssl
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from kata.errors import DeadlineExceeded, FailedPrecondition, NotFound, PermissionDenied, Unavailable

LABEL = "katacontainers.io/kata-runtime"
#: Where a pod finds who it is.
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

_REQUEST_TIMEOUT_S = 10.0
#: For an API server that is being upgraded, or elected anew.
_RETRY_FOR_S = 120.0
_RETRY_EVERY_S = 2.0
#: A node with many images and conditions has a few hundred kilobytes.
_MAX_ANSWER = 8 << 20
_POLL_S = 1.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cluster:
    """The API server as a pod sees it.

    Attributes:
        url: of the server, e.g. "https://10.96.0.1:443".
        account: directory with `token` and `ca.crt`.
        retry_for: seconds for which a server that does not answer is asked again.
    """

    url: str
    account: Path = ACCOUNT
    retry_for: float = _RETRY_FOR_S

    @classmethod
    def of_this_pod(cls) -> Cluster:
        """The one that this pod runs in.

        Raises:
            FailedPrecondition: it runs in none.
        """
        host, port = (os.environ.get(f"KUBERNETES_SERVICE_{name}", "") for name in ("HOST", "PORT"))
        if not host or not port.isdecimal():
            raise FailedPrecondition(
                "this is no pod: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set",
                hint="without a cluster, run: kata setup containerd",
            )
        return cls(f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}")

    def label(self, node: str, value: str | None) -> None:
        """Label a node, or remove the label.

        Args:
            node: its name.
            value: of the label; None removes it.

        Raises:
            KataError: as `_request`.
        """
        patch = {"metadata": {"labels": {LABEL: value}}}
        self._request("PATCH", f"/api/v1/nodes/{node}", patch, content_type="application/merge-patch+json")

    def is_going(self, namespace: str, daemonset: str) -> bool:
        """Whether a DaemonSet is being removed, or has been.

        Raises:
            KataError: as `_request`, but for NotFound.
        """
        try:
            found = self._request("GET", _daemonset(namespace, daemonset))
        except NotFound:
            return True
        return bool(found.get("metadata", {}).get("deletionTimestamp"))

    def remove(self, namespace: str, daemonset: str, within_s: float) -> None:
        """Remove a DaemonSet, and wait until all its pods have ended: in the foreground, as the API calls that.

        Args:
            namespace: of the DaemonSet.
            daemonset: its name.
            within_s: seconds to wait.

        Raises:
            DeadlineExceeded: pods were still there.
            KataError: as `_request`, but for NotFound.
        """
        path = _daemonset(namespace, daemonset)
        deadline = time.monotonic() + within_s
        try:
            self._request("DELETE", path, {"propagationPolicy": "Foreground"})
            while time.monotonic() < deadline:
                self._request("GET", path)
                time.sleep(_POLL_S)
        except NotFound:
            return
        raise DeadlineExceeded(
            f"pods of DaemonSet {namespace}/{daemonset} have not ended within {within_s:.0f} s",
            hint=f"see: kubectl --namespace {namespace} get pods --output wide",
        )

    def _request(
        self, method: str, path: str, body: Any = None, *, content_type: str = "application/json"
    ) -> dict[str, Any]:
        """Ask, again and again while there is no answer or the server has a problem of its own.

        Raises:
            Unavailable: there was no answer in time.
            PermissionDenied: the service account may not do this.
            NotFound: there is no such object.
            FailedPrecondition: the request was refused in another way.
        """
        deadline = time.monotonic() + self.retry_for
        while True:
            try:
                return self._request_once(method, path, body, content_type)
            except Unavailable as error:
                if time.monotonic() + _RETRY_EVERY_S > deadline:
                    raise
                log.info("%s; asking again", error.message)
            time.sleep(_RETRY_EVERY_S)

    def _request_once(self, method: str, path: str, body: Any, content_type: str) -> dict[str, Any]:
        # Each time anew: the kubelet renews the token.
        try:
            token = (self.account / "token").read_text(encoding="ascii").strip()
            context = ssl.create_default_context(cafile=str(self.account / "ca.crt"))
        except (OSError, ValueError) as error:
            raise FailedPrecondition(
                f"no service account in {self.account}: {error}", hint="set automountServiceAccountToken: true"
            ) from None
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {token}", "Content-Type": content_type, "Accept": "application/json"},
        )
        # Proxies of the environment are for the world outside of the cluster.
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        try:
            with opener.open(request, timeout=_REQUEST_TIMEOUT_S) as answer:
                document = json.loads(answer.read(_MAX_ANSWER))
        except urllib.error.HTTPError as error:
            with error:
                _refuse(f"{method} {path}", error.code, error.read(_MAX_ANSWER))
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise FailedPrecondition(
                    f"{self.url} is not the API server of this service account: {reason.verify_message}"
                ) from None
            raise Unavailable(
                f"no answer from the API server at {self.url}: {reason}", hint="is the network of this node up?"
            ) from None
        except ValueError:
            raise Unavailable(f"the API server at {self.url} answered {method} {path} with no JSON") from None
        return document if isinstance(document, dict) else {}


def _daemonset(namespace: str, name: str) -> str:
    return f"/apis/apps/v1/namespaces/{namespace}/daemonsets/{name}"


def _refuse(what: str, code: int, content: bytes) -> NoReturn:
    """Say what an answer that is an error means; it is a `Status`, whose message is for people.

    Raises:
        Unavailable: the server has a problem of its own.
        PermissionDenied: the service account may not do this.
        NotFound: there is no such object.
        FailedPrecondition: it is another refusal.
    """
    try:
        said = str(json.loads(content)["message"])[:300]
    except (ValueError, KeyError, TypeError):
        said = f"status {code}"
    words = f"{what}: {said}"
    if code == http.client.NOT_FOUND:
        raise NotFound(words) from None
    if code in (http.client.UNAUTHORIZED, http.client.FORBIDDEN):
        raise PermissionDenied(words, hint="apply the chart's RBAC rules (ClusterRole and its binding) again") from None
    if code in (http.client.TOO_MANY_REQUESTS, http.client.REQUEST_TIMEOUT) or code >= 500:
        raise Unavailable(words) from None
    raise FailedPrecondition(words) from None
