"""A page in headless Chromium, driven over the DevTools protocol as a person would: keys, sizes, colour schemes.

Reference: https://chromedevtools.github.io/devtools-protocol (Page, Runtime, Emulation, Input, Log).
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import connect
from websockets.sync.connection import Connection

from kata.errors import Internal
from tests.support.waiting import eventually

_START_S = 60.0
_CALL_S = 60.0
_MAX_MESSAGE = 64 << 20
#: Keys that are pressed by name: code, and what they write.
_KEYS = {"Enter": (13, "\r"), "Escape": (27, ""), "ArrowUp": (38, ""), "ArrowDown": (40, ""), "/": (191, "/")}
_KEYS |= {"ArrowLeft": (37, ""), "ArrowRight": (39, ""), "Tab": (9, "")}


def missing() -> str | None:
    """What this host lacks for a browser, or None."""
    return None if shutil.which("chromium") else "chromium"


class Page:
    """A tab. Made by `browser`.

    Attributes:
        complaints: errors of scripts, violations of the content security policy, and what could not be loaded.
        requests: the URLs of all that was asked for.
    """

    def __init__(self, connection: Connection) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._connection = connection
        self._calls = 0
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """Make a call of the protocol; returns its result."""
        self._calls += 1
        self._connection.send(json.dumps({"id": self._calls, "method": method, "params": parameters}))
        deadline = time.monotonic() + _CALL_S
        while True:
            message = json.loads(self._connection.recv(timeout=max(0.1, deadline - time.monotonic())))
            if message.get("id") == self._calls:
                if "error" in message:
                    raise Internal(f"{method}: {message['error']['message']}")
                return message["result"]
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        what, parameters = message.get("method"), message.get("params", {})
        if what == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description") or details["text"])
        elif what == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif what == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.complaints.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")

    def open(self, url: str) -> None:
        """Load a page, and wait until it is."""
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'", "the page")

    def evaluate(self, expression: str) -> Any:
        """The value of an expression, as JSON."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise Internal(f"{expression}: {answer['exceptionDetails'].get('exception', {}).get('description')}")
        return answer["result"].get("value")

    def wait(self, expression: str, what: str, *, within_s: float = 60.0) -> Any:
        """Wait until an expression is true; return its value."""
        return eventually(lambda: self.evaluate(expression), what, within_s=within_s, poll_s=0.1)

    def text(self, selector: str = "body") -> str:
        """What an element shows."""
        return str(self.evaluate(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def press(self, key: str) -> None:
        """Press a key of `_KEYS`, or one that writes a letter."""
        code, writes = _KEYS.get(key, (ord(key.upper()[0]), key))
        common = {"key": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", **common, **({"text": writes} if writes else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def size(self, width: int, height: int, *, scale: int = 1) -> None:
        """Set the size of the window."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False
        )

    def scheme(self, name: str) -> None:
        """Prefer "light" or "dark"."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """Write a picture of the page."""
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))


@contextmanager
def browser(scratch: Path) -> Iterator[Page]:
    """A page in a browser of its own, which ends with it.

    Args:
        scratch: a directory for its profile and its log.
    """
    log = scratch / "chromium.log"
    options = (
        "--headless=new",
        "--no-sandbox",  # which root cannot have
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-extensions",
        "--remote-debugging-port=0",
        f"--user-data-dir={scratch / 'profile'}",
    )
    with log.open("wb") as output:
        # It ends with this process, and takes its children with it, since it is alone in its process group.
        command = ["setpriv", "--pdeathsig=SIGKILL", "--", "chromium", *options, "about:blank"]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output) as process:
            try:
                url = eventually(
                    lambda: re.search(r"DevTools listening on (ws://\S+)", log.read_text(errors="replace")),
                    "chromium",
                    wanted=lambda found: found or process.poll() is not None,
                    within_s=_START_S,
                )
                if url is None:
                    raise Internal(f"chromium ended with {process.poll()}: {log.read_text(errors='replace')[-2000:]}")
                with connect(url[1], max_size=_MAX_MESSAGE, proxy=None) as whole:
                    target = _ask(whole, "Target.createTarget", url="about:blank")["targetId"]
                    address = f"{url[1].rpartition('/devtools/')[0]}/devtools/page/{target}"
                    with connect(address, max_size=_MAX_MESSAGE, proxy=None) as connection:
                        yield Page(connection)
                    _ask(whole, "Browser.close")
                    process.wait(timeout=30)
            finally:
                process.kill()


def _ask(connection: Connection, method: str, **parameters: Any) -> Any:
    connection.send(json.dumps({"id": 1, "method": method, "params": parameters}))
    while True:
        message = json.loads(connection.recv(timeout=_CALL_S))
        if message.get("id") == 1:
            return message["result"]
