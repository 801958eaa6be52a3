"""Installing on a node, and taking it back: steps each of which can be repeated, in an order that can be interrupted.

The journal comes first and goes last. Installed are then the tree, the engine's configuration, and when containerd has
read that, the label, so that no pod is sent to a node before its runtime is there; taken back are these in reverse.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kata.deploy import journal, tree
from kata.deploy.cluster import LABEL, Cluster
from kata.deploy.journal import Journal
from kata.deploy.node import Node
from kata.errors import FailedPrecondition, InvalidArgument, KataError

_ENGINE = "containerd"
#: What `kata setup` and `kata unset` say when they change nothing.
_SET_UP = f"{_ENGINE} is set up already"
_NOT_SET_UP = "nothing was set up"
#: Of nodes: what sandboxes have, and what is kept between them.
_RUNNING = "/run/kata"
_KEPT = ("/var/cache/kata", journal.DIRECTORY)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What is wanted on a node.

    Attributes:
        source: the tree to install, here.
        prefix: where, on the node; an absolute path.
        config: containerd's configuration, on the node; None for the usual one.
        node_name: in the cluster; None to label nothing.
        restart: whether containerd may be restarted; otherwise a person has to.
        within_s: seconds to wait for that; None for as long as it takes.

    Raises:
        InvalidArgument: prefix or configuration are no paths to write to.
    """

    source: Path
    prefix: str
    config: str | None = None
    node_name: str | None = None
    restart: bool = False
    within_s: float | None = None

    def __post_init__(self) -> None:
        for what, path in (("prefix", self.prefix), ("configuration", self.config or "/x")):
            parts = PurePosixPath(path).parts
            if parts[:1] != ("/",) or len(parts) < 2 or ".." in parts:
                raise InvalidArgument(f"{what} {path[:100]!r} is no absolute path")
        if len(PurePosixPath(self.prefix).parts) < 3:
            raise InvalidArgument(
                f"prefix {self.prefix} is a top directory of the node", hint="choose one below it, such as /opt/kata"
            )

    @property
    def options(self) -> tuple[str, ...]:
        """Of `kata setup`."""
        return ("--config", self.config) if self.config else ()


def install(node: Node, request: Request, cluster: Cluster, pause: Callable[[float], object] = time.sleep) -> None:
    """Install on a node, or finish that.

    Args:
        node: the node.
        request: what is wanted.
        cluster: whose node it is.
        pause: see `Node.await_engine`.

    Raises:
        FailedPrecondition: the prefix is somebody else's.
        KataError: it cannot be done; nothing was changed, or what had been installed before stays.
    """
    node.check()
    journals = node.path(f"{journal.DIRECTORY}/x").parent
    begun = journal.load(journals)
    prefix = node.path(request.prefix)
    moves = begun is not None and begun.prefix != request.prefix
    if (begun is None or moves) and os.path.lexists(prefix):
        raise FailedPrecondition(
            f"the node has a {request.prefix} that kata-deploy has not made: another Kata, perhaps",
            hint="remove it (Kata's own: by its kata-deploy cleanup), or choose another prefix",
        )
    if begun and moves:
        log.info("moving from %s to %s", begun.prefix, request.prefix)
        _take_back(node, request, begun)
        begun = None
    try:
        stale = _put_tree(node, request, journals, begun, prefix)
        for line in node.kata(request.prefix, "setup", _ENGINE, "--yes", *request.options).splitlines():
            log.info("%s", line)
    except KataError:
        if begun is None:
            with suppress(KataError, OSError):
                _take_back(node, request, Journal(request.prefix))
        raise
    if stale and node.engine() == stale:
        if request.restart:
            log.info("restarting %s", node.service)
            node.restart_engine()
        else:
            log.warning("on the node, run: systemctl restart %s; waiting until it was restarted", node.service)
    node.await_engine(stale, request.within_s, pause)
    if request.node_name:
        cluster.label(request.node_name, "true")
        log.info("node %s has the label %s=true", request.node_name, LABEL)


