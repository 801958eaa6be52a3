"""Where the agent keeps things. The names below /run/kata-containers are Kata's, and the host relies on them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Paths:
    """Directories, as absolute paths without a trailing slash.

    Attributes:
        base: bundles (`<base>/<container id>`) and everything that the host may name in a request.
        run: the agent's own files that live as long as a call: console sockets.
        namespaces: the sandbox's pinned namespaces.
        crun: crun's state.
        cgroup: the parent of the containers' cgroups.
    """

    base: str = "/run/kata-containers"
    run: str = "/run/kata-agent"
    namespaces: str = "/run/sandbox-ns"
    crun: str = "/run/crun"
    cgroup: str = "/sys/fs/cgroup/kata"

    @property
    def shared(self) -> str:
        """Where the host's shared directory is mounted; CopyFile writes here too."""
        return f"{self.base}/shared/containers"

    @property
    def sandbox(self) -> str:
        """What belongs to the sandbox and to no container: shm, ephemeral volumes, resolv.conf."""
        return f"{self.base}/sandbox"

    @classmethod
    def under(cls, directory: str) -> Paths:
        """Everything below one directory: for an agent that runs as an ordinary process."""
        return cls(
            base=f"{directory}/kata-containers",
            run=f"{directory}/agent",
            namespaces=f"{directory}/sandbox-ns",
            crun=f"{directory}/crun",
        )
