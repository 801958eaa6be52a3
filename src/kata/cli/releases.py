"""Which releases there are: asked of the project's package index, within a deadline.

Reference: the JSON API of PyPI, https://docs.pypi.org/api/json/.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from kata.errors import KataError, NotFound, Unavailable

PROJECT = "pykata"
#: Kata's variable for another place to ask.
VARIABLE = "KATA_RELEASE_URL"
_URL = f"https://pypi.org/pypi/{PROJECT}/json"
_SUMMARY = "Kata Containers in Python"
_TIMEOUT_S = 5.0
_MAX_ANSWER = 8 << 20
#: PEP 440, as far as this project's versions go.
_VERSION = re.compile(r"(\d{1,9}(?:\.\d{1,9}){0,4})(?:(a|b|rc)(\d{1,9}))?", re.ASCII)


def sort_key(version: str) -> tuple[tuple[int, ...], str, int] | None:
    """What orders versions, pre-releases before their release; None for what is no version of this project."""
    found = _VERSION.fullmatch(version)
    if found is None:
        return None
    # "~" is behind the letters of pre-releases.
    return tuple(int(part) for part in found[1].split(".")), found[2] or "~", int(found[3] or 0)


def newer(current: str, versions: Sequence[str], *, include_all: bool) -> list[str]:
    """Those behind `current`, the oldest first; pre-releases only with `include_all`."""
    mine = sort_key(current)
    keyed = [(key, version) for version in versions if (key := sort_key(version)) is not None]
    return [
        version for key, version in sorted(keyed) if (mine is None or key > mine) and (include_all or key[1] == "~")
    ]


def parse(document: bytes) -> list[str]:
    """The versions in an answer of the index that have not been withdrawn.

    Raises:
        ValueError: it is no such answer, or about another project of the same name.
    """
    content = json.loads(document)
    if not isinstance(content, dict) or not isinstance(content.get("releases"), dict):
        raise ValueError("not an answer of a package index")
    info = content.get("info")
    if not isinstance(info, dict) or not str(info.get("summary")).startswith(_SUMMARY):
        raise ValueError("another project of that name")
    return [
        version
        for version, files in content["releases"].items()
        if isinstance(files, list) and any(isinstance(file, dict) and not file.get("yanked") for file in files)
    ]


def fetch(environ: Mapping[str, str] = os.environ, *, timeout: float = _TIMEOUT_S) -> list[str]:
    """Ask the index for all versions.

    Args:
        environ: KATA_RELEASE_URL is asked instead; proxies are as in urllib.
        timeout: seconds for all of it, name resolution included.

    Raises:
        Unavailable: it could not be reached, took too long, or its answer is not one.
        NotFound: it has no release of this project.
    """  # noqa: DOC501 - what is raised again is a NotFound
    url = environ.get(VARIABLE) or _URL
    where = urlsplit(url).hostname or url
    answers: list[bytes | Exception] = []

    def ask() -> None:
        try:
            answers.append(_get(url, timeout))
        except Exception as error:
            answers.append(error)

    # In a thread: no deadline holds for the resolution of a name.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    answer = answers[0] if answers else TimeoutError()
    try:
        if isinstance(answer, bytes):
            return parse(answer)
        raise answer
    except KataError:
        raise
    except Exception as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):  # of the thread or of the connection, whichever came first
            reason = f"no answer within {timeout:g} s"
        reason = getattr(reason, "strerror", None) or str(reason)
        raise Unavailable(f"cannot ask {where} for releases: {reason}") from error


def _get(url: str, timeout: float) -> bytes:
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    deadline = time.monotonic() + timeout
    if not url.startswith(("https://", "http://")):
        raise ValueError("not an address of HTTP")
    request = Request(url, headers={"Accept": "application/json"})
    try:
        with urlopen(request, timeout=timeout) as response:
            content = b""
            while chunk := response.read1(1 << 16):
                content += chunk
                if len(content) > _MAX_ANSWER:
                    raise ValueError(f"the answer is longer than {_MAX_ANSWER} bytes")
                if time.monotonic() > deadline:
                    raise TimeoutError
            return content
    except HTTPError as error:
        with error:
            if error.code == 404:
                raise NotFound(f"{urlsplit(url).hostname} has no release of {PROJECT}") from None
            raise ValueError(f"HTTP status {error.code}") from None