def _put_tree(node: Node, request: Request, journals: Path, begun: Journal | None, prefix: Path) -> str:
    """Have the tree in its place; returns which containerd does not know yet of what is about to be changed.

    Raises:
        FailedPrecondition: the journal cannot be written.
        KataError: the tree cannot be written, or the engine cannot be set up; what was there is untouched.
    """
    stale = begun.stale if begun else ""
    try:
        if begun is None:
            journal.write(Journal(request.prefix), journals)
        is_installed = tree.is_installed(request.source, prefix)
        with ExitStack() as undo:
            staged = prefix
            if not is_installed:
                staged = tree.stage(request.source, prefix)
                undo.callback(shutil.rmtree, staged, ignore_errors=True)
            # By the new version, before anything can be seen of it.
            where = str(PurePosixPath(request.prefix).with_name(staged.name))
            said = node.kata(where, "setup", _ENGINE, "--dry-run", *request.options)
            if _SET_UP not in said.splitlines():
                stale = node.engine()
            journal.write(Journal(request.prefix, stale), journals)
            if not is_installed:
                tree.put(staged, prefix)
                log.info("%s is in its place", request.prefix)
    except OSError as error:
        raise FailedPrecondition(f"cannot write {journals}: {(error.strerror or str(error)).lower()}") from None
    return stale


def clean_up(node: Node, request: Request, cluster: Cluster) -> None:
    """Take back what was installed on a node; sandboxes that run go on.

    Args:
        node: the node.
        request: prefix and source do not matter: the journal knows.
        cluster: whose node it is.

    Raises:
        FailedPrecondition: the label stays.
        KataError: something else does; the message says what.
    """
    unlabelled: KataError | None = None
    if request.node_name:
        try:
            # First: no pod is sent here from now on.
            cluster.label(request.node_name, None)
        except KataError as error:
            unlabelled = error
    begun = journal.load(node.path(f"{journal.DIRECTORY}/x").parent)
    if begun is None:
        log.info("nothing was installed on this node")
    else:
        _take_back(node, request, begun)
        log.info("%s was removed", begun.prefix)
    if unlabelled:
        raise FailedPrecondition(
            f"the label stays: {unlabelled.message}", hint=f"run: kubectl label node {request.node_name} {LABEL}-"
        )


def _take_back(node: Node, request: Request, begun: Journal) -> None:
    """Take back what a journal says, the journal last.

    Raises:
        FailedPrecondition: something cannot be removed.
        KataError: containerd's configuration was edited, or containerd does not start.
    """
    journals = node.path(f"{journal.DIRECTORY}/x").parent
    prefix = node.path(begun.prefix)
    stale = begun.stale
    try:
        if (prefix / "bin/kata").exists():
            if _NOT_SET_UP not in node.kata(begun.prefix, "unset", _ENGINE, "--dry-run").splitlines():
                stale = node.engine()
                journal.write(Journal(begun.prefix, stale), journals)
            node.kata(begun.prefix, "unset", _ENGINE, "--yes")
        if request.restart and stale and node.engine() == stale:
            log.info("restarting %s", node.service)
            node.restart_engine()
        tree.remove(prefix)
        _remove_kept(node)
        journal.remove(journals)
    except OSError as error:
        raise FailedPrecondition(
            f"cannot remove {error.filename or prefix}: {(error.strerror or str(error)).lower()}"
        ) from None


def _remove_kept(node: Node) -> None:
    """Remove templates and all else that sandboxes have left for later ones, unless some run. Raises OSError."""
    running = node.path(_RUNNING)
    if running.is_dir():
        for path in (*running.glob("start-slot-*"), running / "accel.json"):
            path.unlink(missing_ok=True)
        with suppress(OSError):
            running.rmdir()
        if running.is_dir():
            log.warning(
                "sandboxes run, and go on; remove %s on the node when they have ended", " and ".join((_RUNNING, *_KEPT))
            )
            return
    for name in _KEPT:
        directory = node.path(name)
        for path in sorted(directory.iterdir()) if directory.is_dir() else ():
            if path.name == journal.NAME:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        if name != journal.DIRECTORY and directory.is_dir():
            directory.rmdir()
